"""Keeps until when exclusive cells may live, for the watchdog and the agent's next life, and has a watchdog watch."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import subprocess
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from galactica.agent.runtimes.port import RuntimeUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
READY_SECONDS = 10.0
LOOK_EVERY_SECONDS = 0.5

log = logging.getLogger(__name__)


class Kept(NamedTuple):
    """``owner``: the agent's life that said so, by a name that no other has."""

    fence_at: float
    owner: str


class FenceFile:
    """One short line, written whole: host's boot, fence_at (the agent's clock), owner."""

    def __init__(self, data: Path) -> None:
        self._path = data / "fence"
        self._boot = BOOT_ID.read_text("ascii").strip()

    def read(self) -> Kept | None:
        """None where nothing is kept, or only from before the host booted: no lease outlives that."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            boot, fence_at, owner = self._path.read_text("ascii").split()
            if boot == self._boot:
                return Kept(float(fence_at), owner)
        return None

    def write(self, kept: Kept) -> None:
        # Once a second: not synced (a host that crashed has no cells any more), and in place, which a rename that
        # makes the file system write at once would not be. Always as long as before, so one write is whole.
        line = f"{self._boot} {kept.fence_at:020.3f} {kept.owner}\n"
        with self._path.open("r+" if self._path.exists() else "w", encoding="ascii") as file:
            file.write(line)

    def clear(self) -> None:
        self._path.unlink(missing_ok=True)


@dataclass(slots=True)
class FenceKeeper:
    """``command``: begins a watchdog; the owner's name is added to it."""

    file: FenceFile
    command: Sequence[str]
    owner: str = field(default_factory=lambda: uuid.uuid4().hex)
    _fence_at: float | None = None
    _is_wanted: asyncio.Event = field(default_factory=asyncio.Event)
    _is_ready: asyncio.Event = field(default_factory=asyncio.Event)

    def known(self) -> float:
        """What this or an earlier life of the agent kept."""
        kept = self.file.read()
        return kept.fence_at if kept else -math.inf

    def remember(self, fence_at: float | None) -> None:
        """None: nothing is to be watched."""
        self._fence_at = fence_at
        if fence_at is not None:
            self._is_wanted.set()
        # Before ours is ready the watchdog of the agent before, if there is one, goes on watching that one's line.
        if self._is_ready.is_set():
            self._keep()

    def _keep(self) -> None:
        """What cannot be kept only ends cells sooner: whoever reads then finds an earlier end."""
        try:
            if self._fence_at is None:
                self.file.clear()
            else:
                self.file.write(Kept(max(self._fence_at, 0.0), self.owner))
        except OSError as error:
            log.warning("fence not kept reason=%r", str(error))

    async def ready(self) -> None:
        """A watchdog watches. Raises RuntimeUnavailable where it does not come."""
        self._is_wanted.set()
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._is_ready.wait()
        except TimeoutError:
            raise RuntimeUnavailable(
                f"the watchdog of exclusive cells is not ready within {READY_SECONDS:.0f} s; see the agent's log"
            ) from None

    async def run(self) -> None:
        """From the first exclusive cell on there is always one; it outlives the agent."""
        await self._is_wanted.wait()
        while True:
            try:
                await self._watch()
            except OSError as error:
                log.warning("no watchdog reason=%r", str(error))
            await asyncio.sleep(LOOK_EVERY_SECONDS)

    async def _watch(self) -> None:
        # Not asyncio's subprocess: that kills what it began when it is done with it.
        watchdog = subprocess.Popen(  # noqa: ASYNC220 - our own module; begins at once
            [*self.command, "--owner", self.owner],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert watchdog.stdout  # noqa: S101 - as asked for
        if not await asyncio.to_thread(watchdog.stdout.readline):
            log.warning("the watchdog did not come up code=%s", watchdog.wait())
            return
        self._is_ready.set()
        self._keep()
        while watchdog.poll() is None:  # noqa: ASYNC110 - a process sets no event
            await asyncio.sleep(LOOK_EVERY_SECONDS)
        self._is_ready.clear()
        log.warning("the watchdog ended code=%d; another takes its place", watchdog.returncode)
