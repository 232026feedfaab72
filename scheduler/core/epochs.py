"""Epochs: each start of a scheduler has a higher one, and agents obey none that is lower.

A journal from a backup gives an epoch out again, or ends earlier than it did. So each start has a name too, drawn at
random, and agents learn how far its journal goes. An agent tells what it knows of the newest scheduler that it has
obeyed. What the journal does not know of that shows that it is older than its fleet.
"""

from __future__ import annotations

from msgspec.structs import replace

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.events import IllegalTransition
from galactica.scheduler.core.model.fleet import Fleet, Start
from galactica.scheduler.core.model.requests import Obeyed
from galactica.scheduler.core.unknown import overtaken

STARTS_KEPT = 64
"""So many of the newest are remembered. An agent that has obeyed none of them says nothing about the journal's age."""


def started(fleet: Fleet, record: e.Record, event: e.SchedulerStarted) -> Fleet:
    return _with(fleet, event.epoch, Start(event.id, record.position))


def claimed(fleet: Fleet, record: e.Record, event: e.EpochClaimed) -> Fleet:
    """The scheduler that runs has this epoch from here on."""
    now = fleet.starts.get(fleet.epoch)
    after = _with(overtaken(fleet, event.above), event.epoch, Start(now.name if now else "", record.position))
    strange = (*fleet.strange_starts, event.start)[-STARTS_KEPT:] if event.start else fleet.strange_starts
    return replace(after, strange_starts=strange, overtaken_at=record.at)


def _with(fleet: Fleet, epoch: int, start: Start) -> Fleet:
    if epoch <= fleet.epoch:
        raise IllegalTransition(f"epoch {epoch} is not above {fleet.epoch}")
    starts = fleet.starts.insert(epoch, start)
    if len(starts) > STARTS_KEPT:
        starts = starts.discard(min(starts))
    return replace(fleet, epoch=epoch, starts=starts)


def is_overtaken(fleet: Fleet, obeyed: Obeyed, epoch: int, start: str) -> bool:
    """Whether the scheduler of that epoch and start has to claim a higher epoch before it may tell the agent anything:
    otherwise the agent would forget what it knows, and ids that it knows of would be given out again.

    While the journal cannot record this start, as on a full disk, another scheduler may have had its epoch too."""
    if fleet.epoch < obeyed.epoch <= epoch:
        return obeyed.start != start
    return obeyed.epoch > epoch or is_strange(fleet, obeyed)


def is_strange(fleet: Fleet, obeyed: Obeyed) -> bool:
    """Whether this journal knows that epoch, and of another start, or ends before what the agent knows of it."""
    ours = fleet.starts.get(obeyed.epoch)
    if ours is None or not (obeyed.start and ours.name):
        return False
    if obeyed.start in fleet.strange_starts and obeyed.epoch < fleet.epoch:
        return False  # it was overtaken. Not where it had claimed our own epoch before, and that agent alone knows
    later = [start.position - 1 for epoch, start in fleet.starts.items() if epoch > obeyed.epoch]
    return obeyed.start != ours.name or obeyed.position > min(later, default=fleet.position)
