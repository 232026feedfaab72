"""What is seen: each observation folds into whole values, and what is stale or strange changes nothing."""

import pytest
from msgspec.structs import replace
from rpds import HashTrieMap, HashTrieSet

from galactica.scheduler.core.model.commands import Verb
from galactica.scheduler.core.model.spec import Resources, RuntimeKind
from galactica.scheduler.core.sight.observations import (
    Answer,
    Attached,
    CellReport,
    CellState,
    Detached,
    Observation,
    Reported,
    ServerFacts,
    WillRead,
)
from galactica.scheduler.core.sight.observations import (
    Testimony as Saying,  # a name that pytest does not take for a test
)
from galactica.scheduler.core.sight.observe import Observed, observe
from galactica.scheduler.core.sight.state import (
    ServerSight,
    Sight,
    Told,
    Vitals,
    doubt,
    forget,
    forget_place,
    listen,
    tell,
)

FACTS = ServerFacts({"zone": "a"}, Resources(4_000), 9, (RuntimeKind.PROCESS,), "0.1")
ONE = CellReport("web/0.1", "d", CellState.RUNNING, "pid 7")
TWO = CellReport("web/1.1", "d", CellState.STARTING)
ONE_DEAD = replace(ONE, state=CellState.EXITED)
VITALS = Vitals(cpu_fraction=0.5)
ATTACHED = Attached("a", "s1", 100.0, FACTS, (ONE, TWO))
BASE = ServerSight(
    "s1",
    100.0,
    100.0,
    facts=FACTS,
    reports=HashTrieMap({"web/0.1": ONE, "web/1.1": TWO}),
    machine_since=100.0,
)


def sight_of(seen: ServerSight, trusted_since: float = 0.0) -> Sight:
    is_well = seen.is_open and not seen.ailing
    well = HashTrieSet(["a"] if is_well else [])
    return Sight(trusted_since, HashTrieMap({"a": seen}), well=well)


def report(sequence: int = 1, at: float = 101.0, *cells: CellReport, **more) -> Reported:
    return Reported("a", more.pop("session", "s1"), sequence, at, cells, **more)


def test_an_attachment_shows_the_whole_inventory_and_everything_is_news() -> None:
    expected = Observed(sight_of(BASE, 7.0), "a", ("web/0.1", "web/1.1"), everything=True, servers=("a",))
    assert observe(Sight(trusted_since=7.0), ATTACHED) == expected


def test_a_new_session_starts_from_nothing_that_the_old_one_showed_or_was_told() -> None:
    old = tell(
        doubt(sight_of(replace(BASE, sequence=9, vitals=VITALS)), "a"), "a", "web/0.1", Verb.ORDER, 100.5
    )
    again = Attached("a", "s2", 110.0, FACTS, (TWO,))
    fresh = ServerSight(
        "s2",
        110.0,
        110.0,
        facts=FACTS,
        reports=HashTrieMap({"web/1.1": TWO}),
        machine_since=110.0,
        elsewhere_heard_at=100.0,
    )
    assert observe(old, again) == Observed(
        sight_of(fresh), "a", ("web/1.1",), everything=True, servers=("a",)
    )


def test_when_another_machine_was_heard_last_is_remembered_in_all_sessions_of_this_one() -> None:
    sight = observe(Sight(), replace(ATTACHED, machine="one")).sight
    sight = observe(sight, report(1, 104.0)).sight
    for number, (machine, elsewhere_heard_at) in enumerate([("two", 104.0), ("two", 104.0), ("one", 111.0)]):
        sight = observe(sight, Attached("a", f"t{number}", 110.0 + number, FACTS, (), machine)).sight
        assert sight.servers["a"].elsewhere_heard_at == elsewhere_heard_at


