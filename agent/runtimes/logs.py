"""The output of cells, with limits: the last lines for an autopsy, and the bounded log file of a process cell."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from galactica.agent.runtimes.port import LAST_LINES, LINE_CHARACTERS

TAIL_BYTES = 1 << 20
"""Limit for a tail. Enough for an autopsy's 50 lines of 1,000 characters of 4 bytes."""

LOG_LIMIT_BYTES = 8 << 20
KEPT_BYTES = 1 << 20
CHUNK_BYTES = 64 << 10
FOLLOW_SECONDS = 0.2


def last_lines(data: bytes, count: int = LAST_LINES) -> list[str]:
    """The last ``count`` lines of ``data`` as text without line ends, each cut to LINE_CHARACTERS."""
    if count <= 0:
        return []
    lines = data.decode(errors="replace").removesuffix("\n").split("\n")[-count:]
    return [line.removesuffix("\r")[:LINE_CHARACTERS] for line in lines] if data else []


def tail_of(data: bytes, count: int) -> bytes:
    """The part of ``data`` with its last ``count`` lines, including the line ends."""
    if count <= 0:
        return b""
    at = len(data) - 1 if data.endswith(b"\n") else len(data)
    for _ in range(count):
        at = data.rfind(b"\n", 0, at)
        if at < 0:
            return data
    return data[at + 1 :]


class CellLog:
    """The log of one process cell. The cell itself appends to the file, so that logging goes on without the agent.

    The agent bounds its size: ``trim`` moves the newest KEPT_BYTES to a second file and empties the first. Output
    between these two steps is lost, which matters only for a cell that writes all the time. Without a running agent
    the file is not trimmed.
    """

    def __init__(self, path: Path, limit_bytes: int = LOG_LIMIT_BYTES) -> None:
        self.path = path
        self._older = path.with_name(path.name + ".1")
        self._limit_bytes = limit_bytes
        self._trims = 0

    @property
    def is_too_long(self) -> bool:
        return _size(self.path) > self._limit_bytes

    def trim(self) -> None:
        """Blocks for reading and writing KEPT_BYTES. Raises OSError."""
        kept = _end_of(self.path, min(KEPT_BYTES, self._limit_bytes))
        draft = self._older.with_name(self._older.name + ".new")
        draft.write_bytes(kept[kept.find(b"\n") + 1 :])
        draft.replace(self._older)
        self._trims += 1
        os.truncate(self.path, 0)

    def tail(self, count: int) -> bytes:
        """The last ``count`` lines, within the newest TAIL_BYTES. Blocks. Raises OSError."""
        return self._tail_up_to(_size(self.path), count)

    def _tail_up_to(self, end: int, count: int) -> bytes:
        data = _read_at(self.path, max(0, end - TAIL_BYTES), min(end, TAIL_BYTES))
        if len(data) < TAIL_BYTES:
            data = _end_of(self._older, TAIL_BYTES - len(data)) + data
        return tail_of(data, count)

    async def stream(self, count: int, is_over: Callable[[], bool]) -> AsyncIterator[bytes]:
        """The last ``count`` lines, then new output, until ``is_over()`` and everything is read. Raises OSError."""
        trims, at = self._trims, _size(self.path)
        tail = await asyncio.to_thread(self._tail_up_to, at, count)
        if tail:
            yield tail
        while True:
            over = is_over()
            if trims != self._trims:
                trims, at = self._trims, 0
            chunk = await asyncio.to_thread(_read_at, self.path, at)
            if chunk:
                at += len(chunk)
                yield chunk
            elif over:
                return
            else:
                await asyncio.sleep(FOLLOW_SECONDS)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _end_of(path: Path, length: int) -> bytes:
    return _read_at(path, max(0, _size(path) - length), length)


def _read_at(path: Path, at: int, length: int = CHUNK_BYTES) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(at)
            return file.read(length)
    except FileNotFoundError:
        return b""
