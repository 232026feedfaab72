"""A journal that is older than its fleet: cells that it never ordered are left alone, and their ids never given out."""

import pytest
from msgspec.structs import replace

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.commands import Decommission
from galactica.scheduler.core.model.fleet import Phase
from galactica.scheduler.core.model.requests import (
    AdoptCells,
    Asker,
    AskerKind,
    ClaimEpoch,
    CondemnUnknown,
    DrainServer,
    Obeyed,
    Refused,
)
from galactica.scheduler.core.model.spec import Stop, digest_of
from galactica.scheduler.core.sight.observations import CellReport
from galactica.scheduler.views.status import status
from tests.support.world import World, gone, running, service, spec

SELF = Asker(AskerKind.SCHEDULER)


def strange(cell: str, version: str = "1") -> CellReport:
    return replace(running(cell), digest=digest_of(spec(version)))


def restored() -> World:
    """It wants two cells and knows of none; agent a runs two of its slots, of a generation that it never gave."""
    world = World()
    world.join("a", "b")
    world.apply(service("web", 0))
    world.detach("a")
    world.attach("a", strange("web/0.7"), strange("web/1.9"))
    return world


def removed(world: World) -> list[str]:
    return [command.cell for command in world.sent if isinstance(command, Decommission)]


def test_what_the_journal_never_ordered_is_left_alone_and_shown() -> None:
    world = restored()
    world.advance(30)
    assert removed(world) == []
    assert world.held() == {"unknown_cell"}
    (row,) = status(world.core.view(world.now), "f").held
    assert (row.slots, "server a runs web/0.7, which this journal never ordered" in row.reason) == (2, True)


def test_its_slot_gets_no_other_cell_and_its_id_is_never_given_out() -> None:
    world = restored()
    world.apply(service("web", 3))
    assert world.phases() == {"web/2.1": Phase.READY}
    world.report("a", gone("web/0.7"))
    assert world.phases() == {"web/0.8": Phase.READY, "web/2.1": Phase.READY}


def test_a_scheduler_on_the_same_journal_knows_them_before_their_agent_is_back() -> None:
    world = restored().crash()
    world.attach("b")
    world.apply(service("web", 2))
    world.advance(world.policy.lease_seconds - 1)
    assert world.phases() == {}
    assert set(world.core.fleet.unknown) == {"web/0", "web/1"}


def test_they_are_adopted_as_they_are() -> None:
    world = restored()
    world.apply(service("web", 2))
    assert world.ask(AdoptCells()).cells == 2
    assert world.phases() == {"web/0.7": Phase.READY, "web/1.9": Phase.READY}
    assert world.cell("web/0.7").server == "a"
    assert removed(world) == []
    assert world.held() == set()
    world.apply(service("web", 2, spec("2")))
    world.advance(60)
    assert world.phases() == {"web/0.8": Phase.READY, "web/1.10": Phase.READY}


@pytest.mark.parametrize(
    ("replicas", "version", "why_not"),
    [
        (0, "1", "web wants 0 cells, and this is one more"),
        (2, "2", "web never had its spec"),
    ],
)
def test_what_cannot_be_adopted_says_why(replicas: int, version: str, why_not: str) -> None:
    world = World()
    world.join("a")
    world.apply(service("web", replicas))
    world.detach("a")
    world.attach("a", strange("web/0.7", version))
    with pytest.raises(Refused, match=why_not):
        world.ask(AdoptCells(("web/0.7",)))


def test_one_of_a_group_that_is_unknown_too_waits_for_its_manifest() -> None:
    world = World()
    world.join("a")
    world.attach("a", strange("web/0.7"))
    with pytest.raises(Refused, match="its group does not exist here; apply its manifest first"):
        world.ask(AdoptCells())
    world.apply(service("web", 1))
    assert world.phases() == {}
    world.ask(AdoptCells())
    assert world.phases() == {"web/0.7": Phase.READY}


def test_some_are_adopted_and_of_the_others_it_says_why_not() -> None:
    world = restored()
    world.apply(service("web", 1))
    accepted = world.ask(AdoptCells())
    assert (accepted.cells, accepted.notes) == (1, ("web/1.9: web wants 1 cells, and this is one more",))


def test_they_are_condemned_by_name_or_all() -> None:
    world = restored()
    world.apply(service("web", 2))
    with pytest.raises(Refused, match="no agent runs an unknown cell web/5.1"):
        world.ask(CondemnUnknown(("web/5.1",)))
    assert world.ask(CondemnUnknown(("web/0.7",))).cells == 1
    assert removed(world) == ["web/0.7"]
    assert world.phases() == {"web/0.8": Phase.READY}
    assert world.ask(CondemnUnknown()).cells == 1
    assert removed(world) == ["web/0.7", "web/1.9"]
    reasons = {event.cell: event.reason for event in world.events(e.OrphanRemoved)}
    assert reasons["web/1.9"] == "condemned as unknown by ann"


