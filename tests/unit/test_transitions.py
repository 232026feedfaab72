"""The one table of phase changes: each legal event gives a whole new value, each illegal one tells the cell's story."""

import re
from collections.abc import Iterable

import pytest
from msgspec.structs import replace
from rpds import HashTrieMap, HashTrieSet

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.events import AnyEvent, IllegalTransition, Record
from galactica.scheduler.core.model.fleet import (
    GRAVES_KEPT,
    REVISIONS_KEPT,
    Backoff,
    Cell,
    Death,
    Fleet,
    GroupState,
    Phase,
    Revision,
    Server,
    Slot,
    Tally,
    Token,
    still_waits,
)
from galactica.scheduler.core.model.spec import Resources, RuntimeKind, digest_of
from galactica.scheduler.core.model.verdict import Autopsy, Evidence, Health
from galactica.scheduler.core.transitions import CELL_MOVES, apply
from tests.support.histories import apply_all
from tests.support.world import service, spec

SIZE = Resources(cpu_millis=100, memory_bytes=64, pids=8)
ONE, TWO = digest_of(spec("1")), digest_of(spec("2"))
JOINED = e.ServerJoined("a", 1, {"zone": "x"}, Resources(4_000, 1_024), 9, (RuntimeKind.PROCESS,), "0.1")
ORDERED = e.CellOrdered("web/0.1", ONE, 1, "a", SIZE)
BOOTING = e.CellBooting("web/0.1")
READY = e.CellReady("web/0.1", {"http": "127.0.0.1:80"}, "pid 7")
SICK = e.CellCondemned(
    "web/0.1", Health.SICK, "probe_failed", "ill", (Evidence("agent a", "ill", 5.0),), "one"
)
DEAD = e.CellCondemned("web/0.1", Health.DEAD, "exited", "died", budget="none: it is not wanted")
DRAINING = e.CellDraining("web/0.1")
GONE = e.CellDecommissioned("web/0.1", "agent")


def at(fleet: Fleet, event: AnyEvent) -> Record:
    """The next record; each fact happens one second after the one before."""
    return Record(fleet.position + 1, float(fleet.position + 1), "test", event)


def told(*events: AnyEvent, fleet: Fleet | None = None) -> Fleet:
    after = Fleet() if fleet is None else fleet
    for event in events:
        after = apply(after, at(after, event))
    return after


