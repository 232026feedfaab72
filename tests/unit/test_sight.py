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
    ProviderListed,
    ProviderServer,
    ProviderSilent,
    ProviderState,
    Reported,
    ServerFacts,
    ServerMade,
    ServerNotMade,
    ServerUnmade,
    WillRead,
)
from galactica.scheduler.core.sight.observations import (
    Testimony as Saying,  # a name that pytest does not take for a test
)
from galactica.scheduler.core.sight.observe import Observed, observe
from galactica.scheduler.core.sight.state import (
    Going,
    ProviderSight,
    ServerSight,
    Sight,
    Told,
    Vitals,
    doubt,
    forget,
    forget_place,
    forget_server,
    tell,
    tell_provider,
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
        "s2", 110.0, 110.0, facts=FACTS, reports=HashTrieMap({"web/1.1": TWO}), machine_since=110.0
    )
    assert observe(old, again) == Observed(
        sight_of(fresh), "a", ("web/1.1",), everything=True, servers=("a",)
    )


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
            {"heard_at": 101.0, "sequence": 1, "reports": HashTrieMap({"web/0.1": ONE_DEAD, "web/1.1": TWO})},
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


MADE = ProviderServer("rack/0.1", "ref-1", ProviderState.RUNNING)
OTHER = ProviderServer("rack/1.1", "ref-2", ProviderState.RUNNING)
KNOWN = ProviderSight(HashTrieMap({"rack/0.1": MADE}), listed_at=50.0)


def provided(known: ProviderSight) -> Sight:
    return Sight(providers=HashTrieMap({"p": known}))


TROUBLE = "an entry of its list cannot be read: no state"


def unreadable(cell: str) -> ProviderServer:
    return ProviderServer(cell, "", ProviderState.UNREADABLE, "no state")


@pytest.mark.parametrize(
    ("said", "after", "made"),
    [
        pytest.param(
            ServerMade("p", "rack/1.1", "ref-2", 60.0),
            {"servers": KNOWN.servers.insert("rack/1.1", OTHER)},
            ("rack/1.1",),
            id="took an order",
        ),
        pytest.param(
            ServerNotMade("p", "rack/1.1", "no quota", 60.0),
            {"refused": HashTrieMap({"rack/1.1": "no quota"})},
            ("rack/1.1",),
            id="refused an order",
        ),
        pytest.param(
            ServerUnmade("p", "rack/0.1", 60.0),
            {"going": HashTrieMap({"rack/0.1": Going(60.0)})},
            ("rack/0.1",),
            id="took a delete, which proves nothing",
        ),
        pytest.param(
            ServerUnmade("p", "rack/0.1", 60.0, is_gone=True),
            {
                "servers": HashTrieMap(
                    {"rack/0.1": ProviderServer("rack/0.1", "", ProviderState.GONE, "deleted")}
                )
            },
            ("rack/0.1",),
            id="deleted one",
        ),
        pytest.param(ProviderSilent("p", "no route", 60.0), {"trouble": "no route"}, (), id="is silent"),
        pytest.param(
            ProviderListed("p", (MADE, OTHER), 60.0, 61.0),
            {"servers": HashTrieMap({"rack/0.1": MADE, "rack/1.1": OTHER}), "listed_at": 60.0},
            ("rack/1.1",),
            id="lists one more",
        ),
        pytest.param(
            ProviderListed("p", (OTHER,), 60.0, 61.0),
            {"servers": HashTrieMap({"rack/1.1": OTHER}), "listed_at": 60.0},
            ("rack/1.1", "rack/0.1"),
            id="lists another",
        ),
        pytest.param(
            ProviderListed("p", (unreadable("rack/0.1"), OTHER), 60.0, 61.0),
            {
                "servers": HashTrieMap({"rack/0.1": MADE, "rack/1.1": OTHER}),
                "listed_at": 60.0,
                "trouble": TROUBLE,
            },
            ("rack/1.1",),
            id="an entry that cannot be read leaves its server as it is known",
        ),
        pytest.param(
            ProviderListed("p", (unreadable("rack/1.1"),), 60.0, 61.0),
            {
                "servers": HashTrieMap(
                    {"rack/1.1": ProviderServer("rack/1.1", "", ProviderState.PENDING, "no state")}
                ),
                "listed_at": 60.0,
                "trouble": TROUBLE,
            },
            ("rack/1.1", "rack/0.1"),
            id="an entry that cannot be read shows that there is a server, and others are missing",
        ),
        pytest.param(
            ProviderListed("p", (unreadable(""), OTHER), 60.0, 61.0),
            {"servers": HashTrieMap({"rack/0.1": MADE, "rack/1.1": OTHER}), "trouble": TROUBLE},
            ("rack/1.1",),
            id="an entry that names no server may be about any: no absence counts",
        ),
        pytest.param(
            ProviderListed("p", (), 60.0, 61.0),
            {"listed_at": 60.0, "was_empty": True},
            (),
            id="an empty list proves no death",
        ),
    ],
)
def test_a_provider_says_what_it_has(said: Observation, after: dict, made: tuple[str, ...]) -> None:
    expected = Observed(provided(replace(KNOWN, **after)), provider="p", made=made)
    assert observe(provided(KNOWN), said) == expected


