"""Cells as processes of this machine: the built-in runtime, for machines without a container engine.

Each cell is its own session of processes, below a *keeper* (see ``launcher``) that preserves its exit status. Both
outlive the agent. The next agent recognises its cells by the records in their folders, and by pid and start time
together. It watches them by pidfd: the death of either process wakes the event loop, without polling. The true exit
status is read from the kernel's process table, even if the agent was away.

One folder belongs to one agent at a time::

    DIRECTORY/FLEET@ID/CELL/record     order, pids, ports, autopsy
                           /log        its output (log.1: older)
                           /scratch    its working directory and home; tmp/ in it is its TMPDIR

ID is the fleet's id, which tells it from another fleet of the same name. A folder DIRECTORY/FLEET is from before fleets
had an id, and is this fleet's too. Cells of other fleets are counted and left alone.

``limits`` sets the cell's limits. The cell sees the machine as the agent's user does: there is no image and no file
system of its own.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

from galactica.agent.core.model import Found, Running
from galactica.agent.runtimes.logs import LOG_LIMIT_BYTES
from galactica.agent.runtimes.port import (
    Begun,
    Exited,
    Progress,
    RuntimeFailure,
    RuntimeUnavailable,
    Shell,
    StartFailed,
    Window,
    nobody_waits,
)
from galactica.agent.runtimes.process import adoption as process_adoption
from galactica.agent.runtimes.process import execute as process_execute
from galactica.agent.runtimes.process import launch as process_launch
from galactica.agent.runtimes.process import limits as process_limits
from galactica.agent.runtimes.process import plan as process_plan
from galactica.agent.runtimes.process import shell as process_shell
from galactica.agent.runtimes.process import table as process_table
from galactica.agent.runtimes.process.cell import Cell, sweep
from galactica.agent.runtimes.process.launch import Folder, folder_name, homes_of
from galactica.agent.runtimes.process.leftovers import TRY_AGAIN_SECONDS, Leftovers
from galactica.v1 import cell_pb2, link_pb2

TRIM_EVERY_SECONDS = 1.0
EXAMINE_AGAIN_SECONDS = 1.0
STOPPED = "somebody stopped its main process (SIGSTOP)"

log = logging.getLogger(__name__)

T = TypeVar("T")


class ProcessRuntime:
    """``directory``: for the folders of cells; created with mode 0700 when first needed. ``host``: the address on which
    cells listen."""

    kind = cell_pb2.RUNTIME_KIND_PROCESS

    def __init__(
        self,
        directory: Path,
        fleet: str,
        fleet_id: str,
        host: str = "127.0.0.1",
        *,
        log_limit_bytes: int = LOG_LIMIT_BYTES,
        limiter: process_limits.Limiter | None = None,
    ) -> None:
        self._directory = directory.absolute()
        self._former_home, self._home = homes_of(self._directory, fleet, fleet_id)
        self._leftovers = Leftovers((self._former_home, self._home))
        self._host = host
        self._log_limit_bytes = log_limit_bytes
        self._limiter = limiter or process_limits.detect()
        self._cells: dict[str, Cell] = {}
        self._claims: dict[int, str] = {}
        self._untold: dict[str, Cell] = {}
        self._news = asyncio.Event()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._adopting = asyncio.Lock()
        self._claiming = asyncio.Lock()
        self._has_adopted = False
        self._unread: dict[str, str] = {}
        self._unended: dict[str, str] = {}
        self._jobs: set[asyncio.Task[object]] = set()
        self._tidying: asyncio.Task[None] | None = None
        self.foreign = 0

    async def list(self) -> Sequence[Found]:
        """All cells; a dead one has its autopsy. Raises RuntimeUnavailable while something runs without a record and
        does not end: no list may leave it out."""
        await self._adopt()
        if self._unended:
            raise RuntimeUnavailable(f"cells without a record do not end: {self._unended}")
        doubts = await self._doubts()
        own = {self._home, self._former_home}
        self.foreign = await asyncio.to_thread(process_adoption.cells_of_others, self._directory, own)
        known = [cell.found(self._host, doubts.get(cell.id, "")) for cell in self._cells.values()]
        return [
            *known,
            *(process_adoption.unread(cell_id, reason) for cell_id, reason in self._unread.items()),
        ]

    async def living(self) -> Sequence[link_pb2.Order]:
        await self._adopt()
        doubts = await self._doubts()
        cells = self._cells.values()
        return [
            *(cell.record.order for cell in cells if cell.record.autopsy is None or cell.id in doubts),
            *map(process_adoption.unknown_order, (*self._unread, *self._unended)),
        ]

    async def _doubts(self) -> dict[str, str]:
        """Observe every cell, and examine every dead one. Returns why that failed, by cell: one cell never hides the
        others."""
        doubts = {}
        for cell in tuple(self._cells.values()):
            try:
                cell.observe(self._on_death)
                if cell.died.is_set() and not cell.is_stopping:
                    await cell.examine()
            except (OSError, RuntimeFailure) as error:
                doubts[cell.id] = f"the agent cannot look at its processes: {error}"
        return doubts

    async def start(self, order: link_pb2.Order, progress: Progress) -> Running:
        """Raises StartFailed; also for a cell that has ended, because a dead cell never comes back."""
        await self._adopt()
        progress(f"starting {process_plan.describe(order.spec.command)}")
        # A copy: the runtime keeps it as long as the cell exists, and the caller may change its own.
        kept = link_pb2.Order.FromString(order.SerializeToString())
        return await self._to_the_end(self._start(kept))

    async def _start(self, order: link_pb2.Order) -> Running:
        async with self._turn(order.cell_id):
            cell = self._cells.get(order.cell_id)
            if cell is None:
                self._check_read(order.cell_id)
                cell = await self._create(order)
            elif cell.died.is_set():
                raise StartFailed(f"cell {order.cell_id} has already ended; order a new cell instead")
            cell.observe(self._on_death)
            return cell.running(self._host)

    async def _create(self, order: link_pb2.Order) -> Cell:
        folder = Folder(self._home / folder_name(order.cell_id))
        ports = await self._claim(order)
        try:
            record = await asyncio.to_thread(
                process_launch.launch, order, ports, folder, self._limiter, self._leftovers
            )
        except BaseException:
            self._release(order.cell_id)
            raise
        cell = Cell(folder, record, self._log_limit_bytes)
        self._take_in(cell)
        return cell

    def _take_in(self, cell: Cell) -> None:
        self._cells[cell.id] = cell
        try:
            cell.observe(self._on_death)
        except OSError as error:
            log.warning("cell %s is not observed yet: %s", cell.id, error)  # the next list tries again

    async def stop(self, cell_id: str, signal: str, grace_seconds: float) -> None:
        """Raises RuntimeFailure if processes do not end even on SIGKILL."""
        await self._adopt()
        async with self._turn(cell_id):
            cell = self._cells.get(cell_id)
            if cell is None:
                self._check_read(cell_id)
                return
            cell.is_stopping = True
            try:
                await self._ask_to_end(cell, signal, grace_seconds)
                await self._to_the_end(self._remove(cell))
            finally:
                if not cell.is_gone:
                    cell.is_stopping = False
                    self._news.set()

    async def _ask_to_end(self, cell: Cell, signal_name: str, grace_seconds: float) -> None:
        if cell.died.is_set():
            return
        cell.signal(signal_name, self._on_death)
        try:
            async with asyncio.timeout(grace_seconds):
                await cell.died.wait()
        except TimeoutError:
            log.info("%s did not end within %.1f s of %s: killing it", cell.id, grace_seconds, signal_name)

    async def _remove(self, cell: Cell) -> None:
        cell.unobserve()
        try:
            await asyncio.to_thread(sweep, cell.record, cell.folder, self._leftovers)
        except OSError as error:
            raise RuntimeFailure(f"cannot remove {cell.id}: {error}") from error
        finally:
            cell.died.set()
        cell.is_gone = True
        self._cells.pop(cell.id, None)
        self._untold.pop(cell.id, None)
        self._release(cell.id)

    async def watch(self) -> AsyncIterator[Exited]:
        """For one watcher at a time. Deaths without a watcher are kept for the next one; ``list`` does not remove
        any."""
        await self._adopt()
        while True:
            self._news.clear()
            again_seconds = None
            for cell_id, cell in tuple(self._untold.items()):
                if cell.is_stopping:
                    continue
                try:
                    autopsy = await cell.examine()
                except (OSError, RuntimeFailure) as error:
                    log.warning("cell %s has died, and is not examined yet: %s", cell_id, error)
                    again_seconds = EXAMINE_AGAIN_SECONDS
                    continue
                if not cell.is_stopping and self._untold.pop(cell_id, None) is cell:
                    yield Exited(cell_id, autopsy)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(again_seconds):
                    await self._news.wait()

    async def logs(self, cell_id: str, tail: int, *, follow: bool) -> AsyncIterator[bytes]:
        """Following ends with the cell."""
        cell = await self._existing(cell_id)
        try:
            if not follow:
                yield await asyncio.to_thread(cell.log.tail, tail)
                return
            async for chunk in cell.log.stream(tail, cell.died.is_set):
                yield chunk
        except OSError as error:
            raise RuntimeFailure(f"cannot read the log of {cell_id}: {error}") from error

    async def execute(
        self, cell_id: str, command: Sequence[str], timeout_seconds: float, begun: Begun = nobody_waits
    ) -> tuple[int, str]:
        """Runs with the cell's environment, directory and control group. Exit code 128 + n: ended by signal n."""
        cell = await self._existing(cell_id)
        if cell.died.is_set():
            raise RuntimeFailure(f"cell {cell_id} is not running any more")
        begun()
        return await process_execute.execute(cell.record, cell.folder, command, timeout_seconds)

    async def open_shell(
        self, cell_id: str, command: Sequence[str], term: str, window: Window | None
    ) -> Shell:
        cell = await self._existing(cell_id)
        if cell.died.is_set():
            raise RuntimeFailure(f"cell {cell_id} is not running any more")
        return await process_shell.open_shell(cell.record, cell.folder, command, term, window)

    async def compare(self, order: link_pb2.Order, runtime_id: str) -> tuple[str, ...]:  # noqa: ARG002 - the port's
        """Whether somebody has stopped its main process. A process may change its own files, environment and limits, so
        a difference there would not show that somebody else touched it."""
        cell = self._cells.get(order.cell_id)
        if cell is None or cell.died.is_set():
            return ()
        cell.was_stopped = cell.was_stopped or process_table.is_stopped(cell.record.main)
        return (STOPPED,) if cell.was_stopped else ()

    async def ping(self) -> float | None:
        return None

    async def close(self) -> None:
        """Finish the starts and removals that are under way first; both are bounded in time."""
        if self._tidying is not None:
            self._tidying.cancel()
            await asyncio.wait([self._tidying])
        if self._jobs:
            await asyncio.wait(self._jobs)
        for cell in self._cells.values():
            cell.unobserve()

    async def _adopt(self) -> None:
        """Once: take over the cells of an earlier agent. A cell whose record cannot be read now is read again at each
        call: its processes are left alone. What has no record and could not be ended is tried again at each call."""
        async with self._adopting:
            if self._has_adopted and not self._unread and not self._unended:
                return
            left = await asyncio.to_thread(
                process_adoption.scan,
                (self._former_home, self._home),
                self._limiter,
                self._leftovers,
                {*self._unread, *self._unended} if self._has_adopted else None,
            )
            self._unread, self._unended = left.unread, left.unended
            for folder, record in left.found:
                self._claims.update(dict.fromkeys(record.ports.values(), record.order.cell_id))
                self._take_in(Cell(folder, record, self._log_limit_bytes))
            if not self._has_adopted:
                self._has_adopted = True
                self._tidying = asyncio.create_task(self._tidy_for_ever())
                log.info("limits of process cells: %s", self._limiter.description)

    def _check_read(self, cell_id: str) -> None:
        """Raises RuntimeUnavailable if the cell's processes are unknown."""
        if cell_id in self._unread:
            raise RuntimeUnavailable(f"cannot read the record of cell {cell_id}: {self._unread[cell_id]}")
        if cell_id in self._unended:
            raise RuntimeUnavailable(
                f"{cell_id} runs without a record and does not end: {self._unended[cell_id]}"
            )

    async def _claim(self, order: link_pb2.Order) -> dict[str, int]:
        """Claim ports for the cell; it keeps them until it dies."""
        async with self._claiming:
            # Examining a dead cell kills the rest of its processes, which may still use ports.
            await self._doubts()
            ports = await asyncio.to_thread(
                process_plan.claim_ports, dict(order.spec.ports), self._host, dict(self._claims)
            )
            self._claims.update(dict.fromkeys(ports.values(), order.cell_id))
            return ports

    def _release(self, cell_id: str) -> None:
        self._claims = {number: owner for number, owner in self._claims.items() if owner != cell_id}

    def _on_death(self, cell: Cell) -> None:
        self._release(cell.id)
        self._untold[cell.id] = cell
        self._news.set()

    async def _existing(self, cell_id: str) -> Cell:
        await self._adopt()
        cell = self._cells.get(cell_id)
        if cell is None:
            raise RuntimeFailure(f"no cell {cell_id} on this server")
        return cell

    def _turn(self, cell_id: str) -> asyncio.Lock:
        """A lock for each cell: its start and stop never run at the same time."""
        return self._turns.setdefault(cell_id, asyncio.Lock())

    async def _to_the_end(self, work: Coroutine[object, object, T]) -> T:
        """Do work that must not be left half done: if the caller is cancelled the work goes on, and ``close`` waits for
        it."""
        job = asyncio.create_task(work)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        return await asyncio.shield(job)

    async def _tidy_for_ever(self) -> None:
        tidied_at = -TRY_AGAIN_SECONDS
        while True:
            if time.monotonic() >= tidied_at + TRY_AGAIN_SECONDS:
                tidied_at = time.monotonic()
                with contextlib.suppress(RuntimeError):  # no thread can be had now
                    await asyncio.to_thread(self._leftovers.try_again)
            await asyncio.sleep(TRIM_EVERY_SECONDS)
            with contextlib.suppress(RuntimeError):
                await asyncio.to_thread(_trim_logs, tuple(self._cells.values()))


def _trim_logs(cells: Sequence[Cell]) -> None:
    """Blocks, for ever if the disk hangs."""
    for cell in cells:
        try:
            if cell.log.is_too_long:
                cell.log.trim()
        except OSError as error:
            log.warning("cannot trim the log of cell %s: %s", cell.id, error)
