"""What proves a cell: it stayed well for a while after it was READY. Until then nothing that serves goes for it."""

import pytest
from msgspec.structs import replace

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.fleet import Phase
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.requests import CondemnCell, DrainServer
from tests.support.reconcile_world import CONDEMNED, ORDERED, READY, server_of, three_ready
from tests.support.world import PROOF_SECONDS, World, exited, gone, pool, running, service, spec

FRESH_SECONDS = Policy().young_death_seconds


def old_cells(world: World) -> list[str]:
    """Those of the first revision that still serve."""
    cells = [cell for slot in world.core.fleet.groups["web"].slots.values() for cell in slot.cells]
    return sorted(cell.id for cell in cells if cell.revision == 1 and cell.phase in (READY, CONDEMNED))


def held_because(world: World, rule: str) -> str:
    return next(hold.reason for hold in world.core.view(world.now).holds if hold.rule == rule)


def booted(world: World, cell: str) -> None:
    world.report(server_of(world, cell), running(cell))


def test_a_revision_whose_cells_die_young_takes_no_cell_of_the_old_one() -> None:
    world = three_ready()
    world.obedient = False
    world.apply(service("web", 3, spec("broken")))
    for generation in range(2, 7):
        cell = f"web/0.{generation}"
        world.until(lambda c=cell: c in world.phases())  # type: ignore[misc]
        booted(world, cell)
        world.advance(PROOF_SECONDS - 1)
        world.report(server_of(world, cell), exited(cell))
        world.report(server_of(world, cell), gone(cell))
        assert old_cells(world) == ["web/0.1", "web/1.1", "web/2.1"]
    assert world.phases()["web/1.1"] is world.phases()["web/2.1"] is READY


def test_a_death_of_an_unproven_cell_that_nobody_waits_for_brakes_too() -> None:
    """A cell of the old revision dies by itself. Its successor is of the new one, and dies young."""
    world = three_ready()
    world.obedient = False
    world.apply(service("web", 3, spec("2")))
    booted(world, "web/0.2")
    world.advance(PROOF_SECONDS)
    world.report(server_of(world, "web/0.1"), gone("web/0.1"))
    world.report(server_of(world, "web/1.1"), exited("web/1.1"))
    booted(world, "web/1.2")
    world.report(server_of(world, "web/1.2"), exited("web/1.2"))
    booted(world, "web/1.3")
    world.advance(FRESH_SECONDS - 1)
    assert world.phases()["web/2.1"] is READY
    assert "a cell of revision 2 died young" in held_because(world, "unproven")
    world.advance(2)
    assert world.phases()["web/2.1"] is CONDEMNED


def test_the_next_cell_goes_when_the_newest_one_is_proven_and_not_before() -> None:
    world = three_ready()
    world.obedient = False
    world.report(server_of(world, "web/0.1"), exited("web/0.1"))
    world.apply(service("web", 3, spec("2")))
    assert world.cell("web/0.2").condemned_by == "outdated"  # it never served
    booted(world, "web/0.3")
    world.advance(PROOF_SECONDS - 0.5)
    assert world.phases()["web/1.1"] is READY
    assert "has yet to stay well for 5 s" in held_because(world, "unproven")
    world.advance(0.5)
    assert world.phases()["web/1.1"] is CONDEMNED


def test_a_probe_that_fails_in_between_begins_the_proof_anew() -> None:
    world = three_ready()
    world.obedient = False
    world.ask(CondemnCell("web/0.1"))
    booted(world, "web/0.2")
    world.advance(PROOF_SECONDS - 1)
    world.report(server_of(world, "web/0.2"), running("web/0.2", failures=1))
    world.advance(PROOF_SECONDS)
    assert world.phases()["web/0.1"] is CONDEMNED  # it fails, and is no proof however long it is READY
    booted(world, "web/0.2")
    world.advance(PROOF_SECONDS - 0.5)
    assert world.phases()["web/0.1"] is CONDEMNED
    world.advance(0.5)
    assert world.phases()["web/0.1"] is Phase.DRAINING


def test_a_silent_server_proves_nothing() -> None:
    world = three_ready()
    world.obedient = False
    world.ask(CondemnCell("web/0.1"))
    booted(world, "web/0.2")
    server = server_of(world, "web/0.2")
    world.detach(server)
    world.advance(PROOF_SECONDS - 0.5)
    world.attach(server, *(running(cell) for cell in world.core.fleet.servers[server].cells))
    assert world.phases()["web/0.1"] is CONDEMNED
    world.advance(0.5)
    assert world.phases()["web/0.1"] is Phase.DRAINING


def test_a_newer_spec_takes_the_place_of_one_that_was_never_proven_at_once() -> None:
    world = three_ready()
    world.obedient = False
    world.apply(service("web", 3, spec("2")))
    booted(world, "web/0.2")
    world.apply(service("web", 3, spec("3")))
    assert world.phases()["web/0.1"] is CONDEMNED  # it serves on
    assert world.cell("web/0.2").phase is Phase.DRAINING
    assert world.phases()["web/0.3"] is ORDERED


def test_cells_that_have_yet_to_prove_themselves_count_as_surge() -> None:
    world = World()
    world.join("a", "b", "c")
    world.apply(service("web", 8))
    world.advance(10)
    world.ask(DrainServer("a"))
    world.advance(PROOF_SECONDS - 1)
    waiting = [cell for cell, phase in world.phases().items() if phase is CONDEMNED]
    assert len(waiting) == 2
    assert world.held() == {"surge"}


@pytest.mark.parametrize("seconds", [0.0, 30.0])
def test_how_long_a_cell_must_be_well_is_the_groups_to_say(seconds: float) -> None:
    world = three_ready()
    world.apply(replace(service("web", 3, spec("2")), healthy_for_seconds=seconds))
    world.advance(3 * seconds - 0.5)
    assert world.phases() != {f"web/{slot}.2": READY for slot in range(3)} or not seconds
    world.advance(0.5)
    assert world.phases() == {f"web/{slot}.2": READY for slot in range(3)}


def test_a_pools_server_goes_when_its_successor_is_proven() -> None:
    world = World()
    world.apply(pool("rack", 2))
    world.advance(10)
    world.apply(pool("rack", 2, '{"a":1}'))
    world.advance(PROOF_SECONDS - 0.5)
    assert world.phases("rack") == {"rack/0.1": CONDEMNED, "rack/0.2": READY, "rack/1.1": READY}
    world.advance(0.5)
    assert world.phases("rack")["rack/1.1"] is CONDEMNED
    assert [event.cell for event in world.events(e.CellDecommissioned)] == ["rack/0.1"]
