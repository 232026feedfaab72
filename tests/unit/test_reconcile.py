"""Statements about what the core decides, told through a small world in which agents obey at once."""

import pytest
from msgspec.structs import replace

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.commands import Decommission, Order, Resync
from galactica.scheduler.core.model.fleet import Phase
from galactica.scheduler.core.model.keys import SlotKey
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.requests import CondemnCell, DeleteGroup, DrainServer, OpenShell, Refused
from galactica.scheduler.core.model.spec import HealthSpec, HttpProbe, Placement, Resources
from galactica.scheduler.core.model.verdict import Evidence, Health
from galactica.scheduler.core.sight.observations import Reported
from tests.support.histories import reconcile
from tests.support.world import World, exited, gone, running, service, spec, starting

READY, ORDERED, CONDEMNED, BOOTING, DRAINING = (
    Phase.READY,
    Phase.ORDERED,
    Phase.CONDEMNED,
    Phase.BOOTING,
    Phase.DRAINING,
)


def three_ready() -> World:
    world = World()
    world.join("a", "b", "c")
    world.apply(service("web", 3))
    world.advance(10)
    world.sent.clear()
    return world


def server_of(world: World, cell: str) -> str:
    return world.cell(cell).server


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


def test_a_sick_cell_that_still_runs_goes_only_when_its_replacement_is_ready() -> None:
    world = three_ready()
    world.obedient = False
    world.report(server_of(world, "web/1.1"), running("web/1.1", failures=3))
    assert [(type(c), c.cell) for c in world.sent] == [(Order, "web/1.2")]
    world.report(server_of(world, "web/1.2"), starting("web/1.2"))
    assert world.phases()["web/1.1"] is CONDEMNED
    world.report(server_of(world, "web/1.2"), running("web/1.2"))
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
    assert len([c for c, phase in world.phases().items() if phase is ORDERED]) == 2


def test_a_changed_spec_replaces_slot_by_slot_and_never_leaves_fewer_cells_serving() -> None:
    world = three_ready()
    world.obedient = False
    world.apply(service("web", 3, spec("2")))
    for slot in range(3):
        assert [c for c, phase in world.phases().items() if phase is ORDERED] == [f"web/{slot}.2"]
        world.report(server_of(world, f"web/{slot}.2"), running(f"web/{slot}.2"))
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
    assert (phases["web/0.1"], phases["web/1.1"], phases["web/2.1"]) == (CONDEMNED, READY, READY)
    assert world.held() >= {"spec_blamed"}


def test_going_back_to_the_old_spec_orders_afresh_and_never_revives_the_condemned() -> None:
    world = three_ready()
    world.obedient = False
    world.apply(service("web", 3, spec("broken")))
    world.apply(service("web", 3))
    phases = world.phases()
    assert phases["web/0.1"] is CONDEMNED
    assert world.cell("web/0.2").condemned_by == "outdated"
    assert phases["web/0.3"] is ORDERED


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


def test_an_agent_that_returns_within_its_lease_keeps_its_cells() -> None:
    world = three_ready()
    world.detach("a")
    world.advance(4)
    cell = next(iter(world.core.fleet.servers["a"].cells))
    world.attach("a", running(cell))
    world.advance(10)
    assert world.cell(cell).phase is READY
    assert world.events(e.ServerCondemned) == []


def test_after_the_lease_the_server_is_lost_and_its_cells_are_replaced_elsewhere() -> None:
    world = three_ready()
    (lost,) = world.core.fleet.servers["a"].cells
    world.detach("a")
    world.advance(5.5)
    assert world.core.fleet.servers["a"].phase is Phase.DECOMMISSIONED
    assert world.cell(lost).phase is Phase.DECOMMISSIONED
    assert list(world.phases().values()) == [READY] * 3


def test_a_lost_server_that_returns_is_a_new_generation_and_its_old_cells_are_orphans() -> None:
    world = three_ready()
    (lost,) = world.core.fleet.servers["a"].cells
    world.detach("a")
    world.advance(6)
    world.attach("a", running(lost))
    server = world.core.fleet.servers["a"]
    assert (server.generation, server.phase) == (2, READY)
    assert [event.cell for event in world.events(e.OrphanRemoved)] == [lost]
    assert lost not in world.core.sight.servers["a"].reports


