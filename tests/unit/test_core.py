"""The core between turns: whom it tells, what it looks at again, and what an abandoned turn leaves behind."""

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.commands import Resync
from galactica.scheduler.core.model.fleet import Phase
from galactica.scheduler.core.model.requests import DrainServer
from galactica.scheduler.core.model.spec import Resources
from tests.support.world import PROOF_SECONDS, World, running, service, spec

ONE_BYTE = spec(resources=Resources(memory_bytes=1))


def test_a_lost_server_that_goes_on_in_its_old_session_is_asked_for_everything() -> None:
    world = World(obedient=False)
    world.join("a")
    world.advance(1)
    world.advance(6, beating=False)
    assert world.core.fleet.servers["a"].phase is Phase.DECOMMISSIONED
    world.beat("a")
    assert world.core.fleet.servers["a"].generation == 2
    assert world.sent == [Resync("a")]


def test_a_lost_server_that_attaches_anew_has_said_everything() -> None:
    world = World(obedient=False)
    world.join("a")
    world.detach("a")
    world.advance(6)
    world.attach("a")
    assert world.core.fleet.servers["a"].generation == 2
    assert world.sent == []


def test_nothing_is_sent_into_a_closed_session() -> None:
    world = World(obedient=False)
    world.join("a")
    world.apply(service())
    world.sent.clear()
    world.detach("a")
    world.advance(4)
    assert world.sent == []


def test_what_an_operator_changed_is_the_cause_of_what_follows_from_it() -> None:
    world = World()
    world.join("a", "b")
    world.apply(service("web", 2))
    world.ask(DrainServer("a"))
    world.advance(PROOF_SECONDS)
    world.apply(service("web", 2, spec("2")))
    world.advance(2 * PROOF_SECONDS)
    positions = {
        type(record.event): record.position
        for record in world.records
        if isinstance(record.event, e.ServerCondemned | e.GroupApplied)
    }
    causes = [(r.event.rule, r.cause) for r in world.records if isinstance(r.event, e.CellCondemned)]
    assert causes == [
        ("server_drained", f"event:{positions[e.ServerCondemned]}"),
        ("outdated", f"event:{positions[e.GroupApplied]}"),
        ("outdated", f"event:{positions[e.GroupApplied]}"),
    ]


def test_a_held_slot_that_may_go_on_wakes_the_others_even_where_no_agent_answers() -> None:
    world = World(obedient=False)
    world.join("a", memory_bytes=10)
    world.apply(service("web", 500, ONE_BYTE))
    assert len(world.phases()) == 10
    world.join("b", memory_bytes=1_000)
    assert len(world.phases()) == 500


def test_a_budget_that_comes_free_is_used_at_once_though_the_agent_that_freed_it_is_slow() -> None:
    world = World()
    world.join("a")
    world.apply(service("web", 6))
    world.obedient = False
    world.report("a", running("web/2.1", failures=3))
    world.apply(service("web", 1, spec("2")))
    assert world.phases()["web/0.2"] is Phase.ORDERED
    assert world.held() == set()


def test_a_refused_turn_leaves_no_trace_in_what_placement_remembers() -> None:
    world = World()
    world.join("a", memory_bytes=1)
    world.journal_refuses = "disk full"
    world.apply(service("web", 2, ONE_BYTE))
    world.journal_refuses = ""
    world.apply(service("web", 2, ONE_BYTE))
    assert (world.phases(), world.held()) == ({"web/0.1": Phase.READY}, {"no_capacity"})
