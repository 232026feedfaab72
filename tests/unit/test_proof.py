"""What proves a cell: it stayed well for a while after it was READY. Until then nothing that serves goes for it."""

import pytest
from msgspec.structs import replace

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.fleet import Phase
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.requests import CondemnCell, DrainServer
from galactica.scheduler.core.model.verdict import Autopsy
from galactica.scheduler.core.sight.observations import CellReport
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
    booted(world, "web/2.2")
    world.advance(FRESH_SECONDS - 1)
    assert world.phases()["web/2.1"] is READY
    assert "a cell of revision 2 died young" in held_because(world, "unproven")
    world.advance(2)
    assert world.phases()["web/2.1"] is Phase.DRAINING


def newest_of_three_exclusive_ones() -> World:
    """The first of them was replaced, and is READY: nothing of the old revision could stay beside it."""
    world = World()
    world.join("a", "b", "c")
    world.apply(service("web", 3, spec(exclusive=True)))
    world.advance(PROOF_SECONDS)
    world.obedient = False
    world.apply(service("web", 3, spec("2", exclusive=True)))
    world.report(server_of(world, "web/0.1"), gone("web/0.1"))
    booted(world, "web/0.2")
    return world


def test_where_the_old_cell_goes_first_the_next_one_goes_when_the_newest_is_proven_and_not_before() -> None:
    world = newest_of_three_exclusive_ones()
    world.advance(PROOF_SECONDS - 0.5)
    assert world.phases()["web/1.1"] is READY
    assert "has yet to stay well for 5 s" in held_because(world, "unproven")
    world.advance(0.5)
    assert world.phases()["web/1.1"] is Phase.DRAINING


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
    assert world.phases()["web/0.1"] is READY
    assert world.cell("web/0.2").phase is Phase.DRAINING
    (candidate,) = (cell for cell, phase in world.phases().items() if phase is ORDERED)
    assert world.cell(candidate).revision == 3


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
    assert world.phases("rack") == {"rack/0.1": READY, "rack/0.2": READY, "rack/1.1": READY}
    world.advance(0.5)
    assert world.phases("rack").keys() == {"rack/0.2", "rack/1.1", "rack/1.2"}
    assert [event.cell for event in world.events(e.CellDecommissioned)] == ["rack/0.1"]


# --- while nobody listens ------------------------------------------------------------------------------------------

STALL_SECONDS = 7.0


def successor_ready() -> World:
    """web/0.1 was condemned and serves on; its successor has just become READY."""
    world = three_ready()
    world.obedient = False
    world.ask(CondemnCell("web/0.1"))
    booted(world, "web/0.2")
    return world


def stall(world: World, seconds: float = STALL_SECONDS) -> None:
    """The scheduler itself stands still: nothing is read, and no turn is run."""
    world.now += seconds


def died(cell: str, lived_seconds: float) -> CellReport:
    return replace(exited(cell), autopsy=Autopsy("exited with 0", lived_seconds=lived_seconds))


def test_time_in_which_the_scheduler_stalled_proves_nothing() -> None:
    world = successor_ready()
    server = server_of(world, "web/0.2")
    stall(world)
    world.settle()
    assert world.phases()["web/0.1"] is CONDEMNED
    world.report(server)  # sent before the cell died, and read after the stall
    assert world.phases()["web/0.1"] is CONDEMNED
    world.report(server, died("web/0.2", 1.5))
    assert world.phases()["web/0.1"] is CONDEMNED
    assert world.cell("web/0.2").condemned_by == "exited"


def test_a_cell_that_stays_well_after_a_stall_is_proven_from_there_on() -> None:
    world = successor_ready()
    stall(world)
    world.advance(PROOF_SECONDS)
    assert world.phases()["web/0.1"] is CONDEMNED
    world.advance(0.5)
    assert world.phases()["web/0.1"] is Phase.DRAINING


def test_a_cell_is_proven_when_its_server_is_heard_after_that_time_and_not_before() -> None:
    world = successor_ready()
    server = server_of(world, "web/0.2")
    world.advance(PROOF_SECONDS - 0.5)
    world.advance(1.5, beating=False)
    assert world.phases()["web/0.1"] is CONDEMNED
    world.report(server)
    world.advance(world.policy.beat_seconds, beating=False)
    assert world.phases()["web/0.1"] is Phase.DRAINING


