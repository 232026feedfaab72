"""When each cell is probed. One task and one heap serve all cells; ``checks`` makes the attempts.

A cell that has not passed yet is probed soon and then less and less often, so that it becomes READY as early as
possible. A cell that has passed is probed once in each ``every``, at an instant of a common grid: for an idle agent
waking up costs more than probing, so several cells share one instant. For the same reason the answers are collected
once, shortly after the attempts of an instant; only slower answers are awaited one by one.

Only what the cell did or failed to do is an outcome. An attempt that could not begin (it waited for other probes, the
engine did not answer, the agent had no file descriptor) says nothing about the cell: it is logged, and made again
later.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import math
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from galactica.agent.health.checks import (
    GrpcCheck,
    ProbeError,
    SocketCheck,
    address_of,
    socket_check,
    timed_out,
)
from galactica.agent.runtimes.port import RuntimeFailure, RuntimeUnavailable
from galactica.agent.seldom import Seldom
from galactica.agent.starved import Lacks, lack_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from galactica.agent.runtimes.port import Begun
    from galactica.v1 import link_pb2

    Execute = Callable[[int, str, Sequence[str], float, Begun], Awaitable[tuple[int, str]]]
    Deliver = Callable[[str, str], None]

GRID_SECONDS = 0.5
BOOT_FIRST_SECONDS = 0.02
COLLECT_SECONDS = 0.005
AT_ONCE = 32
"""How many attempts start at once; the others follow ``STAGGER_SECONDS`` later."""
STAGGER_SECONDS = 0.02
EVERY_LEAST_SECONDS = 0.05
TIMEOUT_LEAST_SECONDS = 0.01
BACKSTOP = 1.5
"""The time that an attempt may take in all, as a multiple of its timeout: who carries it out ends it at its timeout."""

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Probe:
    """One probed cell. ``entry`` is the number of its valid entry in the heap; older entries are ignored."""

    cell_id: str
    order: link_pb2.Order
    every_seconds: float
    timeout_seconds: float
    check: SocketCheck | None = None
    grpc: GrpcCheck | None = None
    error: str = ""
    """Why it cannot be probed at all; each attempt ends with this error."""
    due: float = 0.0
    deadline: float | None = None
    """The end of a socket's attempt; None: no attempt is under way."""
    pause_seconds: float = BOOT_FIRST_SECONDS
    has_passed: bool = False
    entry: int = 0
    watched: int = -1
    """The file descriptor that the event loop watches for it; -1: none."""
    task: asyncio.Task[None] | None = None


