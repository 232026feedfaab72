"""Who gets the genome and when, and which one a scheduler that is grown anew takes."""

import asyncio
import random

import pytest

from galactica.scheduler.core.genome import GenomeReader
from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.genome import Genome, GenomeMark
from galactica.scheduler.core.model.requests import Asker, Refused
from galactica.scheduler.link.genomes import HOLDERS, KEPT_WITHIN_SECONDS
from galactica.scheduler.security.sealing import seal, unseal
from galactica.scheduler.views.genome import genome_notes
from galactica.v1 import link_pb2
from tests.support.genome_world import ANN, GenomeWorld, Keeper
from tests.support.world import World, service, spec

NAMES = tuple(f"s{number}" for number in range(8))


@pytest.fixture
def world(tmp_path):
    return GenomeWorld(tmp_path)


def holders(world):
    newest = world.genomes.spread().newest
    return {
        name
        for name, one in world.keepers.items()
        if (one.kept.mark.epoch, one.kept.mark.position) == (newest.epoch, newest.position)
    }


async def settled(world, looks=2):
    for _ in range(looks):
        await world.look()
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_a_few_agents_get_what_the_fleet_wants_and_nobody_else(world):
    for name in NAMES:
        await world.attach(name)
    await world.apply(service("web", 3))
    await settled(world)
    assert len(holders(world)) == HOLDERS
    assert sum(one.received for one in world.keepers.values()) == HOLDERS
    spread = world.genomes.spread()
    assert (spread.kept, spread.wanted, list(genome_notes(spread))) == (HOLDERS, HOLDERS, [])
    kept = world.keepers[min(holders(world))].kept
    mark, genome = unseal(world.ca, kept.sealed)
    assert (kept.fleet_id, mark) == (world.ca.fleet_id, spread.newest)
    assert [one.group for one in genome.groups] == [service("web", 3)]


async def test_it_is_sent_again_only_when_its_content_changes(world):
    for name in NAMES[:3]:
        await world.attach(name)
    await world.apply(service("web", 3))
    await settled(world)
    before = world.genomes.spread().newest
    await world.mind.enrol("nobody")
    await settled(world, 5)
    assert [world.keepers[name].received for name in NAMES[:3]] == [1, 1, 1]
    assert world.genomes.spread().newest == before
    await world.apply(service("web", 4))
    await settled(world)
    assert [world.keepers[name].received for name in NAMES[:3]] == [2, 2, 2]
    assert world.genomes.spread().newest > before


async def test_there_is_none_while_the_fleet_wants_nothing(world):
    await settled(world)
    assert world.genomes.spread().newest is None
    assert list(genome_notes(world.genomes.spread())) == []


async def test_an_agent_that_comes_back_is_not_sent_what_it_has(world):
    await world.attach("a")
    await world.apply(service("web"))
    await settled(world)
    world.genomes.detached("a")
    assert world.genomes.spread().kept == 0
    assert list(genome_notes(world.genomes.spread())) == [], "it was made a moment ago"
    world.mind.time += KEPT_WITHIN_SECONDS
    assert "no agent keeps the newest genome" in next(iter(genome_notes(world.genomes.spread())))
    await world.attach("a")
    await settled(world)
    assert (world.keepers["a"].received, world.genomes.spread().kept) == (1, 1)


async def test_another_agent_is_chosen_where_one_cannot_keep_it(world):
    for name in NAMES:
        await world.attach(name)
    await world.apply(service("web", 3))
    await settled(world)
    victim = min(holders(world))
    world.keepers[victim].error = "its disk does not take it: No space left on device"
    await world.apply(service("web", 4))
    await settled(world, 3)
    assert victim not in holders(world)
    assert len(holders(world)) == HOLDERS


async def test_an_agent_that_keeps_none_is_never_asked_to(world):
    await world.attach("a")
    world.genomes.attached("a", link_pb2.Hello())
    await world.apply(service("web"))
    await settled(world)
    assert world.keepers["a"].received == 0
    world.mind.time += KEPT_WITHIN_SECONDS
    assert "no agent keeps the newest genome" in next(iter(genome_notes(world.genomes.spread())))


async def test_a_genome_that_is_too_large_is_told_and_the_last_one_stays(world):
    await world.attach("a")
    await world.apply(service("web"))
    await settled(world)
    before = world.keepers["a"].kept
    chance = random.Random(1)  # as keys and passwords: nothing makes them smaller
    secrets = [spec(env={"KEYS": chance.randbytes(4_000).hex()}) for _ in range(300)]
    await world.apply(*(service(f"g{number}", 0, one) for number, one in enumerate(secrets)))
    await settled(world)
    assert world.keepers["a"].kept == before
    (note,) = genome_notes(world.genomes.spread())
    assert "more than the limit of 1048576" in note
    assert "back up the journal often" in note


