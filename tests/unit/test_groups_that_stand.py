"""READY is one sighting: a group stands when each of its cells is proven."""

import pytest

from galactica.scheduler.cli import group_texts
from galactica.scheduler.views import groups
from galactica.v1 import operator_pb2
from tests.support.world import PROOF_SECONDS, World, exited, pool, running, service, spec


def stands(world: World, name: str = "web") -> bool:
    view = world.core.view(world.now)
    return groups.stands(view, view.fleet.groups[name])


def unproven(world: World, name: str = "web") -> list[str]:
    view = world.core.view(world.now)
    return sorted(cell.id for cell in groups.unproven(view, view.fleet.groups[name]))


def a_service() -> World:
    world = World()
    world.join("a", "b")
    world.apply(service("web", 2))
    return world


def test_it_stands_when_its_cells_were_heard_well_for_long_enough() -> None:
    world = a_service()
    assert not stands(world)
    assert unproven(world) == ["web/0.1", "web/1.1"]
    world.advance(PROOF_SECONDS - 0.5)
    assert not stands(world)
    world.advance(1)
    assert stands(world)
    assert unproven(world) == []


def test_time_in_which_nothing_is_heard_proves_nothing() -> None:
    world = a_service()
    world.advance(1)
    world.advance(PROOF_SECONDS + 1, beating=False)
    assert not stands(world)


def test_a_cell_that_was_proven_and_is_ill_now_counts_as_not_proven() -> None:
    world = a_service()
    world.advance(2 * PROOF_SECONDS)
    cell = world.cell("web/0.1")
    world.report(cell.server, running(cell.id, failures=1))
    assert unproven(world) == ["web/0.1"]
    world.report(cell.server, running(cell.id))
    assert not stands(world)
    world.advance(PROOF_SECONDS + 1)
    assert stands(world)


def test_it_does_not_stand_while_its_cells_die_and_come_again() -> None:
    world = a_service()
    for _ in range(20):
        for cell in tuple(world.phases()):
            world.report(world.cell(cell).server, exited(cell))
        world.advance(PROOF_SECONDS / 2)
        assert not stands(world)


def test_it_does_not_stand_on_cells_of_an_older_revision() -> None:
    world = a_service()
    world.advance(2 * PROOF_SECONDS)
    world.apply(service("web", 2, spec("2")))
    assert not stands(world)
    world.until(lambda: stands(world))
    assert set(world.phases()) == {"web/0.2", "web/1.2"}


@pytest.mark.parametrize("size", [1, 3])
def test_a_pool_stands_when_its_servers_are_proven(size: int) -> None:
    world = World()
    world.apply(pool("rack", size))
    assert not stands(world, "rack")
    world.advance(PROOF_SECONDS + 1)
    assert stands(world, "rack")


def test_people_are_told_how_many_are_not_proven() -> None:
    status = operator_pb2.GroupStatus(wanted=3, ready=2, booting=1)
    words = group_texts.counts(operator_pb2.GetGroupResponse(group=status, unproven=1))
    assert words == "2 of 3 ready (1 not proven yet), 1 booting, 0 sick"
    words = group_texts.counts(operator_pb2.GetGroupResponse(group=status))
    assert words == "2 of 3 ready, 1 booting, 0 sick"
