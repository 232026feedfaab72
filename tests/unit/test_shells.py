"""A shell touches a cell: it is replaced first and at once, keeps its endpoint until its successor is proven, and then
stays for the person in the shell alone."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from galactica.scheduler.core.model.fleet import Phase
from galactica.scheduler.core.model.requests import ApplyGroups, CondemnCell, DeleteGroup, OpenShell
from galactica.scheduler.core.sight.observations import ShellBegun, ShellEnded
from galactica.scheduler.views import cells as cell_views
from galactica.scheduler.views import status as status_views
from tests.support.reconcile_world import server_of, three_ready
from tests.support.world import World, running, service, spec

READY, CONDEMNED, DRAINING, DECOMMISSIONED = (
    Phase.READY,
    Phase.CONDEMNED,
    Phase.DRAINING,
    Phase.DECOMMISSIONED,
)
AT = {"http": "127.0.0.1:8000"}


def open_shell(world: World, cell: str) -> None:
    world.core.take(ShellBegun(world.cell(cell).server, cell))
    world.ask(OpenShell(cell))
    world.settle()


def close_shell(world: World, cell: str) -> None:
    world.core.take(ShellEnded(world.cell(cell).server, cell))
    world.settle()


def with_endpoints(world: World) -> World:
    for name in list(world.phases()):
        world.report(server_of(world, name), replace(running(name), endpoints=AT))
    return world


def endpoints(world: World, group: str = "web") -> dict[str, bool]:
    """Of those that are still there: whether a program that reads endpoints finds one."""
    return {row.id: bool(row.endpoints) for row in cell_views.cells(world.core.view(world.now), group)}


def test_a_shell_has_the_cell_replaced_at_once_and_it_keeps_its_endpoint_until_then() -> None:
    world = with_endpoints(three_ready())
    open_shell(world, "web/1.1")
    assert world.cell("web/1.1").condemned_by == "touched"
    assert world.phases()["web/1.1"] is CONDEMNED
    assert endpoints(world)["web/1.1"]
    world.until(lambda: world.phases()["web/1.1"] is DRAINING)
    assert world.phases()["web/1.2"] is READY
    assert not endpoints(world)["web/1.1"]
    assert status_views.status(world.core.view(world.now), "f").healthy


def test_the_cell_stays_for_the_person_until_the_shell_is_closed() -> None:
    world = three_ready()
    open_shell(world, "web/1.1")
    open_shell(world, "web/1.1")
    world.until(lambda: world.phases()["web/1.1"] is DRAINING)
    world.advance(60)
    assert world.phases()["web/1.1"] is DRAINING
    close_shell(world, "web/1.1")
    world.advance(1)
    assert world.phases()["web/1.1"] is DRAINING
    close_shell(world, "web/1.1")
    world.advance(1)
    assert "web/1.1" not in world.phases()


def test_a_shell_that_stays_open_keeps_the_cell_for_a_quarter_of_an_hour() -> None:
    world = three_ready()
    open_shell(world, "web/1.1")
    dies_at = world.cell("web/1.1").dies_at
    assert dies_at is not None
    world.advance(dies_at - world.now - 1)
    assert world.phases()["web/1.1"] is DRAINING
    world.advance(2)
    assert "web/1.1" not in world.phases()


def test_shells_in_all_cells_never_leave_the_service_without_an_endpoint() -> None:
    world = with_endpoints(three_ready())
    for name in ("web/0.1", "web/1.1", "web/2.1"):
        open_shell(world, name)
    assert sum(phase is CONDEMNED for phase in world.phases().values()) == 1
    for _ in range(120):
        for name, phase in world.phases().items():
            if phase in (READY, CONDEMNED, DRAINING):
                world.report(server_of(world, name), replace(running(name), endpoints=AT))
        assert sum(endpoints(world).values()) >= 3
        world.advance(1)
    assert [world.phases()[f"web/{slot}.2"] for slot in range(3)] == [READY] * 3


@pytest.mark.parametrize("wish", [DeleteGroup("web"), ApplyGroups((service(replicas=1),))])
def test_who_wants_the_cell_to_go_does_not_wait_for_the_person_in_it(wish) -> None:
    world = three_ready()
    open_shell(world, "web/1.1")
    world.until(lambda: world.phases()["web/1.1"] is DRAINING)
    world.ask(wish)
    world.advance(1)
    assert "web/1.1" not in world.phases()


def test_a_cell_that_an_operator_condemned_does_not_stay_for_a_shell() -> None:
    world = three_ready()
    world.ask(CondemnCell("web/1.1", ""))
    open_shell(world, "web/1.1")
    world.until(lambda: "web/1.1" not in world.phases(), 20)


def test_an_exclusive_cell_serves_on_while_the_shell_is_open() -> None:
    world = World()
    world.join("a", "b")
    world.apply(service("one", of=spec(exclusive=True)))
    world.settle()
    open_shell(world, "one/0.1")
    world.advance(60)
    assert world.phases("one") == {"one/0.1": CONDEMNED}
    close_shell(world, "one/0.1")
    world.advance(5)
    assert world.phases("one")["one/0.2"] is READY
    assert "one/0.1" not in world.phases("one")
