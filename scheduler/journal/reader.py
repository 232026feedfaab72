"""Reads the journal. SQLite joins the rows of a page to one JSON text, which is decoded in one call: Python does
nothing row by row, and takes and releases the interpreter's lock only once for a page."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from galactica.scheduler.core.model.events import SCHEMA_VERSION, Record
from galactica.scheduler.journal.port import (
    READ_LIMIT,
    JournalBusy,
    JournalClosed,
    JournalCorrupt,
    JournalTooNew,
)

T = TypeVar("T")

PAGE_RECORDS = 1_000
"""Records fetched and decoded at a time; bounds the memory, and the time for which a decode blocks the interpreter."""

READS_WAITING = 256

_PAGE = """
    SELECT cast(group_concat(body, ',') AS BLOB), max(schema)
    FROM (SELECT body, schema FROM records WHERE position >= ? ORDER BY position LIMIT ?)
"""
_OF_CELL = """
    SELECT cast(group_concat(body, ',') AS BLOB), max(schema)
    FROM (SELECT position, schema, body FROM records WHERE position IN
        (SELECT position FROM records WHERE cell = ? ORDER BY position DESC LIMIT ?) ORDER BY position)
"""


class Pages:
    """Pages of records from one connection, read in the caller's thread. Raises JournalCorrupt, JournalTooNew."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection
        self._decoder = msgspec.json.Decoder(tuple[Record, ...])

    def since(self, from_position: int, limit: int) -> tuple[Record, ...]:
        """Records from a position on, or from the first one that retention has kept; without a gap."""
        records = self._fetch(_PAGE, (from_position, limit))
        if records and records[-1].position - records[0].position + 1 != len(records):
            raise JournalCorrupt(
                f"the journal {self._path} has a gap between positions {records[0].position} and "
                f"{records[-1].position}. Put a backup of the data directory in its place."
            )
        return records

    def of_cell(self, cell_id: str, limit: int) -> tuple[Record, ...]:
        return self._fetch(_OF_CELL, (cell_id, limit))

    def last_position(self) -> int:
        (last,) = self._connection.execute("SELECT coalesce(max(position), 0) FROM records").fetchone()
        return int(last)

    def _fetch(self, query: str, parameters: tuple[int | str, int]) -> tuple[Record, ...]:
        try:
            joined, newest_schema = self._connection.execute(query, parameters).fetchone()
            if joined is None:
                return ()
            if newest_schema > SCHEMA_VERSION:
                raise JournalTooNew(
                    f"the journal {self._path} has records of schema {newest_schema}, but this program reads schemas "
                    f"up to {SCHEMA_VERSION}: a newer galactica wrote them. Use that version or a later one."
                )
            return self._decoder.decode(b"[" + joined + b"]")
        except (sqlite3.DatabaseError, msgspec.DecodeError) as error:
            raise JournalCorrupt(
                f"cannot read the journal {self._path} at {parameters[0]}: {error}. Put a backup of the data "
                f"directory in its place."
            ) from error


def replay(pages: Pages, from_position: int) -> Iterator[Record]:
    """All records from a position on, page by page."""
    while True:
        with _no_collection():
            records = pages.since(from_position, PAGE_RECORDS)
        if not records:
            return
        yield from records
        from_position = records[-1].position + 1


@contextmanager
def _no_collection() -> Iterator[None]:
    """Switch garbage collection off. Decoding creates no cycles, but the thousands of values of a page would start the
    collector again and again: it takes two thirds of the time (measured). Only for start-up, when no other thread
    runs."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class Reader:
    """Reads in its own thread, concurrently with the writer, one read at a time."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection
        self._pages = Pages(path, connection)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal-reader")
        self._waiting = 0
        self._closed = False

    async def read(self, from_position: int, limit: int) -> tuple[Record, ...]:
        return await self._in_thread(lambda: self._several_pages(from_position, min(limit, READ_LIMIT)))

    async def records_of(self, cell_id: str) -> tuple[Record, ...]:
        return await self._in_thread(lambda: self._pages.of_cell(cell_id, READ_LIMIT))

    async def tail(self, count: int) -> tuple[Record, ...]:
        return await self._in_thread(lambda: self._tail(min(count, READ_LIMIT)))

    def stop(self) -> None:
        """Finish the queued reads, then close the connection. Blocks. Does nothing if already stopped."""
        self._closed = True
        self._thread.shutdown()
        self._connection.close()

    def _tail(self, count: int) -> tuple[Record, ...]:
        return self._several_pages(max(1, self._pages.last_position() - count + 1), count)

    def _several_pages(self, from_position: int, limit: int) -> tuple[Record, ...]:
        records: list[Record] = []
        while len(records) < limit:
            page = self._pages.since(from_position, min(PAGE_RECORDS, limit - len(records)))
            if not page:
                break
            records.extend(page)
            from_position = page[-1].position + 1
        return tuple(records)

    async def _in_thread(self, read: Callable[[], T]) -> T:
        if self._closed:
            raise JournalClosed(f"the journal {self._path} is closed")
        if self._waiting >= READS_WAITING:
            raise JournalBusy(
                f"{self._waiting} reads of the journal {self._path} are already waiting; try again later."
            )
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, read)
        finally:
            self._waiting -= 1
