"""Statements about servers as cells: one loop for both, and death by evidence."""

import pytest

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.commands import DecommissionServer, OrderServer
from galactica.scheduler.core.model.fleet import Phase
from galactica.scheduler.core.model.requests import CondemnCell, CreateToken, Enrol, Refused, ReleaseStorm
from galactica.scheduler.core.model.spec import Group
from galactica.scheduler.core.model.verdict import Health
from galactica.scheduler.core.sight.observations import (  # pytest takes what is called Test… for tests
    Answer,
    ProviderListed,
    ProviderServer,
    ProviderState,
    Reported,
    ServerNotMade,
    WillRead,
)
from galactica.scheduler.core.sight.observations import Testimony as Saying
from tests.support.world import SECRET, World, exited, pool, service

READY = Phase.READY


def rack(size: int = 3, **changes: object) -> World:
    world = World()
    world.apply(pool("rack", size, **changes))
    return world


def loaded(size: int = 5) -> World:
    """A pool that carries a service of as many cells."""
    world = rack(size)
    world.apply(service("web", size))
    world.advance(10)
    world.told_providers.clear()
    return world


def servers(world: World) -> dict[str, Phase]:
    return {server.id: server.phase for server in world.core.fleet.servers.values()}


def silence(world: World, silent: str, seconds: float, says: Answer | None = None) -> None:
    """One server is not heard any more; its neighbours say what they say of it."""
    others = [name for name in world.core.sight.servers if name != silent]
    began = world.now
    end = world.now + seconds
    while world.now < end:
        world.now += 0.5
        for name in others:
            seen = world.core.sight.servers[name]
            if not seen.is_open:
                continue
            testimony = (Saying(silent, says, began),) if says else ()
            world.core.take(Reported(name, seen.session, seen.sequence + 1, world.now, testimonies=testimony))
        world.settle()


def condemned(world: World) -> list[tuple[str, str]]:
    return [(event.server, event.rule) for event in world.events(e.ServerCondemned)]


def test_a_pool_orders_servers_that_boot_enrol_and_become_ready() -> None:
    world = rack(2)
    assert [type(c) for c in world.told_providers] == [OrderServer, OrderServer]
    assert world.phases("rack") == {"rack/0.1": READY, "rack/1.1": READY}
    assert servers(world) == {"rack/0.1": READY, "rack/1.1": READY}
    assert world.cell("rack/0.1").runtime_id == "ref-rack/0.1"


def test_a_server_that_never_attaches_is_condemned_and_another_ordered_with_backoff() -> None:
    world = World(deaf_providers=True)
    world.apply(pool("rack", 1))
    world.advance(61)
    assert world.cell("rack/0.1").condemned_by == "boot_timeout"
    assert world.phases("rack")["rack/0.2"] is Phase.ORDERED


def test_servers_that_never_attach_are_ordered_ever_more_rarely() -> None:
    world = World(deaf_providers=True)
    world.apply(pool("rack", 1))
    for generation in (1, 2, 3, 4):
        world.until(lambda: f"rack/0.{generation}" in world.phases("rack"))  # noqa: B023
        world.until(lambda: world.cell(f"rack/0.{generation}").is_condemned)  # noqa: B023
        world.lose(f"rack/0.{generation}")
    world.advance(10)
    assert {r.event.rule for r in world.records if isinstance(r.event, e.CellCondemned)} == {"boot_timeout"}
    assert _waits(world) == [0.0, 1.0, 2.0, 4.0]


def _waits(world: World) -> list[float]:
    """From each death to the order of the next."""
    starts = [r.at for r in world.records if isinstance(r.event, e.CellOrdered)]
    deaths = [r.at for r in world.records if isinstance(r.event, e.CellCondemned)]
    return [start - death for start, death in zip(starts[1:], deaths, strict=True)]


def test_servers_that_die_young_again_and_again_are_ordered_ever_more_rarely() -> None:
    world = rack(1)
    for generation in (1, 2, 3, 4):
        world.until(lambda: world.phases("rack").get(f"rack/0.{generation}") is READY)  # noqa: B023
        world.lose(f"rack/0.{generation}")
        world.settle()
    assert world.held() == {"backoff"}
    world.advance(10)
    assert _waits(world) == [0.0, 1.0, 2.0, 4.0]


