"""A small world for the core: it joins servers, plays their agents by hand and moves time. No IO, no clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from galactica.scheduler.core.model.commands import (
    Command,
    Decommission,
    DecommissionServer,
    Order,
    OrderServer,
    ProviderCommand,
)
from galactica.scheduler.core.model.events import AnyEvent, Record
from galactica.scheduler.core.model.fleet import Cell, Fleet, Phase
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.requests import (
    Accepted,
    ApplyGroups,
    Asker,
    CreateToken,
    Enrol,
    Refused,
    Request,
)
from galactica.scheduler.core.model.spec import (
    Group,
    GroupKind,
    HealthSpec,
    HttpProbe,
    Resources,
    RuntimeKind,
    ServerBody,
    Spec,
)
from galactica.scheduler.core.model.verdict import Autopsy
from galactica.scheduler.core.sight.observations import (
    Attached,
    CellReport,
    CellState,
    Detached,
    ProbeStatus,
    ProviderListed,
    ProviderServer,
    ProviderState,
    Reported,
    ServerFacts,
    ServerMade,
    ServerUnmade,
)
from galactica.scheduler.core.sight.vitals import Vitals
from galactica.scheduler.core.turns import Asked, Core, Start, Turn

START = 1_000_000.0
SECRET = "5" * 64
ANN = Asker.operator("ann")
PROOF_SECONDS = Group(GroupKind.SERVICE, "web", 1, Spec(RuntimeKind.PROCESS)).healthy_for_seconds
"""How long a new cell must stay well until it is proven, where a test says nothing else."""


def spec(version: str = "1", **changes: object) -> Spec:
    fields: dict[str, object] = {
        "runtime": RuntimeKind.PROCESS,
        "command": ("serve", version),
        "health": HealthSpec(probe=HttpProbe("http"), boot_within_seconds=30.0),
        "ports": {"http": 0},
    }
    return Spec(**{**fields, **changes})  # type: ignore[arg-type]


def pool(name: str = "rack", size: int = 3, body: str = "{}", **changes: object) -> Group:
    of = Spec(
        runtime=RuntimeKind.SERVER,
        server=ServerBody("local", body),
        health=HealthSpec(boot_within_seconds=60.0),
    )
    return Group(GroupKind.POOL, name, size, of, **changes)  # type: ignore[arg-type]


def service(name: str = "web", replicas: int = 1, of: Spec | None = None) -> Group:
    return Group(GroupKind.SERVICE, name, replicas, of or spec())


@dataclass
class World:
    """``obedient``: agents do what they are told at once; else the test reports by itself."""

    obedient: bool = True
    policy: Policy = field(default_factory=Policy)
    fleet: Fleet = field(default_factory=Fleet)
    now: float = START
    core: Core = field(init=False)
    records: list[Record] = field(default_factory=list)
    sent: list[Command] = field(default_factory=list)
    told_providers: list[ProviderCommand] = field(default_factory=list)
    deaf_providers: bool = False
    slow_deletes: bool = False
    """Providers take deletes at once and do nothing: the test says what they list."""
    _errands: list[ProviderCommand] = field(default_factory=list)
    journal_refuses: str = ""
    deaf: set[str] = field(default_factory=set)
    regrows: bool = False
    """Its scheduler lost all but its CA."""
    mute: set[str] = field(default_factory=set)
    """New servers whose agents say nothing of their vitals by themselves."""
    _tickets: int = 0
    _sessions: int = 0

    def __post_init__(self) -> None:
        self.core = Core(
            self.fleet, self.policy, self.now, Start(self.fleet.epoch + 1, "test", regrows=self.regrows)
        )
        self.settle()

    def crash(self) -> World:
        """A new scheduler on the same journal; agents have to attach again."""
        return World(self.obedient, self.policy, self.core.fleet, self.now)

    # --- what happens -----------------------------------------------------------------------------------------

    def join(self, *names: str, labels: dict[str, str] | None = None, memory_bytes: int = 0) -> None:
        for name in names:
            if name not in self.core.fleet.servers:
                self.ask(CreateToken("t" + name, SECRET, 1, self.now + 3600))
                self.ask(Enrol("t" + name, SECRET, name))
            self.attach(name, labels=labels, memory_bytes=memory_bytes)

    def attach(
        self,
        name: str,
        *inventory: CellReport,
        labels: dict[str, str] | None = None,
        memory_bytes: int = 0,
        machine: str = "the first",
        booted_at: float | None = None,
    ) -> None:
        """``machine``: on which its agent runs; ``booted_at``: since when."""
        self._sessions += 1
        facts = ServerFacts(
            labels=labels or {},
            capacity=Resources(memory_bytes=memory_bytes),
            runtimes=(RuntimeKind.PROCESS, RuntimeKind.DOCKER),
        )
        session = f"s{self._sessions}"
        self.core.take(Attached(name, session, self.now, facts, inventory, machine, booted_at=booted_at))
        self.settle()

    def detach(self, name: str) -> None:
        self.core.take(Detached(name, self.core.sight.servers[name].session, self.now))
        self.settle()

    def lose(self, cell: str) -> None:
        """A pool's server is gone: the kernel closes its stream, and its provider says so."""
        seen = self.core.sight.servers.get(cell)
        if seen is not None and seen.is_open:
            self.core.take(Detached(cell, seen.session, self.now))
        self.core.take(ServerUnmade("local", cell, self.now, is_gone=True))
        self.settle()

    def lists(self, *cells: str, gone: tuple[str, ...] = ()) -> None:
        """The provider's list has these servers, some of them as gone."""
        servers = [ProviderServer(cell, f"ref-{cell}", ProviderState.RUNNING) for cell in cells]
        servers += [ProviderServer(cell, f"ref-{cell}", ProviderState.GONE) for cell in gone]
        self.core.take(ProviderListed("local", tuple(servers), self.now, self.now))
        self.settle()

    def beat(self, *names: str) -> None:
        for name in names or [s for s, seen in self.core.sight.servers.items() if seen.is_open]:
            if name in self.core.sight.servers:  # what the one before said may have ended this one
                self.report(name)

    def report(self, server: str, *cells: CellReport, vitals: Vitals | None = None) -> None:
        seen = self.core.sight.servers[server]
        self.core.take(Reported(server, seen.session, seen.sequence + 1, self.now, cells, vitals))
        self.settle()

    def ask(self, request: Request, by: Asker = ANN) -> Accepted:
        """Raises Refused."""
        self._tickets += 1
        turn = self.core.turn([Asked(self._tickets, request, by)], self.now)
        self._finish(turn)
        self.settle()
        answer = turn.answers[0][1]
        if isinstance(answer, Refused):
            raise answer
        return answer

    def apply(self, *groups: Group) -> Accepted:
        return self.ask(ApplyGroups(groups))

    def advance(self, seconds: float, *, beating: bool = True) -> None:
        """Let time pass in steps of half a second, with beats unless told otherwise."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 0.5)
            if beating:
                self.beat()
            self.settle()

    def settle(self) -> None:
        """Turn until nothing is left to do now."""
        for _ in range(10_000):
            self._finish(self.core.turn([], self.now))
            while self._errands:
                self.make(self._errands.pop(0))
            due = self.core.next_look_at()
            if due is None or due > self.now:
                return
        raise AssertionError("the core does not come to rest")

    def _finish(self, turn: Turn) -> None:
        if self.journal_refuses and turn.records:
            self.core.abandon(turn, self.journal_refuses)
            return
        self.core.commit(turn)
        self.records += turn.records
        self.sent += turn.commands
        self.told_providers += turn.provider_commands
        if not self.deaf_providers:
            self._errands += turn.provider_commands
        if self.obedient:
            for command in turn.commands:
                self.obey(command)

    def obey(self, command: Command) -> None:
        seen = self.core.sight.servers.get(command.server)
        if seen is None or not seen.is_open or command.server in self.deaf:
            return
        match command:
            case Order(cell=cell):
                report = running(cell)
            case Decommission(cell=cell):
                report = CellReport(cell, "", CellState.GONE)
            case _:
                return
        self.core.take(Reported(command.server, seen.session, seen.sequence + 1, self.now, (report,)))

    def make(self, command: ProviderCommand) -> None:
        """The provider does it at once, and a new server's agent enrols and attaches."""
        match command:
            case OrderServer(provider=provider, cell=cell):
                self.core.take(ServerMade(provider, cell, f"ref-{cell}", self.now))
                self.join(cell)
                if cell not in self.mute:
                    self.report(cell, vitals=Vitals(clock_offset_ms=0.0))
            case DecommissionServer(provider=provider, cell=cell) if self.slow_deletes:
                self.core.take(ServerUnmade(provider, cell, self.now))
            case DecommissionServer(provider=provider, cell=cell):
                seen = self.core.sight.servers.get(cell)
                if seen is not None and seen.is_open:
                    self.core.take(Detached(cell, seen.session, self.now))
                self.core.take(ServerUnmade(provider, cell, self.now, is_gone=True))

    # --- what can be seen -------------------------------------------------------------------------------------

    def cell(self, cell_id: str) -> Cell:
        cell = self.core.fleet.cell(cell_id)
        if cell is None:
            cell = next((c for c in self.core.fleet.graves.values() if c.id == cell_id), None)
        assert cell is not None, f"{cell_id} was never ordered"
        return cell

    def phases(self, group: str = "web") -> dict[str, Phase]:
        """The phase of each cell that is not decommissioned, sorted by id."""
        state = self.core.fleet.groups.get(group)
        cells = [cell for slot in state.slots.values() for cell in slot.cells] if state else []
        return {cell.id: cell.phase for cell in sorted(cells, key=lambda c: (c.slot, c.generation))}

    def held(self) -> set[str]:
        return {hold.rule for hold in self.core.view(self.now).holds}

    def events(self, kind: type[AnyEvent]) -> list[AnyEvent]:
        return [record.event for record in self.records if isinstance(record.event, kind)]

    def until(self, condition: Callable[[], bool], limit_seconds: float = 120.0) -> None:
        """Advance until the condition holds. Fails after the limit of virtual time."""
        end = self.now + limit_seconds
        while not condition():
            assert self.now < end, f"still not so after {limit_seconds:g} s"
            self.advance(0.5)


def running(cell: str, *, failures: int = 0, passed: bool = True) -> CellReport:
    probe = ProbeStatus(passed, failures, "connection refused" if failures else "")
    return CellReport(cell, "", CellState.RUNNING, "pid", {"http": "127.0.0.1:8080"}, probe)


def starting(cell: str) -> CellReport:
    return CellReport(cell, "", CellState.STARTING)


def exited(cell: str, code: int = 1) -> CellReport:
    autopsy = Autopsy(f"exited with {code}", exit_code=code)
    return CellReport(cell, "", CellState.EXITED, "pid", {}, None, autopsy)


def gone(cell: str) -> CellReport:
    return CellReport(cell, "", CellState.GONE)
