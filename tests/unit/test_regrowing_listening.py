"""A scheduler that lost all but its CA and has no genome yet: it listens, orders nothing and harms nothing."""

import pytest

from galactica.scheduler.core.model.fleet import Phase
from galactica.scheduler.core.model.requests import (
    ApplyGroups,
    CreateToken,
    DrainServer,
    RecogniseServer,
    Refused,
)
from galactica.scheduler.views.status import status
from tests.support.regrown_world import (
    SELF,
    fleet_of_two,
    harm,
    remains_of,
    told,
)
from tests.support.world import SECRET, World, service

READY = Phase.READY
LEASE = World().policy.lease_seconds


def test_without_a_genome_it_orders_nothing_and_says_so() -> None:
    remains = remains_of(fleet_of_two())
    world = remains.regrown()
    remains.attach(world, "a", "b")
    world.advance(300)
    page = status(world.core.view(world.now), "f")
    assert (harm(world), told(world)) == ([], [])
    assert not page.healthy
    assert (
        "orders nothing until it knows what the fleet wants"
        in {h.rule: h.reason for h in page.held}["regrowing"]
    )
    assert {server.phase for server in world.core.fleet.servers.values()} == {READY}


@pytest.mark.parametrize(
    "asked", [ApplyGroups((service(),)), CreateToken("t", SECRET, 1, 2e9), DrainServer("a")]
)
def test_while_it_listens_nobody_can_change_what_the_fleet_wants(asked) -> None:
    remains = remains_of(fleet_of_two())
    world = remains.regrown()
    remains.attach(world, "a")
    with pytest.raises(Refused, match="does not know yet what the fleet wants"):
        world.ask(asked)


def test_a_server_that_falls_silent_while_it_listens_is_not_condemned() -> None:
    remains = remains_of(fleet_of_two())
    world = remains.regrown()
    remains.attach(world, "a", "b")
    world.detach("b")
    world.advance(60)
    assert harm(world) == []
    assert world.held() >= {"regrowing"}


def test_a_scheduler_with_a_journal_recognises_nobody_by_the_certificate_alone() -> None:
    with pytest.raises(Refused, match="enrol it again with a new token"):
        fleet_of_two().ask(RecogniseServer("c"), SELF)


def test_a_start_in_the_middle_goes_on_with_it() -> None:
    remains = remains_of(fleet_of_two())
    world = remains.regrown()
    remains.attach(world, "a")
    world = world.crash()
    assert world.core.fleet.regrowth is not None
    remains.attach(world, "a", "b")
    remains.plant(world)
    world = world.crash()
    world.advance(60)
    assert harm(world) == []
    remains.attach(world, "a", "b")
    world.advance(LEASE + 1)
    assert world.core.fleet.regrowth is None
    assert len(world.phases()) == 4
