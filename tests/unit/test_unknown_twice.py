"""One id on two servers: an agent lies, or an id was given twice. Each server's cell counts for itself."""

import pytest
from msgspec.structs import replace

from galactica.scheduler.core.model.commands import Decommission
from galactica.scheduler.core.model.fleet import Phase, UnknownCell
from galactica.scheduler.core.model.requests import AdoptCells, CondemnCell, CondemnUnknown, Refused
from galactica.scheduler.core.model.spec import digest_of
from galactica.scheduler.core.sight.observations import CellReport
from galactica.scheduler.journal import snapshot
from tests.support.world import World, gone, running, service, spec


def strange(cell: str) -> CellReport:
    return replace(running(cell), digest=digest_of(spec(exclusive=True)))


def two_of_one_id() -> World:
    """Servers a and b both run db/0.4, which this journal never ordered, and c runs nothing."""
    world = World()
    world.join("a", "b", "c")
    world.apply(service("db", 0, spec(exclusive=True)))
    world.report("a", strange("db/0.4"))
    world.report("b", strange("db/0.4"))
    world.apply(service("db", 1, spec(exclusive=True)))
    return world


def removed(world: World) -> list[tuple[str, str]]:
    return [(one.server, one.cell) for one in world.sent if isinstance(one, Decommission)]


def holders(world: World) -> list[UnknownCell]:
    return sorted(one for cells in world.core.fleet.unknown.values() for one in cells)


@pytest.mark.parametrize(("first", "second"), [("a", "b"), ("b", "a")])
def test_the_slot_is_held_until_both_are_gone(first: str, second: str) -> None:
    world = two_of_one_id()
    world.report(first, gone("db/0.4"))
    world.advance(60)
    assert (world.phases("db"), holders(world)) == ({}, [UnknownCell("db/0.4", second)])
    world.report(second, gone("db/0.4"))
    assert world.phases("db") == {"db/0.5": Phase.READY}


def test_what_a_server_took_with_it_frees_nothing_of_another() -> None:
    world = World()
    world.join("a", "b", "c")
    world.apply(service("web", 0))
    world.report("a", running("web/0.4"))
    world.report("b", running("web/0.4"))
    world.apply(service("web", 1))
    world.detach("a")
    world.advance(120)
    assert world.core.fleet.servers["a"].is_lost
    assert (world.phases("web"), holders(world)) == ({}, [UnknownCell("web/0.4", "b")])


def test_a_scheduler_on_the_same_journal_or_its_snapshot_knows_both() -> None:
    world = two_of_one_id()
    assert holders(world.crash()) == [UnknownCell("db/0.4", "a"), UnknownCell("db/0.4", "b")]
    world.deaf.update(("a", "b"))
    world.ask(CondemnUnknown(("db/0.4",), "b"))
    again = snapshot.decode(snapshot.encode(world.core.fleet))
    assert (again.unknown, again.unwanted) == (world.core.fleet.unknown, world.core.fleet.unwanted)


def test_one_of_them_is_condemned_by_its_server() -> None:
    world = two_of_one_id()
    assert world.ask(CondemnUnknown(("db/0.4",), "b")).cells == 1
    assert (removed(world), holders(world)) == ([("b", "db/0.4")], [UnknownCell("db/0.4", "a")])
    assert world.phases("db") == {}
    assert world.ask(CondemnUnknown(("db/0.4",))).cells == 1
    assert removed(world) == [("b", "db/0.4"), ("a", "db/0.4")]
    assert world.phases("db") == {"db/0.5": Phase.READY}


def test_both_are_condemned_where_no_server_is_named() -> None:
    world = two_of_one_id()
    assert world.ask(CondemnUnknown(("db/0.4",))).cells == 2
    assert sorted(removed(world)) == [("a", "db/0.4"), ("b", "db/0.4")]
    assert world.phases("db") == {"db/0.5": Phase.READY}


def test_which_is_adopted_is_not_guessed() -> None:
    world = two_of_one_id()
    with pytest.raises(Refused, match=r"db/0\.4: servers a, b show it: name one with --on SERVER"):
        world.ask(AdoptCells())
    with pytest.raises(Refused, match="the agent of server c does not run an unknown cell db/0.4"):
        world.ask(AdoptCells(("db/0.4",), "c"))
    assert world.ask(AdoptCells(("db/0.4",), "b")).cells == 1
    assert world.cell("db/0.4").server == "b"
    assert (removed(world), holders(world)) == ([], [UnknownCell("db/0.4", "a")])
    assert world.held() == {"unknown_cell"}, "that of server a is still shown"


@pytest.mark.parametrize("is_gone", [False, True])
def test_id_of_a_cell_that_was_adopted_is_adopted_no_second_time(is_gone: bool) -> None:
    world = two_of_one_id()
    world.ask(AdoptCells(("db/0.4",), "b"))
    world.obedient = is_gone
    world.ask(CondemnCell("db/0.4"))
    world.advance(1)
    assert [cell.phase for cell in world.core.fleet.groups["db"].slots[0].cells] == (
        [] if is_gone else [Phase.DRAINING]
    )
    with pytest.raises(
        Refused, match="its id is that of another cell, which server b has or had; remove it with"
    ):
        world.ask(AdoptCells(("db/0.4",)))
    world.obedient = True
    world.ask(CondemnUnknown(("db/0.4",)))
    world.advance(5)
    assert world.phases("db") == {"db/0.5": Phase.READY}


def test_what_one_of_them_says_of_a_condemned_one_ends_only_its_own() -> None:
    world = two_of_one_id()
    world.deaf.update(("a", "b"))
    world.ask(CondemnUnknown())
    world.report("a", gone("db/0.4"))
    assert set(world.core.fleet.unwanted) == {UnknownCell("db/0.4", "b")}
    reasons = [hold.reason for hold in world.core.view(world.now).holds]
    assert reasons == ["server b runs db/0.4, which was condemned and has not ended yet"]
    world.report("b", gone("db/0.4"))
    assert (set(world.phases("db")), list(world.core.fleet.unwanted)) == ({"db/0.5"}, [])
