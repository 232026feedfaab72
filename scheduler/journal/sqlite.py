"""The embedded journal: one SQLite database in the data directory, used by one process at a time.

Its files are ``journal.db`` (with SQLite's own ``-wal`` and ``-shm``), ``journal.lock`` and ``journal.reserve``. To
back it up, copy the directory while no scheduler runs, or use SQLite's online backup.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from typing import Self

from galactica.scheduler.core.model.events import Record
from galactica.scheduler.journal.opening import check, take_lock
from galactica.scheduler.journal.port import SNAPSHOTS_KEPT, Retention, StaleEpoch
from galactica.scheduler.journal.reader import Pages, Reader, replay
from galactica.scheduler.journal.reserve import release_when_short, set_aside
from galactica.scheduler.journal.tables import RETENTION_FLOOR, create, open_for_reading, open_for_writing
from galactica.scheduler.journal.writer import Writer

DATABASE = "journal.db"
LOCK = "journal.lock"
RETENTION_PIECE = 2_000
"""Records deleted in one transaction; an append waits at most for one such transaction."""


class SqliteJournal:
    """Implements ``port.Journal``. Used from one event loop; created by ``open``."""

    def __init__(self, path: Path, lock: int) -> None:
        self._path = path
        self._lock = lock
        self._floor = 0
        self._epoch: int
        durable: int
        connection = open_for_writing(path)
        connection.create_function(RETENTION_FLOOR, 0, lambda: self._floor)
        (self._epoch,) = connection.execute("SELECT coalesce(max(epoch), 0) FROM epochs").fetchone()
        (durable,) = connection.execute("SELECT coalesce(max(position), 0) FROM records").fetchone()
        self._writer = Writer(path, connection, durable)
        self._reader = Reader(path, open_for_reading(path))

    @classmethod
    def open(cls, data: Path) -> Self:
        """Open the journal in a data directory; create it if there is none (mode 0700, files 0600).

        Blocks, for start-up. Raises JournalLocked, JournalCorrupt, JournalTooNew, JournalForeign, JournalFull,
        OSError; then the journal was not changed.
        """
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = data.absolute() / DATABASE
        lock = take_lock(path.with_name(LOCK))
        try:
            release_when_short(path.parent)
            if path.exists():
                check(path)
            else:
                create(path)
            journal = cls(path, lock)
            set_aside(path.parent)
            return journal
        except BaseException:
            os.close(lock)
            raise

    @property
    def head(self) -> int:
        return self._writer.head

    @property
    def durable(self) -> int:
        return self._writer.durable

    @property
    def epoch(self) -> int:
        return self._epoch

    def claim_epoch(self) -> int:
        epoch = self._epoch + 1
        row = (epoch, time.time(), os.getpid())
        self._writer.submit(lambda c: c.execute("INSERT INTO epochs VALUES (?, ?, ?)", row)).result()
        self._epoch = epoch
        return epoch

    async def append(self, records: Sequence[Record], *, after: int, epoch: int) -> None:
        if epoch < self._epoch:
            raise StaleEpoch(
                f"epoch {epoch} has ended: another scheduler claimed the journal {self._path} with epoch "
                f"{self._epoch}. That one decides now; this one must end."
            )
        await self._writer.append(records, after)

    async def read(self, from_position: int, limit: int) -> tuple[Record, ...]:
        return await self._reader.read(from_position, limit)

    async def records_of(self, cell_id: str) -> tuple[Record, ...]:
        return await self._reader.records_of(cell_id)

    async def tail(self, count: int) -> tuple[Record, ...]:
        return await self._reader.tail(count)

    def replay(self, from_position: int) -> Iterator[Record]:
        with closing(open_for_reading(self._path)) as connection:
            yield from replay(Pages(self._path, connection), from_position)

    def newest_snapshot(self) -> tuple[int, bytes] | None:
        with closing(open_for_reading(self._path)) as connection:
            row: tuple[int, bytes] | None = connection.execute(
                "SELECT position, data FROM snapshots ORDER BY position DESC LIMIT 1"
            ).fetchone()
        return row

    async def save_snapshot(self, position: int, data: bytes) -> None:
        await asyncio.wrap_future(self._writer.submit(lambda c: _save_snapshot(c, position, data)))

    async def retain(self, retention: Retention, now: float) -> int:
        floor = await asyncio.wrap_future(self._writer.submit(lambda c: _floor_of(c, retention, now)))
        deleted = 0
        while piece := await asyncio.wrap_future(self._delete_up_to(floor)):
            deleted += piece
        return deleted

    async def close(self) -> None:
        await asyncio.to_thread(self.release)

    def release(self) -> None:
        """``close`` for a start-up that fails before the event loop runs. Blocks."""
        self._reader.stop()
        self._writer.stop()
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    def _delete_up_to(self, floor: int) -> Future[int]:
        def delete(connection: sqlite3.Connection) -> int:
            self._floor = floor
            try:
                return connection.execute(
                    "DELETE FROM records WHERE position <= min(?, "
                    "(SELECT min(position) FROM records) + ? - 1)",
                    (floor, RETENTION_PIECE),
                ).rowcount
            finally:
                self._floor = 0

        return self._writer.submit(delete)


def _save_snapshot(connection: sqlite3.Connection, position: int, data: bytes) -> None:
    (durable,) = connection.execute("SELECT coalesce(max(position), 0) FROM records").fetchone()
    (last,) = connection.execute("SELECT coalesce(max(position), 0) FROM snapshots").fetchone()
    if not last < position <= durable:
        raise ValueError(f"snapshot of position {position}: it must be above {last} and at most {durable}")
    connection.execute("INSERT INTO snapshots VALUES (?, ?)", (position, data))
    connection.execute(
        "DELETE FROM snapshots WHERE position < (SELECT min(position) FROM "
        "(SELECT position FROM snapshots ORDER BY position DESC LIMIT ?))",
        (SNAPSHOTS_KEPT,),
    )


def _floor_of(connection: sqlite3.Connection, retention: Retention, now: float) -> int:
    """The highest position that may be deleted; the last record always stays."""
    first, last = connection.execute("SELECT min(position), max(position) FROM records").fetchone()
    (snapshot,) = connection.execute("SELECT coalesce(min(position), 0) FROM snapshots").fetchone()
    if first is None:
        return 0
    limit = min(int(snapshot), int(last) - 1)
    too_many = int(last) - retention.keep_records
    too_old = _last_before(connection, now - retention.keep_seconds, int(first), limit)
    return min(limit, max(too_many, too_old))


def _last_before(connection: sqlite3.Connection, at: float, first: int, last: int) -> int:
    """The last position in first..last of a record older than ``at`` (``first`` - 1: none). Binary search: times never
    decrease along the journal."""
    low, high = first - 1, last
    while low < high:
        middle = (low + high + 1) // 2
        (then,) = connection.execute("SELECT at FROM events WHERE position = ?", (middle,)).fetchone()
        if then < at:
            low = middle
        else:
            high = middle - 1
    return low
