"""Two machines with one identity, as after a disk was copied: the first keeps its session, the second is told."""

from __future__ import annotations

import grpc
import pytest

from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.sight.observations import Attached, Rivalled
from galactica.scheduler.views.notes import notes
from tests.support.dispatcher_world import Code, observed
from tests.support.link_world import LinkWorld, PlayedAgent, link_world
from tests.support.memory_mind import MemoryMind


@pytest.fixture
async def world(tmp_path):
    async with link_world(tmp_path) as world:
        yield world


async def refusal_of(world: LinkWorld, instance: str, machine: str = "") -> tuple[Code, str]:
    """What a newcomer with the identity of web-1 is told."""
    newcomer = await world.agent("web-1", attached=False)
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await newcomer.attach(instance=instance, machine=machine)
    return refusal.value.code(), refusal.value.details()


async def is_served(agent: PlayedAgent) -> bool:
    await agent.report(sent_at=1.0)
    while not (await agent.hear()).HasField("echo"):
        pass
    return True


async def test_a_second_machine_is_refused_while_the_first_lives_and_is_told_what_to_do(world):
    first = await world.agent("web-1", instance="boot-a/1")

    code, words = await refusal_of(world, "boot-b/2")

    assert code is Code.ALREADY_EXISTS
    assert "another live machine is attached as server web-1" in words
    assert "enrol it under an id of its own" in words
    assert await is_served(first)
    assert [one.session for one in observed(world, Attached)] == [first.welcome.session]


async def test_a_second_machine_is_shown_with_the_address_from_which_it_came(world):
    await world.agent("web-1", instance="boot-a/1")
    await refusal_of(world, "boot-b/2")

    (rivalled,) = observed(world, Rivalled)
    (note,) = notes(world.mind.view())
    assert rivalled.address.startswith("ipv4:127.0.0.1:")
    assert f"a second live machine claims the identity of server web-1, from {rivalled.address}" in note


@pytest.mark.parametrize(("first", "second"), [("boot-a/1", ""), ("", "boot-b/2")])
async def test_an_agent_that_names_no_instance_is_another_than_one_that_does(world, first, second):
    agent = await world.agent("web-1", instance=first)
    assert (await refusal_of(world, second))[0] is Code.ALREADY_EXISTS
    assert await is_served(agent)


@pytest.mark.parametrize("instance", ["boot-a/1", ""])
async def test_the_same_instance_comes_back_at_once_even_while_its_stream_seems_open(world, instance):
    older = await world.agent("web-1", instance=instance)
    newer = await world.agent("web-1", instance=instance)
    assert (await older.ending())[0] is Code.ABORTED
    assert await is_served(newer)


async def test_another_instance_is_welcome_as_soon_as_the_streams_end_is_seen(world):
    first = await world.agent("web-1", instance="boot-a/1")
    await first.call.done_writing()
    await first.ending()
    second = await world.agent("web-1", instance="boot-a/2")
    assert await is_served(second)


async def test_another_instance_takes_over_from_one_whose_beats_are_missing(tmp_path):
    class Later(MemoryMind):
        """``ahead_seconds`` of time passed."""

        ahead_seconds = 0.0

        def now(self) -> float:
            return super().now() + self.ahead_seconds

    mind = Later(Policy(beat_seconds=1.0))
    async with link_world(tmp_path, mind) as world:
        first = await world.agent("web-1", instance="boot-a/1")
        assert (await refusal_of(world, "boot-b/2"))[0] is Code.ALREADY_EXISTS

        mind.ahead_seconds = 60.0
        second = await world.agent("web-1", instance="boot-b/2")

        assert (await first.ending())[0] is Code.ABORTED
        assert await is_served(second)
        mind.ahead_seconds += 1.0
        assert (await refusal_of(world, "boot-a/1"))[0] is Code.ALREADY_EXISTS


async def test_an_instance_that_is_too_long_is_the_agents_fault(world):
    assert (await refusal_of(world, "x" * 10_000))[0] is Code.INVALID_ARGUMENT


async def test_the_machine_that_the_journal_knows_takes_the_session_from_its_copy_which_is_told(world):
    first = await world.agent("web-1", instance="a/1", machine="boot-a/1")
    await first.call.done_writing()
    await first.ending()
    copy = await world.agent("web-1", instance="b/2", machine="boot-b/2")

    back = await world.agent("web-1", instance="a/3", machine="boot-a/1")

    code, words = await copy.ending()
    assert code is Code.ALREADY_EXISTS
    assert "another live machine is attached as server web-1" in words
    assert await is_served(back)
    await world.mind.until(lambda: observed(world, Rivalled))
    (note,) = notes(world.mind.view())
    assert "a second live machine claims the identity of server web-1" in note
    assert (await refusal_of(world, "b/4", machine="boot-b/2"))[0] is Code.ALREADY_EXISTS


async def test_of_two_machines_that_the_journal_does_not_know_the_first_keeps_the_session(world):
    first = await world.agent("web-1", machine="boot-a/1")
    await first.call.done_writing()
    await first.ending()
    copy = await world.agent("web-1", instance="b/2", machine="boot-b/2")
    assert (await refusal_of(world, "c/3", machine="boot-c/3"))[0] is Code.ALREADY_EXISTS
    assert await is_served(copy)