def test_what_the_journal_knows_to_be_decommissioned_is_removed_at_once() -> None:
    world = World()
    world.join("a", "b")
    world.apply(service("web", 1))
    world.apply(service("web", 0))
    assert world.phases() == {}
    world.attach("a", strange("web/0.1"))
    assert removed(world)[-1] == "web/0.1"


def test_one_that_was_ordered_elsewhere_is_left_alone_too() -> None:
    """The restored journal gave an id again before the agent was heard that has it since before."""
    world = World()
    world.join("a", "b")
    world.apply(service("web", 1))
    (server,) = [one.id for one in world.core.fleet.servers.values() if "web/0.1" in one.cells]
    other = "b" if server == "a" else "a"
    world.attach(other, strange("web/0.1"))
    assert removed(world) == []
    assert world.held() == {"unknown_cell"}
    world.ask(CondemnUnknown(("web/0.1",)))
    assert [(c.server, c.cell) for c in world.sent if isinstance(c, Decommission)] == [(other, "web/0.1")]
    assert world.phases() == {"web/0.1": Phase.READY}


def test_they_are_forgotten_where_their_agent_has_them_no_longer() -> None:
    world = restored()
    world.apply(service("web", 2))
    world.detach("a")
    world.attach("a", strange("web/1.9"))
    assert world.phases() == {"web/0.8": Phase.READY}


def test_they_are_forgotten_with_their_server() -> None:
    world = restored()
    world.apply(service("web", 1))
    world.detach("a")
    world.advance(30)
    assert world.phases() == {"web/0.8": Phase.READY}


def test_a_newer_epoch_than_the_journals_is_overtaken_once() -> None:
    world = World()
    world.ask(ClaimEpoch(Obeyed(7), "a"), SELF)
    world.ask(ClaimEpoch(Obeyed(5), "b"), SELF)
    assert world.core.fleet.epoch == 8
    assert [event.epoch for event in world.events(e.EpochClaimed)] == [8]
    assert world.crash().core.fleet.epoch == 9
    with pytest.raises(Refused, match="believes at most 1000000 more"):
        world.ask(ClaimEpoch(Obeyed(10**9), "a"), SELF)
    assert world.core.fleet.epoch == 8


def test_an_overtaken_journal_orders_nothing_until_every_server_was_heard() -> None:
    before = World()
    before.join("a", "b")
    world = before.crash()
    world.ask(ClaimEpoch(Obeyed(7), "a"), SELF)
    world.attach("a")
    world.apply(service("web", 1))
    assert world.phases() == {}
    assert world.held() == {"listening"}
    world.attach("b", strange("web/0.3"))
    assert world.phases() == {}
    assert world.held() == {"unknown_cell"}


def test_an_exclusive_cell_waits_until_one_on_an_unheard_server_has_ended() -> None:
    """As one that this journal does not know, and whose server is cut off: it fences itself after lease and grace."""
    before = World()
    before.join("a", "b")
    world = before.crash()
    world.attach("a")
    group = service("db", 1, spec(exclusive=True, stop=Stop(grace_seconds=20.0)))
    world.apply(group)
    ends_at = world.now + (5.0 * 1.1 + 20.0) * 1.002 + 1.0 + world.policy.fence_margin_seconds
    world.advance(ends_at - world.now - 0.5)
    assert world.core.fleet.servers["b"].is_lost
    assert (world.phases("db"), world.held()) == ({}, {"listening"})
    world.advance(1.5)
    assert world.phases("db") == {"db/0.1": Phase.READY}


def test_it_waits_for_a_server_that_stays_away_for_a_bounded_time_only() -> None:
    before = World()
    before.join("a", "b")
    world = before.crash()
    world.ask(ClaimEpoch(Obeyed(7), "a"), SELF)
    world.attach("a")
    world.apply(service("web", 1))
    world.until(lambda: world.phases() == {"web/0.8001": Phase.READY}, world.policy.overtaken_seconds)


def test_a_fleet_that_no_agent_answers_is_not_healthy() -> None:
    world = World()
    assert status(world.core.view(world.now), "f").healthy
    world.join("a")
    assert status(world.core.view(world.now), "f").healthy
    world.detach("a")
    shown = status(world.core.view(world.now), "f")
    assert (shown.healthy, [hold.rule for hold in shown.held]) == (False, ["nobody_attached"])
    world.attach("a")
    world.ask(DrainServer("a"))
    assert status(world.core.view(world.now), "f").healthy


def test_a_scheduler_listens_to_every_server_before_it_orders_for_one_lease_at_most() -> None:
    """Nothing shows that the journal is a backup, if no other scheduler was started since."""
    before = World()
    before.join("a", "b")
    world = before.crash()
    world.attach("a")
    world.apply(service("web", 1))
    assert world.phases() == {}
    assert world.held() == {"listening"}
    world.until(lambda: world.phases() == {"web/0.1": Phase.READY}, world.policy.lease_seconds)
    world = before.crash()
    world.attach("a")
    world.apply(service("web", 1))
    world.attach("b", strange("web/0.1"))
    assert (world.phases(), world.held()) == ({}, {"unknown_cell"})