def begun(replicas: int = 1) -> Fleet:
    """Position 3: a server and a group, nothing ordered."""
    return told(e.ServerEnrolled("a", ""), JOINED, e.GroupApplied(service("web", replicas), ONE, 1))


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
        ((), e.CellOrdered("web-0", ONE, 1, "a"), "'web-0' is no cell id"),
        ((), e.CellOrdered("web/00.1", ONE, 1, "a"), "'web/00.1' is no cell id"),
        ((), e.CellOrdered("api/0.1", ONE, 1, "a"), "CellOrdered at position 4: there is no group api"),
        ((), e.CellOrdered("web/0.2", ONE, 1, "a"), "web/0.2: the slot's next generation is 1"),
        ((), e.CellOrdered("web/0.1", ONE, 1, "b"), "web/0.1: there is no server b"),
        ((ORDERED, DEAD), ORDERED, "web/0.1: the slot's next generation is 2"),
        (
            (ORDERED,),
            e.CellOrdered("web/0.2", ONE, 1, "a"),
            "web/0.2: web/0.1 on a is ORDERED (ordered at 4.000) still holds the slot",
        ),
        (
            (ORDERED, READY),
            e.CellOrdered("web/0.2", ONE, 1, "a"),
            "web/0.2: web/0.1 on a is READY (ordered at 4.000, ready at 5.000) still holds the slot",
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


def recount(state: GroupState) -> Tally:
    """The tally as the model's words define it, counted without the product's help."""
    cells = [cell for slot in state.slots.values() for cell in slot.cells]
    booting = [c for c in cells if c.phase in (Phase.ORDERED, Phase.BOOTING)]
    condemned = [c for c in cells if c.phase in (Phase.CONDEMNED, Phase.DRAINING)]
    waiting = {
        c.slot
        for c in condemned
        if c.phase is Phase.CONDEMNED and c.condemned_health is not Health.DEAD and c.ready_at is not None
    }
    return Tally(
        ready=sum(c.phase is Phase.READY for c in cells),
        booting=len(booting),
        condemned=len(condemned),
        replacing=len(waiting),
        surging=len(waiting & {c.slot for c in booting}),
        outdated=sum(c.digest != state.digest for c in cells if c not in condemned),
        extra=sum(
            max(0, sum(c.condemned_health is not Health.DEAD for c in slot.cells) - 1)
            for slot in state.slots.values()
        ),
    )


SECOND = replace(ORDERED, cell="web/0.2", replaces="web/0.1")
TALLIES: list[tuple[tuple[AnyEvent, ...], Tally]] = [
    ((), Tally()),
    ((ORDERED,), Tally(booting=1)),
    ((ORDERED, BOOTING), Tally(booting=1)),
    ((ORDERED, READY), Tally(ready=1)),
    ((ORDERED, READY, SICK), Tally(condemned=1, replacing=1)),
    ((ORDERED, READY, DEAD), Tally(condemned=1)),
    ((ORDERED, BOOTING, SICK), Tally(condemned=1)),
    ((ORDERED, READY, SICK, DRAINING), Tally(condemned=1)),
    ((ORDERED, READY, SICK, SECOND), Tally(booting=1, condemned=1, replacing=1, surging=1, extra=1)),
    ((ORDERED, READY, DEAD, SECOND), Tally(booting=1, condemned=1)),
    (
        (ORDERED, READY, SICK, SECOND, e.CellReady("web/0.2")),
        Tally(ready=1, condemned=1, replacing=1, extra=1),
    ),
    ((ORDERED, READY, SICK, SECOND, DRAINING, GONE), Tally(booting=1)),
    ((ORDERED, READY, SICK, DRAINING, GONE), Tally()),
    ((ORDERED, READY, e.GroupApplied(service("web", 1, spec("2")), TWO, 2)), Tally(ready=1, outdated=1)),
    ((ORDERED, e.GroupApplied(service("web", 1, spec("2")), TWO, 2)), Tally(booting=1, outdated=1)),
    (
        (ORDERED, READY, SICK, e.GroupApplied(service("web", 1, spec("2")), TWO, 2)),
        Tally(condemned=1, replacing=1),
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


# --- groups -------------------------------------------------------------------------------------------------------


def test_a_new_group_is_its_first_revision() -> None:
    fleet = told(e.GroupApplied(service("web", 3), ONE, 1))
    expected = GroupState(service("web", 3), ONE, 1, (Revision(1, ONE, spec("1")),), last_position=1)
    assert fleet == Fleet(1, 1.0, groups=HashTrieMap({"web": expected}))


def test_a_changed_group_keeps_its_slots_and_remembers_its_specs_and_replicas_are_no_revision() -> None:
    before = told(ORDERED, fleet=begun())
    after = told(e.GroupApplied(service("web", 2, spec("2")), TWO, 2), fleet=before)
    revisions = (Revision(1, ONE, spec("1")), Revision(2, TWO, spec("2")))
    assert after.groups["web"] == replace(
        before.groups["web"],
        group=service("web", 2, spec("2")),
        digest=TWO,
        revision=2,
        revisions=revisions,
        tally=Tally(booting=1, outdated=1),
        last_position=5,
    )
    scaled = told(e.GroupApplied(service("web", 5, spec("2")), TWO, 2), fleet=after)
    assert scaled.groups["web"].revisions == revisions
    assert scaled.groups["web"].spec_of(ONE) == spec("1")


def test_the_oldest_specs_are_forgotten() -> None:
    fleet = Fleet()
    for number in range(1, REVISIONS_KEPT + 3):
        fleet = told(
            e.GroupApplied(service(of=spec(str(number))), digest_of(spec(str(number))), number), fleet=fleet
        )
    assert [r.number for r in fleet.groups["web"].revisions] == list(range(3, REVISIONS_KEPT + 3))
    assert fleet.groups["web"].spec_of(ONE) is None


def test_a_deleted_group_goes_with_its_last_cell_and_its_generations_are_never_used_again() -> None:
    fleet = told(ORDERED, READY, e.GroupDeleted("web"), fleet=begun())
    assert (fleet.groups["web"].deleted, fleet.groups["web"].wanted_slots) == (True, 0)
    fleet = told(SICK, DRAINING, GONE, fleet=fleet)
    assert (fleet.groups, fleet.generations) == (HashTrieMap(), HashTrieMap({"web": 2}))
    fleet = told(e.GroupApplied(service("web", 2), ONE, 1), fleet=fleet)
    assert (fleet.groups["web"].first_generation, fleet.generations) == (2, HashTrieMap())
    with pytest.raises(IllegalTransition, match="next generation is 2"):
        told(replace(ORDERED, cell="web/1.1"), fleet=fleet)
    fleet = told(e.GroupDeleted("web"), fleet=fleet)
    assert fleet.generations == HashTrieMap({"web": 2})


def test_a_deleted_group_that_is_applied_while_its_cells_end_is_wanted_again() -> None:
    fleet = told(ORDERED, e.GroupDeleted("web"), e.GroupApplied(service(), ONE, 1), fleet=begun())
    assert (fleet.groups["web"].deleted, fleet.groups["web"].wanted_slots) == (False, 1)
    with pytest.raises(IllegalTransition, match="there is no group api"):
        told(e.GroupDeleted("api"), fleet=fleet)


# --- servers ------------------------------------------------------------------------------------------------------


ENROLLED = e.ServerEnrolled("a", "")
LOSE = e.ServerCondemned("a", Health.DEAD, "lease_expired", "silent")
DRAIN = e.ServerCondemned("a", Health.HEALTHY, "operator", "drained by ann")
BURY = e.ServerDecommissioned("a")
CHANGE = e.ServerChanged("a", {"zone": "y"}, Resources(8_000), 1, (RuntimeKind.DOCKER,), "0.2")
JOINED_SERVER = Server(
    "a",
    1,
    Phase.READY,
    {"zone": "x"},
    Resources(4_000, 1_024),
    9,
    (RuntimeKind.PROCESS,),
    "0.1",
    2.0,
    last_position=2,
)
CONDEMNED_SERVER = replace(
    JOINED_SERVER,
    phase=Phase.CONDEMNED,
    condemned_at=3.0,
    condemned_by="operator",
    condemned_health=Health.HEALTHY,
    last_position=3,
)


@pytest.mark.parametrize(
    ("history", "server"),
    [
        ((ENROLLED,), Server("a", 0, Phase.ORDERED, last_position=1)),
        ((ENROLLED, JOINED), JOINED_SERVER),
        (
            (ENROLLED, JOINED, CHANGE),
            replace(
                JOINED_SERVER,
                labels={"zone": "y"},
                capacity=Resources(8_000),
                disk_bytes=1,
                runtimes=(RuntimeKind.DOCKER,),
                agent_version="0.2",
                last_position=3,
            ),
        ),
        ((ENROLLED, JOINED, DRAIN), CONDEMNED_SERVER),
        (
            (ENROLLED, JOINED, DRAIN, LOSE),
            replace(CONDEMNED_SERVER, condemned_health=Health.DEAD, last_position=4),
        ),
        (
            (ENROLLED, JOINED, LOSE),
            replace(CONDEMNED_SERVER, condemned_by="lease_expired", condemned_health=Health.DEAD),
        ),
        (
            (ENROLLED, JOINED, DRAIN, BURY),
            replace(CONDEMNED_SERVER, phase=Phase.DECOMMISSIONED, last_position=4),
        ),
        (
            (ENROLLED, JOINED, LOSE, BURY, replace(JOINED, generation=2)),
            replace(JOINED_SERVER, generation=2, joined_at=5.0, last_position=5),
        ),
        ((ENROLLED, JOINED, DRAIN, BURY, ENROLLED), Server("a", 1, Phase.ORDERED, last_position=5)),
        ((ENROLLED, JOINED, ENROLLED), JOINED_SERVER),
    ],
)
def test_a_servers_life_is_whole_values(history: Iterable[AnyEvent], server: Server) -> None:
    assert told(*history).servers["a"] == server


@pytest.mark.parametrize(
    ("history", "event", "message"),
    [
        ((), JOINED, "ServerJoined at position 1: there is no server a"),
        ((ENROLLED, JOINED), replace(JOINED, generation=2), "cannot follow: server a is READY"),
        ((ENROLLED,), replace(JOINED, generation=2), "server a is of generation 0"),
        ((ENROLLED, JOINED, LOSE, BURY), JOINED, "server a is of generation 1"),
        ((ENROLLED,), CHANGE, "cannot follow: server a is ORDERED"),
        ((ENROLLED, JOINED, DRAIN), CHANGE, "cannot follow: server a is CONDEMNED"),
        ((ENROLLED,), LOSE, "cannot follow: server a is ORDERED"),
        ((ENROLLED, JOINED, DRAIN), DRAIN, "server a is condemned already"),
        ((ENROLLED, JOINED, LOSE), LOSE, "server a is condemned already"),
        ((ENROLLED, JOINED, LOSE), DRAIN, "server a is condemned already"),
        ((ENROLLED, JOINED), BURY, "cannot follow: server a is READY"),
        ((ENROLLED, JOINED, LOSE, BURY), BURY, "cannot follow: server a is DECOMMISSIONED"),
        (
            (ENROLLED, JOINED, e.GroupApplied(service(), ONE, 1), ORDERED, LOSE),
            BURY,
            "server a still has 1 cells",
        ),
    ],
)
def test_a_servers_illegal_moves_are_refused(
    history: Iterable[AnyEvent], event: AnyEvent, message: str
) -> None:
    with pytest.raises(IllegalTransition, match=re.escape(message)):
        told(event, fleet=told(*history))


# --- the fleet itself ---------------------------------------------------------------------------------------------


def test_records_follow_one_another_without_a_hole() -> None:
    fleet = begun()
    for position in (fleet.position, fleet.position + 2):
        with pytest.raises(IllegalTransition, match=f"record {position} does not follow position 3"):
            apply(fleet, Record(position, 1.0, "test", ORDERED))


def test_a_fleets_time_never_goes_back() -> None:
    fleet = apply_all(
        Fleet(), [Record(1, 7.0, "start", e.SchedulerStarted(1, "v")), Record(2, 5.0, "x", ENROLLED)]
    )
    assert (fleet.at, fleet.epoch) == (7.0, 1)
    with pytest.raises(IllegalTransition, match="epoch 1 is not above 1"):
        told(e.SchedulerStarted(1, "v"), fleet=fleet)


def test_a_token_lives_until_it_is_used_up_and_expired_ones_go_when_a_new_one_comes() -> None:
    fleet = told(e.TokenCreated("t", "5" * 64, 2, 2.5), e.ServerEnrolled("a", "t"))
    assert fleet.tokens == HashTrieMap({"t": Token("t", "5" * 64, 1, 2.5)})
    assert told(e.ServerEnrolled("b", "t"), fleet=fleet).tokens == HashTrieMap()
    fleet = told(e.TokenCreated("u", "6" * 64, 1, 9.0), fleet=fleet)
    assert fleet.tokens == HashTrieMap({"u": Token("u", "6" * 64, 1, 9.0)})


@pytest.mark.parametrize(
    "event",
    [
        e.OrphanRemoved("web/9.9", "a", "nobody ordered it"),
        e.OperatorEnrolled("ann", "admin", 9.0),
        e.CallRefused("ann", "viewer", "Apply"),
    ],
)
def test_some_facts_change_nothing_but_the_position(event: AnyEvent) -> None:
    before = begun()
    assert told(event, fleet=before) == replace(before, position=4, at=4.0)


def test_an_autopsy_in_the_journal_does_not_make_the_fleet_larger() -> None:
    autopsy = Autopsy("exited with 1", exit_code=1, last_lines=("bye",) * 50)
    plain = told(ORDERED, DEAD, DRAINING, GONE, fleet=begun())
    assert told(ORDERED, DEAD, DRAINING, replace(GONE, autopsy=autopsy), fleet=begun()) == plain
