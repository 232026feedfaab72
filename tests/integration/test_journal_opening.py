"""A journal is opened by one process, and only when it can be trusted; else it is left as it was."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from galactica.scheduler.core.model.events import SCHEMA_VERSION
from galactica.scheduler.journal.port import JournalCorrupt, JournalForeign, JournalLocked, JournalTooNew
from galactica.scheduler.journal.sqlite import SqliteJournal
from tests.support.journals import child, contents, crash, made, records, shell


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


async def test_only_the_owner_may_look_at_a_journal(data: Path) -> None:
    journal = SqliteJournal.open(data)
    await journal.append(records(1, 1), after=0, epoch=0)
    assert data.stat().st_mode & 0o777 == 0o700
    modes = {path.name: path.stat().st_mode & 0o777 for path in data.iterdir()}
    names = ("journal.db", "journal.db-shm", "journal.db-wal", "journal.lock", "journal.reserve")
    assert modes == dict.fromkeys(names, 0o600)
    await journal.close()


def test_journal_held_by_another_process_is_refused_by_its_pid_and_untouched(data: Path) -> None:
    made(data)
    code = f"""
        import sys, pathlib
        from galactica.scheduler.journal.sqlite import SqliteJournal
        journal = SqliteJournal.open(pathlib.Path({str(data)!r}))
        print("open", flush=True)
        sys.stdin.read()
    """
    with child(code) as holder:
        assert holder.stdout.readline() == "open\n"
        before = contents(data)
        with pytest.raises(JournalLocked, match=f"process {holder.pid} .*{data}") as refusal:
            SqliteJournal.open(data)
        assert refusal.value.pid == holder.pid
        assert contents(data) == before
        holder.stdin.close()
        holder.wait(30)
    SqliteJournal.open(data).release()


def test_one_process_cannot_open_a_journal_twice_either(data: Path) -> None:
    journal = SqliteJournal.open(data)
    try:
        with pytest.raises(JournalLocked, match=f"process {os.getpid()}"):
            SqliteJournal.open(data)
    finally:
        journal.release()


def _write(path: Path, offset: int, value: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(value)


def _scribble(path: Path) -> None:
    size = path.stat().st_size
    for offset in range(8_192, size, 4_096):
        _write(path, offset, b"\xa5" * 512)


def _foreign(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE songs (name)")


def _gap(path: Path) -> None:
    """What only somebody who drops the triggers can do."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("DROP TRIGGER records_go_by_retention")
        connection.execute("DELETE FROM records WHERE position = 5")


def _beginning_lost(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("DROP TRIGGER records_go_by_retention")
        connection.execute("DELETE FROM records WHERE position < 5")


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (
            lambda path: _write(path, 60, (2).to_bytes(4, "big")),
            JournalTooNew,
            "format 2, .* formats up to 1",
        ),
        (_foreign, JournalForeign, "another program"),
        (lambda path: path.write_bytes(b""), JournalCorrupt, "its header is invalid"),
        (lambda path: path.write_bytes(b"#!/bin/sh\n" * 500), JournalCorrupt, "its header is invalid"),
        (lambda path: os.truncate(path, path.stat().st_size // 2), JournalCorrupt, "damaged"),
        (_scribble, JournalCorrupt, "damaged"),
        (_gap, JournalCorrupt, "gaps: 199 records between positions 1 and 200"),
        (_beginning_lost, JournalCorrupt, "begins at position 5"),
    ],
    ids=["newer", "foreign", "empty", "not a database", "cut", "scribbled over", "gap", "beginning lost"],
)
def test_journal_that_cannot_be_trusted_is_refused_and_untouched(data: Path, spoil, error, says) -> None:
    made(data, 200)
    spoil(data / "journal.db")
    before = contents(data)
    with pytest.raises(error, match=says) as refusal:
        SqliteJournal.open(data)
    assert contents(data) == before
    assert str(data) in str(refusal.value)


def test_damage_under_a_log_that_a_crash_left_is_found_and_nothing_touched(data: Path) -> None:
    made(data, 2_000)
    crash(data, first=2_001, count=50)
    assert (data / "journal.db-wal").stat().st_size > 0
    _scribble(data / "journal.db")
    before = contents(data)
    with pytest.raises(JournalCorrupt):
        SqliteJournal.open(data)
    assert contents(data) == before


def test_crash_in_the_middle_of_copying_the_log_into_the_database_is_no_damage(data: Path) -> None:
    made(data, 0)
    crash(data, first=1, count=50)
    _write(data / "journal.db", 4_096, b"\xa5" * 512)  # half of a page that the log has whole
    journal = SqliteJournal.open(data)
    assert tuple(journal.replay(1)) == records(1, 50)
    journal.release()


def test_check_of_a_log_that_a_crash_left_changes_no_byte(data: Path) -> None:
    made(data, 200)
    crash(data, first=201, count=50)
    _write(data / "journal.db", 60, (2).to_bytes(4, "big"))
    before = contents(data)
    with pytest.raises(JournalTooNew):
        SqliteJournal.open(data)
    assert contents(data) == before
    _write(data / "journal.db", 60, (1).to_bytes(4, "big"))
    journal = SqliteJournal.open(data)
    assert tuple(journal.replay(1)) == records(1, 250)
    journal.release()


def test_record_of_a_newer_schema_stops_the_replay_before_it_is_understood_wrongly(data: Path) -> None:
    made(data, 3)
    body = '{"position":4,"at":1.0,"cause":"start","event":{"type":"GroupDeleted","name":"web","soft":true},"schema":9}'
    with shell(data) as connection:
        connection.execute("INSERT INTO records (position, schema, body) VALUES (4, 9, ?)", (body,))
    journal = SqliteJournal.open(data)
    try:
        with pytest.raises(
            JournalTooNew, match=f"schema 9, but this program reads schemas up to {SCHEMA_VERSION}"
        ):
            list(journal.replay(1))
    finally:
        journal.release()


def test_record_that_cannot_be_read_is_named(data: Path) -> None:
    made(data, 3)
    with shell(data) as connection:
        connection.execute("INSERT INTO records (position, schema, body) VALUES (4, 1, '{\"at\":true}')")
    journal = SqliteJournal.open(data)
    try:
        with pytest.raises(JournalCorrupt, match="cannot read the journal"):
            list(journal.replay(1))
    finally:
        journal.release()


def test_crash_while_a_journal_is_made_leaves_none(data: Path) -> None:
    data.mkdir()
    (data / "journal.db.creating").write_bytes(b"half a database")
    journal = SqliteJournal.open(data)
    journal.release()
    assert sorted(path.name for path in data.iterdir()) == ["journal.db", "journal.lock", "journal.reserve"]
