"""The one table of phase changes: each legal event gives a whole new value, each illegal one tells the cell's story."""

import re
from collections.abc import Iterable

import pytest
from msgspec.structs import replace
from rpds import HashTrieMap, HashTrieSet

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.events import AnyEvent, IllegalTransition
from galactica.scheduler.core.model.fleet import GRAVES_KEPT, Backoff, Cell, Death, Fleet, Phase, Slot, Tally
from galactica.scheduler.core.model.spec import Resources
from galactica.scheduler.core.model.succession import still_waits
from galactica.scheduler.core.model.verdict import Health
from galactica.scheduler.core.transitions import CELL_MOVES
from tests.property.laws import recount
from tests.support.histories import (
    DEAD,
    DRAINING,
    GONE,
    ONE,
    ORDERED,
    READY,
    SICK,
    SIZE,
    TWO,
    begun,
    told,
)
from tests.support.world import service, spec

BOOTING = e.CellBooting("web/0.1")


PATHS: dict[Phase, tuple[AnyEvent, ...]] = {
    Phase.ORDERED: (ORDERED,),
    Phase.BOOTING: (ORDERED, BOOTING),
    Phase.READY: (ORDERED, BOOTING, READY),
    Phase.CONDEMNED: (ORDERED, BOOTING, READY, SICK),
    Phase.DRAINING: (ORDERED, BOOTING, READY, SICK, DRAINING),
    Phase.DECOMMISSIONED: (ORDERED, BOOTING, READY, SICK, DRAINING, GONE),
}

MOVES: tuple[AnyEvent, ...] = (BOOTING, READY, SICK, DRAINING, GONE)

LEGAL: dict[tuple[Phase, type[AnyEvent]], Phase] = {
    (Phase.ORDERED, e.CellBooting): Phase.BOOTING,
    (Phase.ORDERED, e.CellReady): Phase.READY,
    (Phase.ORDERED, e.CellCondemned): Phase.CONDEMNED,
    (Phase.BOOTING, e.CellReady): Phase.READY,
    (Phase.BOOTING, e.CellCondemned): Phase.CONDEMNED,
    (Phase.READY, e.CellCondemned): Phase.CONDEMNED,
    (Phase.CONDEMNED, e.CellDraining): Phase.DRAINING,
    (Phase.CONDEMNED, e.CellDecommissioned): Phase.DECOMMISSIONED,
    (Phase.DRAINING, e.CellDecommissioned): Phase.DECOMMISSIONED,
}

STORIES = {
    Phase.ORDERED: "web/0.1 on a is ORDERED (ordered at 4.000)",
    Phase.BOOTING: "web/0.1 on a is BOOTING (ordered at 4.000)",
    Phase.READY: "web/0.1 on a is READY (ordered at 4.000, ready at 6.000)",
    Phase.CONDEMNED: "web/0.1 on a is CONDEMNED (ordered at 4.000, ready at 6.000, condemned at 7.000)",
    Phase.DRAINING: "web/0.1 on a is DRAINING (ordered at 4.000, ready at 6.000, condemned at 7.000)",
}


def changed_by(event: AnyEvent, now: float) -> dict[str, object]:
    match event:
        case e.CellReady():
            return {"ready_at": now, "endpoints": {"http": "127.0.0.1:80"}, "runtime_id": "pid 7"}
        case e.CellCondemned():
            return {"condemned_at": now, "condemned_by": "probe_failed", "condemned_health": Health.SICK}
        case e.CellDecommissioned():
            return {"decommissioned_at": now}
    return {}


def find(fleet: Fleet, cell_id: str = "web/0.1") -> Cell:
    living = fleet.cell(cell_id)
    return living or next(cell for cell in fleet.graves.values() if cell.id == cell_id)


