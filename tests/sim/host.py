"""A virtual machine: cells that live on it, and an agent (the real ``agent.core``) that comes and goes."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Protocol

from galactica.agent.core import events as m
from galactica.agent.core import instructions as instructions_core
from galactica.agent.core import model as model_core
from galactica.agent.core.model import Found, Running
from galactica.agent.core.step import State, is_news, next_look, step
from galactica.scheduler.core.model.genome import Genome, GenomeMark
from galactica.v1 import cell_pb2, link_pb2
from tests.sim.lies import Liar
from tests.sim.network import Network


@dataclass
class Body:
    """A cell on the machine. ``ended``: it is a corpse. ``ill_until``: its probe fails until then."""

    order: link_pb2.Order
    ended: cell_pb2.Autopsy | None = None
    ill_until: float = 0.0
    began_at: float = 0.0


LIVES = {"dies": (0.2, 0.2), "young": (0.5, 4.5)}
"""How long cells of these commands live. The young ones become READY before they die, and are never proven."""
WATCHDOG_SECONDS = 1.0
"""When the watchdog kills what has outlived its lease and grace."""


class Port(Protocol):
    """The scheduler's side of the link, as the host sees it."""

    def hello(self, host: Host, link: int, hello: instructions_core.SendHello) -> None: ...

    def report(self, host: Host, link: int, report: instructions_core.SendReport) -> None: ...

    def goodbye(self, host: Host, link: int, seconds: float) -> None: ...

    def hung_up(self, host: Host, link: int) -> None: ...

    def clock_ahead_seconds(self) -> float:
        """How far the scheduler's clock is ahead of what it should be."""


@dataclass
class Troubles:
    """What goes wrong inside a host at the moment."""

    start_seconds: float = 0.05
    starts_fail: float = 0.0
    engine_away: bool = False
    frozen_until: float = 0.0
    disk_full_until: float = 0.0
    clock_ahead_seconds: float = 0.0
    """By how much its wall clock is wrong."""
    agent_frozen_until: float = 0.0
    """The agent alone: its cells and the watchdog go on."""
    doubtful: frozenset[str] = frozenset()
    """Cells of which the runtime knows the order, and whose inspection fails."""


