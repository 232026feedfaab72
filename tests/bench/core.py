"""The core in memory: one death among very many cells, and placement. No IO; time is made up."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from galactica.scheduler.core.model.commands import Command, Decommission, Order
from galactica.scheduler.core.model.events import (
    AnyEvent,
    CellOrdered,
    GroupApplied,
    Record,
    ServerEnrolled,
    ServerJoined,
)
from galactica.scheduler.core.model.fleet import CellId, Fleet, Phase
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.requests import ApplyGroups, Asker
from galactica.scheduler.core.model.spec import (
    Group,
    GroupKind,
    HealthSpec,
    HttpProbe,
    Resources,
    RuntimeKind,
    Spec,
    digest_of,
)
from galactica.scheduler.core.placement import Placer, Unplaceable
from galactica.scheduler.core.sight.observations import (
    Attached,
    CellReport,
    CellState,
    ProbeStatus,
    Reported,
    ServerFacts,
)
from galactica.scheduler.core.sight.state import Sight
from galactica.scheduler.core.turns import Asked, Core, Start, Turn
from galactica.scheduler.core.verdicts.cells import cell_verdict
from tests.bench.table import Row, median_and_worst, milliseconds
from tests.support.folding import apply_all
from tests.support.world import START, exited, gone

T = TypeVar("T")

CELLS = 100_000
GROUPS = 100
SERVERS = 1_000
DEATHS = 200
WALKS = 5

PLACED = 50_000
PLACED_SERVERS = 5_000
PLACED_BY_WALKING = 100

FACTS = ServerFacts(
    capacity=Resources(cpu_millis=64_000, memory_bytes=2**38),
    runtimes=(RuntimeKind.PROCESS, RuntimeKind.DOCKER),
)
SPEC = Spec(
    runtime=RuntimeKind.DOCKER,
    image="hello:1",
    ports={"http": 8080},
    resources=Resources(cpu_millis=100, memory_bytes=64 * 2**20),
    health=HealthSpec(probe=HttpProbe("http"), boot_within_seconds=30.0),
)


class Servers:
    """A core with many servers, whose agents do what they are told and report it in batches."""

    def __init__(self, servers: int) -> None:
        self.now = START
        self.core = Core(_joined(servers), Policy(), self.now, Start(1, "bench"))
        for number in range(servers):
            self.core.take(Attached(f"s{number}", f"a{number}", self.now, FACTS))
        self.settle()

    def apply(self, *groups: Group) -> list[Turn]:
        """Everything that follows at once, turn by turn; agents have not heard of it yet."""
        turns = [self.core.turn([Asked(1, ApplyGroups(groups), Asker.operator("ann"))], self.now)]
        self.core.commit(turns[0])
        return turns + self.turns()

    def turns(self) -> list[Turn]:
        turns = []
        while self._is_due():
            turns.append(self.core.turn([], self.now))
            self.core.commit(turns[-1])
        return turns

    def settle(self) -> None:
        """Turn until there is nothing to do now, with agents that obey."""
        while self._is_due():
            self.obey(command for turn in self.turns() for command in turn.commands)

    def obey(self, commands: Iterable[Command]) -> None:
        by_server: dict[str, list[CellReport]] = defaultdict(list)
        for command in commands:
            match command:
                case Order(server=server, cell=cell):
                    by_server[server].append(_serving(cell))
                case Decommission(server=server, cell=cell):
                    by_server[server].append(gone(cell))
        for server, cells in by_server.items():
            self.report(server, *cells)

    def report(self, server: str, *cells: CellReport) -> None:
        seen = self.core.sight.servers[server]
        self.core.take(Reported(server, seen.session, seen.sequence + 1, self.now, cells))

    def beat_until(self, end: float) -> None:
        """Let time pass; every server beats each second."""
        while self.now < end:
            self.now += 1.0
            for server in self.core.sight.servers:
                self.report(server)
            self.settle()

    def _is_due(self) -> bool:
        due = self.core.next_look_at()
        return due is not None and due <= self.now


def run() -> list[Row]:
    return [*_placements(), *_deaths()]


# --- one death --------------------------------------------------------------------------------------------------------


def _deaths() -> list[Row]:
    world = Servers(SERVERS)
    world.apply(*(Group(GroupKind.SERVICE, f"g{number}", CELLS // GROUPS, SPEC) for number in range(GROUPS)))
    world.obey(_orders(world.core.fleet))
    world.settle()
    # Past the boot deadlines, whose looks are due once, and past early deaths.
    world.beat_until(START + 40)
    seconds = [_death(world, CellId(f"g{n % GROUPS}", n, 1)) for n in range(DEATHS)]
    walks = [_timed(lambda: _walk(world))[1] for _ in range(WALKS)]
    return [
        Row(
            f"one death among {CELLS:,} cells in memory: apply + reconcile",
            f"{median_and_worst(seconds)} of {DEATHS}",
            "≤ 5 ms",
            f"a walk over all cells: {milliseconds(statistics.median(walks))}",
        )
    ]


def _orders(fleet: Fleet) -> Iterator[Order]:
    for state in fleet.groups.values():
        for slot in state.slots.values():
            yield from (Order(cell.server, cell.id, cell.digest, SPEC) for cell in slot.cells)


def _death(world: Servers, victim: CellId) -> float:
    """From the agent's report to the durable-to-be order of the replacement; the rest of the story is not timed."""
    cell = world.core.fleet.cell(str(victim))
    assert cell is not None
    assert cell.phase is Phase.READY
    world.now += 0.001
    turn, seconds = _timed(lambda: _take_death(world, cell.server, cell.id))
    assert any(isinstance(command, Order) for command in turn.commands), "a death was not answered"
    world.obey(turn.commands)
    world.settle()
    return seconds


