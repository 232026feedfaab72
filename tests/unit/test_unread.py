"""Entries of an agent's report that cannot be read: their cells stay as they are known, in doubt; none is absent."""

import pytest
from msgspec.structs import replace

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.commands import Resync
from galactica.scheduler.core.model.fleet import Phase
from galactica.scheduler.core.sight.observations import (
    Attached,
    CellReport,
    CellState,
    Detached,
    Reported,
    ServerFacts,
    Unread,
)
from galactica.scheduler.core.sight.observe import observe
from galactica.scheduler.core.sight.state import Sight
from tests.support.world import World, gone, running, service

WRONG = "the report on it is wrong"
ABOUT_IT = Unread("web/0.1", WRONG)
ABOUT_ANY = Unread("", "an entry of the report is wrong")


def world_of(*, attached: bool) -> World:
    """Two cells serve on one server. ``attached``: its agent has attached anew since then."""
    world = World()
    world.join("a")
    world.apply(service("web", 2))
    world.until(lambda: all(phase is Phase.READY for phase in world.phases().values()))
    if attached:
        world.detach("a")
        world.attach("a", running("web/0.1"), running("web/1.1"))
    return world


def inventory(world: World, *cells: CellReport, unread: tuple[Unread, ...], by: str) -> None:
    """All that the agent has, by a report or as it attaches."""
    seen = world.core.sight.servers["a"]
    if by == "a report":
        said = Reported("a", seen.session, seen.sequence + 1, world.now, cells, complete=True, unread=unread)
    else:
        world.detach("a")
        said = Attached("a", "again", world.now, seen.facts, cells, seen.machine, unread=unread)
    world.core.take(said)
    world.settle()


@pytest.mark.parametrize("by", ["a report", "attaching"])
@pytest.mark.parametrize("entry", [ABOUT_IT, ABOUT_ANY], ids=["names the cell", "names no cell"])
def test_a_cell_whose_entry_cannot_be_read_is_neither_condemned_nor_forgotten(by, entry):
    world = world_of(attached=True)
    known = world.core.sight.report_of("a", "web/0.1")
    inventory(world, running("web/1.1"), unread=(entry,), by=by)
    world.advance(120.0)
    assert world.events(e.CellCondemned) == []
    assert world.core.sight.report_of("a", "web/0.1") == replace(known, doubt=entry.reason)
    assert not world.core.sight.report_of("a", "web/1.1").doubt


@pytest.mark.parametrize("entry", [ABOUT_IT, ABOUT_ANY], ids=["names the cell", "names no cell"])
def test_a_scheduler_that_has_just_started_condemns_no_cell_for_it_either(entry):
    world = world_of(attached=False).crash()
    facts = ServerFacts()
    world.core.take(Attached("a", "s1", world.now, facts, (running("web/1.1"),), unread=(entry,)))
    world.settle()
    world.advance(120.0)
    assert world.events(e.CellCondemned) == []


def test_a_whole_inventory_is_asked_for_until_each_entry_names_its_cell():
    world = world_of(attached=True)
    inventory(world, running("web/1.1"), unread=(ABOUT_ANY,), by="a report")
    world.advance(30.0)
    asked = sum(isinstance(command, Resync) for command in world.sent)
    assert asked > 1
    inventory(world, running("web/1.1"), unread=(), by="a report")
    assert [condemned.cell for condemned in world.events(e.CellCondemned)] == ["web/0.1"]


def test_a_doubt_ends_with_the_next_entry_that_can_be_read():
    world = world_of(attached=True)
    inventory(world, running("web/1.1"), unread=(ABOUT_IT,), by="a report")
    world.report("a", running("web/0.1"))
    assert world.core.sight.report_of("a", "web/0.1") == running("web/0.1")


def test_a_death_that_was_reported_stays_one():
    dead = CellReport("web/0.1", "d", CellState.EXITED)
    sight = observe(Sight(), Attached("a", "s1", 1.0, ServerFacts(), (dead,))).sight
    sight = observe(sight, Reported("a", "s1", 1, 2.0, unread=(ABOUT_IT,))).sight
    assert sight.report_of("a", "web/0.1") == replace(dead, doubt=WRONG)


def test_what_another_machine_showed_says_nothing_of_a_cell():
    sight = observe(Sight(), Attached("a", "s1", 1.0, ServerFacts(), (running("web/0.1"),), "one")).sight
    sight = observe(sight, Attached("a", "s2", 2.0, ServerFacts(), (), "two", unread=(ABOUT_IT,))).sight
    assert sight.report_of("a", "web/0.1") == CellReport("web/0.1", "", CellState.STARTING, doubt=WRONG)


def test_an_agent_that_leaves_has_not_reported_each_cell_gone_if_an_entry_names_none():
    sight = observe(Sight(), Attached("a", "s1", 1.0, ServerFacts(), (running("web/0.1"),))).sight
    said = Reported("a", "s1", 1, 2.0, (gone("web/0.1"),), is_leaving=True, unread=(ABOUT_ANY,))
    sight = observe(sight, said).sight
    assert not observe(sight, Detached("a", "s1", 3.0)).sight.servers["a"].has_left
