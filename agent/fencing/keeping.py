"""Stores until when exclusive cells may live, for the watchdog and the agent's next start. Starts the watchdog."""

from __future__ import annotations

import asyncio
import logging
import math
import subprocess
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from galactica.agent.clock import boot_id
from galactica.agent.runtimes.port import RuntimeUnavailable
from galactica.agent.seldom import Seldom

if TYPE_CHECKING:
    from collections.abc import Sequence

READY_SECONDS = 10.0
LOOK_EVERY_SECONDS = 0.5

log = logging.getLogger(__name__)


OVER = "over"


class Kept(NamedTuple):
    """``fence_at``: None: there are no exclusive cells. ``owner``: a unique name of the agent process that stored
    this."""

    fence_at: float | None
    owner: str


class FenceFile:
    """One short line: the host's boot id, fence_at (the agent's clock) or "over", owner. The file is never removed: a
    missing one says nothing."""

    def __init__(self, data: Path) -> None:
        self._path = data / "fence"
        self._boot = boot_id()
        self._seldom = Seldom()

    def read(self) -> Kept | None:
        """None if it cannot be told what is stored, if nothing is, or only from before the host's boot, which no lease
        outlives."""
        try:
            boot, fence_at, owner = self._path.read_text("ascii").split()
            if boot != self._boot:
                return None
            return Kept(None if fence_at == OVER else float(fence_at), owner)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            if self._seldom.is_time(str(error)):
                log.warning("end of the lease not read path=%s reason=%r", self._path, str(error))
            return None

    def write(self, kept: Kept) -> None:
        # Once a second. Not synced: after a crash of the host no cell is alive. In place: a rename would make some
        # file systems write to the disk at once. The line's length never changes, so that one write replaces it.
        fence_at = f"{OVER:>20}" if kept.fence_at is None else f"{kept.fence_at:020.3f}"
        line = f"{self._boot} {fence_at} {kept.owner}\n"
        with self._path.open("r+" if self._path.exists() else "w", encoding="ascii") as file:
            file.write(line)


@dataclass(slots=True)
class FenceKeeper:
    """``command`` starts a watchdog; the owner's name and the end of the lease are appended to it."""

    file: FenceFile
    command: Sequence[str]
    owner: str = field(default_factory=lambda: uuid.uuid4().hex)
    _fence_at: float | None = None
    _is_wanted: asyncio.Event = field(default_factory=asyncio.Event)
    _is_ready: asyncio.Event = field(default_factory=asyncio.Event)

    def known(self) -> float:
        """The end of the lease that this or an earlier agent process stored."""
        kept = self.file.read()
        return -math.inf if kept is None or kept.fence_at is None else kept.fence_at

    def remember(self, fence_at: float | None) -> None:
        """None: there are no exclusive cells."""
        self._fence_at = fence_at
        if fence_at is not None:
            self._is_wanted.set()
        # Until our watchdog is ready, the watchdog of an earlier agent process may still rely on that agent's line.
        if self._is_ready.is_set():
            self._keep()

    def _keep(self) -> None:
        """An error is only logged: a reader then finds an earlier end of the lease, and ends the cells sooner."""
        try:
            self.file.write(self._kept())
        except OSError as error:
            log.warning("end of the lease not stored reason=%r", str(error))

    def _kept(self) -> Kept:
        return Kept(None if self._fence_at is None else max(self._fence_at, 0.0), self.owner)

    def _lease(self) -> tuple[str, ...]:
        """What a watchdog goes by until it has read the file."""
        fence_at = self._kept().fence_at
        return () if fence_at is None else ("--fence-at", str(fence_at))

    async def ready(self) -> None:
        """Wait until a watchdog watches. Raises RuntimeUnavailable if it does not start in time."""
        self._is_wanted.set()
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._is_ready.wait()
        except TimeoutError:
            raise RuntimeUnavailable(
                f"the watchdog of exclusive cells did not start within {READY_SECONDS:.0f} s; see the agent's log"
            ) from None

    async def run(self) -> None:
        """Keep a watchdog running from the first exclusive cell on. It outlives the agent."""
        await self._is_wanted.wait()
        while True:
            try:
                await self._watch()
            except OSError as error:
                log.warning("watchdog not started reason=%r", str(error))
            await asyncio.sleep(LOOK_EVERY_SECONDS)

    async def _watch(self) -> None:
        # Not asyncio's subprocess: its transport kills the process when it is closed.
        watchdog = subprocess.Popen(  # noqa: ASYNC220 - our own module; begins at once
            [*self.command, "--owner", self.owner, *self._lease()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert watchdog.stdout  # noqa: S101 - a pipe, see above
        if not await asyncio.to_thread(watchdog.stdout.readline):
            log.warning("watchdog failed to start code=%s", watchdog.wait())
            return
        self._is_ready.set()
        self._keep()
        while watchdog.poll() is None:  # noqa: ASYNC110 - a process sets no event
            await asyncio.sleep(LOOK_EVERY_SECONDS)
        self._is_ready.clear()
        log.warning("watchdog ended, starting another code=%d", watchdog.returncode)