@pytest.mark.parametrize(
    ("machine", "since"), [("one", 100.0), ("two", 110.0), ("", 110.0)], ids=["same", "another", "unknown"]
)
def test_since_when_a_machine_alone_is_heard_counts_from_the_first_of_its_sessions(
    machine: str, since: float
) -> None:
    first = observe(Sight(), replace(ATTACHED, machine="one")).sight
    again = Attached("a", "s2", 110.0, FACTS, (TWO,), machine)
    assert observe(first, again).sight.servers["a"].machine_since == since


@pytest.mark.parametrize(
    ("before", "reported", "after", "news"),
    [
        pytest.param(BASE, report(), {"heard_at": 101.0, "sequence": 1}, {}, id="a beat"),
        pytest.param(
            BASE,
            report(1, 101.0, ONE_DEAD),
            {
                "heard_at": 101.0,
                "sequence": 1,
                "reports": HashTrieMap({"web/0.1": ONE_DEAD, "web/1.1": TWO}),
                "well_until": HashTrieMap({"web/0.1": 100.0}),
            },
            {"cells": ("web/0.1",)},
            id="a change of one cell",
        ),
        pytest.param(
            BASE,
            report(1, 101.0, vitals=VITALS),
            {"heard_at": 101.0, "sequence": 1, "vitals": VITALS},
            {"servers": ("a",)},
            id="the first vitals, on which readiness waits",
        ),
        pytest.param(
            replace(BASE, vitals=VITALS),
            report(),
            {"heard_at": 101.0, "sequence": 1, "vitals": VITALS},
            {},
            id="vitals stay until others come",
        ),
        pytest.param(
            BASE,
            report(1, 101.0, ONE, complete=True),
            {"heard_at": 101.0, "sequence": 1, "reports": HashTrieMap({"web/0.1": ONE})},
            {"cells": ("web/0.1",), "everything": True},
            id="the whole inventory",
        ),
        pytest.param(
            BASE, report(1, 102.0), {"heard_at": 102.0, "sequence": 1}, {}, id="a silence that is no news"
        ),
        pytest.param(
            BASE, report(1, 102.1), {"heard_at": 102.1, "sequence": 1}, {"servers": ("a",)}, id="a silence that is news"
        ),
        pytest.param(
            BASE,
            report(3),
            {"heard_at": 101.0, "sequence": 3, "is_doubtful": True},
            {"servers": ("a",)},
            id="a hole in the numbers",
        ),
        pytest.param(
            replace(BASE, sequence=3, is_doubtful=True),
            report(4),
            {"heard_at": 101.0, "sequence": 4},
            {},
            id="doubt stays",
        ),
        pytest.param(
            replace(BASE, sequence=3, is_doubtful=True),
            report(4, 101.0, ONE, TWO, complete=True),
            {"heard_at": 101.0, "sequence": 4, "is_doubtful": False},
            {"cells": ("web/0.1", "web/1.1"), "everything": True},
            id="doubt ends with everything",
        ),
        pytest.param(
            BASE,
            report(5, 101.0, ONE, TWO, complete=True),
            {"heard_at": 101.0, "sequence": 5},
            {"cells": ("web/0.1", "web/1.1"), "servers": ("a",), "everything": True},
            id="a hole closed by everything",
        ),
    ],
)  # fmt: skip
def test_a_report_changes_what_it_says_and_tells_what_is_news(before, reported, after, news) -> None:
    assert observe(sight_of(before), reported) == Observed(sight_of(replace(before, **after)), "a", **news)


