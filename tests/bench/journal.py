"""The journal's numbers on this machine's disk: ``python -m tests.bench.journal``.

Beside each stands what a plain loop over sqlite3 does in the same run, so that a slow disk can be told from slow code.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from contextlib import closing
from pathlib import Path
from statistics import quantiles

import msgspec

from galactica.scheduler.core.model.events import (
    CellBooting,
    CellCondemned,
    CellDecommissioned,
    CellOrdered,
    CellReady,
    Record,
)
from galactica.scheduler.core.model.spec import Resources
from galactica.scheduler.core.model.verdict import Autopsy, Evidence, Health
from galactica.scheduler.journal.sqlite import DATABASE, SqliteJournal
from galactica.scheduler.journal.tables import create, open_for_reading, open_for_writing

CALLERS = 200
EVENTS = 100_000
LONE_APPENDS = 1_000
CELLS = 2_000
AT = 1_763_900_000.123456

Row = tuple[str, str, str]


def life(position: int) -> Record:
    """Cells of 50 groups, each living from its order to its end, all at once: no two neighbours are of one cell."""
    stage, cell = divmod(position, CELLS)
    name = f"web-{cell % 50}/{cell}.{stage // 5 + 1}"
    event = (
        CellOrdered(name, "a" * 64, 3, f"server-{cell % 300}", Resources(100, 64 << 20, 64)),
        CellBooting(name),
        CellReady(name, {"http": "10.0.0.1:30001"}, "b" * 64),
        CellCondemned(
            name, Health.SICK, "probe_failed", "3 in a row", (Evidence("probe", "GET /: 503", AT),), "1 of 2"
        ),
        CellDecommissioned(name, "agent", Autopsy("stopped", 0, "", last_lines=("bye",), lived_seconds=12.5)),
    )[stage % 5]
    return Record(position, AT + position * 0.001, f"event:{position - 1}", event)


def run() -> list[Row]:
    """Rows of name, figure, target. Takes about half a minute."""
    events = [life(position) for position in range(1, EVENTS + 1)]
    with tempfile.TemporaryDirectory(prefix="galactica-bench-") as room:
        plain_rate = _plain_loop(Path(room) / "plain.db", events)
        rate, replay_rate, lone = asyncio.run(_measure(Path(room) / "data", events))
        plain_lone = _plain_lone(Path(room) / "lone.db", events)
        plain_replay = _plain_replay(Path(room) / "data" / DATABASE)
    return [
        (f"journal: durable events/s, {CALLERS} callers", f"{rate:,.0f}", ">= 30,000"),
        (f"  reference: plain loop, a commit for {CALLERS}", f"{plain_rate:,.0f}", ""),
        ("journal: replayed events/s", f"{replay_rate:,.0f}", ">= 300,000"),
        ("  reference: plain loop, row by row", f"{plain_replay:,.0f}", ""),
        ("journal: p99 of a lone append", f"{_p99(lone):.2f} ms", ""),
        ("  reference: plain loop, a commit for each", f"{_p99(plain_lone):.2f} ms", ""),
    ]


async def _measure(data: Path, events: list[Record]) -> tuple[float, float, list[float]]:
    journal = SqliteJournal.open(data)
    try:
        start = time.perf_counter()
        async with asyncio.TaskGroup() as callers:
            for _ in range(CALLERS):
                callers.create_task(_call(journal, events))
        rate = EVENTS / (time.perf_counter() - start)
        lone = [await _timed_append(journal) for _ in range(LONE_APPENDS)]
        start = time.perf_counter()
        count = sum(1 for _ in journal.replay(1))
        return rate, count / (time.perf_counter() - start), lone
    finally:
        await journal.close()


async def _call(journal: SqliteJournal, events: list[Record]) -> None:
    """One caller: the next event, again and again, each durable before the next."""
    while (head := journal.head) < EVENTS:
        await journal.append((events[head],), after=head, epoch=0)


async def _timed_append(journal: SqliteJournal) -> float:
    record = life(journal.head + 1)
    start = time.perf_counter()
    await journal.append((record,), after=journal.head, epoch=0)
    return time.perf_counter() - start


def _plain_loop(path: Path, events: list[Record]) -> float:
    create(path)
    with closing(open_for_writing(path)) as connection:
        start = time.perf_counter()
        for first in range(0, EVENTS, CALLERS):
            connection.execute("BEGIN")
            for record in events[first : first + CALLERS]:
                body = msgspec.json.encode(record).decode()
                connection.execute(_INSERT, (record.position, record.schema, record.event.cell, body))
            connection.execute("COMMIT")
        return EVENTS / (time.perf_counter() - start)


def _plain_lone(path: Path, events: list[Record]) -> list[float]:
    create(path)
    times = []
    with closing(open_for_writing(path)) as connection:
        for record in events[:LONE_APPENDS]:
            start = time.perf_counter()
            body = msgspec.json.encode(record).decode()
            connection.execute(_INSERT, (record.position, record.schema, record.event.cell, body))
            times.append(time.perf_counter() - start)
    return times


def _plain_replay(path: Path) -> float:
    with closing(open_for_reading(path)) as connection:
        start = time.perf_counter()
        count = 0
        for (body,) in connection.execute("SELECT body FROM records ORDER BY position"):
            msgspec.json.decode(body, type=Record)
            count += 1
        return count / (time.perf_counter() - start)


_INSERT = "INSERT INTO records (position, schema, cell, body) VALUES (?, ?, ?, ?)"


def _p99(seconds: list[float]) -> float:
    return quantiles(seconds, n=100)[98] * 1_000


if __name__ == "__main__":
    for name, figure, target in run():
        print(f"{name:50} {figure:>12}  {target}")
