"""What the kernel complains about: failing disks and memory, file systems in trouble, tasks that hang."""

from __future__ import annotations

import os
import re
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

KERNEL_LOG = Path("/dev/kmsg")
WINDOW_SECONDS = 60.0
RECORDS_LIMIT = 1_000
"""Read in one go, and remembered: no flood of messages may hold the agent up."""
RECORD_BYTES = 8_192
"""The kernel hands out one record with each read and refuses a buffer that is too small for it."""

ERROR_LEVEL = 3
LEVEL_BITS = 3
"""A priority is facility and level in one number; facility 0 is the kernel itself."""

TROUBLE = re.compile(
    rb"i/o error|medium error|critical target error|unrecovered read error"
    rb"|ext4-fs error|ext4-fs warning.*error|btrfs.*error|xfs.*(corrupt|error|shutdown|shutting down)"
    rb"|remounting filesystem read-only|nvme.*(timeout|reset|failed|error|dead)"
    rb"|\bmce\b|machine check|hardware error|\bedac\b|uncorrect"
    rb"|blocked for more than",
    re.IGNORECASE,
)


def is_trouble(record: bytes) -> bool:
    """Whether a record ("priority,sequence,time,flags;text") is the kernel's own word of such trouble."""
    prefix, _, text = record.partition(b";")
    priority = prefix.partition(b",")[0]
    if not priority.isdigit() or int(priority) > ERROR_LEVEL:  # other facilities begin above all levels
        return False
    return TROUBLE.search(text.partition(b"\n")[0]) is not None


class KernelLog:
    """Counts what is new since it was opened."""

    def __init__(self, path: Path = KERNEL_LOG, is_counted: Callable[[bytes], bool] = is_trouble) -> None:
        self._is_counted = is_counted
        self._seen_at: deque[float] = deque(maxlen=RECORDS_LIMIT)
        self._descriptor: int | None = None
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            os.lseek(self._descriptor, 0, os.SEEK_END)
        except OSError:  # a container, or no right to read it
            self.close()

    def count(self, now: float) -> int | None:
        """How many in the last minute; None where the log cannot be read. ``now``: a monotonic clock."""
        if self._descriptor is None:
            return None
        for _ in range(RECORDS_LIMIT):
            try:
                record = os.read(self._descriptor, RECORD_BYTES)
            except BlockingIOError:
                break
            except BrokenPipeError:  # the kernel overwrote what was not read in time
                continue
            except OSError:
                self.close()
                return None
            if not record:
                break
            if self._is_counted(record):
                self._seen_at.append(now)
        while self._seen_at and now - self._seen_at[0] > WINDOW_SECONDS:
            self._seen_at.popleft()
        return len(self._seen_at)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
