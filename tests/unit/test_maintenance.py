"""An agent that ends in order asks for a maintenance lease: what the lease promises, what ends it, and what it does not
excuse."""

import pytest
from msgspec.structs import replace

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.fleet import Phase
from galactica.scheduler.core.model.requests import Asker, BeginMaintenance, Refused
from galactica.scheduler.core.model.spec import Stop
from galactica.scheduler.core.sight.observations import Answer, Reported
from galactica.scheduler.core.sight.observations import Testimony as Saying
from galactica.scheduler.views import servers, status
from tests.support.world import World, pool, running, service, spec

READY = Phase.READY
LEASE = 300.0


def joined(*names: str, group=None) -> World:
    world = World()
    world.join(*names)
    world.apply(group or service("web", 3))
    world.advance(10)
    return world


def goodbye(world: World, name: str, seconds: float = LEASE) -> None:
    session = world.core.sight.servers[name].session
    world.ask(BeginMaintenance(name, session, seconds), Asker.server(name))
    world.detach(name)


def come_back(world: World, name: str) -> None:
    cells = sorted(world.core.fleet.servers[name].cells)
    digest = world.core.fleet.groups["web"].digest
    world.attach(name, *(replace(running(cell), digest=digest) for cell in cells))


def condemned(world: World) -> list[tuple[str, str]]:
    return [(event.server, event.rule) for event in world.events(e.ServerCondemned)]


def about(world: World, **says: tuple[Answer, bool]) -> None:
    """What each of these neighbours says of a: its answer, and whether the kernel there refused before."""
    for watcher, (answer, after_refusal) in says.items():
        seen = world.core.sight.servers[watcher]
        said = Saying("a", answer, world.now, after_refusal)
        world.core.take(Reported(watcher, seen.session, seen.sequence + 1, world.now, testimonies=(said,)))
    world.settle()


def page(world: World):
    return status.status(world.core.view(world.now), "demo")


def test_a_server_in_maintenance_is_not_condemned_for_its_silence_and_its_cells_stay_as_they_are():
    world = joined("a", "b", "c")
    before = world.phases()
    goodbye(world, "a")
    about(world, b=(Answer.REFUSED, False), c=(Answer.REFUSED, False))
    world.advance(LEASE - 10)
    assert condemned(world) == []
    assert world.phases() == before
    assert world.events(e.CellCondemned) == []


def test_it_ends_when_the_agent_attaches_again_and_the_server_takes_cells_as_before():
    world = joined("a", "b", "c")
    goodbye(world, "a")
    world.advance(60)
    come_back(world, "a")
    world.advance(5)
    assert world.events(e.MaintenanceEnded) == [e.MaintenanceEnded("a", "its agent is back")]
    assert world.core.fleet.servers["a"].maintenance is None
    assert world.events(e.CellCondemned) == []
    world.apply(service("web", 6))
    assert {world.cell(f"web/{slot}.1").server for slot in (3, 4, 5)} == {"a", "b", "c"}


def test_when_it_runs_out_the_usual_rules_apply_at_once():
    world = joined("a", "b", "c")
    goodbye(world, "a")
    world.advance(LEASE)
    assert world.events(e.MaintenanceEnded) == [e.MaintenanceEnded("a", "the time has run out")]
    assert condemned(world) == [("a", "lease_expired")]
    world.advance(1)
    assert {world.cell(cell).server for cell in world.phases()} == {"b", "c"}


def test_the_scheduler_limits_how_long_it_is():
    world = joined("a", "b")
    goodbye(world, "a", 1e6)
    assert (
        world.core.fleet.servers["a"].maintenance.until == world.now + world.policy.maintenance_limit_seconds
    )


def test_it_gets_no_new_cells_meanwhile_also_while_its_last_session_is_still_open():
    world = joined("a", "b", "c")
    session = world.core.sight.servers["a"].session
    world.ask(BeginMaintenance("a", session, LEASE), Asker.server("a"))
    world.apply(service("web", 6))
    world.advance(3)
    assert {world.cell(f"web/{slot}.1").server for slot in (3, 4, 5)} == {"b", "c"}
    world.apply(service("web", 6, spec("2", placement=replace(spec().placement, require={"zone": "x"}))))
    (hold,) = page(world).held
    assert "1 server is in maintenance" in hold.reason


def test_a_scheduler_that_starts_meanwhile_condemns_nothing():
    world = joined("a", "b", "c")
    goodbye(world, "a")
    world = world.crash()
    for name in ("b", "c"):
        come_back(world, name)
    world.advance(60)
    assert condemned(world) == []
    assert world.events(e.CellCondemned) == []
    come_back(world, "a")
    world.advance(5)
    assert world.events(e.MaintenanceEnded) == [e.MaintenanceEnded("a", "its agent is back")]
    assert world.phases() == dict.fromkeys(("web/0.1", "web/1.1", "web/2.1"), READY)


def test_status_servers_and_why_say_until_when_and_the_fleet_is_healthy():
    world = joined("a", "b", "c")
    goodbye(world, "a")
    until = world.now + LEASE
    world.advance(10)
    words = "in maintenance until 13:51:50 UTC: its agent ended in order, and its cells live on"
    shown = page(world)
    assert (shown.healthy, list(shown.notes)) == (True, [f"server a is {words}"])
    view = world.core.view(world.now)
    row = next(row for row in servers.servers(view) if row.id == "a")
    assert (row.verdict, row.reason, row.maintenance_until) == ("suspect", words, until)
    assert servers.server_as_cell(view, world.core.fleet.servers["a"]).reason == words
    assert next(row for row in servers.servers(view) if row.id == "b").HasField("maintenance_until") is False


