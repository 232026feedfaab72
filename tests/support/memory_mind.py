"""A mind for tests of adapters: the real core, with a list for a journal. Each thing asked is decided at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

from galactica.scheduler.core.model.commands import Command
from galactica.scheduler.core.model.events import Record
from galactica.scheduler.core.model.fleet import Fleet
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.requests import (
    Accepted,
    Asker,
    CreateToken,
    Enrol,
    JournalRefuses,
    Refused,
    Request,
)
from galactica.scheduler.core.ports import Outbox, View
from galactica.scheduler.core.sight.observations import Observation
from galactica.scheduler.core.turns import Asked, Core, Start, Turn

SECRET = "5" * 64


class MemoryMind:
    """Implements ``ports.Mind`` and what operators read of a journal. ``outbox`` may be set after it was made."""

    def __init__(self, policy: Policy | None = None, *, regrows: bool = False) -> None:
        self.off_seconds = 0.0
        """By so much its time is ahead of the wall clock."""
        self.core = Core(Fleet(), policy or Policy(), time.time(), Start(1, "test", "this start", regrows))
        self.outbox: Outbox | None = None
        self.records: list[Record] = []
        self.observed: list[Observation] = []
        self.sent: list[Command] = []
        self.journal_refuses = ""
        self._news = asyncio.Event()
        self._finish(self.core.turn([], self.now()))

    def now(self) -> float:
        return time.time() + self.off_seconds

    def fleet(self) -> Fleet:
        return self.core.fleet

    def view(self) -> View:
        return self.core.view(self.now())

    async def observe(self, observation: Observation) -> None:
        self.observed.append(observation)
        self.core.take(observation)
        self.settle()
        self._tell()

    async def ask(self, request: Request, by: Asker) -> Accepted:
        turn = self.core.turn([Asked(1, request, by)], self.now())
        answer = turn.answers[0][1]
        if self.journal_refuses and turn.records:
            self.core.abandon(turn, self.journal_refuses)
            raise JournalRefuses(self.journal_refuses)
        self._finish(turn)
        self.settle()
        if isinstance(answer, Refused):
            raise answer
        return answer

    async def feed(self, from_position: int) -> AsyncIterator[tuple[Record, ...]]:
        position = max(1, from_position)
        while True:
            news = self._news
            batch = tuple(self.records[position - 1 :])
            if batch:
                position = batch[-1].position + 1
                yield batch
            else:
                await news.wait()

    def settle(self) -> None:
        for _ in range(1_000):
            due = self.core.next_look_at()
            if due is None or due > self.now():
                return
            turn = self.core.turn([], self.now())
            if self.journal_refuses and turn.records:
                self.core.abandon(turn, self.journal_refuses)
                return
            self._finish(turn)

    def _finish(self, turn: Turn) -> None:
        self.core.commit(turn)
        self.records += turn.records
        self.sent += turn.commands
        if self.outbox is not None:
            self.outbox.send(turn.commands)
        self._tell()

    def _tell(self) -> None:
        """Readers and tests that wait look again."""
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def until(self, condition, limit_seconds: float = 10.0) -> None:
        """Wait until the condition holds after some news."""
        async with asyncio.timeout(limit_seconds):
            while not condition():
                news = self._news
                await news.wait()

    async def enrol(self, *servers: str) -> None:
        for server in servers:
            await self.ask(CreateToken("t" + server, SECRET, 1, self.now() + 60), Asker.operator("ann"))
            await self.ask(Enrol("t" + server, SECRET, server), Asker.server(server))

    # --- the journal, as operators read it ---------------------------------------------------------------------

    async def read(self, from_position: int, limit: int) -> tuple[Record, ...]:
        start = max(0, from_position - 1)
        return tuple(self.records[start : start + limit])

    async def records_of(self, cell_id: str) -> tuple[Record, ...]:
        return tuple(r for r in self.records if getattr(r.event, "cell", "") == cell_id)

    async def tail(self, count: int) -> tuple[Record, ...]:
        return tuple(self.records[-count:])


def kinds(records: Sequence[Record]) -> list[str]:
    return [type(record.event).__name__ for record in records]
