"""An agent that a signal ends leaves its cells and asks for a maintenance lease: both ends of the link."""

import os

import pytest

from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.sight.observations import Answer, Reported
from galactica.v1 import link_pb2
from tests.support.agent_world import agent_world, until
from tests.support.dispatcher_world import observed
from tests.support.link_world import link_world
from tests.support.memory_mind import MemoryMind, kinds

# The scheduler's end.


async def farewell(agent):
    await agent.say(goodbye=link_pb2.Goodbye(maintenance_ms=700_000))
    while not (heard := await agent.hear()).HasField("farewell"):
        pass
    return heard.farewell


async def test_the_farewell_comes_when_the_lease_is_recorded_and_says_how_long_it_is(tmp_path):
    async with link_world(tmp_path, MemoryMind(Policy(maintenance_limit_seconds=600.0))) as world:
        agent = await world.agent("web-1")
        assert await farewell(agent) == link_pb2.Farewell(maintenance_ms=600_000)
        assert kinds(world.mind.records)[-1] == "MaintenanceBegan"
        lease = world.mind.fleet().servers["web-1"].maintenance
        assert lease.until - lease.since == pytest.approx(600.0)

        await world.agent("web-1")
        await world.mind.until(lambda: kinds(world.mind.records)[-1] == "MaintenanceEnded")


async def test_a_lease_that_cannot_be_recorded_is_refused_with_words(tmp_path):
    async with link_world(tmp_path) as world:
        agent = await world.agent("web-1")
        world.mind.journal_refuses = "the disk is full"
        assert await farewell(agent) == link_pb2.Farewell(refusal="the disk is full")


async def test_what_a_neighbour_says_of_refusals_is_heard(tmp_path):
    async with link_world(tmp_path) as world:
        first, _ = [await world.agent(f"web-{n}", watch_address=f"127.0.0.1:{9000 + n}") for n in (1, 2)]
        while not (await first.hear()).HasField("neighbours"):
            pass
        silent = link_pb2.ANSWER_SILENT
        await first.report(
            testimonies=[link_pb2.Testimony(server_id="web-2", answer=silent, after_refusal=True)]
        )
        await world.mind.until(lambda: any(one.testimonies for one in observed(world, Reported)))
        (told,) = (one for report in observed(world, Reported) for one in report.testimonies)
        assert (told.server, told.answer, told.after_refusal) == ("web-2", Answer.SILENT, True)


# The agent's end.


@pytest.fixture
async def world(tmp_path):
    async with agent_world(tmp_path) as world:
        world.scheduler.identity(world.data / "identity", "host1")
        yield world


async def attached(world):
    """The session, once the agent knows of it too: before that it has nobody to say goodbye to."""
    session = await world.scheduler.until_sessions(1)
    await until(lambda: session.reports, "a report")
    return session


@pytest.mark.parametrize(("arguments", "asked_ms"), [((), 300_000), (("--maintenance", "7.5"), 7_500)])
async def test_an_agent_that_a_signal_ends_asks_for_its_lease_and_says_what_it_got(
    world, arguments, asked_ms
):
    agent = world.agent(*arguments)
    agent.start()
    session = await attached(world)
    code, said = await agent.ended()
    assert (code, [one.maintenance_ms for one in session.goodbyes]) == (0, [asked_ms])
    assert "in maintenance seconds=60" in said
    await until(lambda: session.is_over, "it closes its stream in order")


@pytest.mark.parametrize("arguments", [("--maintenance", "0"), ("--stop-cells",)])
async def test_an_agent_that_wants_no_lease_asks_for_none(world, arguments):
    agent = world.agent(*arguments)
    agent.start()
    session = await attached(world)
    code, said = await agent.ended()
    assert (code, session.goodbyes) == (0, [])
    assert "maintenance" not in said


async def test_an_agent_that_gets_no_lease_says_why_and_ends_all_the_same(world):
    world.scheduler.farewell = link_pb2.Farewell(refusal="the disk is full")
    agent = world.agent()
    agent.start()
    await attached(world)
    code, said = await agent.ended()
    assert code == 0
    assert "no maintenance lease reason='the disk is full'" in said


@pytest.mark.parametrize("version", [0, 1])
async def test_a_scheduler_that_does_not_know_goodbyes_is_told_none(world, version):
    world.scheduler.wire_version = version
    agent = world.agent()
    agent.start()
    session = await attached(world)
    code, said = await agent.ended()
    assert (code, session.goodbyes) == (0, [])
    assert "no maintenance lease reason='the scheduler is of a version that grants none'" in said
    assert len(world.scheduler.sessions) == 1


async def test_an_agent_whose_scheduler_is_away_ends_without_a_lease(world):
    agent = world.agent()
    agent.start()
    await world.scheduler.until_sessions(1)
    await world.scheduler.stop()
    await agent.until_said("detached")
    code, said = await agent.ended()
    assert code == 0
    assert "no maintenance lease reason='not attached to the scheduler'" in said


@pytest.mark.parametrize(("says", "asks"), [("stopping", False), ("running", True), ("degraded", True)])
async def test_an_agent_whose_machine_goes_down_asks_for_none(world, tmp_path, says, asks):
    systemctl = tmp_path / "bin" / "systemctl"
    systemctl.parent.mkdir()
    systemctl.write_text(f"#!/bin/sh\necho {says}\nexit 1\n")
    systemctl.chmod(0o755)
    agent = world.agent(PATH=f"{systemctl.parent}:{os.environ['PATH']}")
    agent.start()
    session = await attached(world)
    code, said = await agent.ended()
    assert (code, bool(session.goodbyes)) == (0, asks)
    assert ("reason='this machine goes down, and its cells with it'" in said) is not asks


async def test_a_lease_that_is_no_time_is_refused(world):
    agent = world.agent("--maintenance", "soon")
    agent.start()
    code, said = await agent.ended(None)
    assert (code, "invalid value 'soon': use seconds, from 0 to 86400" in said) == (2, True)
