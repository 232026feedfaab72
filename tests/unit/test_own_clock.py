"""A scheduler whose own clock is wrong, for good: nothing waits until the clocks of all servers agree with it."""

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.fleet import Phase
from galactica.scheduler.core.sight.vitals import Vitals
from tests.support.world import World, pool, service

OFF = Vitals(clock_offset_ms=-3_600_000.0)


def all_say(world: World, vitals: Vitals, seconds: float) -> None:
    """All servers, the new ones too, say so every second."""
    for _ in range(round(seconds)):
        for server, seen in world.core.sight.servers.items():
            if seen.is_open:
                world.report(server, vitals=vitals)
        world.advance(1.0)


def outside(size: int) -> World:
    """A pool whose servers have another time than the scheduler from their first word on."""
    world = World()
    world.mute = {f"rack/{slot}.{generation}" for slot in range(size) for generation in range(1, 9)}
    world.apply(pool("rack", size))
    all_say(world, OFF, 60.0)
    return world


def test_servers_of_a_pool_become_ready() -> None:
    world = outside(3)
    assert world.phases("rack") == {f"rack/{slot}.1": Phase.READY for slot in range(3)}
    assert world.events(e.CellCondemned) == []


def test_they_are_replaced_behind_successors_that_are_proven() -> None:
    world = outside(3)
    world.apply(pool("rack", 3, body='{"body":"next"}'))
    all_say(world, OFF, 120.0)
    assert world.phases("rack") == {f"rack/{slot}.2": Phase.READY for slot in range(3)}


def test_a_server_that_was_drained_joins_again() -> None:
    world = World()
    world.join("a", "b", "c")
    world.apply(service("web", 3))
    for _ in range(12):
        world.report("a", vitals=Vitals(disk_fraction=1.0))
        world.advance(5.0)
    assert world.core.fleet.servers["a"].phase is Phase.DECOMMISSIONED
    all_say(world, OFF, 20.0)
    assert world.core.fleet.servers["a"].phase is Phase.READY
