"""Who is told to watch whom, and whose testimony is heard: agents played by hand, real gRPC with mTLS on loopback."""

import asyncio

import pytest
import structlog

from galactica.scheduler.core.model.requests import Asker, DrainServer
from galactica.scheduler.core.sight.observations import (
    Answer,
    Attached,
    Detached,
    Place,
    Reported,
    Testimony,
)
from galactica.v1 import link_pb2
from tests.support.dispatcher_world import observed
from tests.support.link_world import link_world
from tests.support.memory_mind import MemoryMind

Testimony.__test__ = False


@pytest.fixture
async def world(tmp_path):
    async with link_world(tmp_path) as world:
        yield world


def address(name):
    return f"10.0.0.{sum(name.encode()) % 250 + 1}:4000"


async def attached(world, name):
    return await world.agent(name, watch_address=address(name))


async def neighbours(agent, *names):
    """Wait until the agent is to watch exactly those; the message that said so."""
    while True:
        answer = await agent.hear()
        if answer.WhichOneof("message") == "neighbours":
            given = answer.neighbours
            if {one.server_id for one in given.neighbours} == set(names):
                return given


def reports(world, server):
    return [one for one in world.mind.observed if isinstance(one, Reported) and one.server == server]


async def report(world, agent, **fields):
    before = len(reports(world, agent.server))
    await agent.report(**fields)
    await world.mind.until(lambda: len(reports(world, agent.server)) > before)
    return reports(world, agent.server)[-1]


def says(server, answer=link_pb2.ANSWER_SILENT, for_ms=2_000):
    return link_pb2.Testimony(server_id=server, answer=answer, for_ms=for_ms)


async def test_servers_of_a_small_fleet_watch_each_other_under_keys_that_two_share(world):
    agents = {name: await attached(world, name) for name in ("a", "b", "c")}
    told = {name: await neighbours(agent, *agents.keys() - {name}) for name, agent in agents.items()}
    for name, given in told.items():
        assert {one.server_id: one.address for one in given.neighbours} == {
            other: address(other) for other in agents if other != name
        }
        shown = {one.key for other in told for one in told[other].neighbours if one.server_id == name}
        assert set(given.accepted_keys) == shown
    keys = [one.key for given in told.values() for one in given.neighbours]
    assert {len(key) for key in keys} == {16}
    assert len(set(keys)) == 6


async def test_agent_that_takes_no_part_is_watched_by_nobody(world):
    one, two = await attached(world, "a"), await attached(world, "b")
    await world.agent("silent")
    await neighbours(one, "b")
    three = await attached(world, "c")
    await neighbours(three, "a", "b")
    await neighbours(two, "a", "c")


async def test_pairs_that_stay_keep_their_key_when_one_more_comes(world):
    one, _two = await attached(world, "a"), await attached(world, "b")
    before = await neighbours(one, "b")
    await attached(world, "c")
    after = await neighbours(one, "b", "c")
    assert before.neighbours[0] in after.neighbours
    assert set(before.accepted_keys) < set(after.accepted_keys)


async def test_server_that_went_away_is_watched_on_until_it_is_no_member_any_more(world):
    one, two = await attached(world, "a"), await attached(world, "b")
    first = await neighbours(one, "b")
    two.call.cancel()
    await world.mind.until(lambda: any(isinstance(seen, Detached) for seen in world.mind.observed))
    await attached(world, "c")
    assert first.neighbours[0] in (await neighbours(one, "b", "c")).neighbours
    await world.mind.ask(DrainServer("b"), Asker.operator("ann"))
    await neighbours(one, "c")


async def test_scheduler_that_begins_anew_hears_of_those_it_does_not_reach_from_their_neighbours(tmp_path):
    mind = MemoryMind()
    async with link_world(tmp_path, mind) as world:
        one, _two = await attached(world, "a"), await attached(world, "b")
        (told,) = (await neighbours(one, "b")).neighbours
    async with link_world(tmp_path, mind) as world:
        one = await world.agent("a", watch_address=address("a"), watching=[told])
        seen = await report(world, one, testimonies=[says("b", link_pb2.ANSWER_ANSWERS)])
        assert seen.testimonies == (Testimony("b", Answer.ANSWERS, seen.at - 2.0),)
        await attached(world, "c")
        assert told in (await neighbours(one, "b", "c")).neighbours


async def test_what_is_said_first_to_a_scheduler_that_begins_anew_counts_for_pairs_that_stay(tmp_path):
    mind = MemoryMind()
    async with link_world(tmp_path, mind) as world:
        one, _two = await attached(world, "a"), await attached(world, "b")
        (told,) = (await neighbours(one, "b")).neighbours
    async with link_world(tmp_path, mind) as world:
        await attached(world, "b")
        one = await world.agent("a", watch_address=address("a"), watching=[told])
        assert [said.server for said in (await report(world, one, testimonies=[says("b")])).testimonies] == [
            "b"
        ]
        assert list((await neighbours(one, "b")).neighbours) == [told]
        assert (await report(world, one)).withdrawn == ()


