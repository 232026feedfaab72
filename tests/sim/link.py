"""The scheduler's side of the virtual link: what the dispatcher is to the real one."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from msgspec.structs import replace

from galactica.agent.core import events as m
from galactica.agent.core import instructions as instructions_core
from galactica.agent.core import model as model_core
from galactica.scheduler.controller import Controller
from galactica.scheduler.core.epochs import is_overtaken
from galactica.scheduler.core.model.commands import Command, Decommission, Order
from galactica.scheduler.core.model.requests import (
    Asker,
    AskerKind,
    BeginMaintenance,
    ClaimEpoch,
    Obeyed,
    RecogniseServer,
    Refused,
)
from galactica.scheduler.core.model.spec import Resources, RuntimeKind, Spec
from galactica.scheduler.core.model.verdict import Autopsy
from galactica.scheduler.core.sight.observations import (
    Attached,
    CellReport,
    CellState,
    Detached,
    Observation,
    ProbeStatus,
    Reported,
    ServerFacts,
    Testimony,
)
from galactica.scheduler.core.verdicts.machines import has_better_claim
from galactica.scheduler.wire.cell import vitals_from_proto
from galactica.v1 import cell_pb2, link_pb2
from tests.sim.clock import VirtualClock
from tests.sim.host import Host
from tests.sim.network import Network
from tests.sim.stall import Standstill


class Heard(Protocol):
    def __call__(self, server: str, reports: Iterable[CellReport], *, complete: bool) -> None: ...


@dataclass
class _Session:
    id: str
    host: Host
    link: int
    beat_at: float
    heard_at: float
    sequence: int = 0


@dataclass
class Links:
    """Implements ``ports.Outbox`` and ``host.Port``. One life of the scheduler."""

    network: Network
    epoch: int
    start: str
    on_command: Callable[[Command], None]
    testimony: Callable[[Host, float], tuple[Testimony, ...]]
    """What a host says of its neighbours."""
    heard: Heard
    clock: VirtualClock
    controller: Controller | None = None
    standstill: Standstill = field(default_factory=Standstill)
    sessions: dict[str, _Session] = field(default_factory=dict)
    inbox: asyncio.Queue[Observation] = field(default_factory=asyncio.Queue)
    opened: int = 0
    _working: set[asyncio.Task[None]] = field(default_factory=set)

    async def pump(self) -> None:
        """Hand what arrived to the controller, in order."""
        while True:
            observation = await self.inbox.get()
            await self.standstill.over()
            if self.controller is not None:
                await self.controller.observe(observation)

    def drop_all(self) -> None:
        """The scheduler's process died: its kernel closes every stream."""
        for session in list(self.sessions.values()):
            self._close(session)
        self.controller = None
        self.standstill.end()

    def clock_ahead_seconds(self) -> float:
        return self.clock.ahead_seconds

    # --- from hosts -------------------------------------------------------------------------------------------------

    def hello(self, host: Host, link: int, hello: instructions_core.SendHello) -> None:
        self.standstill.read(self._hello, host, link, hello)

    def _hello(self, host: Host, link: int, hello: instructions_core.SendHello) -> None:
        if self.controller is None:
            self.network.to_host(host.name, _hang_up, host, link)
            return
        fleet = self.controller.fleet()
        is_known = host.name in fleet.servers
        if not is_known and fleet.regrowth is None:
            return
        obeyed = Obeyed(hello.epoch, hello.start, hello.position)
        if not is_known or is_overtaken(fleet, obeyed, self.epoch, self.start):
            self._do(self._overtake(host, link, hello))
            return
        known = self.sessions.get(host.name)
        if known is not None and known.host is host:
            if known.link >= link:
                return
            self._end(known)
        elif known is not None:
            server = fleet.servers[host.name]
            if self._lives(known) and not has_better_claim(server, host.machine, known.host.machine):
                self.network.to_host(host.name, _hang_up, host, link)
                return
            self._close(known)
        self.opened += 1
        session = _Session(f"{self.epoch}-{self.opened}", host, link, hello.beat_at, self.controller.now())
        self.sessions[host.name] = session
        facts = ServerFacts(capacity=Resources(), runtimes=(RuntimeKind.PROCESS,), agent_version="sim")
        inventory = tuple(map(_report, hello.inventory))
        self.heard(host.name, inventory, complete=True)
        self.inbox.put_nowait(
            Attached(host.name, session.id, self.controller.now(), facts, inventory, host.machine)
        )
        tempo = self.controller.view().policy.tempo(1)
        welcome = (
            session.id,
            self.epoch,
            tempo.beat_seconds,
            tempo.lease_seconds,
            hello.beat_at,
            self.start,
            self.controller.fleet().position,
        )
        self.network.to_host(host.name, _welcome, host, link, welcome)

    def _lives(self, session: _Session) -> bool:
        """As the dispatcher sees it: then another machine with its identity is a copy, and refused."""
        assert self.controller is not None
        view = self.controller.view()
        heard_at = max(session.heard_at, view.sight.trusted_since)
        return not view.policy.tempo(len(view.fleet.servers)).has_missed(heard_at, view.now)

    async def _overtake(self, host: Host, link: int, hello: instructions_core.SendHello) -> None:
        """Go above the epoch that the agent has obeyed, durably, before it is told anything. And let it in where this
        scheduler is being grown anew."""
        controller = self.controller
        if controller is None:
            return
        with suppress(Refused):
            obeyed = Obeyed(hello.epoch, hello.start, hello.position)
            if is_overtaken(controller.fleet(), obeyed, self.epoch, self.start):
                await controller.ask(ClaimEpoch(obeyed, host.name), Asker(AskerKind.SCHEDULER))
            if host.name not in controller.fleet().servers:
                await controller.ask(RecogniseServer(host.name), Asker(AskerKind.SCHEDULER))
            self.epoch = max(self.epoch, controller.fleet().epoch)
            self._hello(host, link, hello)  # hangs up where the scheduler has ended meanwhile

    def report(self, host: Host, link: int, report: instructions_core.SendReport) -> None:
        self.standstill.read(self._report, host, link, report)

    def _report(self, host: Host, link: int, report: instructions_core.SendReport) -> None:
        session = self.sessions.get(host.name)
        if self.controller is None or session is None or session.link != link or session.id != report.session:
            return
        cells = tuple(map(_report, report.cells))
        self.heard(host.name, cells, complete=report.complete)
        now = self.controller.now()
        said = self.testimony(host, now)
        vitals = vitals_from_proto(report.vitals) if report.vitals else None
        observation = Reported(
            host.name, session.id, report.sequence, now, cells, vitals, report.complete, testimonies=said
        )
        self.inbox.put_nowait(observation)
        session.heard_at = now
        session.beat_at = max(session.beat_at, report.beat_at)
        if report.wants_echo:
            self.network.to_host(
                host.name, _echo, host, link, report.beat_at, self.controller.fleet().position
            )

    def goodbye(self, host: Host, link: int, seconds: float) -> None:
        self.standstill.read(self._goodbye, host, link, seconds)

    def _goodbye(self, host: Host, link: int, seconds: float) -> None:
        session = self.sessions.get(host.name)
        if self.controller is None or session is None or session.host is not host or session.link != link:
            return
        asked = BeginMaintenance(host.name, session.id, seconds)
        self._do(self._begin_maintenance(self.controller, asked))

    async def _begin_maintenance(self, controller: Controller, asked: BeginMaintenance) -> None:
        with suppress(Refused):
            await controller.ask(asked, Asker.server(asked.server))

    def _do(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._working.add(task)
        task.add_done_callback(self._working.discard)

    def hung_up(self, host: Host, link: int) -> None:
        self.standstill.read(self._hung_up, host, link)

    def _hung_up(self, host: Host, link: int) -> None:
        session = self.sessions.get(host.name)
        if session is not None and session.host is host and session.link == link:
            self._end(session)

    def _end(self, session: _Session) -> None:
        del self.sessions[session.host.name]
        if self.controller is not None:
            self.inbox.put_nowait(Detached(session.host.name, session.id, self.controller.now()))

    def _close(self, session: _Session) -> None:
        self._end(session)
        self.network.to_host(session.host.name, _hang_up, session.host, session.link)

    # --- to hosts ---------------------------------------------------------------------------------------------------

    def send(self, commands: Sequence[Command]) -> None:
        batches: dict[str, list[m.Verb]] = defaultdict(list)
        for command in commands:
            self.on_command(command)
            session = self.sessions.get(command.server)
            batches[command.server].append(_verb(command, session.beat_at if session else 0.0))
        for server, verbs in batches.items():
            session = self.sessions.get(server)
            if session is None:
                continue
            session.sequence += 1
            batch = (session.id, session.sequence, tuple(verbs), self.epoch)
            self.network.to_host(server, _instruct, session.host, session.link, batch)


def _hear(host: Host, link: int, event: Callable[[float], m.Event]) -> None:
    if host.agent is not None and host.agent.link == link:
        host.agent.hear(event)


def _hang_up(host: Host, link: int) -> None:
    if host.agent is not None:
        host.agent.hang_up(link)


def _echo(host: Host, link: int, beat_at: float, position: int) -> None:
    _hear(host, link, lambda now: m.Echoed(link, now, beat_at, position))


def _welcome(host: Host, link: int, welcome: tuple[str, int, float, float, float, str, int]) -> None:
    session, epoch, beat, lease, beat_at, start, position = welcome
    _hear(
        host, link, lambda now: m.Welcomed(link, session, epoch, beat, lease, now, beat_at, start, position)
    )


def _instruct(host: Host, link: int, batch: tuple[str, int, tuple[m.Verb, ...], int]) -> None:
    session, sequence, verbs, epoch = batch
    _hear(host, link, lambda now: m.Instructed(link, session, sequence, verbs, now, epoch))


def _verb(command: Command, beat_at: float) -> m.Verb:
    match command:
        case Order(cell=cell, digest=digest, spec=spec):
            return m.Ordered(link_pb2.Order(cell_id=cell, digest=digest, spec=_spec(spec)), beat_at)
        case Decommission(cell=cell, reason=reason):
            return m.Decommissioned(cell, reason)
        case _:
            return m.ResyncAsked()


def _spec(spec: Spec) -> cell_pb2.Spec:
    health = cell_pb2.Health(tcp=cell_pb2.TcpProbe(port="http"), sick_after=spec.health.sick_after)
    return cell_pb2.Spec(
        runtime=cell_pb2.RUNTIME_KIND_PROCESS,
        command=spec.command,
        health=health,
        stop=cell_pb2.Stop(signal=spec.stop.signal, grace_ms=round(spec.stop.grace_seconds * 1_000)),
        exclusive=spec.exclusive,
    )


def _report(said: model_core.CellReport) -> CellReport:
    probe = None
    if said.probe is not None:
        probe = ProbeStatus(said.probe.has_passed, said.probe.consecutive_failures, said.probe.last_error)
    autopsy = None
    if said.autopsy is not None:
        autopsy = Autopsy(said.autopsy.reason, lived_seconds=said.autopsy.lived_seconds)
        if isinstance(said.autopsy, model_core.Death):
            autopsy = replace(autopsy, fenced=said.autopsy.fenced)
    state = CellState(said.state.name.lower())
    return CellReport(
        said.cell_id,
        said.digest,
        state,
        said.runtime_id,
        dict(said.endpoints or {}),
        probe,
        autopsy,
        said.progress,
        doubt=said.doubt,
    )
