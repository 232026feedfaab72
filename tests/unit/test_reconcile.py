"""Statements about what the core decides, told through a small world in which agents obey at once."""

from msgspec.structs import replace

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.commands import Decommission, Order
from galactica.scheduler.core.model.fleet import Phase
from galactica.scheduler.core.model.requests import DeleteGroup
from galactica.scheduler.core.model.spec import HealthSpec
from tests.support.reconcile_world import BOOTING, CONDEMNED, DRAINING, ORDERED, READY, server_of, three_ready
from tests.support.world import PROOF_SECONDS, World, exited, gone, running, service, spec, starting


def test_a_group_fills_its_slots_and_spreads_them_over_servers() -> None:
    world = World()
    world.join("a", "b", "c")
    world.apply(service("web", 6))
    assert world.phases() == {f"web/{slot}.1": READY for slot in range(6)}
    counts = sorted(len(server.cells) for server in world.core.fleet.servers.values())
    assert counts == [2, 2, 2]


def test_a_dead_cell_is_replaced_in_the_very_turn_that_hears_of_it() -> None:
    world = three_ready()
    world.obedient = False
    server = server_of(world, "web/1.1")
    world.report(server, exited("web/1.1"))
    assert [(type(c), c.cell) for c in world.sent] == [(Order, "web/1.2"), (Decommission, "web/1.1")]
    assert world.phases() == {"web/0.1": READY, "web/1.1": DRAINING, "web/1.2": ORDERED, "web/2.1": READY}


def test_a_sick_cell_that_still_runs_goes_only_when_its_replacement_is_proven() -> None:
    world = three_ready()
    world.obedient = False
    world.report(server_of(world, "web/1.1"), running("web/1.1", failures=3))
    assert [(type(c), c.cell) for c in world.sent] == [(Order, "web/1.2")]
    world.report(server_of(world, "web/1.2"), starting("web/1.2"))
    assert world.phases()["web/1.1"] is CONDEMNED
    world.report(server_of(world, "web/1.2"), running("web/1.2"))
    assert world.phases()["web/1.1"] is CONDEMNED
    world.advance(PROOF_SECONDS)
    assert [(type(c), c.cell) for c in world.sent][-1] == (Decommission, "web/1.1")
    world.report(server_of(world, "web/1.1"), gone("web/1.1"))
    assert world.phases() == {"web/0.1": READY, "web/1.2": READY, "web/2.1": READY}


def test_a_condemned_cell_never_returns_when_its_probe_turns_green() -> None:
    world = three_ready()
    world.obedient = False
    world.report(server_of(world, "web/1.1"), running("web/1.1", failures=3))
    world.report(server_of(world, "web/1.1"), running("web/1.1", failures=0))
    world.advance(20)
    assert world.phases()["web/1.1"] is CONDEMNED
    assert world.phases()["web/1.2"] is ORDERED


def test_a_sick_cell_that_dies_while_it_waits_is_decommissioned_at_once() -> None:
    world = three_ready()
    world.obedient = False
    server = server_of(world, "web/1.1")
    world.report(server, running("web/1.1", failures=3))
    world.report(server, exited("web/1.1"))
    assert world.phases()["web/1.1"] is DRAINING


def test_a_replacement_that_fails_leaves_the_old_cell_running_and_another_is_ordered() -> None:
    world = three_ready()
    world.obedient = False
    world.report(server_of(world, "web/1.1"), running("web/1.1", failures=3))
    world.report(server_of(world, "web/1.2"), exited("web/1.2"))
    assert world.phases() == {
        "web/0.1": READY,
        "web/1.1": CONDEMNED,
        "web/1.2": DRAINING,
        "web/1.3": ORDERED,
        "web/2.1": READY,
    }


def test_failures_before_the_first_success_are_booting_not_sickness() -> None:
    world = World(obedient=False)
    world.join("a")
    world.apply(service())
    world.report("a", running("web/0.1", failures=7, passed=False))
    world.advance(20)
    assert world.phases() == {"web/0.1": BOOTING}
    world.advance(11)
    assert world.cell("web/0.1").condemned_by == "boot_timeout"


def test_a_cell_without_a_probe_is_ready_when_it_runs() -> None:
    world = World(obedient=False)
    world.join("a")
    world.apply(service(of=spec(health=HealthSpec())))
    world.report("a", running("web/0.1", passed=False))
    assert world.phases() == {"web/0.1": READY}