def test_an_order_that_the_provider_refuses_is_a_death_with_its_reason() -> None:
    world = World(deaf_providers=True)
    world.apply(pool("rack", 1))
    world.core.take(ServerNotMade("local", "rack/0.1", "no quota", world.now))
    world.settle()
    (event,) = world.events(e.CellCondemned)
    assert (event.cell, event.rule, event.reason) == ("rack/0.1", "start_failed", "no quota")


def test_a_server_that_its_provider_reports_gone_is_dead_at_once_and_its_cells_with_it() -> None:
    world = loaded()
    (cell,) = world.core.fleet.servers["rack/0.1"].cells
    gone = tuple(
        ProviderServer(
            f"rack/{n}.1", f"ref-rack/{n}.1", ProviderState.GONE if n == 0 else ProviderState.RUNNING
        )
        for n in range(5)
    )
    world.detach("rack/0.1")
    world.core.take(ProviderListed("local", gone, world.now, world.now))
    world.settle()
    assert condemned(world) == [("rack/0.1", "provider_gone")]
    for death in (*world.events(e.ServerCondemned), world.events(e.CellCondemned)[0]):
        assert [fact.source for fact in death.evidence].count("provider") == 1
    assert world.phases("rack")["rack/0.2"] is READY
    assert world.cell(cell).condemned_by == "server_lost"
    assert len([c for c, phase in world.phases("web").items() if phase is READY]) == 5


def test_an_empty_answer_of_a_provider_never_reads_as_all_are_gone() -> None:
    world = loaded()
    world.core.take(ProviderListed("local", (), world.now, world.now))
    world.core.take(ProviderListed("local", (), world.now, world.now))
    world.advance(5)
    assert world.events(e.CellCondemned) == []


def test_silence_that_neighbours_confirm_is_death_within_three_seconds() -> None:
    world = loaded()
    silence(world, "rack/0.1", 3.0, Answer.SILENT)
    assert condemned(world) == [("rack/0.1", "neighbours_silent")]
    (event,) = world.events(e.ServerCondemned)
    assert {fact.source for fact in event.evidence} >= {"agent rack/0.1", "link", "neighbour rack/1.1"}
    assert world.phases("rack")["rack/0.2"] is READY


def test_a_server_that_neighbours_reach_is_cut_off_and_keeps_its_cells() -> None:
    world = loaded()
    silence(world, "rack/0.1", 60.0, Answer.ANSWERS)
    assert condemned(world) == []
    assert world.phases("web") == {f"web/{slot}.1": READY for slot in range(5)}
    (hold,) = world.core.view(world.now).holds
    assert (hold.rule, hold.reason) == (
        "cut_off",
        "rack/0.1: no heartbeat, but 4 of 4 neighbours reach it: the server is cut off and keeps its cells",
    )
    silence(world, "rack/0.1", 245.0, Answer.ANSWERS)
    assert condemned(world) == [("rack/0.1", "cut_off_too_long")]


def test_what_is_said_of_a_server_that_is_cut_off_ends_when_it_is_heard_again() -> None:
    world = loaded()
    silence(world, "rack/0.1", 10.0, Answer.ANSWERS)
    assert world.held() == {"cut_off"}
    world.beat("rack/0.1")
    assert world.held() == set()


def test_of_servers_that_are_gone_for_good_nothing_stays_in_sight() -> None:
    world = loaded()
    for number in range(1, 4):
        gone = f"rack/0.{number}"
        for server, other in ((gone, "rack/1.1"), ("rack/1.1", gone)):
            seen = world.core.sight.servers[server]
            said = (Saying(other, Answer.SILENT, world.now),)
            world.core.take(Reported(server, seen.session, seen.sequence + 1, world.now, testimonies=said))
        world.ask(CondemnCell(gone))
        world.core.take(WillRead(gone, world.now))
        world.advance(10)
        seen = world.core.sight.servers["rack/1.1"]  # it heard late that its neighbour is gone
        said = (Saying(gone, Answer.SILENT, world.now),)
        world.core.take(Reported("rack/1.1", seen.session, seen.sequence + 1, world.now, testimonies=said))
        world.core.take(WillRead(gone, world.now))
        world.advance(5)
    sight = world.core.sight
    assert sorted(sight.servers) == sorted(world.core.fleet.servers)
    assert (dict(sight.about), dict(sight.wills)) == ({}, {})


