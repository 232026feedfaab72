"""The port of the journal, the append-only record of all decisions. ``sqlite`` implements it.

Only the controller writes; adapters read. A record is created, and deleted when neither the retention nor a kept
snapshot needs it any more. It is never changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from msgspec import Struct

from galactica.scheduler.core.model.events import Record

READ_LIMIT = 10_000
"""Limit for the records that one read returns."""

SNAPSHOTS_KEPT = 2


class JournalError(Exception):
    """Base of this port's errors. The message is for people: it says what is wrong, where, and what to do."""


class HeadMoved(JournalError):
    """``after`` is not the head: another writer has appended, or an earlier append failed."""


class StaleEpoch(JournalError):
    """A newer scheduler has claimed the journal. This one must stop deciding."""


class JournalBusy(JournalError):
    """The queue for the disk is full. Nothing was recorded; try again when earlier appends have finished."""


class JournalFull(JournalError):
    """No space left on the disk. Nothing was recorded. Reads still work, and appends work again when there is space."""


class JournalFailed(JournalError):
    """A write failed for another reason than missing space. Nothing was acknowledged."""


class JournalClosed(JournalError):
    """The journal is closed or being closed."""


class JournalLocked(JournalError):
    """Another process uses the journal."""

    def __init__(self, message: str, pid: int | None) -> None:
        super().__init__(message)
        self.pid = pid


class JournalCorrupt(JournalError):
    """The journal is damaged. It was not changed."""


class JournalTooNew(JournalError):
    """A newer program wrote the journal. It was not changed."""


class JournalForeign(JournalError):
    """The file is the database of another program. It was not changed."""


class Retention(Struct, frozen=True):
    """How long records are kept for people. A record is deleted when it is older than ``keep_seconds`` or not among the
    newest ``keep_records``, but never before a snapshot covers it."""

    keep_seconds: float = 30 * 86_400.0
    keep_records: int = 1_000_000


class Journal(Protocol):
    @property
    def head(self) -> int:
        """Position of the last accepted record, durable or queued; 0: none."""

    @property
    def durable(self) -> int:
        """Position of the last durable record."""

    @property
    def epoch(self) -> int:
        """The newest claimed epoch."""

    def claim_epoch(self) -> int:
        """Durably record a new epoch, one above the newest. For start-up; blocks until it is on disk."""

    async def append(self, records: Sequence[Record], *, after: int, epoch: int) -> None:
        """Returns when ``records`` (positions ``after`` + 1, + 2 ...) are durable.

        Accepts or refuses before its first await. Concurrent calls become durable together. If one fails, all appends
        that are queued behind it fail too, and ``head`` falls back to ``durable``. If the caller is cancelled, its
        records become durable all the same.

        Raises HeadMoved, StaleEpoch, JournalBusy, JournalFull, JournalFailed, JournalClosed; ValueError if the
        positions are not contiguous.
        """

    async def read(self, from_position: int, limit: int) -> tuple[Record, ...]:
        """Durable records from a position on, oldest first; at most ``limit`` and READ_LIMIT.

        Raises JournalBusy, JournalClosed, JournalCorrupt, JournalTooNew; so do the two below.
        """

    async def records_of(self, cell_id: str) -> tuple[Record, ...]:
        """The newest records about one cell (at most READ_LIMIT), oldest first."""

    async def tail(self, count: int) -> tuple[Record, ...]:
        """The newest ``count`` records (at most READ_LIMIT), oldest first."""

    def replay(self, from_position: int) -> Iterator[Record]:
        """All durable records from a position on. Synchronous, for start-up. Raises JournalTooNew, JournalCorrupt."""

    def newest_snapshot(self) -> tuple[int, bytes] | None:
        """Position and data of the newest snapshot. Synchronous, for start-up."""

    async def save_snapshot(self, position: int, data: bytes) -> None:
        """Store the fleet as of ``position`` (durable, and above the last snapshot's) and delete all snapshots but the
        newest SNAPSHOTS_KEPT. Raises ValueError, JournalFull, JournalFailed, JournalClosed."""

    async def retain(self, retention: Retention, now: float) -> int:
        """Delete the records that neither ``retention`` nor the snapshots need, in bounded pieces, so that appends can
        go on. Returns how many were deleted. Raises JournalFull, JournalFailed, JournalClosed."""

    async def close(self) -> None:
        """Make the queued records durable, then close the files and release the lock. May be called again."""