# --- grown anew ---------------------------------------------------------------------------------------------------


@pytest.fixture
def regrown(tmp_path):
    return GenomeWorld(tmp_path, regrows=True)


def kept(world, epoch, position, *groups):
    """An agent that keeps a genome of these groups."""
    other = World()
    if groups:
        other.apply(*groups)
    mark = GenomeMark(epoch, position)
    sealed = seal(world.ca, GenomeReader().read(other.core.fleet), mark)
    wire_mark = link_pb2.GenomeMark(epoch=epoch, position=position)
    return Keeper(link_pb2.Genome(mark=wire_mark, fleet_id=world.ca.fleet_id, sealed=sealed))


def planted(world):
    return [
        (record.event.epoch, record.event.genome_position, record.event.server)
        for record in world.mind.records
        if isinstance(record.event, e.GenomePlanted)
    ]


async def test_the_newest_is_taken_when_all_had_the_time_to_come_back(regrown):
    await regrown.attach("a", kept(regrown, 3, 90, service("web", 2)))
    await regrown.look(9.0)
    assert planted(regrown) == []
    await regrown.attach("b", kept(regrown, 3, 120, service("web", 5)))
    await regrown.attach("c", kept(regrown, 2, 900, service("web", 9)))
    await regrown.look(1.0)
    assert planted(regrown) == [(3, 120, "b")]
    assert regrown.mind.fleet().groups["web"].group.replicas == 5
    assert regrown.genomes.spread().regrowing == ""


async def test_without_a_genome_it_waits_and_says_so(regrown):
    await regrown.attach("a")
    for _ in range(30):
        await regrown.look(10.0)
    assert planted(regrown) == []
    assert regrown.genomes.spread().regrowing == "no agent that is attached keeps a genome"
    assert regrown.keepers["a"].received == 0, "nothing is sent that could take the place of a genome"
    await regrown.attach("b", kept(regrown, 3, 90, service("web")))
    assert "the newest, of epoch 3, position 90, is on server b" in regrown.genomes.spread().regrowing


async def test_what_does_not_verify_is_told_and_the_next_one_is_taken(regrown, tmp_path):
    forged = kept(GenomeWorld(tmp_path / "other"), 9, 9, service("evil"))
    await regrown.attach("liar", forged)
    braggart = kept(regrown, 3, 90, service("web"))
    braggart.kept.mark.position = 500
    await regrown.attach("braggart", braggart)
    await regrown.attach("honest", kept(regrown, 3, 120, service("web", 2)))
    await regrown.look(10.0)
    assert planted(regrown) == [(3, 120, "honest")]


async def test_an_agent_that_gives_nothing_good_is_named(regrown):
    await regrown.attach(
        "liar", Keeper(link_pb2.Genome(mark=link_pb2.GenomeMark(epoch=9), sealed=b"x" * 100))
    )
    await regrown.look(10.0)
    assert planted(regrown) == []
    assert regrown.genomes.spread().regrowing == (
        "no agent that is attached keeps a genome; what was given is no good: "
        "liar: it is no sealed genome, or not all of one"
    )


async def test_an_agent_that_leaves_while_it_is_asked_holds_nobody_up(regrown):
    leaver = kept(regrown, 4, 1, service("web", 9))
    leaver.is_silent = True
    await regrown.attach("leaver", leaver)
    await regrown.attach("b", kept(regrown, 3, 90, service("web")))
    looking = asyncio.ensure_future(regrown.look(10.0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    regrown.genomes.detached("leaver")
    await looking
    assert planted(regrown) == [(3, 90, "b")]


async def test_an_operator_need_not_wait(regrown):
    with pytest.raises(Refused, match="no agent that is attached keeps a genome"):
        await regrown.genomes.take_newest()
    await regrown.attach("a", kept(regrown, 3, 90, service("web")))
    with pytest.raises(Refused, match="server a keeps a genome"):
        await regrown.genomes.go_without(ANN)
    assert await regrown.genomes.take_newest() == GenomeMark(3, 90)
    with pytest.raises(Refused, match="knows what its fleet wants"):
        await regrown.genomes.take_newest()


async def test_an_operator_goes_on_without_a_genome(regrown):
    await regrown.attach("a")
    await regrown.genomes.go_without(Asker.operator("ann"))
    (event,) = [record.event for record in regrown.mind.records if isinstance(record.event, e.GenomePlanted)]
    assert event == e.GenomePlanted(Genome(), 0, 0, "")
    await regrown.apply(service("web"))
    await settled(regrown)
    assert holders(regrown) == {"a"}
