"""Keeps a little disk space in reserve for a start on a full disk.

Opening a journal after a crash and recording the start need some space. On a full disk the reserve is deleted for
them. So a scheduler that ended on a full disk can start again, serve reads and say what is wrong.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

RESERVE = "journal.reserve"
RESERVE_BYTES = 512 * 1024
PLENTY_BYTES = 4 * RESERVE_BYTES
"""The reserve is created only if at least this much is free."""


def release_when_short(data: Path) -> None:
    """Delete the reserve if the disk has less free space than its size."""
    if shutil.disk_usage(data).free < RESERVE_BYTES:
        (data / RESERVE).unlink(missing_ok=True)


def set_aside(data: Path) -> None:
    """Create the reserve if it is missing and there is plenty of space. A journal works without it too."""
    path = data / RESERVE
    if path.exists() or shutil.disk_usage(data).free < PLENTY_BYTES:
        return
    with suppress(OSError):
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
        finally:
            os.close(descriptor)