async def test_nobody_makes_itself_a_neighbour_of_one_that_is_away(tmp_path):
    mind = MemoryMind()
    async with link_world(tmp_path, mind) as world:
        one, _two = await attached(world, "a"), await attached(world, "b")
        (told,) = (await neighbours(one, "b")).neighbours
    async with link_world(tmp_path, mind) as world:
        no_key = link_pb2.Neighbour(server_id="b", address=told.address, key=b"0" * 16)
        no_address = link_pb2.Neighbour(server_id="b", address="10.9.9.9:1", key=told.key)
        one = await world.agent("a", watch_address=address("a"), watching=[no_key, no_address])
        other = await world.agent("c", watch_address=address("c"), watching=[told])
        await neighbours(one, "c")
        await neighbours(other, "a")
        assert (await report(world, one, testimonies=[says("b")])).testimonies == ()


async def test_server_that_comes_back_is_told_its_neighbours_again_and_they_its_new_address(world):
    one, _two = await attached(world, "a"), await attached(world, "b")
    before = await neighbours(one, "b")
    again = await world.agent("b", watch_address="10.9.9.9:1")
    (accepted,) = (await neighbours(again, "a")).accepted_keys
    after = await neighbours(one, "b")
    while after.neighbours[0].address != "10.9.9.9:1":
        after = await neighbours(one, "b")
    assert after.neighbours[0].key == accepted != before.neighbours[0].key


async def test_testimony_counts_from_when_it_has_been_so(world):
    one, _two = await attached(world, "a"), await attached(world, "b")
    await neighbours(one, "b")
    seen = await report(world, one, testimonies=[says("b")])
    assert seen.testimonies == (Testimony("b", Answer.SILENT, seen.at - 2.0),)


async def test_server_is_not_heard_about_those_it_was_not_given(world):
    one, _two = await attached(world, "a"), await attached(world, "b")
    await neighbours(one, "b")
    seen = await report(world, one, testimonies=[says("a"), says("c"), says("b", link_pb2.ANSWER_ANSWERS)])
    assert seen.testimonies == (Testimony("b", Answer.ANSWERS, seen.at - 2.0),)
    stranger = await world.agent("stranger")
    assert (await report(world, stranger, testimonies=[says("b")])).testimonies == ()


async def test_what_was_said_is_withdrawn_when_the_pair_is_no_more(world):
    one, two = await attached(world, "a"), await attached(world, "b")
    await neighbours(one, "b")
    await report(world, one, testimonies=[says("b")])
    assert (await report(world, one)).withdrawn == ()
    two.call.cancel()
    await world.mind.ask(DrainServer("b"), Asker.operator("ann"))
    await neighbours(one)
    assert (await report(world, one)).withdrawn == ("b",)
    assert (await report(world, one)).withdrawn == ()


async def test_new_session_withdraws_what_the_agent_does_not_say_again(world):
    one, _two = await attached(world, "a"), await attached(world, "b")
    await neighbours(one, "b")
    await report(world, one, testimonies=[says("b")])
    again = await attached(world, "a")
    assert (await report(world, again)).withdrawn == ("b",)
    await neighbours(again, "b")
    await report(world, again, testimonies=[says("b")])
    third = await attached(world, "a")
    seen = await report(world, third, testimonies=[says("b")])
    assert (len(seen.testimonies), seen.withdrawn) == (1, ())


async def test_complete_report_withdraws_what_it_leaves_out(world):
    one, _two = await attached(world, "a"), await attached(world, "b")
    await neighbours(one, "b")
    await report(world, one, testimonies=[says("b")])
    assert (await report(world, one, complete=True)).withdrawn == ("b",)


async def test_address_that_nobody_could_be_reached_at_is_told_and_costs_no_session(world):
    agent = await world.agent("a", attached=False)
    with structlog.testing.capture_logs() as logs:
        await agent.say(hello=link_pb2.Hello(wire_version=1, watch_address="example.org:80"))
        assert (await agent.hear()).HasField("welcome")
        await world.mind.until(lambda: observed(world, Attached))
    reason = "hello.watch_address: not a numeric ADDRESS:PORT"
    assert [one.place for one in observed(world, Attached)] == [Place("", reason)]
    assert [one["reason"] for one in logs if one["event"] == "entry_skipped"] == [reason]


async def test_testimony_that_cannot_be_read_withdraws_none(world):
    one, _two = await attached(world, "a"), await attached(world, "b")
    await neighbours(one, "b")
    await report(world, one, testimonies=[says("b")])
    unknown = link_pb2.Testimony(server_id="b", answer=99)
    assert (await report(world, one, complete=True, testimonies=[unknown])).withdrawn == ()


async def test_each_of_a_larger_fleet_watches_three_and_is_watched_by_three(world):
    names = [f"s{number}" for number in range(8)]
    agents = [await attached(world, name) for name in names]
    newest = {}

    async def listen(agent):
        while True:
            answer = await agent.hear()
            if answer.WhichOneof("message") == "neighbours":
                newest[agent.server] = answer.neighbours

    def is_regular():
        watched = [one.server_id for given in newest.values() for one in given.neighbours]
        return sorted(watched) == sorted(names * 3)

    async with asyncio.timeout(15), asyncio.TaskGroup() as tasks:
        listening = [tasks.create_task(listen(agent)) for agent in agents]
        while not is_regular():
            await asyncio.sleep(0.01)
        for one in listening:
            one.cancel()
    assert all(len(given.accepted_keys) == 3 for given in newest.values())
