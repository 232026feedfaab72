"""Checks before a journal is opened: that it is a journal, undamaged, of a known version, and not in use.

The checks only read. A refused journal is not changed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from galactica.scheduler.journal.port import (
    JournalCorrupt,
    JournalForeign,
    JournalFull,
    JournalLocked,
    JournalTooNew,
)
from galactica.scheduler.journal.tables import APPLICATION_ID, TABLES_VERSION
from galactica.scheduler.journal.writer import NO_SPACE

_HEADER_BYTES = 100
_MAGIC = b"SQLite format 3\x00"
_BACKUP = "Keep the damaged files for examination and put a backup of the data directory in their place."


def take_lock(path: Path) -> int:
    """The descriptor of the locked file. Closing it releases the lock, and so does the end of this process.

    Raises JournalLocked. The file is never deleted: otherwise two processes could each lock a different file.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 32, 0).strip()
        os.close(descriptor)
        pid = int(text) if text.isdigit() else None
        holder = "another process" if pid is None else f"process {pid}"
        raise JournalLocked(
            f"the journal in {path.parent} is in use by {holder} (lock file {path}). Only one scheduler at a time "
            f"can use a data directory: end the other one, or use another directory.",
            pid,
        ) from None
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def check(path: Path) -> None:
    """Raises JournalCorrupt, JournalTooNew, JournalForeign, JournalFull. The caller must hold the lock."""
    _check_header(path)
    try:
        with _untouched(path) as connection:
            _check_pages(path, connection)
            _check_positions(path, connection)
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", None) in NO_SPACE:
            raise JournalFull(
                f"no space left to check the journal {path} ({error}). Free some space on that file system."
            ) from error
        raise JournalCorrupt(f"the journal {path} is damaged: {error}. {_BACKUP}") from error


def _check_header(path: Path) -> None:
    """The main file always has a complete header, because the journal is created atomically (``tables.create``).

    Offsets: https://www.sqlite.org/fileformat2.html#the_database_header
    """
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        raise JournalCorrupt(f"the journal {path} is damaged: its header is invalid. {_BACKUP}")
    version = int.from_bytes(header[60:64], "big")
    application = int.from_bytes(header[68:72], "big")
    if application != APPLICATION_ID:
        raise JournalForeign(
            f"{path} is the database of another program (application id {application:#010x}, not "
            f"{APPLICATION_ID:#010x}). Use another data directory."
        )
    if version > TABLES_VERSION:
        raise JournalTooNew(
            f"the journal {path} has format {version}, but this program reads formats up to {TABLES_VERSION}: "
            f"a newer galactica wrote it. Use that version or a later one."
        )


def _check_pages(path: Path, connection: sqlite3.Connection) -> None:
    (finding,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if finding != "ok":
        raise JournalCorrupt(f"the journal {path} is damaged: {finding}. {_BACKUP}")


def _check_positions(path: Path, connection: sqlite3.Connection) -> None:
    """There must be no gap, and a snapshot must cover all positions before the first record."""
    count, first, last = connection.execute(
        "SELECT count(*), min(position), max(position) FROM records"
    ).fetchone()
    if count == 0:
        return
    if last - first + 1 != count:
        raise JournalCorrupt(
            f"the journal {path} has gaps: {count} records between positions {first} and {last}. {_BACKUP}"
        )
    (snapshot,) = connection.execute("SELECT coalesce(max(position), 0) FROM snapshots").fetchone()
    if first > snapshot + 1:
        raise JournalCorrupt(
            f"the journal {path} begins at position {first}, but its newest snapshot is of position {snapshot}: "
            f"the records between them are lost. {_BACKUP}"
        )


@contextmanager
def _untouched(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that changes no file of the journal.

    After a clean close the main file is complete. After a crash the log beside it belongs to it, and even a read-only
    connection rebuilds the log's index file. So this opens hard links in a temporary directory; the index is rebuilt
    there.
    """
    log = path.with_name(path.name + "-wal")
    if not log.exists() or log.stat().st_size == 0:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
            yield connection
        return
    room = path.with_name(path.name + ".checking")
    shutil.rmtree(room, ignore_errors=True)
    room.mkdir(mode=0o700)
    try:
        link = room / path.name
        os.link(path, link)
        os.link(log, room / log.name)
        with closing(sqlite3.connect(f"{link.as_uri()}?mode=ro", uri=True)) as connection:
            yield connection
    finally:
        shutil.rmtree(room, ignore_errors=True)