def test_orders_are_repeated_until_the_agent_shows_the_cell_and_not_in_between() -> None:
    world = World(obedient=False)
    world.join("a")
    world.apply(service())
    assert len(world.sent) == 1
    world.advance(2.5)
    assert len(world.sent) == 1
    world.advance(1)
    assert [c.cell for c in world.sent] == ["web/0.1", "web/0.1"]
    world.report("a", starting("web/0.1"))
    world.advance(10)
    assert len(world.sent) == 2


def test_repeated_early_deaths_back_off_from_one_second_to_a_minute_and_say_so() -> None:
    world = World(obedient=False)
    world.join("a")
    world.apply(service())
    waits = []
    for generation in range(1, 10):
        world.report("a", exited(f"web/0.{generation}"))
        began = world.now
        world.until(lambda g=generation: f"web/0.{g + 1}" in world.phases())
        waits.append(world.now - began)
    assert waits == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    world.report("a", exited("web/0.10"))
    (hold,) = world.core.view(world.now).holds
    assert (hold.rule, hold.reason) == ("backoff", "10 cells of revision 1 died early")
    assert hold.next_look_at == world.now + 60


def test_cells_that_die_together_are_one_round_of_the_backoff() -> None:
    world = World(obedient=False)
    world.join("a")
    world.apply(service("web", 9))
    for slot in range(9):
        world.report("a", exited(f"web/{slot}.1"))
    assert world.core.fleet.groups["web"].backoff.level == 1
    world.advance(1)
    assert all(f"web/{slot}.2" in world.phases() for slot in range(9))


def test_a_single_early_death_costs_no_wait() -> None:
    world = World(obedient=False)
    world.join("a")
    world.apply(service())
    world.report("a", exited("web/0.1"))
    assert world.phases()["web/0.2"] is ORDERED


def test_backoff_ends_with_a_new_spec_and_after_ten_minutes_of_health() -> None:
    world = World(obedient=False)
    world.join("a")
    world.apply(service())
    for generation in (1, 2):
        world.report("a", exited(f"web/0.{generation}"))
    assert world.held() == {"backoff"}
    world.apply(service(of=spec("2")))
    assert world.held() == set()
    assert world.phases()["web/0.3"] is ORDERED
    world.report("a", running("web/0.3"))
    world.advance(601)
    for generation in (3, 4):
        world.report("a", exited(f"web/0.{generation}"))
    world.apply(service(of=spec("2")))
    assert world.core.fleet.groups["web"].backoff.level <= 1


def test_deaths_of_cells_that_served_long_enough_never_back_off() -> None:
    world = three_ready()
    for generation in range(1, 6):
        world.advance(6)
        world.report(server_of(world, f"web/0.{generation}"), exited(f"web/0.{generation}"))
        assert world.phases()[f"web/0.{generation + 1}"] is READY


def test_only_a_quarter_of_a_group_is_replaced_beside_its_running_cells_at_once() -> None:
    world = World()
    world.join("a", "b")
    world.apply(service("web", 8))
    world.advance(10)
    world.obedient = False
    for slot in range(8):
        world.report(server_of(world, f"web/{slot}.1"), running(f"web/{slot}.1", failures=3))
    ordered = [cell for cell, phase in world.phases().items() if phase is ORDERED]
    assert len(ordered) == 2
    assert world.held() == {"surge"}
    for cell in ordered:
        world.report(server_of(world, cell), running(cell))
    world.advance(PROOF_SECONDS)
    assert len([c for c, phase in world.phases().items() if phase is ORDERED]) == 2


def test_a_changed_spec_replaces_slot_by_slot_and_never_leaves_fewer_cells_serving() -> None:
    world = three_ready()
    world.obedient = False
    world.apply(service("web", 3, spec("2")))
    for slot in range(3):
        assert [c for c, phase in world.phases().items() if phase is ORDERED] == [f"web/{slot}.2"]
        world.report(server_of(world, f"web/{slot}.2"), running(f"web/{slot}.2"))
        world.advance(PROOF_SECONDS)
        world.report(server_of(world, f"web/{slot}.1"), gone(f"web/{slot}.1"))
    assert world.phases() == {f"web/{slot}.2": READY for slot in range(3)}


