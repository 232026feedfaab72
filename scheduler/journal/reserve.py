"""A little space that is kept for a start on a full disk.

Opening a journal after a crash and recording the start need some room. Where there is none left, the reserve is given
up for them, so that a scheduler that ends on a full disk can come back, serve reads and say what is wrong.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

RESERVE = "journal.reserve"
RESERVE_BYTES = 512 * 1024
PLENTY_BYTES = 4 * RESERVE_BYTES
"""The reserve is set aside only where at least so much is free."""


def release_when_short(data: Path) -> None:
    """Give the reserve up where the disk has less left than it holds."""
    if shutil.disk_usage(data).free < RESERVE_BYTES:
        (data / RESERVE).unlink(missing_ok=True)


def set_aside(data: Path) -> None:
    """Make the reserve where it is missing and there is plenty; a journal without one works as well."""
    path = data / RESERVE
    if path.exists() or shutil.disk_usage(data).free < PLENTY_BYTES:
        return
    with suppress(OSError):
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
        finally:
            os.close(descriptor)
