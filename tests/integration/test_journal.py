"""The journal on a real disk: what it promises, what it refuses, and what is left of it after the worst."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from galactica.scheduler.core.model.events import (
    SCHEMA_VERSION,
    CellBooting,
    GroupDeleted,
    Record,
    TokenCreated,
)
from galactica.scheduler.journal.port import (
    READ_LIMIT,
    HeadMoved,
    JournalBusy,
    JournalClosed,
    JournalFailed,
    Retention,
    StaleEpoch,
)
from galactica.scheduler.journal.sqlite import SqliteJournal
from galactica.scheduler.journal.writer import GROUP_RECORDS, QUEUED_RECORDS
from tests.support.journals import record, records, shell


async def reopened(journal: SqliteJournal, data: Path) -> SqliteJournal:
    await journal.close()
    return SqliteJournal.open(data)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
async def journal(data: Path) -> AsyncIterator[SqliteJournal]:
    opened = SqliteJournal.open(data)
    yield opened
    await opened.close()


# --- appending and reading ----------------------------------------------------------------------------------------


async def test_what_was_appended_is_read_back_exactly_and_after_opening_again(
    journal: SqliteJournal, data: Path
) -> None:
    await journal.append(records(1, 3), after=0, epoch=0)
    odd = Record(4, 0.1 + 0.2, "operator:zoë\0\"'", TokenCreated("t\n", "ü", 1, 1e300))
    await journal.append([odd], after=3, epoch=0)
    everything = (*records(1, 3), odd)
    assert await journal.read(1, 100) == everything
    again = await reopened(journal, data)
    try:
        assert (again.head, again.durable) == (4, 4)
        assert tuple(again.replay(1)) == everything
        assert tuple(again.replay(3)) == everything[2:]
        assert tuple(again.replay(5)) == ()
    finally:
        await again.close()


async def test_reads_are_bounded_and_in_order(journal: SqliteJournal) -> None:
    count = READ_LIMIT + 2_345
    await journal.append(records(1, count), after=0, epoch=0)
    assert await journal.read(5, 3) == records(5, 7)
    assert await journal.read(1, 10**9) == records(1, READ_LIMIT)
    assert await journal.read(count - 1, 100) == records(count - 1, count)
    assert await journal.read(count + 1, 100) == ()
    assert await journal.tail(2_500) == records(count - 2_499, count)
    assert await journal.tail(10**9) == records(count - READ_LIMIT + 1, count)
    assert await journal.tail(0) == ()
    assert list(journal.replay(1)) == list(records(1, count))


async def test_records_of_a_cell_are_found_without_looking_at_the_others(
    journal: SqliteJournal, data: Path
) -> None:
    await journal.append([*records(1, 30), Record(31, 1.0, "start", GroupDeleted("web"))], after=0, epoch=0)
    assert await journal.records_of("web/3.1") == (record(3), record(13), record(23))
    assert await journal.records_of("web/3.2") == ()
    with shell(data) as connection:
        plan = connection.execute(
            "EXPLAIN QUERY PLAN SELECT position FROM records WHERE cell = 'web/3.1' ORDER BY position DESC"
        ).fetchall()
    assert "records_of_cell (cell=?)" in plan[0][3]
    assert len(plan) == 1


async def test_columns_for_people_tell_what_the_record_says(journal: SqliteJournal, data: Path) -> None:
    await journal.append([record(1), Record(2, 2.5, "start", GroupDeleted("api"))], after=0, epoch=0)
    with shell(data) as connection:
        rows = connection.execute(
            "SELECT position, schema, cause, type, cell, grp, server FROM events"
        ).fetchall()
    assert rows == [
        (1, SCHEMA_VERSION, "event:0", "CellOrdered", "web/1.1", "web", "server-1"),
        (2, SCHEMA_VERSION, "start", "GroupDeleted", None, "api", None),
    ]


async def test_append_that_is_not_at_the_head_is_refused_before_anything_is_queued(
    journal: SqliteJournal,
) -> None:
    first = asyncio.ensure_future(journal.append(records(1, 2), after=0, epoch=0))
    await asyncio.sleep(0)
    assert journal.head == 2
    with pytest.raises(HeadMoved, match="is at position 2, not 0"):
        await journal.append(records(1, 1), after=0, epoch=0)
    with pytest.raises(HeadMoved):
        await journal.append(records(4, 4), after=3, epoch=0)
    with pytest.raises(ValueError, match="position 4 instead of 3"):
        await journal.append(records(4, 4), after=2, epoch=0)
    with pytest.raises(ValueError, match="position 5 instead of 4"):
        await journal.append([record(3), record(5)], after=2, epoch=0)
    await first
    assert (journal.head, journal.durable) == (2, 2)
    assert await journal.read(1, 10) == records(1, 2)


async def test_scheduler_of_an_older_epoch_can_append_nothing(journal: SqliteJournal, data: Path) -> None:
    mine = journal.claim_epoch()
    await journal.append(records(1, 1), after=0, epoch=mine)
    assert (mine, journal.claim_epoch()) == (1, 2)
    with pytest.raises(StaleEpoch, match="epoch 1 has ended"):
        await journal.append(records(2, 2), after=1, epoch=mine)
    again = await reopened(journal, data)
    try:
        assert (again.epoch, again.claim_epoch(), again.head) == (2, 3, 1)
    finally:
        await again.close()


async def test_concurrent_appends_become_durable_together_and_in_order(
    journal: SqliteJournal, data: Path
) -> None:
    appends = [journal.append(records(n * 3 + 1, n * 3 + 3), after=n * 3, epoch=0) for n in range(500)]
    await asyncio.gather(*appends)
    assert (journal.head, journal.durable) == (1_500, 1_500)
    assert await journal.read(1, 1_500) == records(1, 1_500)


async def test_cancelled_caller_takes_nothing_back(journal: SqliteJournal) -> None:
    given_up = asyncio.ensure_future(journal.append(records(1, 5), after=0, epoch=0))
    await asyncio.sleep(0)
    given_up.cancel()
    await journal.append(records(6, 6), after=5, epoch=0)
    assert await journal.read(1, 10) == records(1, 6)


async def test_queue_is_bounded(journal: SqliteJournal, data: Path) -> None:
    with shell(data) as hold:  # the disk is busy: somebody else writes
        hold.execute("BEGIN IMMEDIATE")
        first = asyncio.ensure_future(journal.append(records(1, QUEUED_RECORDS), after=0, epoch=0))
        await asyncio.sleep(0)
        with pytest.raises(JournalBusy, match="waiting for the disk"):
            await journal.append(
                records(QUEUED_RECORDS + 1, QUEUED_RECORDS + 1), after=QUEUED_RECORDS, epoch=0
            )
        hold.execute("ROLLBACK")
    await first
    await journal.append(records(QUEUED_RECORDS + 1, QUEUED_RECORDS + 1), after=QUEUED_RECORDS, epoch=0)


async def test_append_that_fails_takes_all_behind_it_along_and_the_head_falls_back(
    journal: SqliteJournal,
) -> None:
    await journal.append(records(1, 1), after=0, epoch=0)
    unwritable = Record(2, 1.0, "\ud800", CellBooting("web/1.1"))
    last = GROUP_RECORDS + 1  # a commit of its own, so that the others wait behind it
    outcomes = await asyncio.gather(
        journal.append([unwritable, *records(3, last)], after=1, epoch=0),
        journal.append(records(last + 1, last + 2), after=last, epoch=0),
        journal.append(records(last + 3, last + 3), after=last + 2, epoch=0),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [JournalFailed] * 3
    assert (journal.head, journal.durable) == (1, 1)
    await journal.append(records(2, 3), after=1, epoch=0)
    assert await journal.read(1, 10) == records(1, 3)


async def test_closing_makes_durable_what_was_queued_and_refuses_the_rest(
    journal: SqliteJournal, data: Path
) -> None:
    queued = [asyncio.ensure_future(journal.append([record(n)], after=n - 1, epoch=0)) for n in range(1, 51)]
    await asyncio.sleep(0)
    await journal.close()
    await asyncio.gather(*queued)
    for use in (journal.append(records(51, 51), after=50, epoch=0), journal.read(1, 1), journal.tail(1)):
        with pytest.raises(JournalClosed):
            await use
    await journal.close()
    again = SqliteJournal.open(data)
    assert tuple(again.replay(1)) == records(1, 50)
    await again.close()


# --- what the tables refuse by themselves -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE records SET body = '{}' WHERE position = 3",
        "UPDATE records SET position = 100 WHERE position = 3",
        "DELETE FROM records WHERE position = 1",
        "DELETE FROM records",
        "INSERT OR REPLACE INTO records (position, schema, body) VALUES (3, 1, '{}')",
        "REPLACE INTO records (position, schema, body) VALUES (10, 1, '{}')",
        "INSERT OR IGNORE INTO records (position, schema, body) VALUES (12, 1, '{}')",
        "INSERT INTO records (position, schema, body) VALUES (3, 1, '{}') ON CONFLICT DO UPDATE SET body = '{}'",
        "UPDATE OR REPLACE records SET position = 4 WHERE position = 3",
        "UPDATE snapshots SET data = x'00'",
        "DELETE FROM snapshots",
        "INSERT OR REPLACE INTO snapshots VALUES (8, x'00')",
        "INSERT INTO snapshots VALUES (11, x'00')",
        "UPDATE epochs SET epoch = 9",
        "DELETE FROM epochs",
        "INSERT OR REPLACE INTO epochs VALUES (1, 0, 0)",
        "INSERT INTO epochs VALUES (7, 0, 0)",
    ],
)
@pytest.mark.parametrize("recursive_triggers", ["ON", "OFF"])
async def test_tables_refuse_every_change(
    journal: SqliteJournal, data: Path, statement: str, recursive_triggers: str
) -> None:
    journal.claim_epoch()
    await journal.append(records(1, 10), after=0, epoch=1)
    await journal.save_snapshot(8, b"fleet")
    with shell(data) as connection:
        connection.execute(f"PRAGMA recursive_triggers = {recursive_triggers}")
        with pytest.raises(sqlite3.Error):
            connection.execute(statement)
    assert tuple(journal.replay(1)) == records(1, 10)
    assert journal.newest_snapshot() == (8, b"fleet")


async def test_even_whoever_defines_the_function_of_retention_cannot_delete_what_no_snapshot_stands_for(
    journal: SqliteJournal, data: Path
) -> None:
    await journal.append(records(1, 10), after=0, epoch=0)
    await journal.save_snapshot(4, b"fleet")
    with shell(data) as connection:
        connection.create_function("galactica_retention_floor", 0, lambda: 10**9)
        with pytest.raises(sqlite3.IntegrityError, match="only retention"):
            connection.execute("DELETE FROM records WHERE position <= 5")
        connection.execute("DELETE FROM records WHERE position <= 4")
    assert tuple(journal.replay(1)) == records(5, 10)


# --- snapshots and retention --------------------------------------------------------------------------------------


async def test_two_snapshots_are_kept_and_the_newest_is_given(journal: SqliteJournal, data: Path) -> None:
    assert journal.newest_snapshot() is None
    await journal.append(records(1, 10), after=0, epoch=0)
    for position in (2, 4, 9):
        await journal.save_snapshot(position, f"fleet {position}".encode())
    assert journal.newest_snapshot() == (9, b"fleet 9")
    with shell(data) as connection:
        assert connection.execute("SELECT position FROM snapshots").fetchall() == [(4,), (9,)]
    for position in (9, 3, 11):
        with pytest.raises(
            ValueError, match=f"snapshot of position {position}: it must be above 9 and at most 10"
        ):
            await journal.save_snapshot(position, b"")


@pytest.mark.parametrize(
    ("retention", "age_of_last", "kept_from"),
    [
        (Retention(keep_seconds=1e9, keep_records=10_000), 0.0, 1),
        (Retention(keep_seconds=1e9, keep_records=5_000), 0.0, 3_001),
        (Retention(keep_seconds=1_999.5, keep_records=10_000), 0.0, 6_001),
        (Retention(keep_seconds=6_999.5, keep_records=6_000), 0.0, 2_001),
        (Retention(keep_seconds=1.0, keep_records=1), 0.0, 7_001),
        (Retention(keep_seconds=1e5, keep_records=10_000), 1e6, 7_001),
    ],
    ids=["all young", "too many", "too old", "either", "up to the oldest snapshot", "all old"],
)
async def test_retention_deletes_what_neither_people_nor_a_snapshot_need(
    journal: SqliteJournal, data: Path, retention: Retention, age_of_last: float, kept_from: int
) -> None:
    await journal.append(records(1, 8_000), after=0, epoch=0)
    await journal.save_snapshot(7_000, b"older")
    await journal.save_snapshot(7_500, b"newer")
    now = record(8_000).at + age_of_last
    assert await journal.retain(retention, now) == kept_from - 1
    assert await journal.retain(retention, now) == 0
    assert tuple(journal.replay(1)) == records(kept_from, 8_000)
    assert await journal.read(1, 1) == (record(kept_from),)
    again = await reopened(journal, data)
    assert (again.head, again.newest_snapshot()) == (8_000, (7_500, b"newer"))
    await again.close()


async def test_without_a_snapshot_nothing_is_deleted_and_the_last_record_always_stays(
    journal: SqliteJournal,
) -> None:
    assert await journal.retain(Retention(0.0, 0), 1e12) == 0
    await journal.append(records(1, 5), after=0, epoch=0)
    assert await journal.retain(Retention(0.0, 0), 1e12) == 0
    await journal.save_snapshot(5, b"fleet")
    assert await journal.retain(Retention(0.0, 0), 1e12) == 4
    await journal.append(records(6, 6), after=5, epoch=0)
    assert tuple(journal.replay(1)) == records(5, 6)


async def test_appends_go_on_while_retention_works(journal: SqliteJournal) -> None:
    await journal.append(records(1, 20_000), after=0, epoch=0)
    await journal.save_snapshot(15_000, b"fleet")
    retaining = asyncio.ensure_future(journal.retain(Retention(keep_records=1), record(20_000).at))
    position = 20_000
    while not retaining.done():
        position += 1
        await journal.append([record(position)], after=position - 1, epoch=0)
    assert await retaining == 15_000
    assert position > 20_001
    assert tuple(journal.replay(1)) == records(15_001, position)


async def test_file_does_not_grow_when_retention_keeps_pace(journal: SqliteJournal, data: Path) -> None:
    sizes = []
    for round_number in range(6):
        first = round_number * 5_000 + 1
        await journal.append(records(first, first + 4_999), after=first - 1, epoch=0)
        await journal.save_snapshot(journal.head, b"fleet")
        await journal.retain(Retention(keep_records=1_000), 0.0)
        sizes.append((data / "journal.db").stat().st_size)
    assert max(sizes[3:]) <= max(sizes[:3]) * 1.2 + 20 * 2**20
    with shell(data) as connection:
        assert connection.execute("SELECT count(*) FROM records").fetchone()[0] <= 5_001
