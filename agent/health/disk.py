"""Checks that this server's disk can still be written: writes a small file.

A failing disk may not answer at all. So the check runs in its own thread, and nobody has to wait for that thread.
"""

from __future__ import annotations

import asyncio
import errno
import os
from threading import Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

TRIAL_NAME = ".trial"
TRIAL = b"galactica\n" * 410
"""Too large for a file system to store in the file's inode, so that it needs free space."""
TRIAL_SECONDS = 5.0


class DiskTrial:
    """Checks ``directory``. At most one check is under way."""

    def __init__(self, directory: Path, timeout_seconds: float = TRIAL_SECONDS) -> None:
        self._path = directory / TRIAL_NAME
        self._timeout_seconds = timeout_seconds
        self._running: asyncio.Future[str] | None = None

    async def error(self) -> str:
        """The error's name, such as EROFS; ETIMEDOUT if the disk does not answer in time; empty: no error."""
        if self._running is None:
            self._running = self._begin()
        done, _ = await asyncio.wait([self._running], timeout=self._timeout_seconds)
        if not done:
            return errno.errorcode[errno.ETIMEDOUT]
        finished, self._running = self._running, None
        return finished.result()

    def _begin(self) -> asyncio.Future[str]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[str] = loop.create_future()

        def finish(error: str) -> None:
            if not future.done():
                future.set_result(error)

        def run() -> None:
            error = attempt(self._path)
            if not loop.is_closed():
                loop.call_soon_threadsafe(finish, error)

        Thread(target=run, name="disk-trial", daemon=True).start()
        return future


def attempt(path: Path) -> str:
    """Write a file, sync it to the disk and remove it. Returns the error's name; empty: no error."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        try:
            written = os.write(descriptor, TRIAL)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
            path.unlink()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "EIO")
    return "" if written == len(TRIAL) else errno.errorcode[errno.ENOSPC]
