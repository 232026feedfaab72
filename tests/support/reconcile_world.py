"""Small fleets for tests of reconciling."""

from galactica.scheduler.core.model.fleet import Phase
from tests.support.world import World, service

READY, ORDERED, CONDEMNED, BOOTING, DRAINING = (
    Phase.READY,
    Phase.ORDERED,
    Phase.CONDEMNED,
    Phase.BOOTING,
    Phase.DRAINING,
)


def three_ready() -> World:
    world = World()
    world.join("a", "b", "c")
    world.apply(service("web", 3))
    world.advance(10)
    world.sent.clear()
    return world


def server_of(world: World, cell: str) -> str:
    return world.cell(cell).server