def test_what_a_server_says_first_after_a_silence_may_be_old_and_proves_nothing() -> None:
    """Its agent or the network stood still, with the stream open."""
    world = successor_ready()
    server = server_of(world, "web/0.2")
    others = [name for name in ("a", "b", "c") if name != server]
    world.advance(2)
    for _ in range(int(PROOF_SECONDS) - 1):
        world.now += 1.0
        world.beat(*others)
    world.report(server)
    world.advance(world.policy.beat_seconds)
    assert world.phases()["web/0.1"] is CONDEMNED
    world.report(server, died("web/0.2", 1.5))
    assert world.phases()["web/0.1"] is CONDEMNED


@pytest.mark.parametrize("servers", [1, 4_000])
def test_beats_that_are_as_far_apart_as_they_should_be_are_no_silence(servers: int) -> None:
    """The more servers, the longer between two beats."""
    beat_seconds = Policy().tempo(servers).beat_seconds
    policy = Policy(beat_seconds=beat_seconds, lease_seconds=5 * beat_seconds)
    world = World(obedient=False, policy=policy)
    world.join("a", "b")
    world.apply(service("web", 1))
    booted(world, "web/0.1")
    world.ask(CondemnCell("web/0.1"))
    booted(world, "web/0.2")
    ready_at = world.now
    while world.now < ready_at + PROOF_SECONDS + beat_seconds:
        world.advance(beat_seconds, beating=False)
        world.beat()
    assert world.phases()["web/0.1"] is Phase.DRAINING


def test_no_healthy_cell_goes_for_a_revision_of_which_nothing_was_heard_for_long_enough() -> None:
    world = newest_of_three_exclusive_ones()
    stall(world)
    world.beat()
    assert world.phases()["web/1.1"] is READY
    assert "has yet to stay well for 5 s" in held_because(world, "unproven")
    world.advance(PROOF_SECONDS - 0.5)
    assert world.phases()["web/1.1"] is READY
    world.advance(0.5)
    assert world.phases()["web/1.1"] is Phase.DRAINING


@pytest.mark.parametrize(
    ("lived_seconds", "is_young"),
    [
        pytest.param(1.5, True, id="it died a moment after it was READY, and that was read late"),
        pytest.param(6.0, False, id="it lived for long enough, though nobody listened"),
        pytest.param(0.0, True, id="how long it lived is not known, and it was heard well only once"),
    ],
)
def test_a_death_that_is_read_late_is_young_by_how_long_the_cell_lived(
    lived_seconds: float, is_young: bool
) -> None:
    world = successor_ready()
    server = server_of(world, "web/0.2")
    stall(world)
    world.report(server, died("web/0.2", lived_seconds))
    (condemned,) = (event for event in world.events(e.CellCondemned) if event.cell == "web/0.2")
    assert (condemned.backoff is not None) is is_young


def test_a_slow_boot_does_not_make_a_death_that_is_read_late_any_older() -> None:
    world = three_ready()
    world.obedient = False
    world.ask(CondemnCell("web/0.1"))
    world.advance(20)
    booted(world, "web/0.2")
    stall(world)
    world.report(server_of(world, "web/0.2"), died("web/0.2", 21.5))
    assert world.core.fleet.groups["web"].backoff.early_deaths == 1


def test_a_cell_that_vanishes_during_a_stall_is_young_if_it_was_never_heard_for_long_enough() -> None:
    world = successor_ready()
    server = server_of(world, "web/0.2")
    stall(world)
    world.report(server, gone("web/0.2"))
    assert world.core.fleet.groups["web"].backoff.early_deaths == 1


def test_a_cell_whose_probe_fails_before_it_is_proven_dies_young_however_long_it_is_watched() -> None:
    world = successor_ready()
    server = server_of(world, "web/0.2")
    world.advance(1)
    for failures in range(1, 4):
        world.report(server, running("web/0.2", failures=failures))
        world.advance(PROOF_SECONDS)
    assert world.cell("web/0.2").condemned_by == "probe_failed"
    assert world.core.fleet.groups["web"].backoff.early_deaths == 1
