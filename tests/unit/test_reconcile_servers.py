"""Reconciling when servers come and go, when an operator asks for something, and when there is no room."""

import pytest
from msgspec.structs import replace

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.commands import Order, Resync
from galactica.scheduler.core.model.fleet import Phase
from galactica.scheduler.core.model.keys import SlotKey
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.requests import CondemnCell, DrainServer, Refused
from galactica.scheduler.core.model.spec import HealthSpec, HttpProbe, Placement, Resources
from galactica.scheduler.core.model.verdict import Evidence, Health
from galactica.scheduler.core.sight.observations import Reported
from tests.support.folding import reconcile
from tests.support.reconcile_world import CONDEMNED, ORDERED, READY, server_of, three_ready
from tests.support.world import PROOF_SECONDS, World, exited, gone, running, service, spec


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
    world.advance(PROOF_SECONDS)
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
    assert "have port 8080 in use" in hold.reason


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


def test_what_a_drained_server_still_runs_is_removed_when_it_is_heard_again_after_it_was_lost() -> None:
    """Its agent was frozen, and its stream is the one from before: nothing is reported anew."""
    world = World()
    world.join("a")
    world.apply(service("web", 1))
    world.advance(10)
    world.ask(DrainServer("a"))
    world.join("b")
    for _ in range(20):
        world.now += 0.5
        world.beat("b")
        world.settle()
    assert world.core.fleet.servers["a"].phase is Phase.DECOMMISSIONED
    world.beat("a")
    assert [(one.cell, one.server) for one in world.events(e.OrphanRemoved)] == [("web/0.1", "a")]
