"""Counts errors in the kernel's log: failing disks and memory, damaged file systems, tasks that hang."""

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
"""Limit for one read and for the counted records, so that a flood of messages cannot block the agent."""
RECORD_BYTES = 8_192
"""Each read returns one record. The kernel refuses a buffer that is too small for it."""

ERROR_LEVEL = 3

TROUBLE = re.compile(
    rb"i/o error|medium error|critical target error|unrecovered read error"
    rb"|ext4-fs error|ext4-fs warning.*error|btrfs.*error|xfs.*(corrupt|error|shutdown|shutting down)"
    rb"|remounting filesystem read-only|nvme.*(timeout|reset|failed|error|dead)"
    rb"|\bmce\b|machine check|hardware error|\bedac\b|uncorrect"
    rb"|blocked for more than",
    re.IGNORECASE,
)


def is_trouble(record: bytes) -> bool:
    """Whether a record ("priority,sequence,time,flags;text") comes from the kernel itself and reports such an error."""
    prefix, _, text = record.partition(b";")
    priority = prefix.partition(b",")[0]
    if not priority.isdigit() or int(priority) > ERROR_LEVEL:  # other facilities have larger numbers
        return False
    return TROUBLE.search(text.partition(b"\n")[0]) is not None


class KernelLog:
    """Counts the errors since it was opened."""

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
        """Errors in the last minute; None if the log cannot be read. ``now``: seconds of a monotonic clock."""
        if self._descriptor is None:
            return None
        for _ in range(RECORDS_LIMIT):
            try:
                record = os.read(self._descriptor, RECORD_BYTES)
            except BlockingIOError:
                break
            except BrokenPipeError:  # the kernel has overwritten records that were not read in time
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
