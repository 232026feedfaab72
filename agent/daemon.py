"""The driver: owns the agent's state, feeds it events one at a time and carries out what it says.

Everything runs in one event loop. Runtime calls, probes and the link run beside each other and put what comes
of them into one bounded queue; a single task takes events from it and steps the state.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from typing import TYPE_CHECKING, assert_never

from galactica.agent import clock, drift, wire
from galactica.agent.logs import LogStreams
from galactica.agent.messages import (
    AbandonStart,
    CloseSession,
    ClosingDown,
    Compared,
    Died,
    Disconnected,
    Event,
    FetchLogs,
    Instruction,
    ProbeFinished,
    Progressed,
    RefuseLogs,
    Relisted,
    RememberEpoch,
    RememberFence,
    SendHello,
    SendReport,
    StartCell,
    StartDeferred,
    Started,
    StartFailed,
    StartProbing,
    StopCell,
    StopFailed,
    StopLogs,
    Stopped,
    StopProbing,
    Tick,
    VitalsTaken,
    WatchNeighbours,
    Welcomed,
)
from galactica.agent.probes import Prober
from galactica.agent.runtimes import Exited, RuntimeFailure, RuntimeUnavailable, Stirred
from galactica.agent.shell import Shells
from galactica.agent.state import State, is_news, next_look, step

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence

    from galactica.agent.fence_keeping import FenceKeeper
    from galactica.agent.neighbours import NeighbourWatch
    from galactica.agent.reporting import Cell
    from galactica.agent.runtimes import Progress, Runtime
    from galactica.agent.session import Link
    from galactica.agent.vitals import VitalsTaker
    from galactica.agent.will import Will
    from galactica.v1 import link_pb2

QUEUE_LIMIT = 10_000
STARTS_AT_ONCE = 16
RELIST_SECONDS = 30.0
RELIST_AGAIN_SECONDS = 1.0
VITALS_SECONDS = 5.0
STOP_MARGIN_SECONDS = 15.0
"""How much longer than the longest grace the end of all cells may take."""
SLEEPLESS_SECONDS = 0.5
"""The loop's timers stand still while the host sleeps. Where exclusive cells are at stake none is longer than this."""

log = logging.getLogger(__name__)


