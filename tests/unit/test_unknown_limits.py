"""Cells that nobody ordered: what their ids may do to those that the journal gives out, and to each other."""

import pytest
from msgspec.structs import replace

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.commands import Decommission
from galactica.scheduler.core.model.fleet import Phase
from galactica.scheduler.core.model.requests import CondemnUnknown, CreateToken, DrainServer, Enrol
from galactica.scheduler.core.model.spec import Group
from galactica.scheduler.core.sight.state import REPORTS_LIMIT
from galactica.scheduler.core.unknown import RANGES_KEPT, SHOWN_BY_ONE_SERVER
from tests.support.world import SECRET, World, gone, running, service, spec


@pytest.mark.parametrize("claimed", ["web/0.999999999", "web/0.500000001"])
@pytest.mark.parametrize("is_wanted_before", [True, False])
def test_a_generation_that_no_slot_reaches_does_not_use_up_the_ids_of_its_slot(
    claimed: str, is_wanted_before: bool
) -> None:
    world = World()
    world.join("a", "b")
    if is_wanted_before:
        world.apply(service("web", 0))
    world.report("a", running(claimed))
    assert world.held() == {"unknown_cell"}
    world.report("a", gone(claimed))
    world.apply(service("web", 1))
    assert world.phases() == {"web/0.1": Phase.READY}


def test_one_that_an_older_journal_may_have_forgotten_is_believed() -> None:
    world = World()
    world.join("a", "b")
    world.apply(service("web", 0))
    world.report("a", running("web/0.500000000"))
    world.report("a", gone("web/0.500000000"))
    world.apply(service("web", 1))
    assert world.phases() == {"web/0.500000001": Phase.READY}


def restored(*wanted: int) -> World:
    """Three servers; this journal wants so many cells of web, or never heard of it."""
    world = World()
    world.join("a", "b", "c")
    for replicas in wanted:
        world.apply(service("web", replicas))
    return world


def removed(world: World) -> list[str]:
    return [command.cell for command in world.sent if isinstance(command, Decommission)]


@pytest.mark.parametrize("wanted", [(), (0,)])
@pytest.mark.parametrize("second", ["web/0.8", "web/1.1", "web/0.1"])
def test_one_that_was_never_ordered_is_left_alone_whichever_is_heard_first(
    wanted: tuple[int, ...], second: str
) -> None:
    world = restored(*wanted)
    world.report("a", running("web/0.9"))
    world.report("b", running(second))
    assert removed(world) == []
    assert {one.cell for known in world.core.fleet.unknown.values() for one in known} == {"web/0.9", second}


def test_one_that_its_agent_missed_for_a_moment_is_left_alone_again() -> None:
    world = restored(0)
    world.report("a", running("web/0.9"))
    world.report("a", gone("web/0.9"))
    world.report("a", running("web/0.9"))
    assert removed(world) == []
    assert world.held() == {"unknown_cell"}


@pytest.mark.parametrize("wanted", [(), (0,)])
def test_one_that_an_operator_condemned_is_removed_whenever_it_shows_up_again(
    wanted: tuple[int, ...],
) -> None:
    world = restored(*wanted)
    world.report("a", running("web/0.9"))
    world.ask(CondemnUnknown())
    world.report("a", gone("web/0.9"))
    world.sent.clear()
    world.detach("a")
    world.attach("a", running("web/0.9"))
    assert removed(world) == ["web/0.9"]


def test_what_was_ordered_beside_them_is_removed_when_it_shows_up_after_its_end() -> None:
    world = restored(1)
    world.apply(service("web", 0))
    assert world.phases() == {}
    world.sent.clear()
    world.report("a", running("web/0.9"))
    world.report("b", running("web/0.1"))
    assert removed(world) == ["web/0.1"]


def test_the_ranges_that_are_remembered_are_bounded() -> None:
    world = restored(0)
    for generation in range(2, 400, 2):
        world.report("a", running(f"web/0.{generation}"))
        world.ask(CondemnUnknown())
        world.report("a", gone(f"web/0.{generation}"))
    assert len(world.core.fleet.skipped["web/0"]) <= RANGES_KEPT


def exclusive(replicas: int) -> Group:
    return service("db", replicas, replace(spec(), exclusive=True))


@pytest.mark.parametrize("group", [service("db", 1), exclusive(1)], ids=["shared", "exclusive"])
def test_a_slot_stays_held_while_a_drained_server_still_runs_a_cell_of_it(group: Group) -> None:
    world = restored()
    world.apply(replace(group, replicas=0))
    world.report("a", running("db/0.4"))
    world.ask(DrainServer("a"))
    world.apply(group)
    world.advance(60)
    assert world.core.fleet.servers["a"].phase is Phase.CONDEMNED
    assert world.phases("db") == {}
    world.report("a", gone("db/0.4"))
    assert world.core.fleet.servers["a"].phase is Phase.DECOMMISSIONED
    assert world.phases("db") == {"db/0.5": Phase.READY}


