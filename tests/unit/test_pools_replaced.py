"""Servers of a pool that are replaced, leaked, blamed or old."""

import pytest

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.commands import DecommissionServer
from galactica.scheduler.core.model.fleet import Phase
from galactica.scheduler.core.model.requests import CondemnCell, CreateToken, Enrol, Refused
from galactica.scheduler.core.model.spec import Group
from galactica.scheduler.core.model.verdict import Health
from galactica.scheduler.core.sight.observations import Answer, ProviderListed, ProviderServer, ProviderState
from tests.support.pool_world import READY, condemned, loaded, rack, silence
from tests.support.world import PROOF_SECONDS, SECRET, World, exited, pool, service


def test_a_changed_pool_replaces_servers_one_by_one_and_drains_each_before_it_goes() -> None:
    world = loaded(3)
    world.apply(pool("rack", 3, body='{"size":"large"}'))
    world.advance(30)
    assert world.phases("rack") == {f"rack/{slot}.2": READY for slot in range(3)}
    deleted = [c.cell for c in world.told_providers if isinstance(c, DecommissionServer)]
    assert deleted == ["rack/0.1", "rack/1.1", "rack/2.1"]
    assert all(phase is READY for phase in world.phases("web").values())
    assert [event.rule for event in world.events(e.CellCondemned) if event.cell.startswith("web")] == [
        "server_drained"
    ] * len([event for event in world.events(e.CellCondemned) if event.cell.startswith("web")])


def test_a_condemned_server_never_returns_although_its_agent_does() -> None:
    world = loaded()
    silence(world, "rack/0.1", 6.0, Answer.SILENT)
    world.attach("rack/0.1")
    world.advance(5)
    assert world.cell("rack/0.1").phase is Phase.DECOMMISSIONED
    assert "rack/0.1" not in world.core.fleet.servers
    assert world.phases("rack")["rack/0.2"] is READY


def test_an_operator_condemns_a_server_and_a_fresh_one_is_ordered_first() -> None:
    world = loaded()
    world.ask(CondemnCell("rack/0.1"))
    world.advance(PROOF_SECONDS)
    assert world.phases("rack")["rack/0.2"] is READY
    world.advance(PROOF_SECONDS)
    assert world.cell("rack/0.1").phase is Phase.DECOMMISSIONED


def test_what_a_provider_says_is_gone_and_beats_on_is_not_gone() -> None:
    world = loaded()
    gone = tuple(ProviderServer(f"rack/{n}.1", "ref", ProviderState.GONE, "all of them") for n in range(5))
    world.core.take(ProviderListed("local", gone, world.now, world.now))
    world.advance(10)
    assert condemned(world) == []
    world.advance(3, beating=False)
    assert {rule for _, rule in condemned(world)} == {"provider_gone"}


def test_leaked_servers_are_deleted() -> None:
    world = rack(1)
    world.lose("rack/0.1")
    leaked = ProviderServer("rack/0.1", "ref-9", ProviderState.RUNNING)
    mine = ProviderServer("rack/0.2", "ref-rack/0.2", ProviderState.RUNNING)
    world.core.take(ProviderListed("local", (mine, leaked), world.now, world.now))
    world.settle()
    assert [event.cell for event in world.events(e.LeakRemoved)] == ["rack/0.1"]
    assert world.told_providers[-1] == DecommissionServer("local", "rack/0.1", "ref-9", "leaked")


def test_a_scheduler_on_an_empty_journal_deletes_nobodys_fleet() -> None:
    world = World()
    there = [ProviderServer(f"rack/{n}.7", f"ref-{n}", ProviderState.RUNNING) for n in range(3)]
    world.core.take(ProviderListed("local", tuple(there), world.now, world.now))
    world.advance(120)
    assert world.told_providers == []
    assert world.held() == {"unknown_server"}
    world.apply(pool("rack", 1))
    assert [command for command in world.told_providers if isinstance(command, DecommissionServer)] == []


