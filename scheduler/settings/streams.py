"""Standard streams. What is written to a log may be lost; the work that it tells of goes on."""

from __future__ import annotations

import os
import select
import sys
import threading
from collections.abc import Callable

STREAMS = (0, 1, 2)
ATOMIC_BYTES = 4096
"""A pipe that can be written to has room for this much (PIPE_BUF)."""


def open_standard_streams() -> None:
    """Put /dev/null in the place of standard streams that are closed. Otherwise the next opened file, such as the
    journal, would get the number of one of them, and with it what libraries write there."""
    for number in STREAMS:
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - stays open
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - stays open


class LossyStream:
    """Writes lines to a descriptor and never fails or waits: if its reader is gone or slow, its disk full, or it is
    closed, the lines are lost and counted. The next line that can be written follows one that tells how many were.

    ``told``: that line, without its end, from the number. Safe to use from several threads."""

    def __init__(self, descriptor: int, told: Callable[[int], str]) -> None:
        self.lost = 0
        self._descriptor = descriptor
        self._told = told
        self._is_torn = False
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        with self._lock:
            if self.lost and self._put(f"{self._told(self.lost)}\n"):
                self.lost = 0
            if self.lost or not self._put(text):
                self.lost += max(1, text.count("\n"))
        return len(text)

    def flush(self) -> None:
        """Nothing is buffered."""

    def _put(self, text: str) -> bool:
        data = ("\n" if self._is_torn else "").encode() + text.encode(errors="backslashreplace")
        while data:
            try:
                if not _has_room(self._descriptor):
                    return False
                written = os.write(self._descriptor, data[:ATOMIC_BYTES])
            except OSError:
                return False
            data = data[written:]
            self._is_torn = bool(data)
        return True


def _has_room(descriptor: int) -> bool:
    """Whether a write ends at once. Also True if it would fail."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(0))