@pytest.mark.parametrize(
    ("seen", "observation"),
    [
        pytest.param(BASE, report(1, 101.0, ONE_DEAD, session="s0"), id="a report of an older session"),
        pytest.param(replace(BASE, sequence=2), report(2, 101.0, ONE_DEAD), id="a repeated report"),
        pytest.param(replace(BASE, sequence=2), report(1, 101.0, ONE_DEAD), id="an overtaken report"),
        pytest.param(replace(BASE, closed_at=100.5), report(1, 101.0, ONE_DEAD), id="a report after the end"),
        pytest.param(BASE, Reported("b", "s1", 1, 101.0, (ONE_DEAD,)), id="a report of an unknown server"),
        pytest.param(BASE, Detached("a", "s0", 101.0), id="the end of an older session"),
        pytest.param(replace(BASE, closed_at=100.5), Detached("a", "s1", 101.0), id="a second end"),
        pytest.param(BASE, Detached("b", "s1", 101.0), id="the end of an unknown server"),
    ],
)
def test_what_is_stale_changes_nothing(seen: ServerSight, observation: Observation) -> None:
    sight = sight_of(seen)
    observed = observe(sight, observation)
    assert observed == Observed(sight)
    assert observed.sight is sight


def test_a_session_that_ends_keeps_what_it_showed() -> None:
    closed = replace(BASE, closed_at=105.0)
    assert observe(sight_of(BASE), Detached("a", "s1", 105.0, "reset")) == Observed(
        sight_of(closed), servers=("a",)
    )
    assert (BASE.is_open, closed.is_open) == (True, False)


def test_reports_are_of_one_server_alone() -> None:
    sight = sight_of(BASE)
    assert sight.report_of("a", "web/0.1") == ONE
    assert sight.report_of("a", "web/9.1") is None
    assert sight.report_of("b", "web/0.1") is None


def test_the_newest_thing_told_about_a_cell_is_remembered() -> None:
    sight = tell(
        tell(sight_of(BASE), "a", "web/0.1", Verb.ORDER, 101.0), "a", "web/0.1", Verb.DECOMMISSION, 102.0
    )
    assert sight == sight_of(replace(BASE, told=HashTrieMap({"web/0.1": Told(Verb.DECOMMISSION, 102.0)})))


def test_a_cell_that_is_forgotten_leaves_nothing_behind() -> None:
    sight = tell(sight_of(BASE), "a", "web/0.1", Verb.ORDER, 101.0)
    assert forget(sight, "a", "web/0.1") == sight_of(replace(BASE, reports=HashTrieMap({"web/1.1": TWO})))
    only_told = tell(sight_of(BASE), "a", "web/5.1", Verb.ORDER, 101.0)
    assert forget(only_told, "a", "web/5.1") == sight_of(BASE)


def test_doubt_is_about_one_server() -> None:
    assert doubt(sight_of(BASE), "a") == sight_of(replace(BASE, is_doubtful=True))


def test_what_is_not_seen_is_not_told_forgotten_or_doubted() -> None:
    sight = sight_of(BASE)
    assert tell(sight, "b", "web/0.1", Verb.ORDER, 1.0) is sight
    assert doubt(sight, "b") is sight
    assert forget(sight, "b", "web/0.1") is sight
    assert forget(sight, "a", "web/9.1") is sight


# --- what neighbours, the bus and providers say ---------------------------------------------------------------------


SILENT = Saying("b", Answer.SILENT, 100.5)
ANSWERS = Saying("b", Answer.ANSWERS, 101.5)


def test_the_newest_testimony_of_each_neighbour_counts_until_it_is_withdrawn() -> None:
    first = observe(sight_of(BASE), report(1, 101.0, testimonies=(SILENT,)))
    assert (first.servers, first.sight.about) == (("b",), HashTrieMap({"b": HashTrieMap({"a": SILENT})}))
    second = observe(first.sight, report(2, 102.0, testimonies=(ANSWERS,)))
    assert (second.servers, second.sight.about) == (("b",), HashTrieMap({"b": HashTrieMap({"a": ANSWERS})}))
    third = observe(second.sight, report(3, 103.0, withdrawn=("b",)))
    assert (third.servers, third.sight.about) == (("b",), HashTrieMap())


def test_what_one_neighbour_withdraws_another_still_says() -> None:
    other = HashTrieMap({"b": HashTrieMap({"a": SILENT, "c": SILENT})})
    sight = replace(sight_of(BASE), about=other)
    after = observe(sight, report(1, 101.0, withdrawn=("b",))).sight
    assert after.about == HashTrieMap({"b": HashTrieMap({"c": SILENT})})