def test_a_frozen_agent_that_wakes_in_its_old_session_after_the_lease_has_its_cells_removed() -> None:
    world = three_ready()
    (lost,) = world.core.fleet.servers["a"].cells
    for _ in range(14):
        world.now += 0.5
        world.beat("b", "c")
    assert world.cell(lost).phase is Phase.DECOMMISSIONED
    world.beat("a")
    assert world.core.fleet.servers["a"].generation == 2
    assert [event.cell for event in world.events(e.OrphanRemoved)] == [lost]


def test_a_scheduler_that_starts_anew_replaces_nothing_because_of_it() -> None:
    before = three_ready()
    world = before.crash()
    world.advance(4, beating=False)
    for server in "abc":
        cells = before.core.fleet.servers[server].cells
        world.attach(server, *(running(cell) for cell in cells))
    world.advance(10)
    assert world.phases() == before.phases()
    assert world.sent == []


def test_a_scheduler_that_was_stalled_trusts_no_silence_from_before() -> None:
    world = three_ready()
    world.now += 60
    world.settle()
    assert world.events(e.ServerCondemned) == []
    for _ in range(11):
        world.now += 0.5
        world.beat("b", "c")
    assert [event.server for event in world.events(e.ServerCondemned)] == ["a"]


def test_when_all_fall_silent_together_the_scheduler_doubts_itself_until_the_hold_ends() -> None:
    world = three_ready()
    world.advance(60, beating=False)
    assert world.events(e.ServerCondemned) == []
    assert world.held() == {"storm"}
    world.beat()
    world.advance(2)
    assert world.held() == set()


def test_a_cell_that_its_agent_no_longer_has_is_dead() -> None:
    world = three_ready()
    (cell,) = world.core.fleet.servers["a"].cells
    world.detach("a")
    world.attach("a")
    assert world.cell(cell).condemned_by == "vanished"


def test_an_order_that_was_on_its_way_when_the_link_broke_is_sent_again_not_judged() -> None:
    world = World(obedient=False)
    world.join("a")
    world.apply(service())
    world.detach("a")
    world.attach("a")
    assert [c.cell for c in world.sent] == ["web/0.1", "web/0.1"]
    assert world.phases() == {"web/0.1": ORDERED}


def test_no_agent_is_heard_about_another_servers_cells() -> None:
    world = three_ready()
    victim = next(iter(world.core.fleet.servers["a"].cells))
    world.report("b", exited(victim))
    assert world.cell(victim).phase is READY


def test_drain_replaces_a_servers_cells_elsewhere_first_and_then_lets_it_go() -> None:
    world = three_ready()
    world.obedient = False
    (cell,) = world.core.fleet.servers["a"].cells
    world.ask(DrainServer("a"))
    (order,) = [c for c in world.sent if isinstance(c, Order)]
    assert order.server != "a"
    assert world.cell(cell).phase is CONDEMNED
    world.report(order.server, running(order.cell))
    world.report("a", gone(cell))
    assert world.core.fleet.servers["a"].phase is Phase.DECOMMISSIONED
    world.detach("a")
    world.attach("a")
    assert world.core.fleet.servers["a"].phase is Phase.DECOMMISSIONED


def test_a_drain_with_nowhere_to_go_is_held_and_kills_nothing() -> None:
    world = World()
    world.join("a")
    world.apply(service())
    world.ask(DrainServer("a"))
    assert world.phases() == {"web/0.1": READY}
    assert world.held() == {"no_capacity"}
    world.join("b")
    assert world.phases() == {"web/0.2": READY}


def test_an_operators_condemnation_replaces_first_and_cannot_be_repeated() -> None:
    world = three_ready()
    world.obedient = False
    world.ask(CondemnCell("web/0.1", "smells"))
    assert world.phases()["web/0.1"] is CONDEMNED
    with pytest.raises(Refused, match="already condemned"):
        world.ask(CondemnCell("web/0.1"))
    with pytest.raises(Refused, match="no such cell: web/9.1"):
        world.ask(CondemnCell("web/9.1"))
    (event,) = world.events(e.CellCondemned)
    assert (event.health, event.rule, event.reason) == (
        Health.HEALTHY,
        "operator",
        "condemned by ann: smells",
    )


