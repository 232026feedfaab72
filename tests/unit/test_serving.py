"""Who gets a service's traffic at a moment."""

from __future__ import annotations

from galactica.scheduler.core.model.fleet import Phase
from galactica.scheduler.core.model.requests import CondemnCell, DeleteGroup, DrainServer
from galactica.scheduler.core.serving import serving
from tests.support.reconcile_world import server_of, three_ready
from tests.support.world import PROOF_SECONDS, World, exited, running, service, spec


def serves(world: World) -> list[str]:
    view = world.core.view(world.now)
    state = view.fleet.groups["web"]
    return sorted(cell.id for cell in serving(view.fleet, state, view.sight, view.now, view.policy))


def with_candidate() -> World:
    world = three_ready()
    world.obedient = False
    world.apply(service("web", 3, spec("2")))
    return world


def test_candidate_serves_when_it_is_ready_and_the_old_cell_lives_on_without_traffic() -> None:
    world = with_candidate()
    assert serves(world) == ["web/0.1", "web/1.1", "web/2.1"]
    world.report(server_of(world, "web/0.2"), running("web/0.2"))
    assert serves(world) == ["web/0.2", "web/1.1", "web/2.1"]
    assert world.phases()["web/0.1"] is Phase.READY


def test_old_cell_has_the_traffic_back_at_once_when_the_candidate_fails_a_probe() -> None:
    world = with_candidate()
    server = server_of(world, "web/0.2")
    world.report(server, running("web/0.2"))
    world.report(server, running("web/0.2", failures=1))
    assert serves(world) == ["web/0.1", "web/1.1", "web/2.1"]
    world.report(server, running("web/0.2"))
    assert serves(world) == ["web/0.2", "web/1.1", "web/2.1"]


def test_old_cell_has_the_traffic_back_at_once_when_the_candidate_dies_or_is_not_heard() -> None:
    world = with_candidate()
    server = server_of(world, "web/0.2")
    world.report(server, running("web/0.2"))
    world.detach(server)
    assert "web/0.1" in serves(world)
    world.attach(server, *(running(cell) for cell in world.core.fleet.servers[server].cells))
    assert "web/0.2" in serves(world)
    world.report(server, exited("web/0.2"))
    assert "web/0.1" in serves(world)


def test_old_cell_has_the_traffic_back_when_its_spec_is_wanted_again() -> None:
    world = with_candidate()
    world.report(server_of(world, "web/0.2"), running("web/0.2"))
    world.apply(service("web", 3))
    assert serves(world) == ["web/0.1", "web/1.1", "web/2.1"]


def test_cell_of_a_drained_server_serves_until_its_successor_does() -> None:
    world = three_ready()
    world.obedient = False
    server = server_of(world, "web/0.1")
    world.ask(DrainServer(server))
    assert world.phases()["web/0.1"] is Phase.CONDEMNED
    assert "web/0.1" in serves(world)
    world.report(server_of(world, "web/0.2"), running("web/0.2"))
    assert serves(world) == ["web/0.2", "web/1.1", "web/2.1"]


def test_sick_cell_serves_no_more() -> None:
    world = three_ready()
    world.obedient = False
    world.report(server_of(world, "web/0.1"), running("web/0.1", failures=3))
    assert world.phases()["web/0.1"] is Phase.CONDEMNED
    assert serves(world) == ["web/1.1", "web/2.1"]


def test_what_is_not_wanted_serves_no_more() -> None:
    world = three_ready()
    world.obedient = False
    world.apply(service("web", 2))
    assert serves(world) == ["web/0.1", "web/1.1"]
    world.ask(DeleteGroup("web"))
    assert serves(world) == []


def test_cell_that_an_operator_condemned_serves_while_nothing_else_can() -> None:
    world = three_ready()
    world.obedient = False
    world.ask(CondemnCell("web/0.1"))
    assert "web/0.1" in serves(world)
    world.report(server_of(world, "web/0.2"), running("web/0.2"))
    assert serves(world) == ["web/0.2", "web/1.1", "web/2.1"]
    world.advance(PROOF_SECONDS)
    assert world.phases()["web/0.1"] is Phase.DRAINING
