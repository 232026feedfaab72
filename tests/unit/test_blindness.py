"""Statements about a scheduler that heard nobody, or too few: what must not happen when its sight comes back."""

import pytest

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.requests import DeleteGroup, ReleaseStorm
from galactica.scheduler.core.sight.observations import (  # pytest takes what is called Test… for tests
    Answer,
    Attached,
    ProviderListed,
    ProviderServer,
    ProviderState,
    Reported,
    ServerFacts,
)
from galactica.scheduler.core.sight.observations import Testimony as Saying
from tests.support.work import calls_of
from tests.support.world import World, pool

SIZE = 10
CALLS_OF_A_TURN = 60
"""Of one in which nothing is to be looked at; a look at each of ten servers takes more."""
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


def test_a_storm_begins_when_too_many_are_silent_and_not_with_one_that_was_so_long_before() -> None:
    world = rack(cut_off_after_seconds=3_600.0)
    first = world.core.sight.servers[NAMES[1]]
    says = (Saying(NAMES[0], Answer.ANSWERS, world.now),)
    world.core.take(Reported(NAMES[1], first.session, first.sequence + 1, world.now, testimonies=says))
    hear(world, world.policy.storm_hold_seconds + 100, *NAMES[1:])
    fell_silent_at = world.now
    hear(world, 60, *NAMES[1:4])
    assert condemned(world) == []
    storm = world.core.view(world.now).storms[0]
    assert (storm.silent, storm.since) == (7, fell_silent_at)


def test_pools_of_one_server_each_outlive_a_scheduler_that_hears_nobody_at_all() -> None:
    world = World()
    world.apply(*(pool(f"pool{number}", 1) for number in range(5)))
    world.advance(10)
    world.advance(world.policy.storm_hold_seconds + 100, beating=False)
    assert condemned(world) == []
    assert "hears no server at all" in world.core.view(world.now).storms[0].reason
    hear(world, 4, "pool0/0.1")
    hear(world, 4, *(f"pool{number}/0.1" for number in range(4)))
    assert condemned(world) == [("pool4/0.1", "lease_expired")]


def test_the_only_server_that_there_is_may_be_condemned_for_its_silence() -> None:
    world = World()
    world.apply(pool("rack", 1))
    world.advance(10)
    world.advance(7, beating=False)
    assert condemned(world) == [("rack/0.1", "lease_expired")]


def test_a_list_that_leaves_one_out_condemns_it_only_after_the_lease_that_all_have_when_a_scheduler_starts() -> (
    None
):
    world = rack().crash()
    world.advance(0.5)
    listed = tuple(ProviderServer(name, f"ref-{name}", ProviderState.RUNNING) for name in NAMES[1:])
    world.core.take(ProviderListed("local", listed, world.now, world.now))
    for name in NAMES[1:]:
        world.attach(name)
    hear(world, 4, *NAMES[1:])
    assert condemned(world) == []
    hear(world, 1, *NAMES[1:])
    assert condemned(world) == [(NAMES[0], "unlisted")]


def test_who_falls_silent_after_a_release_is_guarded_as_before() -> None:
    world = rack()
    hear(world, 10, *NAMES[3:])
    world.ask(ReleaseStorm(world.core.view(world.now).storms[0].id))
    hear(world, 2, *NAMES[3:])
    assert sorted(condemned(world)) == [(name, "lease_expired") for name in NAMES[:3]]
    world.advance(60)
    world.advance(30, beating=False)
    assert len(condemned(world)) == 3
    assert world.held() == {"storm"}


def test_a_list_that_leaves_one_out_does_not_make_a_stall_of_two_seconds_its_death() -> None:
    world = rack()
    listed = tuple(ProviderServer(name, f"ref-{name}", ProviderState.RUNNING) for name in NAMES[1:])
    world.core.take(ProviderListed("local", listed, world.now, world.now))
    hear(world, 2.5, *NAMES[1:])  # its last beat came half a second before the stall
    hear(world, 10, *NAMES)
    assert condemned(world) == []
    hear(world, 3, *NAMES[1:])
    assert condemned(world) == [(NAMES[0], "unlisted")]


def test_a_pool_that_is_deleted_goes_although_nobody_is_heard() -> None:
    world = rack()
    world.advance(20, beating=False)
    assert world.held() == {"storm"}
    world.ask(DeleteGroup("rack"))
    world.advance(5, beating=False)
    assert world.phases("rack") == {}
    assert {event.rule for event in world.events(e.CellCondemned)} == {"deleted"}


@pytest.mark.parametrize("size", [10, 40])
def test_a_beat_that_brings_nothing_costs_no_count_of_the_silent_during_a_storm(size: int) -> None:
    world = World()
    world.apply(pool("rack", size))
    world.advance(10)
    heard = [f"rack/{slot}.1" for slot in range(size // 2)]
    hear(world, 10, *heard)
    assert world.held() == {"storm"}
    world.now += 0.001  # no look is due
    seen = world.core.sight.servers[heard[0]]
    world.core.take(Reported(heard[0], seen.session, seen.sequence + 1, world.now))
    assert calls_of(lambda: world.core.turn([], world.now)) < CALLS_OF_A_TURN