def test_a_provider_that_answers_again_is_in_trouble_no_more() -> None:
    sight = provided(replace(KNOWN, trouble="no route"))
    assert observe(sight, ProviderListed("p", (MADE,), 60.0, 61.0)).sight == provided(
        replace(KNOWN, listed_at=60.0)
    )


def test_a_server_cell_that_is_forgotten_leaves_nothing_behind() -> None:
    told = tell_provider(provided(KNOWN), "p", "rack/0.1", Verb.ORDER, 60.0)
    assert told == provided(replace(KNOWN, told=HashTrieMap({"rack/0.1": Told(Verb.ORDER, 60.0)})))
    told = replace(told, about=HashTrieMap({"rack/0.1": HashTrieMap({"a": SILENT})}))
    assert forget_server(told, "p", "rack/0.1") == provided(ProviderSight(listed_at=50.0))
    assert forget_server(told, "q", "rack/0.1") is told


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


GONE = ProviderServer("rack/0.1", "", ProviderState.GONE, "deleted")
DOUBTFUL = replace(GONE, is_doubtful=True)


@pytest.mark.parametrize(
    ("lists", "word"),
    [
        pytest.param([((OTHER,), 60.0)], GONE, id="another is listed, and it is not"),
        pytest.param([((OTHER,), 59.0)], None, id="a list that was asked for before the delete was taken"),
        pytest.param([((MADE, OTHER), 60.0)], MADE, id="it is listed"),
        pytest.param([((MADE,), 60.0), ((OTHER,), 70.0)], GONE, id="it is listed, and later it is not"),
        pytest.param([((unreadable("rack/0.1"), OTHER), 60.0)], MADE, id="its entry cannot be read"),
        pytest.param([((unreadable(""), OTHER), 60.0)], MADE, id="an entry names no server"),
        pytest.param([((unreadable("rack/1.1"),), 60.0)], GONE, id="another's entry cannot be read"),
        pytest.param([((), 60.0)], MADE, id="one empty list"),
        pytest.param([((), 60.0), ((), 70.0)], DOUBTFUL, id="two empty lists"),
        pytest.param(
            [((), 59.0), ((), 70.0)], MADE, id="two empty lists, one from before the delete was taken"
        ),
        pytest.param([((), 40.0), ((), 60.0), ((), 70.0)], DOUBTFUL, id="two more after many empty lists"),
        pytest.param([((), 60.0), ((OTHER,), 65.0), ((), 70.0)], GONE, id="two empty lists, not in a row"),
    ],
)
def test_a_delete_that_was_taken_is_proven_by_a_later_list_alone(
    lists: list[tuple[tuple[ProviderServer, ...], float]], word: ProviderServer | None
) -> None:
    sight = provided(replace(KNOWN, servers=HashTrieMap({"rack/0.1": MADE})))
    sight = observe(sight, ServerUnmade("p", "rack/0.1", 60.0)).sight
    for servers, asked_at in lists:
        sight = observe(sight, ProviderListed("p", servers, asked_at, asked_at)).sight
    assert sight.providers["p"].servers.get("rack/0.1") == word


def test_what_was_taken_first_counts_when_a_delete_is_taken_again() -> None:
    sight = provided(KNOWN)
    for at in (60.0, 90.0):
        sight = observe(sight, ServerUnmade("p", "rack/0.1", at)).sight
    assert sight.providers["p"].going["rack/0.1"] == Going(60.0, times=2)


def test_a_doubt_that_ends_counts_like_a_probe_that_passes_again() -> None:
    in_doubt = CellReport("web/0.1", "d", CellState.RUNNING, doubt="no layer")
    well = CellReport("web/0.1", "d", CellState.RUNNING)
    sight = observe(sight_of(BASE), report(1, 101.0, in_doubt)).sight
    sight = observe(sight, report(2, 102.0, well)).sight
    assert sight.servers["a"].recovered == HashTrieMap({"web/0.1": 102.0})
