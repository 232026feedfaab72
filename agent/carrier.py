"""Starts and stops cells in their runtimes, and delivers each result as an event.

An error in a runtime never ends the daemon: it becomes an event about the cell.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from galactica.agent import clock
from galactica.agent.core.events import (
    Died,
    Event,
    Progressed,
    Relisted,
    StartDeferred,
    Started,
    StartFailed,
    StopFailed,
    Stopped,
)
from galactica.agent.core.instructions import AbandonStart, StartCell, StopCell
from galactica.agent.runtimes.port import (
    Exited,
    RuntimeFailure,
    RuntimeUnavailable,
    StartUncertain,
    Stirred,
    service_of,
)
from galactica.agent.seldom import Seldom
from galactica.agent.starved import engine_lacks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping
    from collections.abc import Set as AbstractSet

    from galactica.agent.core.model import Found
    from galactica.agent.runtimes.port import Progress, Runtime
    from galactica.agent.starved import Lacks
    from galactica.v1 import link_pb2

STARTS_OF_A_SERVICE = 16
"""At once; the runtimes bound the work of all."""
RELIST_SECONDS = 30.0
RELIST_AGAIN_SECONDS = 1.0

log = logging.getLogger(__name__)


class Carrier:
    """``deliver`` waits for room in the daemon's queue; ``offer`` drops the event if the queue is full.
    ``before_exclusive`` is awaited before an exclusive cell starts. ``stirred`` is called with the id of a cell in
    which the runtime noticed a change. ``lacks`` takes what the agent itself lacks."""

    def __init__(
        self,
        runtimes: Mapping[int, Runtime],
        *,
        deliver: Callable[[Event], Awaitable[None]],
        offer: Callable[[Event], None],
        before_exclusive: Callable[[], Awaitable[None]],
        stirred: Callable[[str], None],
        lacks: Lacks,
    ) -> None:
        self._runtimes = runtimes
        self._deliver = deliver
        self._offer = offer
        self._before_exclusive = before_exclusive
        self._stirred = stirred
        self._lacks = lacks
        self._seldom = Seldom()
        self._starts: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._starting: dict[str, asyncio.Task[None]] = {}

    def carry_out(
        self,
        instruction: StartCell | AbandonStart | StopCell,
        work: Callable[[Coroutine[None, None, None]], asyncio.Task[None]],
    ) -> None:
        """Begin the instruction in a task. ``work`` creates and owns the task."""
        match instruction:
            case StartCell():
                cell_id = instruction.order.cell_id
                task = self._starting[cell_id] = work(self._start(instruction.order))
                task.add_done_callback(lambda done: self._forget_start(cell_id, done))
            case AbandonStart():
                work(self._abandon(instruction.cell_id))
            case StopCell():
                work(self._stop(instruction))

    async def _start(self, order: link_pb2.Order) -> None:
        cell_id = order.cell_id

        def progress(text: str, /) -> None:
            self._offer(Progressed(cell_id, text, clock.now()))

        event: Event
        # Some starts take long, as those that wait for their image: they hold up none of another service.
        service = service_of(cell_id)
        turns = self._starts.setdefault(service, asyncio.Semaphore(STARTS_OF_A_SERVICE))
        if turns.locked():
            progress(
                f"waiting for its turn: {STARTS_OF_A_SERVICE} cells of {service} are starting on this server"
            )
        async with turns:
            try:
                event = await self._started(order, progress)
            except Exception as error:  # noqa: BLE001 - a cell's error never ends the daemon
                event = self._not_started(cell_id, error)
        await self._deliver(event)

    def _not_started(self, cell_id: str, error: Exception) -> StartDeferred | StartFailed:
        """What the agent itself lacks is not the fault of the cell, whatever the error says."""
        now = clock.now()
        if lack := self._lacks.note_if(error, f"start {cell_id}"):
            reason = f"this server's agent lacks {lack}"
            return StartDeferred(cell_id, reason, now, isinstance(error, StartUncertain), is_starved=True)
        if isinstance(error, RuntimeUnavailable) or (
            isinstance(error, RuntimeFailure) and engine_lacks(str(error))
        ):
            return StartDeferred(cell_id, str(error), now, isinstance(error, StartUncertain))
        if isinstance(error, RuntimeFailure):
            return StartFailed(cell_id, str(error), now)
        log.error("start failed: unexpected error cell=%s", cell_id, exc_info=error)
        return StartFailed(cell_id, f"unexpected error in the agent: {error!r}", now)

    def _forget_start(self, cell_id: str, done: asyncio.Task[None]) -> None:
        if self._starting.get(cell_id) is done:
            del self._starting[cell_id]

    async def _abandon(self, cell_id: str) -> None:
        """Cancel the start. The runtime removes what it has begun; the stop comes after that."""
        task = self._starting.get(cell_id)
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        await self._deliver(StartFailed(cell_id, "the start was abandoned", clock.now()))

    async def _started(self, order: link_pb2.Order, progress: Progress) -> Started | StartFailed:
        runtime = self._runtimes.get(order.spec.runtime)
        if runtime is None:
            reason = "this server does not offer the cell's runtime"
            return StartFailed(order.cell_id, reason, clock.now())
        if order.spec.exclusive:
            await self._before_exclusive()
        running = await runtime.start(order, progress)
        return Started(order.cell_id, running.runtime_id, running.endpoints, clock.now(), running.direct)

    async def _stop(self, instruction: StopCell) -> None:
        cell_id = instruction.cell_id
        runtime = self._runtimes.get(instruction.kind)
        event: Event
        try:
            if runtime is not None:
                await runtime.stop(cell_id, instruction.signal, instruction.grace_seconds)
            event = Stopped(cell_id, clock.now())
        except Exception as error:  # noqa: BLE001 - a cell's error never ends the daemon
            event = StopFailed(cell_id, self._why_not_stopped(cell_id, error), clock.now())
        await self._deliver(event)

    def _why_not_stopped(self, cell_id: str, error: Exception) -> str:
        if lack := self._lacks.note_if(error, f"stop {cell_id}"):
            return f"this server's agent lacks {lack}"
        if isinstance(error, RuntimeFailure):
            return str(error)
        log.error("stop failed: unexpected error cell=%s", cell_id, exc_info=error)
        return f"unexpected error in the agent: {error!r}"

    async def watch(self, kind: int) -> None:
        """Deliver the runtime's observations until cancelled."""
        while True:
            try:
                async for observation in self._runtimes[kind].watch():
                    if isinstance(observation, Exited):
                        await self._deliver(Died(observation.cell_id, observation.autopsy, clock.now()))
                    elif isinstance(observation, Stirred):
                        self._stirred(observation.cell_id)
                    else:
                        # List again: the core needs the time at which the list was requested.
                        await self._list(kind)
            except Exception as error:  # noqa: BLE001 - the next watch comes, and a list before it
                self._unread("watch interrupted", error)
            await asyncio.sleep(RELIST_AGAIN_SECONDS)

    async def relist(self, kind: int, listed: asyncio.Event) -> None:
        """List the runtime's cells regularly, so that a lost event does not matter. Sets ``listed`` after the first.

        While cells are in doubt the pauses begin short and grow: most doubts end soon."""
        pause_seconds, doubted = RELIST_AGAIN_SECONDS, frozenset[str]()
        while True:
            found = await self._list(kind)
            if found is None:
                await asyncio.sleep(RELIST_AGAIN_SECONDS)
                continue
            listed.set()
            in_doubt = frozenset(one.order.cell_id for one in found if one.doubt)
            pause_seconds = pause_until_next_list(pause_seconds, doubted, in_doubt)
            doubted = in_doubt
            await asyncio.sleep(pause_seconds)

    async def _list(self, kind: int) -> tuple[Found, ...] | None:
        """None: the runtime could not be listed. Each error says so and no more."""
        asked_at = clock.now()
        try:
            found = tuple(await self._runtimes[kind].list())
        except Exception as error:  # noqa: BLE001 - the next list comes
            self._unread("cells not listed", error)
            return None
        for one in found:
            if one.doubt:
                log.warning("cell in doubt cell=%s reason=%r", one.order.cell_id, one.doubt)
        await self._deliver(Relisted(kind, found, asked_at, clock.now()))
        return found

    def _unread(self, what: str, error: Exception) -> None:
        if self._lacks.note_if(error, what) or isinstance(error, RuntimeFailure):
            log.warning("%s reason=%r", what, str(error))
        elif self._seldom.is_time(what + type(error).__name__):
            log.error("%s: unexpected error", what, exc_info=error)


def pause_until_next_list(
    pause_seconds: float, doubted: AbstractSet[str], in_doubt: AbstractSet[str]
) -> float:
    """``pause_seconds``: the last pause. ``doubted``, ``in_doubt``: the cells in doubt before and now."""
    if not in_doubt:
        return RELIST_SECONDS
    if in_doubt - doubted:
        return RELIST_AGAIN_SECONDS
    return min(RELIST_SECONDS, 2 * pause_seconds)
