"""What readers are shown of servers, pools, storms and providers, from a small world that the real core decides on."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.fleet import Phase
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.requests import CondemnCell, DrainServer, ReleaseStorm
from galactica.scheduler.core.model.spec import Group, ServerBody
from galactica.scheduler.core.ports import View
from galactica.scheduler.core.sight.observations import (
    Answer,
    ProviderListed,
    ProviderServer,
    ProviderSilent,
    ProviderState,
    Reported,
)
from galactica.scheduler.core.sight.observations import Testimony as Saying
from galactica.scheduler.views import cells as views
from galactica.scheduler.views import certificates as history
from galactica.scheduler.views import servers as server_views
from galactica.scheduler.views import status as status_views
from galactica.v1 import operator_pb2
from tests.support.world import START, World, pool, service


def rack(size: int = 3, **changes: object) -> World:
    world = World()
    world.apply(pool("rack", size, **changes))
    return world


def view(world: World) -> View:
    return world.core.view(world.now)


def row(world: World, server: str) -> operator_pb2.Server:
    return next(row for row in server_views.servers(view(world)) if row.id == server)


def status(world: World) -> operator_pb2.GetStatusResponse:
    return status_views.status(view(world), "alpha")


def beat(world: World, seconds: float, *silent: str, says: Answer | None = None) -> None:
    """Time passes; those that are silent are not heard, and the others say what they say of them."""
    began, end = world.now, world.now + seconds
    while world.now < end:
        world.now += 0.5
        for name, seen in tuple(world.core.sight.servers.items()):
            if name in silent or not seen.is_open:
                continue
            told = tuple(Saying(one, says, began) for one in silent) if says else ()
            world.core.take(Reported(name, seen.session, seen.sequence + 1, world.now, testimonies=told))
        world.settle()


def facts(message: Any) -> list[tuple[str, str, float]]:
    return [(one.source, one.says, one.at) for one in message.evidence]


# --- servers ----------------------------------------------------------------------------------------------------------


def test_a_pools_server_shows_its_place_in_the_pool_and_what_its_provider_calls_it() -> None:
    shown = row(rack(2), "rack/1.1")
    assert (shown.pool, shown.slot, shown.generation, shown.provider_ref, shown.phase, shown.verdict) == (
        "rack", 1, 1, "ref-rack/1.1", "READY", "healthy",
    )  # fmt: skip
    assert facts(shown) == [("agent rack/1.1", "it sends heartbeats", START)]


def test_a_dead_server_that_its_provider_still_ends_is_not_said_to_beat() -> None:
    world = rack(3)
    world.deaf_providers = True
    beat(world, 6.0, "rack/0.1", says=Answer.SILENT)
    shown = row(world, "rack/0.1")
    assert (shown.phase, shown.verdict) == ("DRAINING", "dead")
    assert facts(shown)[0] == ("agent rack/0.1", "last heard", START)


def test_a_server_that_joined_by_itself_is_of_no_pool() -> None:
    world = World()
    world.join("a")
    shown = row(world, "a")
    assert (shown.pool, shown.slot, shown.generation, shown.provider_ref) == ("", 0, 0, "")


def test_a_server_that_is_ordered_is_shown_before_it_enrols() -> None:
    world = World(deaf_providers=True)
    group = pool("rack", 1)
    body = ServerBody("local", "{}", {"zone": "a"})
    world.apply(replace(group, spec=replace(group.spec, server=body)))
    assert row(world, "rack/0.1") == operator_pb2.Server(
        id="rack/0.1",
        phase="ORDERED",
        verdict="healthy",
        reason="its provider is making it",
        labels={"zone": "a"},
        pool="rack",
        slot=0,
        generation=1,
    )


def test_servers_are_told_in_the_order_of_their_slots() -> None:
    world = rack(11)
    world.join("a", "zoo")
    assert [row.id for row in server_views.servers(view(world))] == [
        "a",
        *(f"rack/{slot}.1" for slot in range(11)),
        "zoo",
    ]


def test_what_neighbours_say_is_shown_and_is_evidence() -> None:
    world = rack(4)
    beat(world, 3.0, "rack/0.1", says=Answer.ANSWERS)
    shown = row(world, "rack/0.1")
    assert (shown.verdict, shown.phase) == ("suspect", "READY")
    assert (
        shown.reason
        == "no heartbeat, but 3 of 3 neighbours reach it: the server is cut off and keeps its cells"
    )
    assert [(one.server_id, one.answer) for one in shown.neighbours] == [
        ("rack/1.1", "answers"),
        ("rack/2.1", "answers"),
        ("rack/3.1", "answers"),
    ]
    assert facts(shown) == [
        ("agent rack/0.1", "last heard", START),
        ("link", "its stream is open but silent", world.now),
        ("neighbour rack/1.1", "its agent answers", START),
        ("neighbour rack/2.1", "its agent answers", START),
        ("neighbour rack/3.1", "its agent answers", START),
    ]


def test_a_neighbour_that_went_away_is_shown_no_more() -> None:
    world = rack(3)
    beat(world, 1.0, "rack/0.1", says=Answer.ANSWERS)
    assert [one.server_id for one in row(world, "rack/0.1").neighbours] == ["rack/1.1", "rack/2.1"]
    world.detach("rack/2.1")
    assert [one.server_id for one in row(world, "rack/0.1").neighbours] == ["rack/1.1"]


def test_a_condemned_server_shows_what_condemned_it_though_it_still_beats() -> None:
    world = rack(1)
    world.deaf_providers = True
    world.ask(CondemnCell("rack/0.1", "odd noises"))
    shown = row(world, "rack/0.1")
    assert (shown.phase, shown.verdict, shown.reason) == ("CONDEMNED", "healthy", "operator")
    assert row(world, "rack/0.2").phase == "ORDERED"


def test_a_pools_server_that_is_drained_is_replaced_first_and_its_cells_move() -> None:
    world = rack(2)
    world.apply(service("web", 2))
    world.advance(10)
    (moving,) = world.core.fleet.servers["rack/0.1"].cells
    assert world.ask(DrainServer("rack/0.1")).cells == 1
    world.until(lambda: world.cell("rack/0.1").phase is Phase.DECOMMISSIONED)
    assert world.phases("rack") == {"rack/0.2": Phase.READY, "rack/1.1": Phase.READY}
    assert moving not in world.phases("web")
    assert set(world.phases("web").values()) == {Phase.READY}


# --- pools as groups and cells ----------------------------------------------------------------------------------------


def test_a_pool_is_a_group_of_the_status_and_its_servers_are_cells() -> None:
    world = rack(2)
    assert list(status(world).groups) == [
        operator_pb2.GroupStatus(kind="pool", name="rack", wanted=2, ready=2, revision=1, provider="local")
    ]
    assert status(world).healthy
    cell = world.cell("rack/0.1")
    assert next(views.cells(view(world), "rack")) == operator_pb2.Cell(
        id="rack/0.1",
        group="rack",
        slot=0,
        generation=1,
        kind="server",
        phase="READY",
        verdict="healthy",
        reason="it sends heartbeats",
        digest=cell.digest,
        revision=1,
        ordered_at=START,
        ready_at=START,
        runtime_id="ref-rack/0.1",
    )


def test_a_pool_that_lost_a_server_is_not_healthy() -> None:
    world = rack(3)
    world.deaf_providers = True
    world.detach("rack/0.1")
    states = [ProviderState.GONE, ProviderState.RUNNING, ProviderState.RUNNING]
    there = tuple(ProviderServer(f"rack/{n}.1", f"r{n}", state) for n, state in enumerate(states))
    world.core.take(ProviderListed("local", there, world.now, world.now))
    world.settle()
    (shown,) = status(world).groups
    assert (shown.ready, shown.booting, status(world).healthy) == (2, 1, False)


def test_silence_that_the_journal_cannot_record_is_not_called_ready() -> None:
    world = rack(1)
    world.journal_refuses = "disk full"
    beat(world, 9.0, "rack/0.1")
    (shown,) = status(world).groups
    assert (shown.ready, shown.sick) == (0, 1)


# --- storms -----------------------------------------------------------------------------------------------------------


def stormy() -> World:
    world = rack(5)
    beat(world, 8.0, "rack/0.1", "rack/1.1", "rack/2.1", says=Answer.SILENT)
    return world


def test_a_storm_is_told_with_its_numbers_its_reason_and_its_end() -> None:
    world = stormy()
    (storm,) = status(world).storms
    assert storm == operator_pb2.Storm(
        id=f"rack-{int(START)}",
        pool="rack",
        silent=3,
        of=5,
        since=START,
        expires_at=START + Policy().storm_hold_seconds,
        reason=storm.reason,
    )
    assert "3 of 5 of pool rack fell silent within 60 s" in storm.reason
    assert not status(world).healthy


def test_a_fleet_is_not_healthy_while_a_storm_is_held_whatever_else_is_well() -> None:
    calm, (storm,) = view(rack(1)), view(stormy()).storms
    assert status_views.status(calm, "alpha").healthy
    assert not status_views.status(replace(calm, storms=(storm,)), "alpha").healthy


def test_a_storm_that_is_released_is_told_no_more() -> None:
    world = stormy()
    (storm,) = status(world).storms
    assert world.ask(ReleaseStorm(storm.id)).cells == 3
    world.settle()
    assert list(status(world).storms) == []


# --- providers --------------------------------------------------------------------------------------------------------


def test_providers_are_told_with_what_they_have_and_what_troubles_them() -> None:
    world = rack(2)
    other: Group = pool("edge", 1)
    world.deaf_providers = True
    world.apply(replace(other, spec=replace(other.spec, server=ServerBody("cloud"))))
    there = tuple(ProviderServer(f"rack/{n}.1", f"r{n}", ProviderState.RUNNING) for n in (0, 1))
    world.core.take(ProviderListed("local", there, START + 1, START + 2))
    world.core.take(ProviderSilent("local", "it did not answer within 30 s", START + 3))
    assert server_views.providers(view(world)) == [
        operator_pb2.Provider(name="cloud", trouble=server_views.providers(view(world))[0].trouble),
        operator_pb2.Provider(
            name="local", servers=2, trouble="it did not answer within 30 s", listed_at=START + 1
        ),
    ]


def test_a_server_that_its_provider_calls_gone_is_not_counted() -> None:
    world = World()
    gone = ProviderServer("rack/9.1", "r9", ProviderState.GONE)
    world.core.take(ProviderListed("local", (gone,), START, START))
    assert server_views.providers(view(world)) == [
        operator_pb2.Provider(name="local", servers=0, listed_at=START)
    ]


# --- why --------------------------------------------------------------------------------------------------------------


def test_the_death_certificate_of_a_pools_server_carries_the_evidence() -> None:
    world = rack(5)
    world.advance(2)  # the scheduler's own grace
    beat(world, 4.0, "rack/0.1", says=Answer.SILENT)
    records = [r for r in world.records if getattr(r.event, "cell", "") == "rack/0.1"]
    successor = [r for r in world.records if getattr(r.event, "cell", "") == "rack/0.2"]
    story = history.certificate(view(world), "rack/0.1", records, successor)
    assert story is not None
    assert (story.verdict, story.rule, story.replaced_by) == ("dead", "neighbours_silent", "rack/0.2")
    witnesses = [f"neighbour rack/{slot}.1" for slot in range(1, 5)]
    assert [fact.source for fact in story.evidence] == ["agent rack/0.1", "link", *witnesses]


def test_a_silent_server_that_joined_by_itself_is_lost_once_and_has_a_death_certificate_too() -> None:
    world = World()
    world.join("a", "b", "c", "d")
    world.advance(2)  # the scheduler's own grace
    beat(world, 4.0, "a", says=Answer.SILENT)
    server = world.core.fleet.servers["a"]
    assert len(world.events(e.ServerCondemned)) == 1
    story = history.server_certificate(view(world), server, world.records)
    assert (story.cell.id, story.cell.kind, story.verdict, story.rule, story.condemned_at) == (
        "a", "server", "dead", "neighbours_silent", server.condemned_at,
    )  # fmt: skip
    assert story.cell.reason.startswith("no heartbeat for ")
    assert [fact.source for fact in story.evidence] == [
        "agent a", "link", "neighbour b", "neighbour c", "neighbour d",
    ]  # fmt: skip


def test_a_server_that_lives_has_a_story_without_a_death() -> None:
    world = World()
    world.join("a")
    story = history.server_certificate(view(world), world.core.fleet.servers["a"], world.records)
    assert (story.verdict, story.rule, story.HasField("condemned_at")) == ("healthy", "", False)
    assert facts(story) == [("agent a", "it sends heartbeats", START)]


def test_a_pools_server_that_lives_is_told_with_what_its_good_verdict_rests_on() -> None:
    story = history.certificate(view(rack(2)), "rack/0.1", (), ())
    assert story is not None
    assert (story.verdict, story.rule, story.HasField("condemned_at")) == ("healthy", "", False)
    assert facts(story) == [("agent rack/0.1", "it sends heartbeats", START)]