@dataclass(slots=True)
class Prober:
    """``execute`` runs a command in a cell. ``deliver`` takes a cell id and the attempt's error; empty: it passed.
    ``lacks`` takes what the agent itself lacked for an attempt."""

    execute: Execute
    deliver: Deliver
    lacks: Lacks = field(default_factory=Lacks)
    _probes: dict[str, _Probe] = field(default_factory=dict)
    _heap: list[tuple[float, int, _Probe]] = field(default_factory=list)
    _entries: int = 0
    _ready: list[_Probe] = field(default_factory=list)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _closing: list[GrpcCheck] = field(default_factory=list)
    _unbegun: int = 0
    _seldom: Seldom = field(default_factory=Seldom)

    def start(self, order: link_pb2.Order, endpoints: Mapping[str, str], direct: Mapping[str, str]) -> None:
        """Probe this cell from now on. The first probe is at once. ``direct``: its ports at its own address, as far as
        they can be reached."""
        self.stop(order.cell_id)
        health = order.spec.health
        probe = _Probe(
            cell_id=order.cell_id,
            order=order,
            every_seconds=max(EVERY_LEAST_SECONDS, health.every_ms / 1_000),
            timeout_seconds=max(TIMEOUT_LEAST_SECONDS, health.timeout_ms / 1_000),
        )
        try:
            probe.check = socket_check(health, endpoints, direct, probe.timeout_seconds)
            if health.HasField("grpc"):
                probe.grpc = GrpcCheck(address_of(endpoints, health.grpc.port), health.grpc.service)
        except ProbeError as error:
            probe.error = str(error)
        self._probes[probe.cell_id] = probe
        probe.due = asyncio.get_running_loop().time()
        self._push(probe, probe.due)
        self._wake.set()

    def stop(self, cell_id: str) -> None:
        """Stop probing this cell; an attempt under way is cancelled."""
        probe = self._probes.pop(cell_id, None)
        if probe is None:
            return
        probe.entry = -1
        self._unwatch(probe)
        if probe.check:
            probe.check.close()
        if probe.task:
            probe.task.cancel()
        if probe.grpc:
            self._closing.append(probe.grpc)
            self._wake.set()

    async def run(self) -> None:
        """Probe until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    self._wake.clear()
                    ready, self._ready = self._ready, []
                    for probe in ready:
                        self._collect(probe, loop.time())
                    self._pass(loop.time(), tasks)
                    while self._closing:
                        await self._closing.pop().close()
                    timer = self._arm(loop)
                    await self._wake.wait()
                    if timer:
                        timer.cancel()
        finally:
            for cell_id in tuple(self._probes):
                self.stop(cell_id)
            while self._closing:
                await self._closing.pop().close()

    def _arm(self, loop: asyncio.AbstractEventLoop) -> asyncio.TimerHandle | None:
        while self._heap and self._heap[0][1] != self._heap[0][2].entry:
            heapq.heappop(self._heap)
        return loop.call_at(self._heap[0][0], self._wake.set) if self._heap else None

    def _push(self, probe: _Probe, at: float) -> None:
        self._entries += 1
        probe.entry = self._entries
        heapq.heappush(self._heap, (at, probe.entry, probe))

    def _pass(self, now: float, tasks: asyncio.TaskGroup) -> None:
        """Start and collect the attempts that are due."""
        begun = 0
        while self._heap and self._heap[0][0] <= now:
            _, entry, probe = heapq.heappop(self._heap)
            if entry != probe.entry:
                continue
            if probe.deadline is not None:
                self._collect(probe, now)
            elif begun < AT_ONCE:
                begun += 1
                self._begin(probe, now, tasks)
            else:
                self._push(probe, now + STAGGER_SECONDS)

    def _begin(self, probe: _Probe, now: float, tasks: asyncio.TaskGroup) -> None:
        if probe.error:
            self._finish(probe, probe.error, now)
        elif probe.check is None:
            probe.entry = 0
            probe.task = tasks.create_task(self._attempt(probe))
        else:
            probe.deadline = now + probe.timeout_seconds
            outcome = self._asked(probe, probe.check.begin)
            if outcome is None:
                self._push(probe, now + min(COLLECT_SECONDS, probe.timeout_seconds))
            else:
                self._ended(probe, outcome, now)

    def _collect(self, probe: _Probe, now: float) -> None:
        if probe.check is None or probe.deadline is None:
            return
        # A new socket may get the number of a closed one: stop watching the number before collecting.
        self._unwatch(probe)
        outcome = self._asked(probe, probe.check.collect)
        if outcome is None and now >= probe.deadline:
            probe.check.close()
            outcome = timed_out(probe.timeout_seconds)
        if outcome is None:
            try:
                self._watch(probe, probe.check)
            except OSError as error:
                probe.check.close()
                outcome = error
        if outcome is not None:
            self._ended(probe, outcome, now)
            return
        self._push(probe, min(probe.deadline, probe.check.look_at or math.inf))

    def _asked(self, probe: _Probe, ask: Callable[[], str | None]) -> str | OSError | None:
        """What a step of a socket's attempt led to. An error of the agent's own is not the cell's."""
        try:
            return ask()
        except OSError as error:
            if probe.check:
                probe.check.close()
            return error if lack_of(error) else f"cannot probe: {error.strerror}"

    def _ended(self, probe: _Probe, outcome: str | Exception, now: float) -> None:
        if isinstance(outcome, Exception):
            self._not_begun(probe, outcome, now)
        else:
            self._finish(probe, outcome, now)

    def _finish(self, probe: _Probe, error: str, now: float) -> None:
        probe.deadline = None
        first_pass = not error and not probe.has_passed
        probe.has_passed = probe.has_passed or not error
        self._push(probe, _next(probe, now, first_pass=first_pass))
        self.deliver(probe.cell_id, error)

    def _not_begun(self, probe: _Probe, why: Exception, now: float) -> None:
        """Neither a success nor a failure of the cell."""
        probe.deadline = None
        self._push(probe, _next(probe, now, first_pass=False))
        self.lacks.note_if(why, f"probe {probe.cell_id}")
        self._unbegun += 1
        if self._seldom.is_time(""):
            log.warning(
                "probes could not begin count=%d newest=%s reason=%r", self._unbegun, probe.cell_id, str(why)
            )
            self._unbegun = 0

    def _watch(self, probe: _Probe, check: SocketCheck) -> None:
        loop = asyncio.get_running_loop()
        probe.watched = check.fileno()
        add = loop.add_writer if check.wants_write else loop.add_reader
        add(probe.watched, self._answered, probe)

    def _answered(self, probe: _Probe) -> None:
        self._unwatch(probe)
        self._ready.append(probe)
        self._wake.set()

    def _unwatch(self, probe: _Probe) -> None:
        if probe.watched >= 0:
            loop = asyncio.get_running_loop()
            loop.remove_reader(probe.watched)
            loop.remove_writer(probe.watched)
            probe.watched = -1

    async def _attempt(self, probe: _Probe) -> None:
        """An attempt of a kind that needs a task: exec or grpc. Its time counts from its beginning."""
        loop = asyncio.get_running_loop()
        outcome: str | Exception
        try:
            async with asyncio.timeout(None) as limit:
                outcome = await self._outcome(probe, _Clock(limit, BACKSTOP * probe.timeout_seconds))
        except TimeoutError:
            outcome = timed_out(probe.timeout_seconds)
        except RuntimeUnavailable as failure:
            outcome = failure
        except RuntimeFailure as failure:
            outcome = failure if lack_of(failure) else str(failure)
        except Exception as error:  # its own task's edge: other cells are probed all the same
            if not lack_of(error) and self._seldom.is_time(type(error).__name__):
                log.exception("probe failed: unexpected error cell=%s", probe.cell_id)
            outcome = error
        probe.task = None
        if self._probes.get(probe.cell_id) is not probe:
            return
        self._ended(probe, outcome, loop.time())
        self._wake.set()

    async def _outcome(self, probe: _Probe, clock: _Clock) -> str:
        if probe.grpc:
            clock.begin()
            return await probe.grpc.attempt(probe.timeout_seconds)
        command = tuple(probe.order.spec.health.exec.command)
        kind = probe.order.spec.runtime
        code, line = await self.execute(kind, probe.cell_id, command, probe.timeout_seconds, clock.begin)
        return "" if code == 0 else f"exited with {code}: {line}" if line else f"exited with {code}"


@dataclass(slots=True)
class _Clock:
    """The time limit of one attempt, which counts from ``begin``."""

    limit: asyncio.Timeout
    seconds: float

    def begin(self) -> None:
        # The attempt may have been cancelled meanwhile; its limit cannot be changed then.
        with contextlib.suppress(RuntimeError):
            self.limit.reschedule(asyncio.get_running_loop().time() + self.seconds)


def _next(probe: _Probe, now: float, *, first_pass: bool) -> float:
    """When to make the next attempt. Advances the probe's ``due``."""
    if not probe.has_passed:
        pause, probe.pause_seconds = probe.pause_seconds, min(probe.every_seconds, 2 * probe.pause_seconds)
        probe.due = now
        return now + min(pause, probe.every_seconds)
    if first_pass:
        # Spread the probes of cells that started together.
        probe.due = now + probe.every_seconds * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
    else:
        probe.due = max(probe.due + probe.every_seconds, now)
    if probe.every_seconds < GRID_SECONDS:
        return probe.due
    return math.ceil(probe.due / GRID_SECONDS) * GRID_SECONDS
