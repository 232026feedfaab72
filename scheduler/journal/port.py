"""The journal: the append-only record of everything that was decided. This is its port; ``sqlite`` stands behind it.

The controller alone writes, adapters read. Records are created, and deleted when they are older than both the
retention and every snapshot that is kept; nothing in it is ever changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from msgspec import Struct

from galactica.scheduler.core.model.events import Record

READ_LIMIT = 10_000
"""The most records that one read gives, whatever it asks for."""

SNAPSHOTS_KEPT = 2


class JournalError(Exception):
    """Base of this port's errors. The message is for people: what is wrong, where, and what to do."""


class HeadMoved(JournalError):
    """``after`` is not the head: somebody else appended, or an append before this one failed."""


class StaleEpoch(JournalError):
    """A newer scheduler claimed the journal; whoever sees this must stop deciding."""


class JournalBusy(JournalError):
    """More waits for the disk than the queue takes. Nothing was recorded; try again when appends have finished."""


class JournalFull(JournalError):
    """There is no space. Nothing was recorded; reads go on, and so do appends once there is space."""


class JournalFailed(JournalError):
    """The disk or the database refused a write for another reason than space. Nothing was acknowledged."""


class JournalClosed(JournalError):
    """Closed, or being closed."""


class JournalLocked(JournalError):
    """Another process holds it."""

    def __init__(self, message: str, pid: int | None) -> None:
        super().__init__(message)
        self.pid = pid


class JournalCorrupt(JournalError):
    """Damaged. Nothing was touched."""


class JournalTooNew(JournalError):
    """Written by a newer program than this one. Nothing was touched."""


class JournalForeign(JournalError):
    """A database, but not a journal of ours. Nothing was touched."""


class Retention(Struct, frozen=True):
    """What is kept for people to look back at. A record goes when it is older than ``keep_seconds`` or not among
    the newest ``keep_records``, but never before a snapshot has taken its place."""

    keep_seconds: float = 30 * 86_400.0
    keep_records: int = 1_000_000


class Journal(Protocol):
    @property
    def head(self) -> int:
        """Position of the last record accepted, durable or queued; 0 when there is none."""

    @property
    def durable(self) -> int:
        """Position of the last durable record."""

    @property
    def epoch(self) -> int:
        """The newest epoch that was claimed."""

    def claim_epoch(self) -> int:
        """Durably record a new epoch, one above all before it. For start-up; waits for the disk."""

    async def append(self, records: Sequence[Record], *, after: int, epoch: int) -> None:
        """Returns when ``records`` (positions ``after`` + 1, + 2 ...) are durable.

        Accepts or refuses before its first await. Concurrent calls become durable together. When one fails, all
        that were queued behind it fail too and ``head`` falls back to ``durable``. A caller that is cancelled
        gives up waiting; what it appended becomes durable all the same.

        Raises HeadMoved, StaleEpoch, JournalBusy, JournalFull, JournalFailed, JournalClosed; ValueError where
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
        """Keep the fleet as of ``position`` (durable, and above the last snapshot's) and drop all but the newest
        SNAPSHOTS_KEPT. Raises ValueError, JournalFull, JournalFailed, JournalClosed."""

    async def retain(self, retention: Retention, now: float) -> int:
        """Delete what ``retention`` and the snapshots no longer need, a bounded piece at a time; appends go on
        meanwhile. Returns how many records went. Raises JournalFull, JournalFailed, JournalClosed."""

    async def close(self) -> None:
        """Make durable what is queued, then let go of files and lock. Fine when closed already."""