def test_a_host_whose_agent_is_gone_keeps_its_cells_until_the_lease_ends() -> None:
    world = loaded()
    silence(world, "rack/0.1", 4.5, Answer.REFUSED)
    assert condemned(world) == []
    silence(world, "rack/0.1", 1.0, Answer.REFUSED)
    assert condemned(world) == [("rack/0.1", "agent_gone")]


def test_where_nobody_can_testify_the_lease_decides_and_the_certificate_says_so() -> None:
    world = loaded()
    silence(world, "rack/0.1", 5.5)
    (event,) = world.events(e.ServerCondemned)
    assert event.rule == "lease_expired"
    assert "no neighbour can report on it; the lease alone decides" in event.reason


def test_a_last_will_testifies_like_a_neighbour_that_hears_nothing() -> None:
    world = loaded()
    world.core.take(WillRead("rack/0.1", world.now + 0.1))
    silence(world, "rack/0.1", 3.0)
    assert condemned(world) == [("rack/0.1", "neighbours_silent")]


def test_neighbours_that_cannot_reach_the_scheduler_themselves_do_not_count() -> None:
    world = loaded()
    for name in ("rack/1.1", "rack/2.1"):
        seen = world.core.sight.servers[name]
        testimony = (Saying("rack/0.1", Answer.SILENT, world.now),)
        world.core.take(Reported(name, seen.session, seen.sequence + 1, world.now, testimonies=testimony))
    world.advance(60, beating=False)
    assert condemned(world) == []
    assert world.held() == {"storm"}


def test_the_last_one_that_is_heard_again_after_a_storm_gets_a_lease_from_its_end() -> None:
    world = loaded()
    world.advance(30, beating=False)
    assert world.held() == {"storm"}
    for _ in range(9):  # 4.5 s
        world.now += 0.5
        world.beat("rack/1.1", "rack/2.1", "rack/3.1", "rack/4.1")
    assert condemned(world) == []
    world.now += 0.4
    world.beat()
    world.advance(10)
    assert condemned(world) == []


def test_one_that_stays_silent_after_a_storm_is_condemned_a_lease_after_its_end() -> None:
    world = loaded()
    world.advance(30, beating=False)
    silence(world, "rack/0.1", 5.6)
    assert condemned(world) == [("rack/0.1", "lease_expired")]


def test_two_of_five_silent_together_are_a_storm_that_an_operator_can_release() -> None:
    world = loaded()
    for _ in range(20):
        world.now += 0.5
        world.beat("rack/2.1", "rack/3.1", "rack/4.1")
    assert condemned(world) == []
    storm = world.core.view(world.now).storms[0]
    assert (storm.pool, storm.silent, storm.of) == ("rack", 2, 5)
    with pytest.raises(Refused, match="no such storm: nowhere-1"):
        world.ask(ReleaseStorm("nowhere-1"))
    world.ask(ReleaseStorm(storm.id))
    for _ in range(4):
        world.now += 0.5
        world.beat("rack/2.1", "rack/3.1", "rack/4.1")
    assert sorted(server for server, _ in condemned(world)) == ["rack/0.1", "rack/1.1"]


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
    world.advance(5)
    assert world.phases("rack")["rack/0.2"] is READY
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
    world.advance(25)
    assert {event.rule for event in world.events(e.CellCondemned)} == {"old"}
    assert [cell.rpartition(".")[2] for cell in world.phases()] == ["2"] * 4


def test_a_server_that_no_pool_waits_for_cannot_enrol_under_a_cells_name() -> None:
    world = rack(1)
    world.ask(CreateToken("t", SECRET, 1, world.now + 60))
    for name in ("rack/7.1", "rack/0.2", "web/0.1"):
        with pytest.raises(Refused, match=f"no pool of this fleet expects a server with the id {name}"):
            world.ask(Enrol("t", SECRET, name))
