"""Genomes in the virtual world: hosts keep them, and a scheduler that lost its disk is grown anew from the newest."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from galactica.scheduler.core.genome import GenomeReader
from galactica.scheduler.core.model.genome import Genome, GenomeMark
from galactica.scheduler.core.model.requests import (
    Asker,
    AskerKind,
    EndRegrowth,
    PlantGenome,
    Refused,
    ReleaseStorm,
)

if TYPE_CHECKING:
    from galactica.scheduler.controller import Controller
    from tests.sim.host import Host
    from tests.sim.simulation import Scheduler, Simulation

HOLDERS = 5
LOOK_SECONDS = 1.0
PATIENCE_SECONDS = 30.0
"""How long an operator waits for servers that do not come, or for a genome."""


async def lose_journal(world: Simulation) -> None:
    """The scheduler's machine is lost; another one has nothing but the CA."""
    await world.stop_scheduler()
    disk = world.disk
    disk.records, disk.snapshot, disk.epoch = [], None, 0
    world.laws.lose()
    world.acknowledged.clear()
    world.uncertain.clear()
    world.has_lost_journal = True
    world.start_scheduler()


class Genomes:
    """What the dispatcher's ``Genomes`` is to the real scheduler, in one life of it. It disturbs no other history: it
    draws no lot, and what is not lost arrives at once."""

    def __init__(self, world: Simulation, scheduler: Scheduler) -> None:
        self._world = world
        self._scheduler = scheduler
        self._reader = GenomeReader()
        self._newest: tuple[GenomeMark, Genome] | None = None
        self._first_told_at: float | None = None

    async def run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            controller = self._scheduler.controller
            fleet = controller.fleet()
            if fleet.regrowth is not None and not fleet.regrowth.is_planted:
                await self._gather(controller)
                continue
            content = self._reader.read(fleet)
            if self._newest is None or (content, fleet.epoch) != (self._newest[1], self._newest[0].epoch):
                self._newest = (GenomeMark(fleet.epoch, fleet.position), content)
            self._spread()

    def _attached(self) -> list[Host]:
        cut = self._world.network.cut_to | self._world.network.cut_from
        sessions = self._scheduler.links.sessions
        hosts = (sessions[name].host for name in sorted(sessions) if name not in cut)
        return [host for host in hosts if not host.is_silent and not host.is_deleted]

    def _spread(self) -> None:
        assert self._newest is not None
        for host in self._attached()[:HOLDERS]:
            if host.genome is None or host.genome[0] < self._newest[0]:
                host.genome = self._newest

    async def _gather(self, controller: Controller) -> None:
        told = [(host.genome, host.name) for host in self._attached() if host.genome is not None]
        if not told:
            return
        if self._first_told_at is None:
            self._first_told_at = controller.now()
        if controller.now() < self._first_told_at + controller.view().policy.regrow_seconds:
            return
        (mark, genome), server = max(told, key=lambda one: (one[0][0], one[1]))
        with suppress(Refused):
            await controller.ask(PlantGenome(genome, mark, server), Asker(AskerKind.SCHEDULER))
            acknowledged = self._world.acknowledged
            for group in genome.groups:  # it takes the place of none that was applied meanwhile
                acknowledged[group.group.name] = acknowledged.get(group.group.name) or group.group


async def until_grown(world: Simulation) -> None:
    """In calm: the scheduler knows what its fleet wants, or an operator goes on without."""
    end = asyncio.get_running_loop().time() + PATIENCE_SECONDS
    while _is_listening(world):
        await asyncio.sleep(LOOK_SECONDS)
        world.check()
        if asyncio.get_running_loop().time() > end:
            await world.ask(PlantGenome(Genome()))


def _is_listening(world: Simulation) -> bool:
    assert world.scheduler is not None
    regrowth = world.scheduler.controller.fleet().regrowth
    return regrowth is not None and not regrowth.is_planted


async def settle(world: Simulation) -> None:
    """An operator who waited long enough says that what was not heard is gone."""
    assert world.scheduler is not None
    view = world.scheduler.controller.view()
    regrowth = view.fleet.regrowth
    if regrowth is not None and regrowth.is_planted and view.now > regrowth.since + PATIENCE_SECONDS:
        await world.ask(EndRegrowth())
    if view.fleet.regrown_at is not None and regrowth is None:
        for name in [one for one in world.hosts if "/" not in one and one not in view.fleet.servers]:
            await world.enrol(
                name
            )  # it was lost before, and came back when certificates alone did not count any more
    if view.fleet.regrown_at is None and not world.laws.was_restored:
        return
    # Servers of a pool that a genome did not know, or that it or a backup knows although they are gone since: an
    # operator sees that.
    machines = world.provider.machines
    if any("/" in one.id and (not one.pool or one.id not in machines) for one in view.fleet.servers.values()):
        for storm in view.storms:
            await world.ask(ReleaseStorm(storm.id))
