"""The journal's tables, with triggers that refuse forbidden changes by any program that opens the file.

``records.body`` is the whole record as JSON. For people with a SQLite shell the view ``events`` shows it as columns.
They are not generated columns: those would be computed at every INSERT, for its trigger (measured: half the speed).
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from galactica.scheduler.journal.port import SNAPSHOTS_KEPT

APPLICATION_ID = 0x47414C41
"""'GALA' in the file's header identifies a journal of Galactica."""

TABLES_VERSION = 1
"""The header's user_version; it grows when the tables change."""

RETENTION_FLOOR = "galactica_retention_floor"
"""SQL function that only the writer's connection defines: the highest position that may be deleted. On other
connections the trigger that calls it fails, and so does the DELETE."""

_TABLES = f"""
CREATE TABLE records (
    position INTEGER PRIMARY KEY,
    schema INTEGER NOT NULL,
    cell TEXT,
    body TEXT NOT NULL
) STRICT;
CREATE INDEX records_of_cell ON records (cell) WHERE cell IS NOT NULL;
CREATE VIEW events AS SELECT
    position,
    json_extract(body, '$.at') AS at,
    json_extract(body, '$.cause') AS cause,
    schema,
    json_extract(body, '$.event.type') AS type,
    cell,
    coalesce(
        substr(cell, 1, instr(cell, '/') - 1),
        json_extract(body, '$.event.group.name'),
        json_extract(body, '$.event.name')) AS grp,
    json_extract(body, '$.event.server') AS server,
    body
FROM records;
CREATE TRIGGER records_only_grow BEFORE INSERT ON records
    WHEN NEW.position IS NOT (SELECT coalesce(max(position), 0) + 1 FROM records)
    BEGIN SELECT RAISE(ABORT, 'a record must have the position after the last record'); END;
CREATE TRIGGER records_never_change BEFORE UPDATE ON records
    BEGIN SELECT RAISE(ABORT, 'records are never changed'); END;
CREATE TRIGGER records_go_by_retention BEFORE DELETE ON records
    WHEN OLD.position > {RETENTION_FLOOR}()
        OR OLD.position > (SELECT coalesce(min(position), 0) FROM snapshots)
        OR OLD.position = (SELECT max(position) FROM records)
    BEGIN SELECT RAISE(ABORT, 'only retention may delete records'); END;

CREATE TABLE snapshots (position INTEGER PRIMARY KEY, data BLOB NOT NULL) STRICT;
CREATE TRIGGER snapshots_only_grow BEFORE INSERT ON snapshots
    WHEN NEW.position <= (SELECT coalesce(max(position), 0) FROM snapshots)
        OR NEW.position > (SELECT coalesce(max(position), 0) FROM records)
    BEGIN SELECT RAISE(ABORT, 'a snapshot must be above the last snapshot and at most at the last record'); END;
CREATE TRIGGER snapshots_never_change BEFORE UPDATE ON snapshots
    BEGIN SELECT RAISE(ABORT, 'snapshots are never changed'); END;
CREATE TRIGGER snapshots_go_when_there_are_newer BEFORE DELETE ON snapshots
    WHEN (SELECT count(*) FROM snapshots WHERE position > OLD.position) < {SNAPSHOTS_KEPT}
    BEGIN SELECT RAISE(ABORT, 'the two newest snapshots are kept'); END;

CREATE TABLE epochs (epoch INTEGER PRIMARY KEY, at REAL NOT NULL, pid INTEGER NOT NULL) STRICT;
CREATE TRIGGER epochs_only_grow BEFORE INSERT ON epochs
    WHEN NEW.epoch IS NOT (SELECT coalesce(max(epoch), 0) + 1 FROM epochs)
    BEGIN SELECT RAISE(ABORT, 'an epoch must be one above the last epoch'); END;
CREATE TRIGGER epochs_never_change BEFORE UPDATE ON epochs
    BEGIN SELECT RAISE(ABORT, 'epochs are never changed'); END;
CREATE TRIGGER epochs_never_go BEFORE DELETE ON epochs
    BEGIN SELECT RAISE(ABORT, 'epochs are never deleted'); END;
"""  # noqa: S608 - made of constants

_CHECKPOINT_PAGES = 4_000
"""About 16 MiB of log before it is copied into the database. The default is smaller and copies more often."""

_LOG_BYTES_KEPT = 64 * 1024 * 1024


def create(path: Path) -> None:
    """Create an empty journal at ``path`` atomically: under another name first, then renamed."""
    draft = path.with_name(path.name + ".creating")
    draft.unlink(missing_ok=True)
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    connection = sqlite3.connect(draft, isolation_level=None)
    try:
        connection.executescript(f"""
            PRAGMA synchronous = FULL;
            BEGIN;
            PRAGMA application_id = {APPLICATION_ID};
            PRAGMA user_version = {TABLES_VERSION};
            {_TABLES}
            COMMIT;
            PRAGMA journal_mode = WAL;
        """)
    finally:
        connection.close()
    draft.rename(path)
    sync_directory(path.parent)
    sync_directory(path.parent.parent)


def sync_directory(path: Path) -> None:
    """Make a directory's entries durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_for_writing(path: Path) -> sqlite3.Connection:
    """Used by one thread at a time, not necessarily the calling one."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.executescript(f"""
        PRAGMA synchronous = FULL;
        PRAGMA recursive_triggers = ON;
        PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES};
        PRAGMA journal_size_limit = {_LOG_BYTES_KEPT};
        PRAGMA cache_size = -65536;
    """)
    return connection


def open_for_reading(path: Path) -> sqlite3.Connection:
    """Reads durable records and cannot write. Used by one thread at a time, not necessarily the calling one."""
    return sqlite3.connect(
        f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
    )
