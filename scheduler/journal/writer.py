"""The only thread that writes. Batches that are queued while the disk is busy become durable together in one commit."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from galactica.scheduler.core.model.events import Record
from galactica.scheduler.journal.port import (
    HeadMoved,
    JournalBusy,
    JournalClosed,
    JournalError,
    JournalFailed,
    JournalFull,
)

T = TypeVar("T")

QUEUED_RECORDS = 200_000
GROUP_RECORDS = 20_000
ROWS_PER_STATEMENT = 128
"""Many rows in one statement: the interpreter's lock is released and taken again only once for all of them."""

NO_SPACE = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR_WRITE,
        sqlite3.SQLITE_IOERR_SHMSIZE,
        sqlite3.SQLITE_IOERR_SHMOPEN,
    }
)


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    records: tuple[Record, ...]
    durable: asyncio.Future[None]


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    do: Callable[[sqlite3.Connection], Any]
    done: Future[Any]


class Writer:
    """Owns the writing connection. ``head`` and ``durable`` may be read from any thread."""

    def __init__(self, path: Path, connection: sqlite3.Connection, durable: int) -> None:
        self.head = durable
        self.durable = durable
        self._path = path
        self._connection = connection
        self._encoder = msgspec.json.Encoder()
        self._lock = threading.Lock()
        """Guards head, durable, the queue and closing together. Never held during disk access."""
        self._news = threading.Condition(self._lock)
        self._queue: deque[_Batch | _Work] = deque()
        self._queued_records = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="journal-writer", daemon=True)
        self._thread.start()

    def append(self, records: Sequence[Record], after: int) -> asyncio.Future[None]:
        """Queue a batch, or refuse it at once: HeadMoved, JournalBusy, JournalClosed, ValueError."""
        batch = _Batch(tuple(records), asyncio.get_running_loop().create_future())
        count = len(batch.records)
        with self._lock:
            self._refuse_when_closing()
            if after != self.head:
                raise HeadMoved(
                    f"the journal {self._path} is at position {self.head}, not {after}: another writer has appended, "
                    f"or an earlier append failed. Decide again from the durable records."
                )
            _require_contiguous(batch.records, after)
            if self._queued_records and self._queued_records + count > QUEUED_RECORDS:
                raise JournalBusy(
                    f"{self._queued_records} records for the journal {self._path} are waiting for the disk; wait for "
                    f"them first."
                )
            self.head += count
            self._queued_records += count
            self._queue.append(batch)
            self._news.notify()
        return batch.durable

    def submit(self, do: Callable[[sqlite3.Connection], T]) -> Future[T]:
        """Run ``do`` on the writing thread in its own transaction, after everything that is queued before it."""
        work = _Work(do, Future())
        with self._lock:
            self._refuse_when_closing()
            self._queue.append(work)
            self._news.notify()
        return work.done

    def stop(self) -> None:
        """Finish the queued work and end the thread. Blocks. Does nothing if already stopped."""
        with self._lock:
            self._closing = True
            self._news.notify()
        self._thread.join()

    def _refuse_when_closing(self) -> None:
        if self._closing:
            raise JournalClosed(f"the journal {self._path} is closed")

    # --- the writing thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        while group := self._next_group():
            if isinstance(group, _Work):
                self._do(group)
            else:
                self._commit(group)
        self._connection.close()

    def _next_group(self) -> list[_Batch] | _Work | None:
        """The next work item, or the batches at the front of the queue; None when closing and the queue is empty."""
        with self._lock:
            while not self._queue:
                if self._closing:
                    return None
                self._news.wait()
            first = self._queue.popleft()
            if isinstance(first, _Work):
                return first
            group, count = [first], len(first.records)
            while self._queue and isinstance(batch := self._queue[0], _Batch):
                if count + len(batch.records) > GROUP_RECORDS:
                    break
                self._queue.popleft()
                group.append(batch)
                count += len(batch.records)
            return group

    def _commit(self, group: list[_Batch]) -> None:
        records = [record for batch in group for record in batch.records]
        try:
            self._transact(lambda connection: self._insert(connection, records))
        except Exception as error:  # noqa: BLE001 - the thread's outermost edge: the callers get the error
            self._fall_back(group, self._explained(error))
            return
        with self._lock:
            self.durable += len(records)
            self._queued_records -= len(records)
        _settle([batch.durable for batch in group], None)

    def _insert(self, connection: sqlite3.Connection, records: list[Record]) -> None:
        encode = self._encoder.encode
        for start in range(0, len(records), ROWS_PER_STATEMENT):
            rows = records[start : start + ROWS_PER_STATEMENT]
            values: list[int | str | None] = []
            for row in rows:
                cell = getattr(row.event, "cell", None)
                values += (row.position, row.schema, cell, encode(row).decode())
            places = ",".join(["(?,?,?,?)"] * len(rows))
            connection.execute(
                f"INSERT INTO records (position, schema, cell, body) VALUES {places}",  # noqa: S608
                values,
            )

    def _fall_back(self, group: list[_Batch], error: JournalError) -> None:
        """The group was not recorded, so the batches that are queued behind it fail too."""
        with self._lock:
            behind = [item for item in self._queue if isinstance(item, _Batch)]
            others = [item for item in self._queue if not isinstance(item, _Batch)]
            self._queue.clear()
            self._queue.extend(others)
            self._queued_records = 0
            self.head = self.durable
        _settle([batch.durable for batch in (*group, *behind)], error)

    def _do(self, work: _Work) -> None:
        if not work.done.set_running_or_notify_cancel():
            return
        try:
            result = self._transact(work.do)
        except Exception as error:  # noqa: BLE001 - the thread's outermost edge: the caller gets the error
            work.done.set_exception(error if isinstance(error, ValueError) else self._explained(error))
            return
        work.done.set_result(result)

    def _transact(self, do: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._connection
        if connection.in_transaction:
            connection.execute(
                "ROLLBACK"
            )  # an earlier transaction is still open, because its rollback failed
        connection.execute("BEGIN IMMEDIATE")
        try:
            result = do(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return result

    def _explained(self, error: Exception) -> JournalError:
        explained: JournalError
        if isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", None) in NO_SPACE:
            free = shutil.disk_usage(self._path.parent).free
            explained = JournalFull(
                f"no space left for the journal {self._path} ({error}; {free:,} bytes free). Free some space on that "
                f"file system or raise its limit; the journal goes on as soon as there is space."
            )
        else:
            explained = JournalFailed(
                f"cannot write the journal {self._path}: {error!r}. Check the disk and the kernel's log."
            )
        explained.__cause__ = error
        return explained


def _require_contiguous(records: tuple[Record, ...], after: int) -> None:
    for expected, record in enumerate(records, after + 1):
        if record.position != expected:
            raise ValueError(f"a record has position {record.position} instead of {expected}")


def _settle(futures: list[asyncio.Future[None]], error: Exception | None) -> None:
    """Complete the futures on their own event loop, in order."""
    with suppress(RuntimeError):  # the event loop is closed, so nobody waits
        futures[0].get_loop().call_soon_threadsafe(_wake, futures, error)


def _wake(futures: list[asyncio.Future[None]], error: Exception | None) -> None:
    for future in futures:
        if future.done():
            continue  # its caller was cancelled
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
