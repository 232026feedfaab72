"""The driver: owns the agent's state, feeds it events one at a time and carries out its instructions.

Everything runs in one event loop. Runtime calls, probes and the link run concurrently and put their results as
events into one bounded queue. A single task takes the events from it and steps the state.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from typing import TYPE_CHECKING, assert_never

from galactica.agent import clock
from galactica.agent.carrier import Carrier
from galactica.agent.core.events import (
    ClosingDown,
    Compared,
    Connected,
    Disconnected,
    Event,
    ProbeFinished,
    Tick,
    VitalsTaken,
    Welcomed,
)
from galactica.agent.core.instructions import (
    AbandonStart,
    CloseSession,
    FetchLogs,
    Instruction,
    RefuseLogs,
    RememberEpoch,
    RememberFence,
    SendHello,
    SendReport,
    StartCell,
    StartProbing,
    StopCell,
    StopLogs,
    StopProbing,
    WatchNeighbours,
)
from galactica.agent.core.step import State, is_news, next_look, step
from galactica.agent.health import drift
from galactica.agent.health.probes import Prober
from galactica.agent.link import wire
from galactica.agent.link.logs import LogStreams
from galactica.agent.link.shell import Shells
from galactica.agent.neighbours.moving import Mover
from galactica.agent.shutdown import machine_goes_down
from galactica.agent.steady import steadily

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence

    from galactica.agent.core.model import Cell
    from galactica.agent.fencing.keeping import FenceKeeper
    from galactica.agent.health.vitals import VitalsTaker
    from galactica.agent.link.genome import GenomeKeeper
    from galactica.agent.link.session import Link
    from galactica.agent.link.will import Will
    from galactica.agent.neighbours.watch import NeighbourWatch
    from galactica.agent.runtimes.port import Begun, Runtime
    from galactica.v1 import link_pb2

QUEUE_LIMIT = 10_000
VITALS_SECONDS = 5.0
STOP_MARGIN_SECONDS = 15.0
"""At shutdown the daemon waits for its cells: this much longer than the longest grace."""
SLEEPLESS_SECONDS = 0.5
"""Longest timer while there are exclusive cells: the event loop's timers stop while the host sleeps."""

log = logging.getLogger(__name__)


