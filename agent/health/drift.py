"""When to compare cells with their specs: regularly, and soon after somebody may have changed one.

One comparison at a time, spread over the period. Comparisons take at most a tenth of the time: a slow engine is asked
less often.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from galactica.agent.core.model import CellState
from galactica.agent.runtimes.port import RuntimeFailure
from galactica.agent.starved import lack_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from galactica.agent.core.model import Cell

EVERY_SECONDS = 30.0
JITTER = 0.2
"""Random part of each pause, as a share of the period, so that cells are not compared all at once."""
SOON_SECONDS = 0.05
"""Changes come in groups: those within this time cause one comparison."""
LOOK_AROUND_SECONDS = 1.0
"""Time until new cells are noticed."""
SHARE = 0.1
"""Limit for the share of the time that regular comparisons take. Comparisons after a noticed change are not limited."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class DriftWatch:
    """``cells`` returns the cells of this server as they are now. ``compare`` asks the cell's runtime for differences;
    ``tell`` is called with every result."""

    cells: Callable[[], Mapping[str, Cell]]
    compare: Callable[[Cell], Awaitable[tuple[str, ...]]]
    tell: Callable[[str, tuple[str, ...]], Awaitable[None]]
    every_seconds: float = EVERY_SECONDS
    _due: dict[str, float] = field(default_factory=dict)
    _stirred: asyncio.Event = field(default_factory=asyncio.Event)

    def stir(self, cell_id: str) -> None:
        """Compare that cell soon."""
        soon = time.monotonic() + SOON_SECONDS
        if cell_id in self._due or cell_id in self.cells():
            self._due[cell_id] = min(soon, self._due.get(cell_id, soon))
            self._stirred.set()

    async def run(self) -> None:
        """Compare until cancelled."""
        while True:
            running = self._running()
            self._take_in(running)
            cell_id = min(self._due, key=self._due.__getitem__, default=None)
            wait_seconds = LOOK_AROUND_SECONDS
            if cell_id is not None:
                wait_seconds = min(wait_seconds, self._due[cell_id] - time.monotonic())
            if wait_seconds > 0:
                await self._pause(wait_seconds)
            elif cell_id is not None:
                await self._look(running[cell_id], len(running))

    def _running(self) -> dict[str, Cell]:
        return {cell.id: cell for cell in self.cells().values() if cell.state is CellState.RUNNING}

    def _take_in(self, running: Mapping[str, Cell]) -> None:
        for cell_id in self._due.keys() - running.keys():
            del self._due[cell_id]
        for cell_id in running.keys() - self._due.keys():
            self._due[cell_id] = time.monotonic() + random.uniform(0, self.every_seconds)  # noqa: S311 - no secret

    async def _pause(self, seconds: float) -> None:
        self._stirred.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._stirred.wait()
        except TimeoutError:
            return

    async def _look(self, cell: Cell, cells: int) -> None:
        began = time.monotonic()
        # Set before the comparison, so that a change during the comparison makes the cell due again.
        pause_seconds = self.every_seconds * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311
        self._due[cell.id] = began + pause_seconds
        try:
            lines = await self.compare(cell)
        except RuntimeFailure as failure:
            log.debug("not compared cell=%s reason=%r", cell.id, str(failure))
            return
        except Exception as error:  # one cell's edge: the others are compared all the same
            if not lack_of(error):
                log.exception("not compared: unexpected error cell=%s", cell.id)
            return
        took_seconds = time.monotonic() - began
        least_seconds = took_seconds * cells / SHARE
        if least_seconds > pause_seconds and self._due.get(cell.id) == began + pause_seconds:
            self._due[cell.id] = began + least_seconds
        await self.tell(cell.id, lines)
