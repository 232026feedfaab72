"""What is told of one group: how it stands, its newest deaths, and whether its spec is to blame."""

from __future__ import annotations

from galactica.scheduler.views import certificates, groups
from galactica.scheduler.views import status as status_views
from galactica.v1 import operator_pb2
from tests.support.reconcile_world import server_of, three_ready
from tests.support.world import World, exited, pool, service


def shown(world: World, name: str = "web") -> operator_pb2.GetGroupResponse:
    view = world.core.view(world.now)
    state = view.fleet.groups[name]
    deaths = []
    for cell in groups.newest_dead(view, state):
        records = [record for record in world.records if getattr(record.event, "cell", "") == cell.id]
        certificate = certificates.certificate(view, cell.id, records, ())
        assert certificate is not None
        deaths.append(certificate)
    return groups.group(view, state, deaths)


def die(world: World, times: int) -> None:
    """The first living cell of web dies, again and again, right after its birth."""
    for _ in range(times):
        world.until(lambda: bool(living(world)))
        cell = living(world)[0]
        world.report(server_of(world, cell), exited(cell, 3))


def living(world: World) -> list[str]:
    return [name for name, phase in world.phases().items() if phase in {"ORDERED", "BOOTING", "READY"}]


def test_a_group_that_is_well_says_so_and_blames_nothing() -> None:
    answer = shown(three_ready())
    assert (answer.healthy, answer.blamed, list(answer.held), list(answer.deaths)) == (True, "", [], [])
    assert (answer.group.name, answer.group.ready, answer.group.wanted) == ("web", 3, 3)


def test_its_newest_deaths_come_first_and_are_a_few() -> None:
    world = World()
    world.join("a")
    world.apply(service())
    die(world, 5)
    deaths = shown(world).deaths
    assert [death.cell.id for death in deaths] == ["web/0.5", "web/0.4", "web/0.3"]
    assert [(death.rule, death.autopsy.exit_code) for death in deaths] == [("exited", 3)] * 3


def test_a_spec_whose_cells_die_early_again_and_again_is_blamed_while_none_stands() -> None:
    world = World()
    world.join("a")
    world.apply(service())
    die(world, 2)
    assert shown(world).blamed == ""
    die(world, 1)
    assert shown(world).blamed == "3 cells of revision 1 died early"
    world.until(lambda: bool(living(world)))
    assert shown(world).blamed == ""


def test_a_spec_of_which_a_cell_stands_is_not_blamed_for_the_others() -> None:
    world = World()
    world.join("a")
    world.apply(service(replicas=2))
    for _ in range(4):
        world.until(lambda: len(living(world)) == 2)
        cell = living(world)[1]
        world.report("a", exited(cell, 3))
    assert {hold.rule for hold in shown(world).held} == {"backoff"}
    assert shown(world).blamed == ""


def test_what_is_held_of_a_storm_says_the_same_as_the_storm() -> None:
    world = World()
    world.join("a", "b", "c")
    world.apply(pool("rack", 3))
    world.settle()
    for name in ("rack/0.1", "rack/1.1"):
        world.deaf.add(name)
    quiet = {"rack/0.1", "rack/1.1"}
    for _ in range(16):
        world.advance(0.5, beating=False)
        world.beat(*(name for name in world.core.sight.servers if name not in quiet))
        world.settle()
    status = status_views.status(world.core.view(world.now), "f")
    (storm,) = status.storms
    assert [hold.reason for hold in status.held if hold.rule == "storm"] == [storm.reason]