class Daemon:
    """``link_to`` and ``watch_to`` create the link and the neighbours' watch (None: no watch); each gets the function
    that takes its events. ``obeyed``: the highest epoch that was obeyed, and which start
    of a scheduler had it. ``remember_obeyed`` may block. ``will``: the agent's last will on the message bus, if it
    uses one. ``watch_at``: where neighbours can reach this agent now (``neighbours.moving``).
    ``maintenance_seconds``: the lease to ask for when the daemon ends without its cells; 0: none."""

    def __init__(
        self,
        *,
        runtimes: Mapping[int, Runtime],
        link_to: Callable[[Callable[[Event], Awaitable[None]]], Link],
        vitals_of: Callable[[Link], VitalsTaker],
        facts: wire.ServerFacts,
        obeyed: tuple[int, str],
        remember_obeyed: Callable[[int, str], None],
        fence: FenceKeeper,
        genome: GenomeKeeper | None = None,
        compare_every_seconds: float = drift.EVERY_SECONDS,
        will: Will | None = None,
        watch_to: Callable[[Callable[[Event], Awaitable[None]]], NeighbourWatch | None] = lambda _: None,
        watch_at: Callable[[], tuple[str, int]] | None = None,
        maintenance_seconds: float = 0.0,
    ) -> None:
        self._runtimes = runtimes
        self._facts = facts
        self._remember_obeyed = remember_obeyed
        self._will = will
        self._fence = fence
        self._maintenance_seconds = maintenance_seconds
        self._genome = genome
        epoch, start = obeyed
        self._state = State(epoch=epoch, start=start, fence_at=fence.known())
        self._queue: asyncio.Queue[Event] = asyncio.Queue(QUEUE_LIMIT)
        self._link = link_to(self.deliver)
        self._vitals = vitals_of(self._link)
        self._neighbours = watch_to(self.deliver)
        self._mover = None
        if self._neighbours and watch_at:
            self._mover = Mover(self._neighbours, watch_at, self._tell_place, self._reconnect)
        self._told_place = wire.NOWHERE
        self._prober = Prober(self._execute, self._probed, self._vitals.lacks)
        self._drift = drift.DriftWatch(
            lambda: self._state.cells, self._compare, self._compared, compare_every_seconds
        )
        self._carrier = Carrier(
            runtimes,
            deliver=self.deliver,
            offer=self._offer,
            before_exclusive=fence.ready,
            stirred=self._drift.stir,
            lacks=self._vitals.lacks,
        )
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._all_gone = asyncio.Event()
        self._workers: set[asyncio.Task[None]] = set()

    async def deliver(self, event: Event) -> None:
        await self._queue.put(event)

    async def run(self, stop: asyncio.Event, *, stops_cells: bool) -> None:
        """Work until ``stop`` is set, then detach. The cells live on, unless ``stops_cells`` ends them too.

        Raises, in exception groups, session.RefusedError and renewal.RenewalRefusedError."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            self._logs = LogStreams(self._runtimes, self._link, tasks)
            self._shells = Shells(self._runtimes, self._link, tasks, lambda: self._state.cells)
            self._link.on_shell = self._shells.take
            self._link.on_genome = self._take_genome
            owned = [tasks.create_task(self._consume()), self._begin("probes", self._prober.run)]
            owned.append(self._begin("drift", self._drift.run))
            owned.append(self._begin("fence", self._fence.run))
            recovered = [asyncio.Event() for _ in self._runtimes]
            for kind, listed in zip(self._runtimes, recovered, strict=True):
                owned.append(tasks.create_task(self._carrier.watch(kind)))
                owned.append(tasks.create_task(self._carrier.relist(kind, listed)))
            owned.append(self._begin("vitals", self._take_vitals))
            if self._neighbours:
                owned.append(tasks.create_task(self._neighbours.run()))
            if self._mover:
                owned.append(self._begin("address", self._mover.run))
            owned.append(tasks.create_task(self._attach(recovered)))
            if self._will is not None:
                owned.append(self._begin("will", self._will.run))
            await stop.wait()
            if stops_cells:
                await self._stop_cells()
            elif self._maintenance_seconds:
                await self._ask_for_maintenance()
            await self._link.leave()
            # Work that is still under way in a runtime is found at the agent's next start.
            for task in (*owned, *self._workers):
                task.cancel()
            self._logs.stop_all()
            self._shells.close_all()
            if self._timer:
                self._timer.cancel()

    async def _ask_for_maintenance(self) -> None:
        if await machine_goes_down():
            log.warning("no maintenance lease reason='this machine goes down, and its cells with it'")
        else:
            await self._link.ask_for_maintenance(self._maintenance_seconds)

    def _begin(self, name: str, part: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Of the other parts, without which there is no agent, an unexpected error ends the daemon."""
        return self._tasks.create_task(steadily(name, part, self._vitals.lacks))

    async def _attach(self, recovered: Sequence[asyncio.Event]) -> None:
        """List every runtime before the first Hello: a Hello says of a cell that it leaves out that it is gone."""
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
        if isinstance(event, Connected) and self._mover is not None:
            self._mover.stir()  # the stream before may have ended because the address changed
        self._state, instructions = step(self._state, event)
        for instruction in instructions:
            self._carry_out(instruction)
        if isinstance(event, Welcomed):
            self._tell_place()
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
        """Deliver an event that comes again by itself: it is dropped if the queue is full."""
        with contextlib.suppress(asyncio.QueueFull):
            self._queue.put_nowait(event)

    def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case StartCell() | AbandonStart() | StopCell():
                self._carrier.carry_out(instruction, self._work)
            case StartProbing():
                self._prober.start(instruction.order, instruction.endpoints, instruction.direct)
            case StopProbing():
                self._prober.stop(instruction.cell_id)
            case SendHello():
                watching = self._neighbours.watching if self._neighbours else ()
                self._told_place = self._place()
                mark = self._genome.mark if self._genome else None
                hello = wire.hello(instruction, self._facts, watching, self._told_place, mark)
                self._link.send(instruction.link, hello)
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

    def _remember(self, instruction: RememberEpoch | RememberFence) -> None:
        match instruction:
            case RememberEpoch():
                self._work(self._store_obeyed(instruction.epoch, instruction.start))
            case RememberFence():
                self._fence.remember(instruction.fence_at)

    def _take_genome(self, link: int, response: link_pb2.AttachResponse) -> None:
        """It decides nothing about cells, so it bypasses the state."""
        if self._genome is not None:
            self._work(self._answer_genome(self._genome, link, response))

    async def _answer_genome(
        self, genome: GenomeKeeper, link: int, response: link_pb2.AttachResponse
    ) -> None:
        """Whatever goes wrong with it ends nothing: the scheduler gives it to others too."""
        try:
            answer = await genome.take(response)
        except Exception as error:
            if not self._vitals.lacks.note_if(error, "keep the fleet's genome"):
                log.exception("genome not kept")
            return
        if answer is not None:
            self._link.send(link, answer)

    async def _store_obeyed(self, epoch: int, start: str) -> None:
        """An error is only logged: this process knows the epoch, and the next Welcome stores it for the next one."""
        try:
            await asyncio.to_thread(self._remember_obeyed, epoch, start)
        except Exception as error:
            if not self._vitals.lacks.note_if(error, "store the scheduler's epoch"):
                log.exception("epoch not stored epoch=%d", epoch)

    def _watch_neighbours(self, instruction: WatchNeighbours) -> None:
        if self._neighbours is not None:
            self._neighbours.watch(instruction.neighbours, instruction.accepted_keys)

    def _place(self) -> wire.Place:
        address = self._neighbours.address if self._neighbours else ""
        return wire.Place(address, self._mover.trouble if self._mover else "")

    def _tell_place(self) -> None:
        """Tell the scheduler where neighbours reach this agent, if that has changed."""
        session, place = self._state.session, self._place()
        if session is not None and place != self._told_place:
            self._told_place = place
            self._link.tell_place(session.link, place)

    def _reconnect(self) -> None:
        if self._state.session is not None:
            self._link.close(
                self._state.session.link, "this machine lost the address from which it was connected"
            )

    def _serve_logs(self, instruction: FetchLogs | RefuseLogs | StopLogs) -> None:
        match instruction:
            case FetchLogs():
                self._logs.fetch(instruction)
            case RefuseLogs():
                self._logs.refuse(instruction.link, instruction.stream, instruction.reason)
            case StopLogs():
                self._logs.stop(instruction.link, instruction.stream)

    def _work(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run it as a task of the daemon's task group."""
        task = self._tasks.create_task(work)
        self._workers.add(task)
        task.add_done_callback(self._workers.discard)
        return task

    # Calls into the runtimes, other than starts and stops.

    async def _execute(
        self, kind: int, cell_id: str, command: Sequence[str], timeout_seconds: float, begun: Begun
    ) -> tuple[int, str]:
        return await self._runtimes[kind].execute(cell_id, command, timeout_seconds, begun)

    def _probed(self, cell_id: str, error: str) -> None:
        # There are fifty outcomes a second and nearly none changes the state: only those that do are queued.
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
            log.error("some cells did not end in time cells=%s", ",".join(self._state.cells))  # noqa: TRY400 - for people
