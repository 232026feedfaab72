"""Statements about a scheduler that heard nobody, or too few: what must not happen when its sight comes back."""

from scheduler import events as e
from scheduler.sight import (
    Attached,
    ServerFacts,
)
from tests.support.world import World, pool

SIZE = 10
NAMES = tuple(f"rack/{slot}.1" for slot in range(SIZE))


def rack(**changes: object) -> World:
    world = World()
    world.apply(pool("rack", SIZE, **changes))
    world.advance(10)
    return world


def hear(world: World, seconds: float, *names: str) -> None:
    """Time passes in which only these are heard."""
    end = world.now + seconds
    while world.now < end:
        world.now += 0.5
        for name in names:
            world.report(name)
        world.settle()


def condemned(world: World) -> list[tuple[str, str]]:
    return [(event.server, event.rule) for event in world.events(e.ServerCondemned)]


def test_the_first_one_that_is_heard_after_a_long_blindness_kills_none_of_the_others() -> None:
    world = rack()
    world.advance(world.policy.storm_hold_seconds + 100, beating=False)
    world.core.take(Attached(NAMES[0], "again", world.now, ServerFacts()))
    hear(world, 4, NAMES[0])
    hear(world, 3, *NAMES[:5])
    hear(world, 10, *NAMES)
    assert condemned(world) == []
    assert world.held() == set()


def test_those_that_stay_silent_after_a_long_blindness_are_a_storm_of_their_own() -> None:
    world = rack()
    world.advance(world.policy.storm_hold_seconds + 100, beating=False)
    sees_again_at = world.now + 0.5
    hear(world, 60, *NAMES[:5])
    assert condemned(world) == []
    storm = world.core.view(world.now).storms[0]
    assert (storm.silent, storm.since) == (5, sees_again_at)


def test_one_that_is_gone_for_good_is_condemned_a_lease_after_a_long_blindness() -> None:
    world = rack()
    world.advance(world.policy.storm_hold_seconds + 100, beating=False)
    hear(world, 7, *NAMES[1:])
    assert condemned(world) == [(NAMES[0], "lease_expired")]
