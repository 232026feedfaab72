"""Small pools for tests: loaded with cells, silenced, condemned."""

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.fleet import Phase
from galactica.scheduler.core.sight.observations import Answer, Reported
from galactica.scheduler.core.sight.observations import Testimony as Saying
from tests.support.world import World, pool, service

READY = Phase.READY


def rack(size: int = 3, **changes: object) -> World:
    world = World()
    world.apply(pool("rack", size, **changes))
    return world


def loaded(size: int = 5) -> World:
    """A pool that carries a service of as many cells."""
    world = rack(size)
    world.apply(service("web", size))
    world.advance(10)
    world.told_providers.clear()
    return world


def silence(world: World, silent: str, seconds: float, says: Answer | None = None) -> None:
    """One server is not heard any more; its neighbours say what they say of it."""
    others = [name for name in world.core.sight.servers if name != silent]
    began = world.now
    end = world.now + seconds
    while world.now < end:
        world.now += 0.5
        for name in others:
            seen = world.core.sight.servers[name]
            if not seen.is_open:
                continue
            testimony = (Saying(silent, says, began),) if says else ()
            world.core.take(Reported(name, seen.session, seen.sequence + 1, world.now, testimonies=testimony))
        world.settle()


def condemned(world: World) -> list[tuple[str, str]]:
    return [(event.server, event.rule) for event in world.events(e.ServerCondemned)]
