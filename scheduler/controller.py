"""The single writer: inbox -> core -> journal -> carry out.

One task owns the core. It takes a batch from the bounded inbox, lets the core decide, makes the decision durable in
one commit, and only then sends commands and answers. Readers get the last durable state. It is immutable, so no locks
are needed.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import suppress

import structlog

from galactica.scheduler.core.model.events import Record
from galactica.scheduler.core.model.fleet import Fleet
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.requests import (
    Accepted,
    Asker,
    JournalRefuses,
    RecordRefusal,
    Refused,
    Request,
)
from galactica.scheduler.core.ports import Clock, Outbox, ProviderOutbox, View
from galactica.scheduler.core.sight.observations import Observation
from galactica.scheduler.core.transitions import apply
from galactica.scheduler.core.turns import Asked, Core, Start, Turn
from galactica.scheduler.journal.port import Journal, JournalFailed, JournalFull, Retention
from galactica.scheduler.journal.snapshot import decode, encode

INBOX_SIZE = 10_000
BATCH_SIZE = 2_000
IDLE_SECONDS = 0.5
"""The longest pause between two turns. A longer gap means that this process stalled, not that the fleet was quiet."""

FEED_BATCH = 500
SNAPSHOT_EVERY = 20_000
REFUSALS_EVERY_SECONDS = 60.0
REFUSALS_REMEMBERED = 1_000

log = structlog.get_logger("scheduler.controller")


def load(journal: Journal) -> Fleet:
    """The fleet from the journal: its newest snapshot plus the records after it."""
    snapshot = journal.newest_snapshot()
    fleet = decode(snapshot[1]) if snapshot else Fleet()
    for record in journal.replay(fleet.position + 1):
        fleet = apply(fleet, record)
    return fleet


class Controller:
    """Implements ``ports.Mind``."""

    def __init__(
        self, journal: Journal, fleet: Fleet, clock: Clock, start: Start, policy: Policy | None = None
    ) -> None:
        """Writes to the journal in the epoch of it that is claimed now."""
        self._journal = journal
        self._clock = clock
        self._epoch = journal.epoch
        self._core = Core(fleet, policy or Policy(), clock.now(), start)
        self._inbox: asyncio.Queue[Observation | Asked] = asyncio.Queue(INBOX_SIZE)
        self._tickets = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Accepted]] = {}
        self._news = asyncio.Event()
        self._snapshot_due = asyncio.Event()
        self._snapshot_position = fleet.position
        self._refusals: dict[RecordRefusal, float] = {}

    # --- what adapters use ----------------------------------------------------------------------------------------

    def now(self) -> float:
        return self._clock.now()

    def view(self) -> View:
        return self._core.view(self._clock.now())

    def fleet(self) -> Fleet:
        return self._core.fleet

    async def observe(self, observation: Observation) -> None:
        await self._inbox.put(observation)

    async def ask(self, request: Request, by: Asker) -> Accepted:
        if isinstance(request, RecordRefusal) and not self._worth_recording(request):
            return Accepted(self._core.fleet.position)
        ticket = next(self._tickets)
        answer: asyncio.Future[Accepted] = asyncio.get_running_loop().create_future()
        self._answers[ticket] = answer
        try:
            await self._inbox.put(Asked(ticket, request, by))
            return await answer
        finally:
            self._answers.pop(ticket, None)

    async def feed(self, from_position: int) -> AsyncIterator[tuple[Record, ...]]:
        position = max(1, from_position)
        while True:
            news, durable = (
                self._news,
                self._journal.durable,
            )  # the next round reads what arrives during this one
            records = await self._journal.read(position, FEED_BATCH)
            if records:
                position = records[-1].position + 1
                yield records
            elif durable < position:
                await news.wait()
            else:
                position = durable + 1  # retention has deleted these records

    def _worth_recording(self, refusal: RecordRefusal) -> bool:
        """The same refusal is recorded once a minute, so that repeated calls cannot fill the journal."""
        now = self._clock.now()
        last = self._refusals.get(refusal)
        if last is not None and now - last < REFUSALS_EVERY_SECONDS:
            return False
        if len(self._refusals) >= REFUSALS_REMEMBERED:
            self._refusals.clear()
        self._refusals[refusal] = now
        return True

    # --- the loop ---------------------------------------------------------------------------------------------------

    async def run(self, outbox: Outbox, providers: ProviderOutbox) -> None:
        """Runs until cancelled. Ends on its own only if a broken invariant or a lost journal makes it unsafe."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._take_snapshots(), name="snapshots")
                while True:
                    asked = await self._collect()
                    await self._carry_out(self._core.turn(asked, self._clock.now()), outbox, providers)
        finally:
            for answer in self._answers.values():
                answer.cancel()

    async def _collect(self) -> list[Asked]:
        """Wait for news or for the next look, and pass observations to the core. Returns the requests."""
        asked: list[Asked] = []
        item = await self._next_item()
        taken = 0
        while item is not None:
            if isinstance(item, Asked):
                asked.append(item)
            else:
                self._core.take(item)
            taken += 1
            item = None
            if taken < BATCH_SIZE:
                with suppress(asyncio.QueueEmpty):
                    item = self._inbox.get_nowait()
        return asked

    async def _next_item(self) -> Observation | Asked | None:
        with suppress(asyncio.QueueEmpty):
            return self._inbox.get_nowait()
        due = self._core.next_look_at()
        pause = IDLE_SECONDS if due is None else min(IDLE_SECONDS, due - self._clock.now())
        if pause <= 0:
            await asyncio.sleep(0)
            return None
        try:
            async with asyncio.timeout(pause):
                return await self._inbox.get()
        except TimeoutError:
            return None

    async def _carry_out(self, turn: Turn, outbox: Outbox, providers: ProviderOutbox) -> None:
        if turn.records:
            after = turn.records[0].position - 1
            try:
                await self._journal.append(turn.records, after=after, epoch=self._epoch)
            except (JournalFull, JournalFailed) as refusal:
                self._refuse(turn, str(refusal))
                return
        self._core.commit(turn)
        outbox.send(turn.commands)
        providers.send(turn.provider_commands)
        for ticket, outcome in turn.answers:
            self._answer(ticket, outcome)
        if turn.records:
            self._announce()

    def _refuse(self, turn: Turn, reason: str) -> None:
        if reason != self._core.trouble:
            log.error("journal_refuses", reason=reason)
        self._core.abandon(turn, reason)
        for ticket, outcome in turn.answers:
            self._answer(ticket, outcome if isinstance(outcome, Refused) else JournalRefuses(reason))

    def _answer(self, ticket: int, outcome: Accepted | Refused) -> None:
        answer = self._answers.get(ticket)
        if answer is None or answer.done():
            return
        if isinstance(outcome, Refused):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)

    def _announce(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()
        if self._core.fleet.position - self._snapshot_position >= SNAPSHOT_EVERY:
            self._snapshot_due.set()

    async def _take_snapshots(self) -> None:
        """The fleet is immutable, so a thread can encode it while the core continues."""
        while True:
            await self._snapshot_due.wait()
            self._snapshot_due.clear()
            fleet = self._core.fleet
            data = await asyncio.to_thread(encode, fleet)
            try:
                await self._journal.save_snapshot(fleet.position, data)
                await self._journal.retain(Retention(), self._clock.now())
            except (JournalFull, JournalFailed) as refusal:
                log.warning("snapshot_refused", reason=str(refusal))
            self._snapshot_position = fleet.position