@pytest.mark.parametrize(("phase", "move"), LEGAL, ids=lambda x: getattr(x, "__name__", x))
def test_a_legal_event_changes_what_it_is_about_and_nothing_else(phase: Phase, move: type[AnyEvent]) -> None:
    before = told(*PATHS[phase], fleet=begun())
    (event,) = [one for one in MOVES if type(one) is move]
    after = told(event, fleet=before)
    now = float(after.position)
    expected = replace(
        find(before), phase=LEGAL[phase, move], last_position=after.position, **changed_by(event, now)
    )
    assert find(after) == expected
    gone = expected.phase is Phase.DECOMMISSIONED
    state, server = before.groups["web"], before.servers["a"]
    if move is e.CellCondemned:  # the death is remembered where diagnosis looks for it
        death = Death("web", expected.digest, "a", "probe_failed", now)
        state, server = replace(state, deaths=(death,)), replace(server, deaths=(death,))
    if move is e.CellReady:
        state = replace(state, newest_ready_at=now)
    assert after == replace(
        before,
        position=after.position,
        at=now,
        groups=HashTrieMap(
            {
                "web": replace(
                    state,
                    slots=HashTrieMap({0: Slot(() if gone else (expected,), 2)}),
                    tally=recount(after.groups["web"]),
                    per_server=HashTrieMap() if gone else HashTrieMap({"a": 1}),
                )
            }
        ),
        servers=HashTrieMap(
            {"a": replace(server, used=Resources(), cells=HashTrieSet()) if gone else server}
        ),
        graves=HashTrieMap({0: expected} if gone else {}),
        burials=int(gone),
    )


ILLEGAL = [(phase, move) for phase in STORIES for move in MOVES if (phase, type(move)) not in LEGAL]


@pytest.mark.parametrize(
    ("phase", "move"), ILLEGAL, ids=lambda x: type(x).__name__ if isinstance(x, e.Event) else x
)
def test_an_illegal_event_raises_with_the_cells_story(phase: Phase, move: AnyEvent) -> None:
    fleet = told(*PATHS[phase], fleet=begun())
    expected = f"{type(move).__name__} at position {fleet.position + 1} cannot follow: {STORIES[phase]}"
    with pytest.raises(IllegalTransition, match=f"^{re.escape(expected)}$"):
        told(move, fleet=fleet)


@pytest.mark.parametrize("move", MOVES, ids=lambda move: type(move).__name__)
def test_nothing_happens_to_a_decommissioned_cell_or_to_one_that_never_was(move: AnyEvent) -> None:
    for fleet in (told(*PATHS[Phase.DECOMMISSIONED], fleet=begun()), begun()):
        name = f"{type(move).__name__} at position {fleet.position + 1}"
        expected = f"{name}: web/0.1 does not exist or is decommissioned"
        with pytest.raises(IllegalTransition, match=f"^{re.escape(expected)}$"):
            told(move, fleet=fleet)


def test_the_table_of_moves_is_the_one_that_is_tested_here() -> None:
    moves = {(phase, move): to for move, (phases, to) in CELL_MOVES.items() for phase in phases}
    assert moves == LEGAL


# --- ordering -----------------------------------------------------------------------------------------------------


def test_an_order_is_a_whole_new_cell_accounted_for_on_its_server() -> None:
    before = begun()
    after = told(ORDERED, fleet=before)
    cell = Cell("web/0.1", "web", 0, 1, Phase.ORDERED, ONE, 1, "a", 4.0, SIZE, last_position=4)
    state, server = before.groups["web"], before.servers["a"]
    assert after == replace(
        before,
        position=4,
        at=4.0,
        groups=HashTrieMap(
            {
                "web": replace(
                    state,
                    slots=HashTrieMap({0: Slot((cell,), 2)}),
                    tally=Tally(booting=1),
                    per_server=HashTrieMap({"a": 1}),
                )
            }
        ),
        servers=HashTrieMap({"a": replace(server, used=SIZE, cells=HashTrieSet(["web/0.1"]))}),
    )


def test_a_successor_and_the_cell_that_it_replaces_name_each_other() -> None:
    fleet = told(
        *PATHS[Phase.CONDEMNED], e.CellOrdered("web/0.2", ONE, 1, "a", SIZE, "web/0.1"), fleet=begun()
    )
    assert (find(fleet).replaced_by, find(fleet, "web/0.2").replaces) == ("web/0.2", "web/0.1")
    assert fleet.servers["a"].used == Resources(200, 128, 16)


@pytest.mark.parametrize(
    ("history", "order", "message"),
    [
        ((), e.CellOrdered("web-0", ONE, 1, "a"), "invalid cell id: 'web-0'"),
        ((), e.CellOrdered("web/00.1", ONE, 1, "a"), "invalid cell id: 'web/00.1'"),
        ((), e.CellOrdered("api/0.1", ONE, 1, "a"), "CellOrdered at position 4: there is no group api"),
        ((), e.CellOrdered("web/0.2", ONE, 1, "a"), "web/0.2: the slot's next generation is 1"),
        ((), e.CellOrdered("web/0.1", ONE, 1, "b"), "web/0.1: there is no server b"),
        ((ORDERED, DEAD), ORDERED, "web/0.1: the slot's next generation is 2"),
        (
            (ORDERED, READY, e.CellOrdered("web/0.2", ONE, 1, "a")),
            e.CellOrdered("web/0.3", ONE, 1, "a"),
            "web/0.3: web/0.2 on a is ORDERED (ordered at 6.000) still holds the slot",
        ),
    ],
)  # fmt: skip
def test_an_order_that_cannot_be_is_refused(
    history: Iterable[AnyEvent], order: AnyEvent, message: str
) -> None:
    with pytest.raises(IllegalTransition, match=f"^{re.escape(message)}$"):
        told(order, fleet=told(*history, fleet=begun()))


