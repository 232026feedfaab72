"""A scheduler's data directory that comes back from a backup, and what an operator does then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.events import Record
from galactica.scheduler.core.model.requests import AdoptCells, CondemnUnknown
from galactica.scheduler.core.model.rules import HoldRule

if TYPE_CHECKING:
    from tests.sim.journal import Disk
    from tests.sim.simulation import Simulation


def last_backup_told_by_epochs(disk: Disk) -> int:
    """The newest position of which the scheduler learns from its agents that it is an old one; 0 if there is none."""
    newer = [position for position, epoch in _epochs(disk.records) if epoch + 1 >= disk.epoch]
    return min(newer, default=1) - 1


def _epochs(records: Sequence[Record]) -> list[tuple[int, int]]:
    """Where each epoch begins, and its number."""
    claims = e.SchedulerStarted | e.EpochClaimed
    return [(r.position, r.event.epoch) for r in records if isinstance(r.event, claims)]


async def restore(world: Simulation, kept: int) -> None:
    """The scheduler ends. The next one finds the first ``kept`` records, and nothing of what came after them."""
    await world.stop_scheduler()
    disk = world.disk
    disk.records = disk.records[:kept]
    disk.epoch = max(epoch for _, epoch in _epochs(disk.records))
    world.laws.go_back(disk.records)
    world.start_scheduler()
    assert world.scheduler is not None
    groups = world.scheduler.controller.fleet().groups
    known = {name: None if state.deleted else state.group for name, state in groups.items()}
    world.acknowledged = {**dict.fromkeys(world.acknowledged), **known}
    world.uncertain.clear()


async def tidy_up(world: Simulation) -> None:
    """What the docs tell an operator: the manifests are applied again by now. Cells that the journal never ordered are
    taken in or removed, and so are servers of a pool, which their provider deletes."""
    assert world.scheduler is not None
    view = world.scheduler.controller.view()
    if view.fleet.unknown:
        await world.ask(AdoptCells())
        await world.ask(CondemnUnknown())
    if any(hold.rule == HoldRule.UNKNOWN_SERVER for hold in view.holds):
        for name in list(world.provider.machines):
            if view.fleet.cell(name) is None:
                world.provider.die(name)
