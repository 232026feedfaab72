"""What is left of a journal, and what it still does, when its process is killed or its disk is full."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from galactica.scheduler.journal.port import READ_LIMIT, JournalFull
from galactica.scheduler.journal.sqlite import SqliteJournal
from tests.support.journals import APPENDING, child, record, records


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.mark.parametrize("seed", range(5))
def test_nothing_acknowledged_is_lost_when_the_scheduler_is_killed(data: Path, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(2):
        acknowledged = 0
        with child(
            APPENDING.format(data=str(data), last=10**9, batch=chance.choice((10, 300, 3_000)))
        ) as process:
            lines = chance.randrange(1, 60)
            for _ in range(lines):
                acknowledged = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            rest = process.stdout.read()
        complete = rest[: rest.rfind("\n") + 1].split()
        acknowledged = max([acknowledged, *map(int, complete)])
        journal = SqliteJournal.open(data)
        try:
            assert journal.head >= acknowledged
            assert tuple(journal.replay(1)) == records(1, journal.head)
        finally:
            journal.release()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small disk: run the tests as root")
    mount = tmp_path / "disk"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", str(mount)], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True)


async def append_until_refused(journal: SqliteJournal) -> None:
    while True:
        first = journal.head + 1
        await journal.append(records(first, first + 99, "x" * 500), after=first - 1, epoch=0)


@pytest.mark.root
async def test_full_disk_refuses_appends_keeps_reading_and_goes_on_when_there_is_space(
    small_disk: Path,
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(2 * 2**20))
    data = small_disk / "data"
    journal = SqliteJournal.open(data)
    try:
        await journal.append(records(1, 10), after=0, epoch=0)
        with pytest.raises(JournalFull, match="bytes free.* Free some space") as refusal:
            await append_until_refused(journal)
        assert str(data) in str(refusal.value)
        durable = journal.durable
        assert journal.head == durable
        behind = [
            asyncio.ensure_future(
                journal.append(
                    records(durable + n * 900 + 1, durable + n * 900 + 900, "x" * 500),
                    after=durable + n * 900,
                    epoch=0,
                )
            )
            for n in range(3)
        ]
        outcomes = await asyncio.gather(*behind, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [JournalFull] * 3
        assert (journal.head, journal.durable) == (durable, durable)
        with pytest.raises(JournalFull):
            await journal.save_snapshot(durable, bytes(2**20))
        assert await journal.tail(1) == (record(durable, "x" * 500),)
        assert len(await journal.read(1, READ_LIMIT)) == durable

        ballast.unlink()
        await journal.append(records(durable + 1, durable + 100), after=durable, epoch=0)
        assert await journal.tail(100) == records(durable + 1, durable + 100)
    finally:
        await journal.close()
    again = SqliteJournal.open(data)
    assert len(list(again.replay(1))) == again.head == durable + 100
    again.release()


def test_file_size_limit_refuses_appends_and_goes_on_when_it_is_raised(data: Path) -> None:
    code = f"""
        import asyncio, pathlib, resource
        from galactica.scheduler.journal.port import JournalFull
        from galactica.scheduler.journal.sqlite import SqliteJournal
        from tests.support.journals import records

        async def main():
            journal = SqliteJournal.open(pathlib.Path({str(data)!r}))
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
            try:
                while True:
                    await journal.append(records(journal.head + 1, journal.head + 50), after=journal.head, epoch=0)
            except JournalFull as refusal:
                print("refused", flush=True)
            stuck = journal.durable
            assert await journal.tail(50) == records(stuck - 49, stuck)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            await journal.append(records(stuck + 1, stuck + 50), after=stuck, epoch=0)
            await journal.close()
            print(stuck + 50, flush=True)

        asyncio.run(main())
    """
    with child(code) as process:
        assert process.stdout.readline() == "refused\n"
        last = int(process.stdout.readline())
    journal = SqliteJournal.open(data)
    try:
        assert tuple(journal.replay(1)) == records(1, last)
    finally:
        journal.release()
