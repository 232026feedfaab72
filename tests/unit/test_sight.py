"""What is seen: each observation folds into whole values, and what is stale or strange changes nothing."""

import pytest
from msgspec.structs import replace
from rpds import HashTrieMap

from scheduler.model import Resources, RuntimeKind
from scheduler.sight import (
    Attached,
    CellReport,
    CellState,
    Detached,
    Observation,
    Observed,
    Reported,
    ServerFacts,
    ServerSight,
    Sight,
    Told,
    Vitals,
    doubt,
    forget,
    observe,
    tell,
)

FACTS = ServerFacts({"zone": "a"}, Resources(4_000), 9, (RuntimeKind.PROCESS,), "0.1")
ONE = CellReport("web/0.1", "d", CellState.RUNNING, "pid 7")
TWO = CellReport("web/1.1", "d", CellState.STARTING)
ONE_DEAD = replace(ONE, state=CellState.EXITED)
VITALS = Vitals(cpu_fraction=0.5)
ATTACHED = Attached("a", "s1", 100.0, FACTS, (ONE, TWO))
BASE = ServerSight("s1", 100.0, 100.0, facts=FACTS, reports=HashTrieMap({"web/0.1": ONE, "web/1.1": TWO}))


def sight_of(seen: ServerSight, trusted_since: float = 0.0) -> Sight:
    return Sight(trusted_since, HashTrieMap({"a": seen}))


def report(sequence: int = 1, at: float = 101.0, *cells: CellReport, **more) -> Reported:
    return Reported("a", more.pop("session", "s1"), sequence, at, cells, **more)


def test_an_attachment_shows_the_whole_inventory_and_everything_is_news() -> None:
    expected = Observed(sight_of(BASE, 7.0), ("web/0.1", "web/1.1"), server=True, everything=True)
    assert observe(Sight(trusted_since=7.0), ATTACHED) == expected


def test_a_new_session_starts_from_nothing_that_the_old_one_showed_or_was_told() -> None:
    old = tell(doubt(sight_of(replace(BASE, sequence=9, vitals=VITALS)), "a"), "a", "web/0.1", "Order", 100.5)
    again = Attached("a", "s2", 110.0, FACTS, (TWO,))
    fresh = ServerSight("s2", 110.0, 110.0, facts=FACTS, reports=HashTrieMap({"web/1.1": TWO}))
    assert observe(old, again) == Observed(sight_of(fresh), ("web/1.1",), server=True, everything=True)


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
            {},
            id="vitals",
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
            BASE, report(1, 102.1), {"heard_at": 102.1, "sequence": 1}, {"server": True}, id="a silence that is news"
        ),
        pytest.param(
            BASE,
            report(3),
            {"heard_at": 101.0, "sequence": 3, "is_doubtful": True},
            {"server": True},
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
            {"cells": ("web/0.1", "web/1.1"), "server": True, "everything": True},
            id="a hole closed by everything",
        ),
    ],
)  # fmt: skip
def test_a_report_changes_what_it_says_and_tells_what_is_news(before, reported, after, news) -> None:
    assert observe(sight_of(before), reported) == Observed(sight_of(replace(before, **after)), **news)


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
        sight_of(closed), server=True
    )
    assert (BASE.is_open, closed.is_open) == (True, False)


def test_reports_are_of_one_server_alone() -> None:
    sight = sight_of(BASE)
    assert sight.report_of("a", "web/0.1") == ONE
    assert sight.report_of("a", "web/9.1") is None
    assert sight.report_of("b", "web/0.1") is None


def test_the_newest_thing_told_about_a_cell_is_remembered() -> None:
    sight = tell(tell(sight_of(BASE), "a", "web/0.1", "Order", 101.0), "a", "web/0.1", "Decommission", 102.0)
    assert sight == sight_of(replace(BASE, told=HashTrieMap({"web/0.1": Told("Decommission", 102.0)})))


def test_a_cell_that_is_forgotten_leaves_nothing_behind() -> None:
    sight = tell(sight_of(BASE), "a", "web/0.1", "Order", 101.0)
    assert forget(sight, "a", "web/0.1") == sight_of(replace(BASE, reports=HashTrieMap({"web/1.1": TWO})))
    only_told = tell(sight_of(BASE), "a", "web/5.1", "Order", 101.0)
    assert forget(only_told, "a", "web/5.1") == sight_of(BASE)


def test_doubt_is_about_one_server() -> None:
    assert doubt(sight_of(BASE), "a") == sight_of(replace(BASE, is_doubtful=True))


def test_what_is_not_seen_is_not_told_forgotten_or_doubted() -> None:
    sight = sight_of(BASE)
    assert tell(sight, "b", "web/0.1", "Order", 1.0) is sight
    assert doubt(sight, "b") is sight
    assert forget(sight, "b", "web/0.1") is sight
    assert forget(sight, "a", "web/9.1") is sight
