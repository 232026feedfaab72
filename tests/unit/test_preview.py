"""A preview is what then happens: births and deaths, in order, as the same core decides them in the real world."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.fleet import Phase
from galactica.scheduler.core.model.keys import Hold, SlotKey
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.requests import (
    CondemnCell,
    DeleteGroup,
    DrainServer,
    GroupChange,
    Refused,
)
from galactica.scheduler.core.model.spec import Group, Placement, Resources, digest_of
from galactica.scheduler.core.preview import Birth, Death, Preview, preview
from tests.support.world import World, exited, pool, running, service, spec

SURE = Policy(waits_for_proof=False)
"""As a preview imagines it: what is READY stays well."""


def births_and_deaths(world: World, groups: set[str], since: int) -> tuple[list[Birth], list[Death]]:
    """What the journal of the world tells of them after its first ``since`` records."""
    births, deaths = [], []
    for record in world.records[since:]:
        match record.event:
            case e.CellOrdered(cell=cell, server=server, replaces=replaces) if cell.split("/")[0] in groups:
                births.append(Birth(cell, server, replaces))
            case e.CellCondemned(cell=cell, rule=rule) if cell.split("/")[0] in groups:
                deaths.append(Death(cell, world.cell(cell).server, rule))
    return births, deaths


def empty() -> World:
    return World(policy=SURE)


def three_servers() -> World:
    world = World(policy=SURE)
    world.join("a", "b", "c")
    return world


def nine_ready() -> World:
    world = three_servers()
    world.apply(service("web", 6), service("api", 3, spec("7")))
    world.advance(10)
    return world


def three_of_a_pool() -> World:
    world = World(policy=SURE)
    world.apply(pool("rack", 3), service("web", 4))
    world.advance(10)
    return world


def one_lost() -> World:
    world = nine_ready()
    world.detach("b")
    world.advance(6)
    return world


def one_silent() -> World:
    world = nine_ready()
    world.detach("b")
    return world


def one_drained() -> World:
    world = nine_ready()
    world.ask(DrainServer("b"))
    return world


def tight() -> World:
    world = World(policy=SURE)
    world.join("a", memory_bytes=4)
    world.join("b", memory_bytes=3)
    world.apply(service("web", 6, spec(resources=Resources(memory_bytes=1))))
    return world


def condemned_before() -> World:
    world = nine_ready()
    world.ask(CondemnCell("web/2.1"))
    world.ask(DeleteGroup("api"))
    return world


ZONE = spec("2", placement=Placement(require={"zone": "nowhere"}))
FIXED = spec("2", ports={"http": 8080})
CHANGES: dict[str, tuple[Callable[[], World], tuple[Group, ...]]] = {
    "nothing joined yet": (empty, (service("web", 3),)),
    "a first group": (three_servers, (service("web", 6),)),
    "two groups at once": (three_servers, (service("web", 6), service("api", 2, spec("7")))),
    "no replicas": (three_servers, (service("web", 0),)),
    "the same again": (nine_ready, (service("web", 6),)),
    "more replicas": (nine_ready, (service("web", 9),)),
    "fewer replicas": (nine_ready, (service("web", 2),)),
    "none any more": (nine_ready, (service("web", 0),)),
    "another spec": (nine_ready, (service("web", 6, spec("2")),)),
    "another spec and more": (nine_ready, (service("web", 8, spec("2")),)),
    "another spec and fewer": (nine_ready, (service("web", 4, spec("2")),)),
    "another spec for both": (nine_ready, (service("web", 6, spec("2")), service("api", 3, spec("8")))),
    "one the same and one new": (nine_ready, (service("web", 6), service("db", 2))),
    "a label that no server has": (nine_ready, (service("web", 6, ZONE),)),
    "a fixed port": (nine_ready, (service("web", 4, FIXED),)),
    "after a server was lost": (one_lost, (service("web", 6, spec("2")),)),
    "while a server is silent": (one_silent, (service("web", 9),)),
    "after a drain": (one_drained, (service("web", 7, spec("2")),)),
    "too little room": (tight, (service("web", 9, spec(resources=Resources(memory_bytes=1))),)),
    "just room for one more": (tight, (service("web", 6, spec("2", resources=Resources(memory_bytes=1))),)),
    "a new pool": (empty, (pool("rack", 3),)),
    "a pool changes": (three_of_a_pool, (pool("rack", 3, '{"a":1}'),)),
    "a pool shrinks": (three_of_a_pool, (pool("rack", 1),)),
    "higher generations": (condemned_before, (service("web", 6, spec("2")), service("api", 4))),
}


@pytest.mark.parametrize("story", CHANGES)
def test_a_preview_tells_what_then_happens(story: str) -> None:
    make, groups = CHANGES[story]
    world = make()
    view = world.core.view(world.now)
    names = {group.name for group in groups}
    foretold = preview(view, groups)
    since = len(world.records)
    answer = world.apply(*groups)
    births, deaths = births_and_deaths(world, names, since)
    held = tuple(
        hold
        for hold in world.core.view(world.now).holds
        if isinstance(hold.key, SlotKey) and hold.key.group in names
    )
    assert foretold == Preview(answer.changes, tuple(births), tuple(deaths), held)


def test_a_preview_changes_nothing() -> None:
    world = nine_ready()
    before, view = world.core.view(world.now), world.core.view(world.now)
    first = preview(view, [service("web", 9, spec("2"))])
    assert preview(view, [service("web", 9, spec("2"))]) == first
    assert world.core.view(world.now) == before
    assert world.core.next_look_at() != 0.0


def test_a_preview_in_whole_values() -> None:
    world = World()
    world.join("a", "b")
    world.apply(service("web", 1))
    changed = GroupChange(
        "web", "changed", 2, digest_of(spec("2")), ("replicas: 1 -> 2", "spec.command: serve 1 -> serve 2")
    )
    assert preview(world.core.view(world.now), [service("web", 2, spec("2"))]) == Preview(
        (changed,),
        (Birth("web/1.1", "b", ""), Birth("web/0.2", "a", "web/0.1")),
        (Death("web/0.1", "a", "outdated"),),
        (),
    )


def test_a_preview_is_refused_as_the_apply_would_be() -> None:
    world = nine_ready()
    with pytest.raises(Refused, match="the limit is 1000000") as refused:
        preview(world.core.view(world.now), [service("huge", 1_000_000)])
    assert refused.value.rule == "too_many_cells"


def test_a_preview_tells_why_something_will_be_held() -> None:
    world = nine_ready()
    foretold = preview(world.core.view(world.now), [service("web", 7, ZONE)])
    reasons = {hold.key: hold.rule for hold in foretold.held}
    assert reasons == {SlotKey("web", 6): "no_capacity"} | {
        SlotKey("web", slot): "unavailable" for slot in range(6)
    }


def test_a_preview_leaves_out_what_happens_to_other_groups() -> None:
    world = World()
    world.join("a", memory_bytes=2)
    one = spec(resources=Resources(memory_bytes=1))
    world.apply(service("web", 2, one))
    world.apply(service("api", 1, one))
    assert world.held() == {"no_capacity"}
    foretold = preview(world.core.view(world.now), [service("web", 1, one)])
    assert (foretold.births, foretold.deaths) == ((), (Death("web/1.1", "a", "scaled_down"),))


def test_a_preview_sees_a_backoff() -> None:
    world = World(obedient=False)
    world.join("a")
    world.apply(service())
    for generation in (1, 2):
        world.report("a", exited(f"web/0.{generation}"))
    foretold = preview(world.core.view(world.now), [service("web", 2)])
    assert foretold.births == ()
    assert {hold.rule for hold in foretold.held} == {"backoff"}
    assert preview(world.core.view(world.now), [service("web", 1, spec("2"))]).births == (
        Birth("web/0.3", "a", "web/0.2"),
    )


def test_a_preview_of_a_change_while_cells_boot_ends_those_of_the_old_spec_at_once() -> None:
    world = World(obedient=False)
    world.join("a")
    world.apply(service("web", 2))
    world.report("a", running("web/0.1"))
    foretold = preview(world.core.view(world.now), [service("web", 2, spec("2"))])
    assert foretold.deaths == (Death("web/1.1", "a", "outdated"), Death("web/0.1", "a", "outdated"))
    assert foretold.births == (Birth("web/1.2", "a", "web/1.1"), Birth("web/0.2", "a", "web/0.1"))


def test_a_preview_counts_the_births_that_it_does_not_list() -> None:
    world = three_servers()
    foretold = preview(world.core.view(world.now), [service("web", 2_500)], listed_limit=100)
    assert (len(foretold.births), foretold.more_births, foretold.more_deaths) == (100, 2_400, 0)


def test_a_preview_counts_the_deaths_that_it_does_not_list() -> None:
    world = nine_ready()
    of_all = preview(world.core.view(world.now), [service("web", 6, spec("9"))])
    of_few = preview(world.core.view(world.now), [service("web", 6, spec("9"))], listed_limit=2)
    assert (len(of_all.births), len(of_all.deaths), of_all.more_births, of_all.more_deaths) == (6, 6, 0, 0)
    assert (of_few.births, of_few.more_births) == (of_all.births[:2], 4)
    assert (of_few.deaths, of_few.more_deaths) == (of_all.deaths[:2], 4)


def test_a_preview_of_deaths_alone_lists_some_and_counts_the_rest() -> None:
    world = nine_ready()
    foretold = preview(world.core.view(world.now), [service("web", 0)], listed_limit=4)
    assert (len(foretold.deaths), foretold.more_births, foretold.more_deaths) == (4, 0, 2)


def test_a_held_slot_in_a_preview_is_the_hold_that_status_will_show() -> None:
    world = empty()
    (hold,) = preview(world.core.view(world.now), [service()]).held
    assert hold == Hold(SlotKey("web", 0), "no_capacity", "no server has joined", world.now + 60)
    assert world.core.view(world.now).holds == ()
    world.apply(service())
    assert world.core.view(world.now).holds == (hold,)


def test_a_preview_goes_through_where_probes_differ() -> None:
    world = three_servers()
    plain = replace(spec(), health=replace(spec().health, probe=None))
    assert [birth.cell for birth in preview(world.core.view(world.now), [service(of=plain)]).births] == [
        "web/0.1"
    ]
    world.apply(service(of=plain))
    assert world.phases() == {"web/0.1": Phase.READY}
