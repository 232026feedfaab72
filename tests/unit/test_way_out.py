"""Replace first needs a way out: a sick cell whose place is the only one for its successor goes before it."""

import pytest

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.fleet import Phase
from galactica.scheduler.core.model.requests import CondemnCell
from galactica.scheduler.core.model.spec import Resources, Spec
from tests.support.world import PROOF_SECONDS, World, gone, running, service, spec

FIXED = spec(ports={"http": 8080})
BIG = spec(resources=Resources(memory_bytes=600))


def sick_on(*servers: str, of: Spec, replicas: int = 1) -> World:
    """Every cell of the service turns sick, and there is no room for a second one beside it."""
    world = World()
    world.join(*servers, memory_bytes=1_000)
    world.apply(service("web", replicas, of))
    world.advance(10)
    world.obedient = False
    for cell in tuple(world.phases()):
        world.report(world.cell(cell).server, running(cell, failures=3))
    return world


@pytest.mark.parametrize("of", [FIXED, BIG], ids=["its port", "its memory"])
def test_a_sick_cell_goes_first_where_only_its_own_place_is_left(of: Spec) -> None:
    world = sick_on("a", of=of)
    assert world.phases() == {"web/0.1": Phase.DRAINING}
    (draining,) = world.events(e.CellDraining)
    assert draining.reason.startswith("it goes before its successor, which has room only in its place on a: ")
    world.obedient = True
    world.advance(5)
    assert world.phases() == {"web/0.2": Phase.READY}


def test_it_waits_where_another_server_has_room() -> None:
    world = World()
    world.join("a", "b")
    world.apply(service("web", 1, FIXED))
    world.advance(10)
    world.obedient = False
    world.report(world.cell("web/0.1").server, running("web/0.1", failures=3))
    assert world.phases() == {"web/0.1": Phase.CONDEMNED, "web/0.2": Phase.ORDERED}


def test_it_waits_where_its_own_end_would_make_no_room() -> None:
    world = World()
    world.join("a", memory_bytes=1_000)
    world.apply(service("web", 1, spec(resources=Resources(memory_bytes=300))))
    world.advance(10)
    world.apply(service("web", 1, spec("2", resources=Resources(memory_bytes=1_200))))
    world.obedient = False
    world.report("a", running("web/0.1", failures=3))
    assert world.phases() == {"web/0.1": Phase.CONDEMNED}
    assert world.held() == {"no_capacity"}


def test_one_that_was_to_go_while_it_was_well_goes_first_when_it_turns_sick() -> None:
    world = World()
    world.join("a")
    world.apply(service("web", 1, FIXED))
    world.advance(10)
    world.ask(CondemnCell("web/0.1"))
    world.advance(60)
    assert world.phases() == {"web/0.1": Phase.CONDEMNED}
    world.report("a", running("web/0.1", failures=3))
    world.advance(1)
    assert world.phases() == {"web/0.2": Phase.READY}


def test_it_waits_while_its_successor_is_held_for_another_reason() -> None:
    world = World()
    world.join("a")
    world.apply(service("web", 1, FIXED))
    world.advance(10)
    world.report("a", running("web/0.7"))
    world.report("a", running("web/0.1", failures=3))
    world.advance(60)
    assert world.phases() == {"web/0.1": Phase.CONDEMNED}
    assert world.held() == {"unknown_cell"}
    world.report("a", gone("web/0.7"))
    world.advance(1)
    assert world.phases() == {"web/0.8": Phase.READY}


@pytest.mark.parametrize("rival", ["alpha", "zeta"])
def test_the_room_that_it_leaves_is_its_successors_before_anybody_elses(rival: str) -> None:
    world = World()
    world.join("a", memory_bytes=1_000)
    world.apply(service("web", 1, BIG))
    world.advance(10)
    world.apply(service(rival, 1, BIG))
    world.report("a", running("web/0.1", failures=3))
    world.advance(10)
    assert world.phases() == {"web/0.2": Phase.READY}
    assert world.phases(rival) == {}


def test_the_next_goes_first_only_when_the_one_before_has_proven_itself() -> None:
    world = sick_on("a", "b", "c", of=BIG, replicas=3)
    world.apply(service("web", 3, spec("2", resources=Resources(memory_bytes=600))))
    world.obedient = True
    for command in tuple(world.sent):
        world.obey(command)
    world.advance(PROOF_SECONDS - 1.0)
    assert sorted(world.phases().values()) == [Phase.CONDEMNED, Phase.CONDEMNED, Phase.READY]
    assert world.held() == {"unproven"}
    world.until(lambda: set(world.phases().values()) == {Phase.READY})


def test_one_at_a_time_goes_first_and_only_while_no_other_is_missing() -> None:
    world = sick_on("a", "b", "c", of=FIXED, replicas=3)
    assert sorted(world.phases().values()) == [Phase.CONDEMNED, Phase.CONDEMNED, Phase.DRAINING]
    assert "unavailable" in world.held()
    world.advance(20)
    assert sorted(world.phases().values()) == [Phase.CONDEMNED, Phase.CONDEMNED, Phase.DRAINING]
    world.obedient = True
    world.until(lambda: set(world.phases().values()) == {Phase.READY})
    assert len(world.events(e.CellDraining)) == 3


def test_a_cell_that_is_well_never_goes_for_the_lack_of_room() -> None:
    world = World()
    world.join("a")
    world.apply(service("web", 1, FIXED))
    world.advance(PROOF_SECONDS)
    world.apply(service("web", 1, spec("2", ports={"http": 8080})))
    world.advance(60)
    assert world.phases() == {"web/0.1": Phase.READY}
    world.ask(CondemnCell("web/0.1"))
    world.advance(60)
    assert world.phases() == {"web/0.1": Phase.CONDEMNED}