def test_early_deaths_are_remembered_by_their_group() -> None:
    backoff = Backoff(ONE, 2, 1, 5.0, 6.0)
    fleet = told(ORDERED, replace(DEAD, backoff=backoff), fleet=begun())
    assert fleet.groups["web"].backoff == backoff


def test_only_the_newest_graves_are_kept() -> None:
    fleet = begun()
    for generation in range(1, GRAVES_KEPT + 3):
        cell = f"web/0.{generation}"
        fleet = told(
            replace(ORDERED, cell=cell), replace(DEAD, cell=cell), replace(GONE, cell=cell), fleet=fleet
        )
    assert fleet.burials == GRAVES_KEPT + 2
    assert {cell.generation for cell in fleet.graves.values()} == set(range(3, GRAVES_KEPT + 3))


# --- tallies ------------------------------------------------------------------------------------------------------


SECOND = replace(ORDERED, cell="web/0.2", replaces="web/0.1")

TALLIES: list[tuple[tuple[AnyEvent, ...], Tally]] = [
    ((), Tally()),
    ((ORDERED,), Tally(booting=1)),
    ((ORDERED, BOOTING), Tally(booting=1)),
    ((ORDERED, READY), Tally(ready=1, manned=1)),
    ((ORDERED, READY, SICK), Tally(condemned=1, manned=1, replacing=1)),
    ((ORDERED, READY, DEAD), Tally(condemned=1)),
    ((ORDERED, BOOTING, SICK), Tally(condemned=1)),
    ((ORDERED, READY, SICK, DRAINING), Tally(condemned=1)),
    (
        (ORDERED, READY, SICK, SECOND),
        Tally(booting=1, condemned=1, manned=1, replacing=1, surging=1, extra=1),
    ),
    ((ORDERED, READY, SECOND), Tally(ready=1, manned=1, replacing=1, surging=1, extra=1)),
    (
        (
            ORDERED,
            READY,
            e.GroupApplied(service("web", 1, spec("2")), TWO, 2),
            e.CellOrdered("web/0.2", TWO, 2, "a"),
        ),
        Tally(ready=1, manned=1, replacing=1, surging=1, outdated=1, renewing=1, extra=1),
    ),
    ((ORDERED, READY, DEAD, SECOND), Tally(booting=1, condemned=1)),
    (
        (ORDERED, READY, SICK, SECOND, e.CellReady("web/0.2")),
        Tally(ready=1, condemned=1, manned=1, replacing=1, surging=1, extra=1),
    ),
    ((ORDERED, READY, SICK, SECOND, DRAINING, GONE), Tally(booting=1)),
    ((ORDERED, READY, SICK, DRAINING, GONE), Tally()),
    (
        (ORDERED, READY, e.GroupApplied(service("web", 1, spec("2")), TWO, 2)),
        Tally(ready=1, manned=1, outdated=1),
    ),
    ((ORDERED, e.GroupApplied(service("web", 1, spec("2")), TWO, 2)), Tally(booting=1, outdated=1)),
    (
        (ORDERED, READY, SICK, e.GroupApplied(service("web", 1, spec("2")), TWO, 2)),
        Tally(condemned=1, manned=1, replacing=1),
    ),
]


@pytest.mark.parametrize(("history", "tally"), TALLIES)
def test_tallies_are_what_a_recount_gives(history: Iterable[AnyEvent], tally: Tally) -> None:
    state = told(*history, fleet=begun()).groups["web"]
    assert state.tally == tally == recount(state)


@pytest.mark.parametrize(
    ("history", "waits"),
    [((ORDERED, READY), False), ((ORDERED, READY, SICK), True), ((ORDERED, READY, DEAD), False),
     ((ORDERED, SICK), False), ((ORDERED, READY, SICK, DRAINING), False)],
)  # fmt: skip
def test_only_a_cell_that_served_and_lives_waits_for_its_successor(
    history: Iterable[AnyEvent], waits: bool
) -> None:
    assert still_waits(find(told(*history, fleet=begun()))) is waits
