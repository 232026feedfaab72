"""A journal on a virtual disk: appends take time, the disk may be full, and a crash keeps exactly what was durable."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from random import Random

from galactica.scheduler.core.model.events import Record
from galactica.scheduler.journal.port import HeadMoved, JournalFull, Retention, StaleEpoch


class Disk:
    """What survives a crash."""

    def __init__(self, random: Random, on_durable: Callable[[Sequence[Record]], None]) -> None:
        self.random = random
        self.on_durable = on_durable
        self.records: list[Record] = []
        self.snapshot: tuple[int, bytes] | None = None
        self.epoch = 0
        self.is_full = False

    def write(self, records: Sequence[Record]) -> None:
        self.records += records
        self.on_durable(records)


class SimJournal:
    """One opening of the disk. After ``crash`` nothing reaches the disk any more."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._crashed = False
        self.head = self.durable = len(disk.records)
        self.epoch = self.claim_epoch()

    def claim_epoch(self) -> int:
        self._disk.epoch += 1
        return self._disk.epoch

    def crash(self) -> None:
        self._crashed = True

    async def append(self, records: Sequence[Record], *, after: int, epoch: int) -> None:
        if after != self.head:
            raise HeadMoved(f"after {after}, but the head is {self.head}")
        if epoch < self._disk.epoch:
            raise StaleEpoch(f"epoch {epoch}, but {self._disk.epoch} was claimed")
        await asyncio.sleep(self._disk.random.uniform(0.0005, 0.01))
        if self._disk.is_full:
            raise JournalFull("the virtual disk is full")
        if not self._crashed:
            self._disk.write(records)
            self.head = self.durable = len(self._disk.records)
        await asyncio.sleep(self._disk.random.uniform(0.0, 0.003))

    async def read(self, from_position: int, limit: int) -> tuple[Record, ...]:
        return tuple(self._disk.records[from_position - 1 : from_position - 1 + limit])

    async def tail(self, count: int) -> tuple[Record, ...]:
        return tuple(self._disk.records[-count:])

    async def records_of(self, cell_id: str) -> tuple[Record, ...]:
        return tuple(r for r in self._disk.records if getattr(r.event, "cell", "") == cell_id)

    def replay(self, from_position: int) -> Iterator[Record]:
        return iter(self._disk.records[from_position - 1 :])

    def newest_snapshot(self) -> tuple[int, bytes] | None:
        return self._disk.snapshot

    async def save_snapshot(self, position: int, data: bytes) -> None:
        self._disk.snapshot = (position, data)

    async def retain(self, retention: Retention, now: float) -> int:
        return 0

    async def close(self) -> None:
        pass
