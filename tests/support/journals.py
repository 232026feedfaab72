"""Journals for tests: records that are told apart by their position, and processes that die."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path

from galactica.scheduler.core.model.events import CellBooting, CellOrdered, Record
from galactica.scheduler.core.model.spec import Resources
from galactica.scheduler.journal.sqlite import SqliteJournal

ROOT = Path(__file__).parents[2]


def record(position: int, text: str = "") -> Record:
    name = f"web/{position % 10}.1"
    event = (
        CellOrdered(name, "d" * 64, 1, text or "server-1", Resources(100), "")
        if position % 2
        else CellBooting(name)
    )
    return Record(position, 1_763_900_000.123456 + position, f"event:{position - 1}", event)


def records(first: int, last: int, text: str = "") -> tuple[Record, ...]:
    return tuple(record(position, text) for position in range(first, last + 1))


def contents(data: Path) -> dict[str, str]:
    """Every file but the lock, by the hash of its bytes."""
    files = (path for path in sorted(data.rglob("*")) if path.is_file() and path.name != "journal.lock")
    return {str(path.relative_to(data)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def shell(data: Path) -> closing[sqlite3.Connection]:
    """Anybody else who opens the file, with SQLite's defaults."""
    return closing(sqlite3.connect(data / "journal.db", isolation_level=None))


def made(data: Path, count: int = 10) -> Path:
    """A data directory with a closed journal of so many records."""

    async def make() -> None:
        journal = SqliteJournal.open(data)
        await journal.append(records(1, count), after=0, epoch=0)
        await journal.close()

    asyncio.run(make())
    return data


class child:  # noqa: N801 - used as a with statement's verb
    """Python code in a process of its own, ended with the block."""

    def __init__(self, code: str) -> None:
        self._code = textwrap.dedent(code)

    def __enter__(self) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(
            [sys.executable, "-c", self._code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        return self._process

    def __exit__(self, *error: object) -> None:
        with self._process:
            self._process.kill()


APPENDING = """
    import asyncio, pathlib
    from galactica.scheduler.journal.sqlite import SqliteJournal
    from tests.support.journals import records

    async def one(journal, first, last):
        await journal.append(records(first, last), after=first - 1, epoch=0)
        print(last, flush=True)

    async def main():
        journal = SqliteJournal.open(pathlib.Path({data!r}))
        position = journal.head
        while position < {last}:
            size = min({last} - position, {batch})
            step = max(1, size // 10)
            bounds = range(position + 1, position + size + 1, step)
            await asyncio.gather(*(one(journal, b, min(b + step - 1, position + size)) for b in bounds))
            position += size
        print("done", flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())
"""


def crash(data: Path, first: int, count: int) -> None:
    """A process appends so many records and is killed."""
    last = first + count - 1
    with child(APPENDING.format(data=str(data), last=last, batch=count)) as process:
        for line in process.stdout:
            if line == "done\n":
                break
        process.send_signal(signal.SIGKILL)
        process.wait(30)