def test_a_last_will_is_news_and_an_attachment_revokes_it() -> None:
    read = observe(sight_of(BASE), WillRead("a", 101.0))
    assert read == Observed(replace(sight_of(BASE), wills=HashTrieMap({"a": 101.0})), servers=("a",))
    assert observe(read.sight, ATTACHED).sight.wills == HashTrieMap()


def test_a_server_that_is_gone_for_good_is_forgotten_with_all_that_it_said_and_others_said_of_it() -> None:
    said = HashTrieMap({"b": HashTrieMap({"a": SILENT, "c": SILENT}), "c": HashTrieMap({"a": SILENT})})
    sight = replace(
        observe(sight_of(BASE), report(1, 101.0, vitals=Vitals(disk_fraction=1.0))).sight,
        about=said.insert("a", HashTrieMap({"b": SILENT})),
        wills=HashTrieMap({"a": 1.0, "b": 2.0}),
    )
    assert forget_place(sight, "a") == Sight(
        about=HashTrieMap({"b": HashTrieMap({"c": SILENT})}), wills=HashTrieMap({"b": 2.0})
    )
    assert forget_place(sight_of(BASE), "a") == Sight()


def test_a_doubt_that_ends_counts_like_a_probe_that_passes_again() -> None:
    in_doubt = CellReport("web/0.1", "d", CellState.RUNNING, doubt="no layer")
    well = CellReport("web/0.1", "d", CellState.RUNNING)
    sight = observe(sight_of(BASE), report(1, 101.0, in_doubt)).sight
    sight = observe(sight, report(2, 102.0, well)).sight
    assert sight.servers["a"].recovered == HashTrieMap({"web/0.1": 102.0})


@pytest.mark.parametrize(
    ("reports", "well_until"),
    [
        pytest.param([report(1, 101.0)], {}, id="a beat"),
        pytest.param([report(1, 101.0), report(2, 102.0, ONE_DEAD)], {"web/0.1": 101.0}, id="a death"),
        pytest.param(
            [report(1, 101.0, ONE_DEAD), report(2, 102.0, ONE_DEAD)], {"web/0.1": 100.0}, id="told again"
        ),
        pytest.param([report(1, 101.0, TWO, complete=True)], {"web/0.1": 100.0}, id="it is there no more"),
        pytest.param(
            [report(1, 101.0, replace(ONE, doubt="no answer")), report(2, 102.0, ONE)],
            {},
            id="in doubt for a while",
        ),
    ],
)
def test_it_is_known_when_a_cell_was_last_heard_well(reports, well_until) -> None:
    sight = sight_of(replace(BASE, machine="m"))
    for one in reports:
        sight = observe(sight, one).sight
    assert dict(sight.servers["a"].well_until.items()) == well_until
    attached = replace(ATTACHED, machine="m", inventory=(ONE, TWO))
    assert not observe(sight, attached).sight.servers["a"].well_until


def test_the_first_word_after_missed_beats_begins_what_is_heard_anew() -> None:
    sight = sight_of(BASE)
    for sequence, (at, heard_since) in enumerate([(102.5, 0.0), (105.1, 105.1), (106.0, 105.1)], 1):
        sight = observe(sight, report(sequence, at)).sight
        assert sight.servers["a"].heard_since == heard_since


def test_a_cell_that_waits_for_a_servers_next_word_is_news_by_it_once() -> None:
    sight = listen(sight_of(BASE), "a", "web/1.1")
    heard = observe(sight, report(1, 101.0))
    assert heard.awaited == ("web/1.1",)
    assert observe(heard.sight, report(2, 102.0)).awaited == ()
    assert observe(sight, ATTACHED).awaited == ("web/1.1",)
    assert listen(sight, "unknown", "web/1.1") is sight