@dataclass(eq=False)
class Host:
    name: str
    random: Random
    network: Network
    port: Port
    on_start: Callable[[str, link_pb2.Order], None]
    on_death: Callable[[str], None]
    on_forgotten: Callable[[str], None]
    """An exclusive cell was ended and removed here by itself, and whoever did it died before it may have told."""
    bodies: dict[str, Body] = field(default_factory=dict)
    troubles: Troubles = field(default_factory=Troubles)
    epoch: int = 0
    start: str = ""
    """Which start of a scheduler had that epoch."""
    fence_at: float = float("-inf")
    """What the agents here kept for the watchdog."""
    agent: Agent | None = None
    fenced: set[str] = field(default_factory=set)
    """Exclusive cells that this life of the agent ended."""
    _links: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    genome: tuple[GenomeMark, Genome] | None = None
    """The newest one that its agents kept."""
    liar: Liar | None = None
    """What its agent says instead of the truth, if it lies."""
    is_deleted: bool = False
    """The machine is gone: nothing begins on it any more."""
    machine: str = "the first"
    """Tells it from its copies."""
    _watch: asyncio.TimerHandle | None = None
    """The watchdog's next look."""

    # --- the machine's own life -----------------------------------------------------------------------------------

    def boot_agent(self) -> None:
        if self.agent is None and not self.is_deleted:
            self.agent = Agent(self)

    def kill_agent(self) -> None:
        """The agent dies; its cells live on. Its kernel closes the stream, if the network lets the news through."""
        if self.agent is not None:
            self.agent.die()
            self.agent = None
            for cell_id in self.fenced:
                self.on_forgotten(cell_id)
            self.fenced.clear()

    def end_agent(self, maintenance_seconds: float, back_after_seconds: float) -> None:
        """The agent ends in order and asks for a maintenance lease; it waits for the answer for a while at most. Then
        the next one comes after a while."""
        agent = self.agent
        if agent is not None and agent.link:
            self.network.from_host(self.name, self.port.goodbye, self, agent.link, maintenance_seconds)
            wait = self.random.choice([0.05, 5.0])
            asyncio.get_running_loop().call_later(wait, self._leave, agent, back_after_seconds)

    def _leave(self, agent: Agent, back_after_seconds: float) -> None:
        if self.agent is agent:
            self.kill_agent()
            asyncio.get_running_loop().call_later(back_after_seconds, self.boot_agent)

    def delete(self) -> None:
        """Power off, for ever."""
        self.is_deleted = True
        self.kill_agent()
        self.bodies.clear()

    def lie(self, liar: Liar | None) -> None:
        """None: from now on the truth, all of it: the agent attaches anew."""
        self.liar = liar
        if liar is None and self.agent is not None and self.agent.link:
            self.agent.hang_up(self.agent.link)

    def doubt(self, cells: frozenset[str]) -> None:
        """From now on the inspection of these cells fails, and of no other."""
        self.troubles.doubtful = cells
        if self.agent is not None:
            self.agent.hear_list()

    def kill_cell(self, cell_id: str, code: int = 137) -> None:
        body = self.bodies.get(cell_id)
        if body is None or body.ended is not None:
            return
        self.on_death(cell_id)
        lived_seconds = self.now - body.began_at
        body.ended = cell_pb2.Autopsy(
            reason=f"exited with {code}", exit_code=code, lived_seconds=lived_seconds
        )
        if self.agent is not None:
            ended = body.ended
            self.agent.hear(lambda now: m.Died(cell_id, ended, now))

    def remember_fence(self, fence_at: float | None) -> None:
        """The watchdog looks when the time is over, and is frozen with everything else here."""
        self.fence_at = float("-inf") if fence_at is None else fence_at
        if fence_at is not None:
            self._watch_at(max(self.now, fence_at))

    def _watch_at(self, at: float) -> None:
        """There is one watchdog: its next look takes the place of the one that was to come."""
        if self._watch is not None:
            self._watch.cancel()
        self._watch = asyncio.get_running_loop().call_at(at, self._watchdog)

    def _watchdog(self) -> None:
        """End the exclusive cells whose time is over; look again when that of the next one is."""
        looks = []
        for cell_id, body in list(self.bodies.items()):
            if not body.order.spec.exclusive or body.ended is not None:
                continue
            over_at = self.fence_at + body.order.spec.stop.grace_ms / 1_000 + WATCHDOG_SECONDS
            look_at = max(over_at, self.troubles.frozen_until + 0.1)
            if self.now < look_at:
                looks.append(look_at + 0.001)
                continue
            self._end_of_lease(cell_id)
        if looks:
            self._watch_at(min(looks))

    def _end_of_lease(self, cell_id: str) -> None:
        self.on_death(cell_id)
        self.on_forgotten(cell_id)
        del self.bodies[cell_id]
        if self.agent is not None:
            self.agent.hear(lambda now: m.Died(cell_id, model_core.Death("it vanished"), now))

    @property
    def is_silent(self) -> bool:
        """Nobody answers for it, although its kernel may take what is sent."""
        frozen_until = self.troubles.frozen_until
        if self.agent is not None:
            frozen_until = max(frozen_until, self.troubles.agent_frozen_until)
        return frozen_until > self.now

    def exclusive(self) -> list[str]:
        """The exclusive cells that run, or will when the machine is no longer frozen."""
        return [i for i, body in self.bodies.items() if body.order.spec.exclusive and body.ended is None]

    def running(self) -> list[str]:
        return sorted(cell_id for cell_id, body in self.bodies.items() if body.ended is None)

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def next_link(self) -> int:
        return next(self._links)