def _take_death(world: Servers, server: str, cell: str) -> Turn:
    world.report(server, exited(cell))
    turn = world.core.turn([], world.now)
    world.core.commit(turn)
    return turn


def _walk(world: Servers) -> int:
    """What a loop does that looks at each cell to find the one that died."""
    fleet, sight, policy = world.core.fleet, world.core.sight, world.core.policy
    sick = 0
    for state in fleet.groups.values():
        for slot in state.slots.values():
            for cell in slot.cells:
                server = fleet.servers.get(cell.server)
                verdict = cell_verdict(cell, state.group.spec, server, sight, world.now, policy)
                sick += verdict.rule == "exited"
    return sick


# --- placement --------------------------------------------------------------------------------------------------------


def _placements() -> list[Row]:
    whole = Servers(PLACED_SERVERS)
    fleet, sight = whole.core.fleet, whole.core.sight
    placing, both = _place_and_apply(fleet, sight, PLACED)
    turns, in_turns = _timed(lambda: whole.apply(Group(GroupKind.SERVICE, "web", PLACED, SPEC)))
    ordered = sum(isinstance(command, Order) for turn in turns for command in turn.commands)
    assert ordered == PLACED, f"{ordered} of {PLACED} cells were ordered"
    by_walking = _place_by_walking(fleet, sight, PLACED_BY_WALKING)
    onto = f"onto {PLACED_SERVERS:,} servers"
    walked = f"a walk over all servers for each cell: {_rate(PLACED_BY_WALKING, by_walking)}"
    return [
        Row(f"placement of {PLACED:,} cells {onto}", _rate(PLACED, placing), "≥ 20,000 cells/s", walked),
        Row(f"the same, each placement applied {onto}", _rate(PLACED, both)),
        Row(f"the same in whole turns, with orders {onto}", _rate(PLACED, in_turns)),
    ]


def _place_and_apply(fleet: Fleet, sight: Sight, cells: int) -> tuple[float, float]:
    """Seconds for the placements alone, and with each of them applied to the fleet before the next."""
    fleet = _with_group(fleet)
    placer = Placer()
    placer.begin(lambda: fleet, sight, START, Policy())
    placing = 0.0
    began = time.perf_counter()
    for number in range(cells):
        state = fleet.groups["web"]
        before = time.perf_counter()
        server = placer.place(state, SPEC)
        placing += time.perf_counter() - before
        assert not isinstance(server, Unplaceable)
        fleet = _with_cell(fleet, number, server)
    return placing, time.perf_counter() - began


def _place_by_walking(fleet: Fleet, sight: Sight, cells: int) -> float:
    fleet = _with_group(fleet)
    seconds = 0.0
    for number in range(cells):
        placer = Placer()  # remembers nothing, so that it looks at every server
        placer.begin(lambda: fleet, sight, START, Policy())  # noqa: B023 - used in this round only
        state = fleet.groups["web"]
        server, spent = _timed(lambda: placer.place(state, SPEC))  # noqa: B023 - used in this round only
        assert not isinstance(server, Unplaceable)
        seconds += spent
        fleet = _with_cell(fleet, number, server)
    return seconds


# --- small things -----------------------------------------------------------------------------------------------------


def _joined(servers: int) -> Fleet:
    """A fleet to which that many servers have come, straight from its events."""
    events: list[AnyEvent] = []
    for number in range(servers):
        events.append(ServerEnrolled(f"s{number}", ""))
        events.append(
            ServerJoined(f"s{number}", 1, capacity=FACTS.capacity, runtimes=FACTS.runtimes),
        )
    records = (Record(position, START, "start", event) for position, event in enumerate(events, 1))
    return apply_all(Fleet(), records)


def _with_group(fleet: Fleet) -> Fleet:
    group = Group(GroupKind.SERVICE, "web", PLACED, SPEC)
    event = GroupApplied(group, digest_of(SPEC), 1)
    return apply_all(fleet, [Record(fleet.position + 1, START, "operator:ann", event)])


def _with_cell(fleet: Fleet, number: int, server: str) -> Fleet:
    event = CellOrdered(f"web/{number}.1", fleet.groups["web"].digest, 1, server, SPEC.resources)
    return apply_all(fleet, [Record(fleet.position + 1, START, "event:1", event)])


def _serving(cell: str) -> CellReport:
    endpoints = {"http": "127.0.0.1:8080"}
    return CellReport(cell, "", CellState.RUNNING, "c" * 64, endpoints, ProbeStatus(has_passed=True))


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    done = work()
    return done, time.perf_counter() - began


def _rate(cells: int, seconds: float) -> str:
    return f"{cells / seconds:,.0f} cells/s"