def test_a_scheduler_that_starts_anew_condemns_no_server_because_of_it() -> None:
    before = loaded()
    world = before.crash()
    world.advance(4, beating=False)
    for server in before.core.fleet.servers.values():
        reports = [before.core.sight.report_of(server.id, cell) for cell in server.cells]
        world.attach(server.id, *(report for report in reports if report))
    world.advance(10)
    assert world.phases("rack") == before.phases("rack")
    assert world.told_providers == []


@pytest.mark.parametrize(
    ("listed", "said", "is_silent", "rules"),
    [
        (("rack/1.1", "rack/2.1"), None, True, ["unlisted"]),
        (("rack/1.1", "rack/2.1"), None, False, []),
        (("rack/1.1", "rack/2.1"), Answer.ANSWERS, True, []),
        (("rack/0.1", "rack/1.1", "rack/2.1"), None, True, []),
        ((), None, True, []),
    ],
    ids=[
        "gone and silent",
        "it sends heartbeats",
        "its neighbours reach it",
        "listed and silent",
        "an empty list",
    ],
)
def test_a_server_that_its_provider_does_not_list_is_dead_where_it_is_silent_too(
    listed: tuple[str, ...], said: Answer | None, is_silent: bool, rules: list[str]
) -> None:
    world = rack(3)
    world.advance(6)
    there = tuple(ProviderServer(cell, f"ref-{cell}", ProviderState.RUNNING) for cell in listed)
    world.core.take(ProviderListed("local", there, world.now, world.now))
    if is_silent:
        silence(world, "rack/0.1", 3.0, said)
    else:
        world.advance(3)
    assert [rule for _, rule in condemned(world)] == rules


def test_deaths_of_several_specs_on_one_server_blame_the_server() -> None:
    world = rack(3)
    groups: tuple[Group, ...] = tuple(service(name, 6) for name in ("web", "api", "db"))
    world.apply(*groups)
    world.advance(10)
    victims = sorted(world.core.fleet.servers["rack/1.1"].cells)
    for victim in victims:
        world.report("rack/1.1", exited(victim))
    world.advance(3)
    (event,) = [c for c in world.events(e.CellCondemned) if c.cell == "rack/1.1"]
    assert (event.health, event.rule) == (Health.SICK, "blamed")
    assert "the server is to blame" in event.reason
    assert world.phases("rack")["rack/1.2"] is READY


def test_a_blamed_server_gives_its_cells_away_when_its_successor_can_take_them() -> None:
    world = rack(3)
    world.apply(*(service(name, 12) for name in ("web", "api", "db")))
    world.advance(10)
    world.deaf_providers = True
    for victim in sorted(world.core.fleet.servers["rack/1.1"].cells):
        world.report("rack/1.1", exited(victim))
    world.advance(3)
    assert world.phases("rack") == {
        "rack/0.1": READY,
        "rack/1.1": Phase.CONDEMNED,
        "rack/1.2": Phase.ORDERED,
        "rack/2.1": READY,
    }
    assert condemned(world) == []


def test_deaths_of_one_spec_on_several_servers_blame_the_spec() -> None:
    world = rack(3)
    world.apply(service("web", 3))
    for slot in range(3):
        world.report(world.cell(f"web/{slot}.1").server, exited(f"web/{slot}.1"))
    assert world.held() == {"spec_blamed"}


def test_old_cells_are_replaced_within_budget_and_not_all_at_once() -> None:
    world = World()
    world.join("a", "b", "c")
    group = service("web", 4)
    world.apply(Group(group.kind, group.name, group.replicas, group.spec, max_age_seconds=100.0))
    world.advance(89)
    assert world.events(e.CellCondemned) == []
    world.advance(25 + 4 * PROOF_SECONDS)
    assert {event.rule for event in world.events(e.CellCondemned)} == {"old"}
    assert [cell.rpartition(".")[2] for cell in world.phases()] == ["2"] * 4


def test_a_server_that_no_pool_waits_for_cannot_enrol_under_a_cells_name() -> None:
    world = rack(1)
    world.ask(CreateToken("t", SECRET, 1, world.now + 60))
    for name in ("rack/7.1", "rack/0.2", "web/0.1"):
        with pytest.raises(Refused, match=f"no pool of this fleet expects a server with the id {name}"):
            world.ask(Enrol("t", SECRET, name))
