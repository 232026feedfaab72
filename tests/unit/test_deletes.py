"""A delete that a provider took is no proof that the server is gone. Its list is."""

from itertools import pairwise

from msgspec.structs import replace

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.commands import DecommissionServer
from galactica.scheduler.core.model.fleet import Phase
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.views.servers import providers
from galactica.scheduler.views.status import status
from tests.support.world import World, pool, service, spec

FIRST, LIMIT = Policy().provider_resend_seconds, Policy().provider_resend_limit_seconds
TWO = ("rack/0.1", "rack/1.1")


def rack(size: int = 2) -> World:
    world = World()
    world.apply(pool("rack", size))
    world.advance(10)
    world.lists(*world.phases("rack"))
    world.slow_deletes = True
    world.told_providers.clear()
    return world


def deletes(world: World) -> list[str]:
    return [command.cell for command in world.told_providers if isinstance(command, DecommissionServer)]


def test_a_server_stays_until_the_list_leaves_it_out() -> None:
    world = rack()
    world.apply(pool("rack", 1))
    for _ in range(10):
        world.advance(3)
        world.lists(*TWO)
    assert world.phases("rack")["rack/1.1"] is Phase.DRAINING
    (row,) = providers(world.core.view(world.now))
    assert (row.servers, row.deleting) == (2, 1)
    world.lists("rack/0.1")
    assert list(world.phases("rack")) == ["rack/0.1"]
    (row,) = providers(world.core.view(world.now))
    assert (row.servers, row.deleting) == (1, 0)


def test_status_tells_what_providers_are_deleting_and_for_how_long() -> None:
    world = rack()
    world.apply(pool("rack", 1))
    world.advance(40)
    world.lists(*TWO)
    page = status(world.core.view(world.now), "demo")
    assert page.healthy
    assert list(page.notes) == ["provider local is deleting 1 server: rack/1.1; asked 40s ago"]
    world.lists("rack/0.1")
    assert list(status(world.core.view(world.now), "demo").notes) == []


def test_status_names_a_few_of_many_servers_that_are_deleted_in_one_note() -> None:
    world = rack(12)
    world.apply(pool("rack", 11))
    world.advance(20)
    world.apply(pool("rack", 2))
    world.advance(10)
    (note,) = status(world.core.view(world.now), "demo").notes
    assert note.startswith("provider local is deleting 10 servers: rack/11.1, rack/")
    assert note.endswith(" and 7 more; the first one asked 30s ago")


def test_a_server_is_gone_where_the_list_says_so() -> None:
    world = rack()
    world.apply(pool("rack", 1))
    world.lists("rack/0.1", gone=("rack/1.1",))
    assert list(world.phases("rack")) == ["rack/0.1"]


def test_the_last_server_of_a_provider_is_gone_after_two_empty_lists() -> None:
    world = rack()
    world.apply(pool("rack", 0))
    world.lists()
    assert set(world.phases("rack")) == set(TWO)
    world.advance(1)
    world.lists()
    assert world.phases("rack") == {}


def test_a_delete_is_asked_again_after_growing_pauses_and_journaled_once() -> None:
    world = rack()
    world.apply(pool("rack", 1))
    position = world.core.fleet.position
    at = [world.now]
    while len(at) < 7:
        world.advance(1)
        world.lists(*TWO)
        if len(deletes(world)) > len(at):
            at.append(world.now)
    pauses = [round(later - earlier) for earlier, later in pairwise(at)]
    assert pauses == [FIRST, 2 * FIRST, 4 * FIRST, 8 * FIRST, LIMIT, LIMIT]
    assert world.core.fleet.position == position
    assert world.events(e.LeakRemoved) == []


def test_an_exclusive_cell_waits_for_more_than_a_delete_that_was_taken() -> None:
    world = rack(3)
    one = service("one", 1, spec(exclusive=True))
    world.apply(replace(one, healthy_for_seconds=0.0))
    world.advance(10)
    (cell,) = world.phases("one")
    server = world.cell(cell).server
    others = [name for name in world.phases("rack") if name != server]
    world.detach(server)
    world.until(lambda: server in deletes(world))
    assert list(world.phases("one")) == [cell]
    world.lists(server, *others)
    assert list(world.phases("one")) == [cell]
    world.lists(*others)
    assert list(world.phases("one")) == ["one/0.2"]


def test_an_exclusive_cell_does_not_believe_a_provider_that_lists_nothing() -> None:
    world = rack(3)
    world.apply(service("one", 1, spec(exclusive=True)))
    world.advance(10)
    (cell,) = world.phases("one")
    server = world.cell(cell).server
    world.detach(server)
    world.until(lambda: server in deletes(world))
    world.lists()
    world.advance(1)
    world.lists()
    assert list(world.phases("one")) == [cell]
    world.until(lambda: "one/0.2" in world.phases("one"))  # its agent's fence is proof enough