def test_a_fleet_whose_only_agent_is_in_maintenance_is_healthy():
    world = joined("a")
    goodbye(world, "a")
    world.advance(10)
    assert page(world).healthy


REFUSED, SILENT, AFTER = (Answer.REFUSED, False), (Answer.SILENT, False), (Answer.SILENT, True)


@pytest.mark.parametrize(
    ("said", "dies"),
    [
        ({"b": AFTER, "c": AFTER}, True),
        ({"b": AFTER, "c": AFTER, "d": SILENT}, True),  # d never reached its kernel: it says nothing
        ({"b": AFTER, "c": AFTER, "d": REFUSED}, True),
        ({"b": AFTER}, False),  # one may have lost its own way
        ({"b": AFTER, "c": SILENT, "d": SILENT}, False),
        ({"b": SILENT, "c": SILENT, "d": SILENT}, False),  # as behind a firewall that drops refusals
        ({"b": AFTER, "c": REFUSED, "d": REFUSED}, False),
        ({"b": AFTER, "c": AFTER, "d": REFUSED, "e": REFUSED}, False),
    ],
)
def test_a_host_that_dies_meanwhile_is_noticed_by_neighbours_whose_pings_its_kernel_refused_before(
    said, dies
):
    world = joined("a", "b", "c", "d", "e")
    goodbye(world, "a")
    about(world, b=REFUSED, c=REFUSED, d=REFUSED, e=REFUSED)
    world.advance(30)
    about(world, **said, **dict.fromkeys({"b", "c", "d", "e"} - said.keys(), SILENT))
    world.advance(1)
    assert condemned(world) == []
    world.advance(2)
    assert condemned(world) == ([("a", "neighbours_silent")] if dies else [])
    if dies:
        (event,) = world.events(e.ServerCondemned)
        assert "no answer of any kind" in event.reason
        assert world.core.fleet.servers["a"].maintenance is None
        assert {world.cell(cell).server for cell in world.phases()} <= {"b", "c", "d", "e"}


def test_a_providers_list_without_it_is_one_more_witness():
    world = World()
    world.join("b")
    world.apply(pool(size=3))
    world.advance(10)
    goodbye(world, "rack/0.1")
    world.advance(1)
    world.lists("rack/1.1", "rack/2.1")
    world.advance(10)
    assert condemned(world) == [], "a list alone is no proof, since the agent's silence counts for nothing"
    seen = world.core.sight.servers["b"]
    said = (Saying("rack/0.1", Answer.SILENT, world.now, after_refusal=True),)
    world.core.take(Reported("b", seen.session, seen.sequence + 1, world.now, testimonies=said))
    world.advance(3)
    assert condemned(world) == [("rack/0.1", "neighbours_silent")]


def test_servers_in_maintenance_are_no_part_of_a_storm():
    world = joined("a", "b", "c", "d", "e")
    for name in ("a", "b", "c"):
        goodbye(world, name)
    world.advance(10)
    world.detach("d")
    world.advance(10)
    assert (condemned(world), list(page(world).storms)) == ([("d", "lease_expired")], [])


def test_exclusive_cells_are_replaced_when_their_lease_has_surely_ended_and_not_before():
    """The agent that is away cannot extend that lease: the watchdog ends them."""
    world = joined("a", "b", group=service("web", 1, spec(exclusive=True, stop=Stop(grace_seconds=2.0))))
    holder = world.cell("web/0.1").server
    other = {"a": "b", "b": "a"}[holder]
    heard_at = world.core.sight.servers[holder].heard_at
    goodbye(world, holder)
    over_at = heard_at + (5.0 * 1.1 + 2.0) * 1.002 + 1.0 + world.policy.fence_margin_seconds
    world.advance(over_at - world.now - 0.5)
    assert world.phases() == {"web/0.1": READY}
    world.advance(1.5)
    assert world.phases() == {"web/0.2": READY}
    assert world.cell("web/0.2").server == other
    assert [(event.rule, event.cell) for event in world.events(e.CellCondemned)] == [
        ("lease_over", "web/0.1")
    ]
    assert [event.proof for event in world.events(e.CellDecommissioned)] == ["fenced"]
    assert condemned(world) == []


def test_an_exclusive_cell_whose_agent_is_back_in_time_lives_on():
    world = joined("a", "b", group=service("web", 1, spec(exclusive=True)))
    holder = world.cell("web/0.1").server
    goodbye(world, holder)
    world.advance(3)
    come_back(world, holder)
    world.advance(60)
    assert world.phases() == {"web/0.1": READY}


def test_a_lost_server_gets_no_lease():
    world = joined("a", "b")
    world.deaf.add("a")
    world.detach("a")
    world.advance(10)
    assert condemned(world) == [("a", "lease_expired")]
    with pytest.raises(Refused, match="server a has no part in this fleet now"):
        world.ask(BeginMaintenance("a", "s1", LEASE), Asker.server("a"))


def test_the_providers_word_that_it_is_gone_counts_at_once():
    world = World()
    world.apply(pool(size=2))
    world.advance(10)
    goodbye(world, "rack/0.1")
    world.lose("rack/0.1")
    assert condemned(world) == [("rack/0.1", "provider_gone")]
