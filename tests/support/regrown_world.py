"""A fleet that runs on while its scheduler loses all but its CA, and the scheduler that is grown anew from it."""

from __future__ import annotations

from dataclasses import dataclass, field

from galactica.scheduler.core.genome import GenomeReader
from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.commands import Decommission, Order
from galactica.scheduler.core.model.fleet import Phase
from galactica.scheduler.core.model.genome import Genome, GenomeMark
from galactica.scheduler.core.model.requests import Asker, AskerKind, PlantGenome, RecogniseServer
from galactica.scheduler.core.sight.observations import CellReport, CellState
from tests.support.world import World, running, service

SELF = Asker(AskerKind.SCHEDULER)


@dataclass
class Remains:
    """What outlives the scheduler: the genome, and what runs on each server."""

    genome: Genome
    mark: GenomeMark
    running: dict[str, dict[str, CellReport]] = field(default_factory=dict)
    now: float = 0.0

    def regrown(self) -> World:
        """A scheduler that has nothing and listens."""
        return World(now=self.now, regrows=True)

    def attach(self, world: World, *servers: str) -> None:
        """Their agents come with a certificate of the CA, and tell what they run."""
        for server in servers:
            if server not in world.core.fleet.servers:
                world.ask(RecogniseServer(server), SELF)
            world.attach(server, *self.running.get(server, {}).values())

    def plant(self, world: World) -> None:
        world.ask(PlantGenome(self.genome, self.mark, "a"), SELF)


def remains_of(world: World) -> Remains:
    fleet = world.core.fleet
    found = Remains(GenomeReader().read(fleet), GenomeMark(fleet.epoch, fleet.position), now=world.now)
    for state in fleet.groups.values():
        for slot in state.slots.values():
            for cell in slot.cells:
                if cell.server and cell.phase is not Phase.DECOMMISSIONED:
                    found.running.setdefault(cell.server, {})[cell.id] = report_of(cell.id, cell.digest)
    return found


def report_of(cell: str, digest: str, state: CellState = CellState.RUNNING) -> CellReport:
    said = running(cell)
    return CellReport(cell, digest, state, said.runtime_id, said.endpoints, said.probe)


def fleet_of_two(replicas: int = 4) -> World:
    world = World()
    world.join("a", "b")
    world.apply(service("web", replicas))
    world.advance(10)
    return world


def planted(remains: Remains, *servers: str) -> World:
    world = remains.regrown()
    remains.attach(world, *servers)
    remains.plant(world)
    return world


def harm(world: World) -> list[e.AnyEvent]:
    kinds = (e.CellCondemned, e.ServerCondemned, e.OrphanRemoved, e.CellOrdered)
    return [record.event for record in world.records if isinstance(record.event, kinds)]


def told(world: World) -> list[str]:
    return [one.cell for one in world.sent if isinstance(one, Decommission | Order)]
