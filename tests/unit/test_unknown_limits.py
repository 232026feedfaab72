"""What agents say of cells that nobody ordered never makes the scheduler unable to order."""

import pytest

from galactica.scheduler.core.model.fleet import Phase
from tests.support.world import World, gone, running, service


@pytest.mark.parametrize("claimed", ["web/0.999999999", "web/0.500000001"])
@pytest.mark.parametrize("is_wanted_before", [True, False])
def test_a_generation_that_no_slot_reaches_does_not_use_up_the_ids_of_its_slot(
    claimed: str, is_wanted_before: bool
) -> None:
    world = World()
    world.join("a", "b")
    if is_wanted_before:
        world.apply(service("web", 0))
    world.report("a", running(claimed))
    assert world.held() == {"unknown_cell"}
    world.report("a", gone(claimed))
    world.apply(service("web", 1))
    assert world.phases() == {"web/0.1": Phase.READY}


def test_one_that_an_older_journal_may_have_forgotten_is_believed() -> None:
    world = World()
    world.join("a", "b")
    world.apply(service("web", 0))
    world.report("a", running("web/0.500000000"))
    world.report("a", gone("web/0.500000000"))
    world.apply(service("web", 1))
    assert world.phases() == {"web/0.500000001": Phase.READY}
