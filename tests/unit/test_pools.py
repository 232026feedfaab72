"""Statements about servers as cells: one loop for both, and death by evidence."""

import pytest

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.commands import OrderServer
from galactica.scheduler.core.model.fleet import Phase
from galactica.scheduler.core.model.requests import CondemnCell, Refused, ReleaseStorm
from galactica.scheduler.core.sight.observations import (
    Answer,
    ProviderListed,
    ProviderServer,
    ProviderState,
    Reported,
    ServerNotMade,
    WillRead,
)
from galactica.scheduler.core.sight.observations import Testimony as Saying
from tests.support.pool_world import READY, condemned, loaded, rack, silence
from tests.support.world import World, pool


def servers(world: World) -> dict[str, Phase]:
    return {server.id: server.phase for server in world.core.fleet.servers.values()}


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