class Agent:
    """One life of the agent's process: the real state, driven as the daemon drives it."""

    CONNECT_SECONDS = 0.3
    WELCOME_SECONDS = 3.0
    KEEPALIVE_SECONDS = 20.0
    VITALS_SECONDS = 5.0

    def __init__(self, host: Host) -> None:
        self.host = host
        self.state = State(epoch=host.epoch, start=host.start, fence_at=host.fence_at)
        self.link = 0
        self.alive = True
        self._timer: asyncio.TimerHandle | None = None
        self._abandoned: set[str] = set()
        self._take_vitals()
        self.relist()
        self._later(self.host.random.uniform(0.01, 0.2), self.connect)

    def relist(self) -> None:
        host = self.host
        found = tuple(self._found(cell_id, body) for cell_id, body in host.bodies.items())
        self.feed(m.Relisted(cell_pb2.RUNTIME_KIND_PROCESS, found, host.now, host.now))

    def _found(self, cell_id: str, body: Body) -> Found:
        if cell_id in self.host.troubles.doubtful:
            return Found(body.order, None, doubt="its inspection failed", runtime_id="pid")
        return Found(body.order, None if body.ended else Running("pid", {}, 0.0), body.ended)

    def die(self) -> None:
        self.alive = False
        if self._timer:
            self._timer.cancel()
        if self.link:
            self._end_stream(self.link)

    def _end_stream(self, link: int) -> None:
        """The network may lose the news. Then the scheduler's side notices that nothing keeps the stream alive."""
        host, hung_up = self.host, self.host.port.hung_up
        host.network.from_host(host.name, hung_up, host, link)
        asyncio.get_running_loop().call_later(self.KEEPALIVE_SECONDS, hung_up, host, link)

    def _later(self, seconds: float, act: Callable[..., None], *args: object) -> None:
        """Do it in this life of the agent, and not while the host is frozen."""

        asyncio.get_running_loop().call_later(seconds, self._due, act, args)

    def _due(self, act: Callable[..., None], args: tuple[object, ...]) -> None:
        if not self.alive:
            return
        troubles = self.host.troubles
        frozen = max(troubles.frozen_until, troubles.agent_frozen_until) - self.host.now
        if frozen > 0:
            self._later(frozen + 0.001, act, *args)
        else:
            act(*args)

    # --- the link -------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        if self.link:
            return
        self.link = self.host.next_link()
        self.feed(m.Connected(self.link, self.host.now))
        self._later(self.WELCOME_SECONDS, self._give_up, self.link)

    def _give_up(self, link: int) -> None:
        if link == self.link and (self.state.session is None or self.state.session.link != link):
            self.hang_up(link)

    def hang_up(self, link: int) -> None:
        if link != self.link:
            return
        self.link = 0
        self._end_stream(link)
        self.feed(m.Disconnected(link, self.host.now))
        self._later(self.CONNECT_SECONDS * self.host.random.uniform(0.5, 2.0), self.connect)

    def hear(self, event: Callable[[float], m.Event]) -> None:
        """News arrived, such as a message from the scheduler; it is an event when the agent reads it."""
        self._later(0.0, lambda: self.feed(event(self.host.now)))

    def hear_list(self) -> None:
        """The runtime is listed now, or when the agent goes on."""
        self._later(0.0, self.relist)

    def _take_vitals(self) -> None:
        trouble = self.host.now < self.host.troubles.disk_full_until
        offset = self.host.troubles.clock_ahead_seconds - self.host.port.clock_ahead_seconds()
        vitals = cell_pb2.Vitals(disk_fraction=1.0 if trouble else 0.5, clock_offset_ms=offset * 1_000)
        self.feed(m.VitalsTaken(vitals, self.host.now))
        self._later(self.VITALS_SECONDS, self._take_vitals)

    # --- the state ------------------------------------------------------------------------------------------------

    def feed(self, event: m.Event) -> None:
        self.state, instructions = step(self.state, event)
        for instruction in instructions:
            self._carry_out(instruction)
        self._arm()

    def _arm(self) -> None:
        if self._timer:
            self._timer.cancel()
        look = next_look(self.state)
        if look < float("inf"):
            self._timer = asyncio.get_running_loop().call_at(max(look, self.host.now), self._tick)

    def _tick(self) -> None:
        if self.alive:
            self._later(0.0, lambda: self.feed(m.Tick(self.host.now)))

    def _carry_out(self, instruction: instructions_core.Instruction) -> None:
        host = self.host
        match instruction:
            case instructions_core.StartCell(order=order):
                seconds = host.troubles.start_seconds * host.random.uniform(0.5, 2.0)
                self._later(seconds, self._start, order)
            case instructions_core.AbandonStart(cell_id=cell_id):
                self._abandoned.add(cell_id)
                self.feed(m.StartFailed(cell_id, "abandoned", host.now))
            case instructions_core.StopCell(cell_id=cell_id, grace_seconds=grace):
                self._later(
                    host.random.uniform(0.01, 0.1) + host.random.random() * grace, self._stop, cell_id
                )
            case instructions_core.StartProbing(order=order):
                self._later(host.random.uniform(0.0, 0.5), self._probe, order.cell_id)
            case instructions_core.SendHello(link=link):
                host.network.from_host(host.name, host.port.hello, host, link, instruction)
            case instructions_core.SendReport(link=link):
                if host.liar is not None:
                    instruction = replace(instruction, cells=host.liar.tell(instruction.cells))
                host.network.from_host(host.name, host.port.report, host, link, instruction)
            case instructions_core.CloseSession(link=link):
                self.hang_up(link)
            case instructions_core.RememberEpoch(epoch=epoch, start=start):
                host.epoch, host.start = epoch, start
            case instructions_core.RememberFence(fence_at=fence_at):
                host.remember_fence(fence_at)

    def _start(self, order: link_pb2.Order) -> None:
        host, cell_id = self.host, order.cell_id
        if cell_id in self._abandoned:
            return
        if host.troubles.engine_away:
            self.feed(m.StartDeferred(cell_id, "the engine does not answer", host.now))
        elif cell_id not in host.bodies and host.random.random() < host.troubles.starts_fail:
            self.feed(m.StartFailed(cell_id, "no such image", host.now))
        else:
            if cell_id not in host.bodies:
                host.on_start(host.name, order)
                host.bodies[cell_id] = Body(order, began_at=host.now)
                if order.spec.command[-1] in LIVES:
                    seconds = host.random.uniform(*LIVES[order.spec.command[-1]])
                    asyncio.get_running_loop().call_later(seconds, host.kill_cell, cell_id, 1)
            self.feed(m.Started(cell_id, "pid", {"http": f"{host.name}:1"}, host.now))

    def _stop(self, cell_id: str) -> None:
        body = self.host.bodies.get(cell_id)
        is_exclusive = body is not None and body.order.spec.exclusive
        if self.host.troubles.engine_away and not is_exclusive:  # those are processes: no engine ends them
            self.feed(m.StopFailed(cell_id, "the engine does not answer", self.host.now))
            return
        self.host.bodies.pop(cell_id, None)
        self.host.on_death(cell_id)
        if is_exclusive:
            self.host.fenced.add(cell_id)
        self.feed(m.Stopped(cell_id, self.host.now))

    def _probe(self, cell_id: str) -> None:
        cell = self.state.cells.get(cell_id)
        body = self.host.bodies.get(cell_id)
        if cell is None or cell.state is not model_core.CellState.RUNNING or body is None:
            return
        is_ill = body.ended is not None or self.host.now < body.ill_until or "ill" in body.order.spec.command
        error = "connection refused" if is_ill else ""
        if is_news(self.state, cell_id, error):
            self.feed(m.ProbeFinished(cell_id, error, self.host.now))
        self._later(1.0, self._probe, cell_id)