class Daemon:
    """``link_to`` and ``watch_to`` make the link and the neighbours' watch (if there is one) once it is known where
    their events go. ``remember_epoch`` may block. ``will``: what speaks for the agent on the message bus, if there is
    one."""

    def __init__(
        self,
        *,
        runtimes: Mapping[int, Runtime],
        link_to: Callable[[Callable[[Event], Awaitable[None]]], Link],
        vitals_of: Callable[[Link], VitalsTaker],
        facts: wire.ServerFacts,
        epoch: int,
        remember_epoch: Callable[[int], None],
        fence: FenceKeeper,
        compare_every_seconds: float = drift.EVERY_SECONDS,
        will: Will | None = None,
        watch_to: Callable[[Callable[[Event], Awaitable[None]]], NeighbourWatch | None] = lambda _: None,
    ) -> None:
        self._runtimes = runtimes
        self._facts = facts
        self._remember_epoch = remember_epoch
        self._will = will
        self._fence = fence
        self._state = State(epoch=epoch, fence_at=fence.known())
        self._queue: asyncio.Queue[Event] = asyncio.Queue(QUEUE_LIMIT)
        self._link = link_to(self.deliver)
        self._vitals = vitals_of(self._link)
        self._neighbours = watch_to(self.deliver)
        self._prober = Prober(self._execute, self._probed)
        self._drift = drift.DriftWatch(
            lambda: self._state.cells, self._compare, self._compared, compare_every_seconds
        )
        self._starts = asyncio.Semaphore(STARTS_AT_ONCE)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._all_gone = asyncio.Event()
        self._workers: set[asyncio.Task[None]] = set()
        self._starting: dict[str, asyncio.Task[None]] = {}

    async def deliver(self, event: Event) -> None:
        await self._queue.put(event)

    async def run(self, stop: asyncio.Event, *, stops_cells: bool) -> None:
        """Work until ``stop`` is set, then detach; cells live on unless they are to be stopped too.

        Raises, in groups, session.RefusedError and renewal.RenewalRefusedError."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            self._logs = LogStreams(self._runtimes, self._link, tasks)
            self._shells = Shells(self._runtimes, self._link, tasks, lambda: self._state.cells)
            self._link.on_shell = self._shells.take
            owned = [tasks.create_task(self._consume()), tasks.create_task(self._prober.run())]
            owned.append(tasks.create_task(self._drift.run()))
            owned.append(tasks.create_task(self._fence.run()))
            recovered = [asyncio.Event() for _ in self._runtimes]
            for kind, listed in zip(self._runtimes, recovered, strict=True):
                owned.append(tasks.create_task(self._watch(kind)))
                owned.append(tasks.create_task(self._relist(kind, listed)))
            owned.append(tasks.create_task(self._take_vitals()))
            if self._neighbours:
                owned.append(tasks.create_task(self._neighbours.run()))
            owned.append(tasks.create_task(self._attach(recovered)))
            if self._will is not None:
                owned.append(tasks.create_task(self._will.run()))
            await stop.wait()
            if stops_cells:
                await self._stop_cells()
            await self._link.leave()
            # What is under way in a runtime is found by the agent's next life.
            for task in (*owned, *self._workers):
                task.cancel()
            self._logs.stop_all()
            self._shells.close_all()
            if self._timer:
                self._timer.cancel()

    async def _attach(self, recovered: Sequence[asyncio.Event]) -> None:
        """A Hello that leaves out cells says that they are gone, so every runtime is listed before the first."""
        for listed in recovered:
            await listed.wait()
        await self._link.run()

    # The state.

    async def _consume(self) -> None:
        while True:
            self._take(await self._queue.get())
            while not self._queue.empty():
                self._take(self._queue.get_nowait())
            self._arm()

    def _take(self, event: Event) -> None:
        if isinstance(event, Disconnected):
            self._logs.stop_all_of(event.link)
            self._shells.close_all_of(event.link)
        if isinstance(event, Welcomed) and self._will is not None:
            self._will.attached(event.session)
        self._state, instructions = step(self._state, event)
        for instruction in instructions:
            self._carry_out(instruction)
        session = self._state.session
        if not self._state.cells and not (session and session.unsent):
            self._all_gone.set()

    def _arm(self) -> None:
        look_at = next_look(self._state)
        if look_at == self._timer_at:
            return
        if self._timer:
            self._timer.cancel()
        self._timer_at = look_at
        wait = min(look_at - clock.now(), SLEEPLESS_SECONDS if self._state.exclusive else math.inf)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(0.0, wait), self._tick) if wait < math.inf else None

    def _tick(self) -> None:
        self._timer_at = math.inf
        self._offer(Tick(clock.now()))

    def _offer(self, event: Event) -> None:
        """For what will come again by itself: dropped when the queue is full."""
        with contextlib.suppress(asyncio.QueueFull):
            self._queue.put_nowait(event)

    def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case StartCell() | AbandonStart() | StopCell():
                self._have_done(instruction)
            case StartProbing():
                self._prober.start(instruction.order, instruction.endpoints)
            case StopProbing():
                self._prober.stop(instruction.cell_id)
            case SendHello():
                watching = self._neighbours.watching if self._neighbours else ()
                self._link.send(instruction.link, wire.hello(instruction, self._facts, watching))
            case SendReport():
                self._link.send(instruction.link, wire.report(instruction, time.time()))
            case WatchNeighbours():
                self._watch_neighbours(instruction)
            case FetchLogs() | RefuseLogs() | StopLogs():
                self._serve_logs(instruction)
            case CloseSession():
                self._link.close(instruction.link, instruction.reason)
            case RememberEpoch() | RememberFence():
                self._remember(instruction)
            case _:
                assert_never(instruction)

    def _have_done(self, instruction: StartCell | AbandonStart | StopCell) -> None:
        match instruction:
            case StartCell():
                cell_id = instruction.order.cell_id
                task = self._starting[cell_id] = self._work(self._start(instruction.order))
                task.add_done_callback(lambda done: self._forget_start(cell_id, done))
            case AbandonStart():
                self._work(self._abandon(instruction.cell_id))
            case StopCell():
                self._work(self._stop(instruction))

    def _remember(self, instruction: RememberEpoch | RememberFence) -> None:
        match instruction:
            case RememberEpoch():
                self._work(asyncio.to_thread(self._remember_epoch, instruction.epoch))
            case RememberFence():
                self._fence.remember(instruction.fence_at)

    def _watch_neighbours(self, told: WatchNeighbours) -> None:
        if self._neighbours is not None:
            self._neighbours.watch(told.neighbours, told.accepted_keys)

    def _serve_logs(self, instruction: FetchLogs | RefuseLogs | StopLogs) -> None:
        match instruction:
            case FetchLogs():
                self._logs.fetch(instruction)
            case RefuseLogs():
                self._logs.refuse(instruction.link, instruction.stream, instruction.reason)
            case StopLogs():
                self._logs.stop(instruction.link, instruction.stream)

    def _work(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Do it beside everything else; the daemon's task group owns it."""
        task = self._tasks.create_task(work)
        self._workers.add(task)
        task.add_done_callback(self._workers.discard)
        return task

    # The runtimes.

    async def _start(self, order: link_pb2.Order) -> None:
        cell_id = order.cell_id

        def progress(text: str, /) -> None:
            self._offer(Progressed(cell_id, text, clock.now()))

        event: Event
        async with self._starts:
            try:
                event = await self._started(order, progress)
            except RuntimeUnavailable as failure:
                event = StartDeferred(cell_id, str(failure), clock.now())
            except RuntimeFailure as failure:
                event = StartFailed(cell_id, str(failure), clock.now())
            except Exception as error:
                log.exception("start failed in an unexpected way cell=%s", cell_id)
                event = StartFailed(cell_id, f"the agent failed: {error!r}", clock.now())
        await self.deliver(event)

    def _forget_start(self, cell_id: str, done: asyncio.Task[None]) -> None:
        if self._starting.get(cell_id) is done:
            del self._starting[cell_id]

    async def _abandon(self, cell_id: str) -> None:
        """The runtime ends by itself what it has begun, and the stop that follows waits for it."""
        task = self._starting.get(cell_id)
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        await self.deliver(StartFailed(cell_id, "its start was abandoned", clock.now()))

    async def _started(self, order: link_pb2.Order, progress: Progress) -> Started | StartFailed:
        runtime = self._runtimes.get(order.spec.runtime)
        if runtime is None:
            reason = "this server does not have the runtime that the cell needs"
            return StartFailed(order.cell_id, reason, clock.now())
        if order.spec.exclusive:
            await self._fence.ready()
        running = await runtime.start(order, progress)
        return Started(order.cell_id, running.runtime_id, running.endpoints, clock.now())

    async def _stop(self, asked: StopCell) -> None:
        runtime = self._runtimes.get(asked.kind)
        event: Event
        try:
            if runtime is not None:
                await runtime.stop(asked.cell_id, asked.signal, asked.grace_seconds)
            event = Stopped(asked.cell_id, clock.now())
        except RuntimeFailure as failure:
            event = StopFailed(asked.cell_id, str(failure), clock.now())
        except Exception as error:
            log.exception("stop failed in an unexpected way cell=%s", asked.cell_id)
            event = StopFailed(asked.cell_id, f"the agent failed: {error!r}", clock.now())
        await self.deliver(event)

    async def _watch(self, kind: int) -> None:
        while True:
            try:
                async for seen in self._runtimes[kind].watch():
                    if isinstance(seen, Exited):
                        await self.deliver(Died(seen.cell_id, seen.autopsy, clock.now()))
                    elif isinstance(seen, Stirred):
                        self._drift.stir(seen.cell_id)
                    else:
                        # Our own list instead of theirs: it is known when it was asked for.
                        await self._list(kind)
            except RuntimeFailure as failure:
                log.warning("watch interrupted reason=%r", str(failure))
            await asyncio.sleep(RELIST_AGAIN_SECONDS)

    async def _relist(self, kind: int, listed: asyncio.Event) -> None:
        """From time to time compare with what there is: nothing stays unseen because one event was lost."""
        while True:
            if await self._list(kind):
                listed.set()
                await asyncio.sleep(RELIST_SECONDS)
            else:
                await asyncio.sleep(RELIST_AGAIN_SECONDS)

    async def _list(self, kind: int) -> bool:
        asked_at = clock.now()
        try:
            found = tuple(await self._runtimes[kind].list())
        except RuntimeFailure as failure:
            log.warning("cells not listed reason=%r", str(failure))
            return False
        await self.deliver(Relisted(kind, found, asked_at, clock.now()))
        return True

    async def _execute(
        self, kind: int, cell_id: str, command: Sequence[str], timeout_seconds: float
    ) -> tuple[int, str]:
        return await self._runtimes[kind].execute(cell_id, command, timeout_seconds)

    def _probed(self, cell_id: str, error: str) -> None:
        # Fifty of these a second and nearly none of them says anything: the queue is for those that do.
        if is_news(self._state, cell_id, error):
            self._offer(ProbeFinished(cell_id, error, clock.now()))

    async def _compare(self, cell: Cell) -> tuple[str, ...]:
        return await self._runtimes[cell.kind].compare(cell.order, cell.runtime_id)

    async def _compared(self, cell_id: str, touched: tuple[str, ...]) -> None:
        cell = self._state.cells.get(cell_id)
        if cell is not None and cell.touched != touched:
            await self.deliver(Compared(cell_id, touched, clock.now()))

    async def _take_vitals(self) -> None:
        while True:
            await self.deliver(VitalsTaken(await self._vitals.take(), clock.now()))
            await asyncio.sleep(VITALS_SECONDS)

    async def _stop_cells(self) -> None:
        grace_ms = [cell.order.spec.stop.grace_ms for cell in self._state.cells.values()]
        self._all_gone.clear()
        await self.deliver(ClosingDown(clock.now()))
        try:
            async with asyncio.timeout(max(grace_ms, default=0) / 1_000 + STOP_MARGIN_SECONDS):
                await self._all_gone.wait()
        except TimeoutError:
            log.error("some cells did not end cells=%s", ",".join(self._state.cells))  # noqa: TRY400 - for people