def test_an_exclusive_slot_stays_held_until_a_condemned_unknown_cell_is_gone() -> None:
    world = restored()
    world.apply(exclusive(0))
    world.report("a", running("db/0.4"))
    world.apply(exclusive(1))
    world.deaf.add("a")
    world.ask(CondemnUnknown())
    world.ask(CondemnUnknown())
    assert len(world.events(e.UnknownCellCondemned)) == 1
    world.advance(30)
    reasons = [hold.reason for hold in world.core.view(world.now).holds]
    assert reasons == ["server a runs db/0.4, which was condemned and has not ended yet"]
    assert world.phases("db") == {}
    world = world.crash()  # the decision is durable
    world.attach("a", running("db/0.4"))
    assert [command.cell for command in world.sent if isinstance(command, Decommission)] == ["db/0.4"]
    world.advance(60)
    assert world.phases("db") == {"db/0.5": Phase.READY}


def test_an_exclusive_slot_stays_held_by_a_cell_that_nothing_proves_ended() -> None:
    world = restored()
    world.apply(exclusive(0))
    world.report("a", running("db/0.4"))
    world.apply(exclusive(1))
    world.detach("a")
    world.advance(120)
    assert world.core.fleet.servers["a"].is_lost
    assert (world.phases("db"), "unknown_cell" in world.held()) == ({}, True)
    world.ask(CondemnUnknown())
    assert world.phases("db") == {"db/0.5": Phase.READY}


def showing(world: World, first: int, count: int, slot: str = "made-up-{}/0.1") -> None:
    world.report("a", *(running(slot.format(number)) for number in range(first, first + count)))


def test_an_agent_that_makes_cells_up_fills_neither_memory_nor_journal() -> None:
    world = restored(0)
    showing(world, 0, SHOWN_BY_ONE_SERVER + 20)
    for first in range(5_000, 5_050, 10):
        showing(world, first, 10)
    fleet = world.core.fleet
    assert sum(map(len, fleet.unknown.values())) == SHOWN_BY_ONE_SERVER
    assert len(world.events(e.UnknownCellFound)) == SHOWN_BY_ONE_SERVER
    assert len(world.events(e.UnknownCellsTooMany)) == 1
    assert len(fleet.generations) <= SHOWN_BY_ONE_SERVER
    assert "server a has shown more than 1000 cells that this journal never ordered" in "".join(
        hold.reason for hold in world.core.view(world.now).holds
    )


def test_one_that_lets_a_cell_come_and_go_is_believed_so_often_and_no_more() -> None:
    world = restored(0)
    for _ in range(SHOWN_BY_ONE_SERVER + 10):
        world.report("a", running("web/0.9"))
        world.report("a", gone("web/0.9"))
    assert len(world.events(e.UnknownCellFound)) == SHOWN_BY_ONE_SERVER
    assert len(world.events(e.UnknownCellsTooMany)) == 1


def test_what_such_a_server_shows_beyond_is_never_taken_for_decommissioned() -> None:
    """Its id was not left out, so this journal gives it out some day, and knows later that it went."""
    world = restored(0)
    showing(world, 10, SHOWN_BY_ONE_SERVER, "web/{}.7")
    world.report("a", running("web/0.1"))
    world.apply(service("web", 1))
    world.apply(service("web", 0))
    world.sent.clear()
    world.detach("a")
    world.attach("a", running("web/0.1"))
    assert removed(world) == []


def test_the_cells_of_another_server_are_remembered_as_ever() -> None:
    world = restored(0)
    showing(world, 10, SHOWN_BY_ONE_SERVER + 1, "web/{}.7")
    world.report("b", running("web/0.9"))
    world.apply(service("web", 1))
    assert world.phases("web") == {}


def test_more_are_remembered_when_an_operator_has_decided() -> None:
    world = restored(0)
    showing(world, 10, SHOWN_BY_ONE_SERVER + 1, "web/{}.7")
    assert world.ask(CondemnUnknown(("web/10.7",))).cells == 1
    world.report("a", running("web/0.9"))
    assert "web/0" in world.core.fleet.unknown


def test_a_server_that_enrols_anew_begins_anew() -> None:
    world = restored(0)
    showing(world, 10, SHOWN_BY_ONE_SERVER + 1, "web/{}.7")
    world.detach("a")
    world.advance(60)
    assert world.core.fleet.servers["a"].phase is Phase.DECOMMISSIONED
    world.ask(CreateToken("again", SECRET, 1, world.now + 3600))
    world.ask(Enrol("again", SECRET, "a"))
    world.attach("a", running("web/0.9"))
    assert set(world.core.fleet.unknown) == {"web/0"}


def test_the_reports_that_are_kept_of_one_server_are_bounded() -> None:
    world = restored(0)
    showing(world, 0, REPORTS_LIMIT)
    showing(world, REPORTS_LIMIT, 10)
    assert len(world.core.sight.servers["a"].reports) == REPORTS_LIMIT