def test_a_spec_that_never_gets_ready_takes_only_one_cell_hostage_and_kills_none() -> None:
    world = three_ready()
    world.obedient = False
    world.apply(service("web", 3, spec("broken")))
    for generation in range(2, 5):
        world.until(lambda g=generation: f"web/0.{g}" in world.phases())
        world.report(server_of(world, f"web/0.{generation}"), exited(f"web/0.{generation}"))
    phases = world.phases()
    assert (phases["web/0.1"], phases["web/1.1"], phases["web/2.1"]) == (READY, READY, READY)
    assert world.held() >= {"spec_blamed"}


def test_outdated_cell_is_not_condemned_before_its_successor_is_proven() -> None:
    world = three_ready()
    world.obedient = False
    world.apply(service("web", 3, spec("2")))
    assert world.cell("web/0.2").replaces == "web/0.1"
    world.report(server_of(world, "web/0.2"), running("web/0.2"))
    world.advance(PROOF_SECONDS - 0.5)
    assert (world.phases()["web/0.1"], world.phases()["web/0.2"]) == (READY, READY)
    world.advance(0.5)
    assert world.phases()["web/0.1"] is Phase.DRAINING
    (event,) = (event for event in world.events(e.CellCondemned) if event.cell == "web/0.1")
    assert (event.rule, event.budget) == ("outdated", "none: web/0.2 is proven")


def test_going_back_to_the_old_spec_in_time_keeps_every_cell_of_it_and_ends_the_candidate() -> None:
    world = three_ready()
    world.obedient = False
    world.apply(service("web", 3, spec("broken")))
    world.report(server_of(world, "web/0.2"), running("web/0.2"))
    world.apply(service("web", 3))
    assert world.phases() == {
        "web/0.1": READY,
        "web/0.2": Phase.DRAINING,
        "web/1.1": READY,
        "web/2.1": READY,
    }
    assert world.cell("web/0.2").condemned_by == "outdated"
    assert world.held() == set()


def test_candidate_that_dies_is_ordered_again_and_the_cell_in_its_slot_lives_on() -> None:
    world = three_ready()
    world.obedient = False
    world.apply(service("web", 3, spec("2")))
    world.report(server_of(world, "web/0.2"), exited("web/0.2"))
    world.until(lambda: "web/0.3" in world.phases())
    assert world.phases()["web/0.1"] is READY
    assert world.cell("web/0.3").replaces == "web/0.1"


def test_cell_that_dies_while_its_candidate_boots_leaves_the_slot_to_it() -> None:
    world = three_ready()
    world.obedient = False
    world.apply(service("web", 3, spec("2")))
    world.report(server_of(world, "web/0.1"), exited("web/0.1"))
    living = {cell: phase for cell, phase in world.phases().items() if phase in (ORDERED, READY)}
    assert living == {"web/0.2": ORDERED, "web/1.1": READY, "web/2.1": READY}


def test_candidate_goes_where_the_cell_that_was_too_old_stays_after_all() -> None:
    world = three_ready()
    world.obedient = False
    world.apply(replace(service("web", 3), max_age_seconds=10.0))
    world.until(lambda: any(phase is ORDERED for phase in world.phases().values()))
    (candidate,) = (cell for cell, phase in world.phases().items() if phase is ORDERED)
    world.apply(service("web", 3))
    assert world.cell(candidate).condemned_by == "unneeded"
    assert [phase for cell, phase in world.phases().items() if cell != candidate] == [READY] * 3


def test_cells_of_an_exclusive_service_are_condemned_first_since_no_two_may_run() -> None:
    world = World()
    world.join("a", "b")
    world.apply(service("db", 1, spec(exclusive=True)))
    world.obedient = False
    world.apply(service("db", 1, spec("2", exclusive=True)))
    assert world.phases("db") == {"db/0.1": Phase.DRAINING}


def test_fewer_replicas_end_the_highest_slots_and_more_bring_new_generations() -> None:
    world = three_ready()
    world.apply(service("web", 1))
    assert world.phases() == {"web/0.1": READY}
    world.apply(service("web", 2))
    assert world.phases() == {"web/0.1": READY, "web/1.2": READY}


def test_ids_are_not_reused_when_a_deleted_name_is_applied_again() -> None:
    world = three_ready()
    world.ask(DeleteGroup("web"))
    assert world.phases() == {}
    assert "web" not in world.core.fleet.groups
    world.apply(service("web", 2))
    assert world.phases() == {"web/0.2": READY, "web/1.2": READY}