def test_what_does_not_fit_is_held_with_the_count_of_each_filter() -> None:
    world = World()
    world.join("a", labels={"zone": "a"}, memory_bytes=2**20)
    world.join("b", labels={"zone": "b"})
    need = spec(resources=Resources(memory_bytes=3 * 2**20), placement=Placement(require={"zone": "a"}))
    world.apply(service(of=need))
    (hold,) = world.core.view(world.now).holds
    assert (hold.rule, hold.reason) == (
        "no_capacity",
        "no server can take it: 1 server has too little memory (3 MiB needed), 1 server lacks the label zone=a",
    )


def test_room_that_comes_free_wakes_all_that_was_held_for_it() -> None:
    world = World()
    need = spec(resources=Resources(memory_bytes=1))
    world.join("a", memory_bytes=10)
    world.apply(service("web", 500, need))
    assert len(world.phases()) == 10
    world.join("b", memory_bytes=1000)
    assert len(world.phases()) == 500


def test_applying_the_same_twice_changes_nothing_and_says_so() -> None:
    world = three_ready()
    position = world.core.fleet.position
    answer = world.apply(service("web", 3))
    assert [change.change for change in answer.changes] == ["unchanged"]
    assert world.core.fleet.position == position


def test_what_the_journal_refuses_never_happened_and_happens_when_there_is_space() -> None:
    world = three_ready()
    world.journal_refuses = "disk full"
    position, sent = world.core.fleet.position, len(world.sent)
    world.report(server_of(world, "web/1.1"), exited("web/1.1"))
    assert (world.core.fleet.position, len(world.sent)) == (position, sent)
    assert world.core.view(world.now).trouble == "disk full"
    world.journal_refuses = ""
    world.advance(1.5)
    assert world.phases()["web/1.2"] is READY
    assert world.core.view(world.now).trouble == ""


def test_reconciling_again_at_the_same_moment_decides_nothing_new() -> None:
    world = three_ready()
    world.obedient = False
    world.report(server_of(world, "web/1.1"), running("web/1.1", failures=3))
    keys = {SlotKey("web", slot): "again" for slot in range(3)}
    plan = reconcile(world.core.fleet, world.core.sight, keys, world.now, Policy())
    assert (plan.records, plan.commands) == ((), ())


def test_a_lost_report_is_noticed_by_its_number_and_asked_for() -> None:
    world = three_ready()
    world.obedient = False
    seen = world.core.sight.servers["a"]
    world.core.take(Reported("a", seen.session, seen.sequence + 2, world.now))
    world.settle()
    assert world.sent == [Resync("a")]


def test_fixed_process_ports_put_at_most_one_cell_of_a_group_on_a_server() -> None:
    world = World()
    world.join("a", "b")
    world.apply(service("web", 3, spec(ports={"http": 8080}, health=HealthSpec(probe=HttpProbe("http")))))
    assert sorted(world.phases().values()) == [READY, READY]
    (hold,) = world.core.view(world.now).holds
    assert "fixed port in use" in hold.reason


def test_a_touched_cell_is_a_snowflake_and_is_replaced_before_it_goes() -> None:
    world = three_ready()
    world.obedient = False
    differences = ("file /etc/motd was changed", "somebody ran sh in it (docker exec)")
    server = server_of(world, "web/1.1")
    world.report(server, replace(running("web/1.1"), touched=differences))
    (event,) = world.events(e.CellCondemned)
    assert (event.rule, event.reason) == ("touched", f"touched: {differences[0]}; {differences[1]}")
    assert event.evidence == tuple(Evidence(f"agent {server}", one, world.now) for one in differences)
    assert world.phases()["web/1.1"] is CONDEMNED
    assert world.phases()["web/1.2"] is ORDERED


def test_a_touched_cell_is_only_reported_where_its_group_says_so() -> None:
    world = World()
    world.join("a")
    world.apply(replace(service(), replace_touched=False))
    world.report("a", replace(running("web/0.1"), touched=("file /etc/motd was changed",)))
    assert world.phases() == {"web/0.1": READY}


def test_a_shell_begins_a_cells_death_timer() -> None:
    world = three_ready()
    world.ask(OpenShell("web/1.1"))
    dies_at = world.cell("web/1.1").dies_at
    assert dies_at is not None
    world.advance(dies_at - world.now - 1)
    assert world.phases()["web/1.1"] is READY
    world.advance(2)
    assert world.cell("web/1.1").condemned_by == "touched"
    assert world.phases()["web/1.2"] is READY
