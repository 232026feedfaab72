"""The agents' link beyond reports and instructions: tempo, echoes, logs, certificates, many agents."""

import asyncio
import contextlib

import grpc
import pytest

from galactica.scheduler.core.model.commands import Decommission
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.requests import ApplyGroups, Asker, Refused
from galactica.scheduler.core.sight.observations import Attached, Reported
from galactica.scheduler.link.dispatcher import STRANGE_STARTS_LIMIT
from galactica.scheduler.security.ca import new_key_and_csr
from galactica.v1 import link_pb2, link_pb2_grpc
from tests.support.dispatcher_world import Code, limited, observed
from tests.support.link_world import LIMIT_SECONDS, link_world
from tests.support.memory_mind import MemoryMind
from tests.support.world import pool


@pytest.fixture
async def world(tmp_path, request):
    """Parametrised indirectly by the limits of a link."""
    async with link_world(tmp_path, limits=getattr(request, "param", None)) as world:
        yield world


class TestTempo:
    async def test_beat_and_lease_stretch_as_the_fleet_grows_and_agents_are_told(self, tmp_path):
        policy = Policy(servers_per_beat_second=2)
        async with link_world(tmp_path, MemoryMind(policy)) as world:
            first = await world.agent("web-1")
            assert first.welcome.tempo == link_pb2.Tempo(beat_ms=1_000, lease_ms=5_000)
            tempos = []
            for number in range(2, 5):
                await world.agent(f"web-{number}")
                await first.report()
                await first.report(sent_at=1.0)
                heard = [await first.hear()]
                while not heard[-1].HasField("echo"):
                    heard.append(await first.hear())
                tempos += [one.tempo for one in heard if one.HasField("tempo")]

            assert tempos == [
                link_pb2.Tempo(beat_ms=1_500, lease_ms=7_500),
                link_pb2.Tempo(beat_ms=2_000, lease_ms=10_000),
            ]

    async def test_an_agent_is_told_the_lease_of_its_pool_also_when_that_changes(self, world):
        await world.mind.ask(ApplyGroups((pool("rack", 1, lease_seconds=15.0),)), Asker.operator("ann"))
        agent = await world.agent("rack/0.1")
        assert agent.welcome.tempo == link_pb2.Tempo(beat_ms=1_000, lease_ms=15_000)

        await world.mind.ask(ApplyGroups((pool("rack", 1, lease_seconds=30.0),)), Asker.operator("ann"))
        await agent.report()

        tempo = await agent.hear()
        while not tempo.HasField("tempo"):
            tempo = await agent.hear()
        assert tempo.tempo == link_pb2.Tempo(beat_ms=1_000, lease_ms=30_000)


class TestWhatWasHeard:
    async def test_welcome_and_echo_give_back_the_time_of_what_they_answer(self, world):
        agent = await world.agent("web-1", beat_at=100.5)
        assert agent.welcome.beat_at == 100.5

        await agent.report(sent_at=5.0, beat_at=101.5)

        echo = (await agent.hear()).echo
        assert (echo.sent_at, echo.beat_at) == (5.0, 101.5)

    async def test_instructions_carry_the_epoch_and_what_had_been_heard_when_they_were_given(self, world):
        agent = await world.agent("web-1", beat_at=100.5)
        world.dispatcher.send([Decommission("web-1", "web/0.1", "")])
        await agent.report(sent_at=5.0, beat_at=101.5)
        first = await agent.hear()
        while not (await agent.hear()).HasField("echo"):
            pass
        world.dispatcher.send([Decommission("web-1", "web/1.1", "")])

        batches = [first.instructions, (await agent.hear()).instructions]
        said = [(batch.epoch, one.beat_at) for batch in batches for one in batch.instructions]
        assert said == [(7, 100.5), (7, 101.5)]


class TestLogs:
    async def test_logs_are_fetched_and_end_with_the_agents_word(self, world):
        agent = await world.agent("web-1")
        reading = asyncio.create_task(_all(world.dispatcher.open_logs("web-1", "web/0.1", 10, follow=False)))
        (fetch,) = await agent.instructions()
        assert fetch.fetch_logs == link_pb2.FetchLogs(stream=1, cell_id="web/0.1", tail=10)

        for chunk in (b"one\n", b"two\n"):
            await agent.say(log_chunk=link_pb2.LogChunk(stream=1, data=chunk))
        await agent.say(log_chunk=link_pb2.LogChunk(stream=99, data=b"nobody reads this"))
        await agent.say(log_chunk=link_pb2.LogChunk(stream=1, end=True))

        assert await reading == [b"one\n", b"two\n"]

    async def test_reader_that_leaves_stops_the_stream_at_the_agent(self, world):
        agent = await world.agent("web-1")
        logs = world.dispatcher.open_logs("web-1", "web/0.1", 0, follow=True)
        reading = asyncio.create_task(anext(logs))
        await agent.instructions()
        await agent.say(log_chunk=link_pb2.LogChunk(stream=1, data=b"x"))
        assert await reading == b"x"
        await logs.aclose()

        assert await agent.instructions() == [link_pb2.Instruction(stop_logs=link_pb2.StopLogs(stream=1))]

    @limited(log_bytes=10)
    async def test_reader_that_is_too_slow_loses_its_stream_and_not_the_session(self, world):
        agent = await world.agent("web-1")
        logs = world.dispatcher.open_logs("web-1", "web/0.1", 0, follow=True)
        reading = asyncio.create_task(anext(logs))
        await agent.instructions()
        for _ in range(3):
            await agent.say(log_chunk=link_pb2.LogChunk(stream=1, data=b"1234567"))
        await agent.report(sent_at=1.0)
        assert (await agent.hear()).HasField("echo")

        assert await reading == b"1234567"
        with pytest.raises(Refused, match="more than 10 bytes are unread"):
            await _all(logs)

    @pytest.mark.parametrize("ends", ["agent", "link"])
    async def test_reason_why_there_is_no_more_is_told(self, world, ends):
        agent = await world.agent("web-1")
        reading = asyncio.create_task(_all(world.dispatcher.open_logs("web-1", "web/0.1", 10, follow=True)))
        await agent.instructions()
        if ends == "agent":
            await agent.say(
                log_chunk=link_pb2.LogChunk(stream=1, end=True, error="there is no cell web/0.1 here")
            )
        else:
            await agent.call.done_writing()

        expected = {
            "agent": "there is no cell web/0.1 here",
            "link": "the link to server web-1 ended: the agent ended its stream",
        }
        with pytest.raises(Refused) as refused:
            await reading
        assert str(refused.value) == expected[ends]

    async def test_logs_of_a_server_that_is_not_attached_are_refused(self, world):
        with pytest.raises(Refused, match="server web-1 is not attached"):
            world.dispatcher.open_logs("web-1", "web/0.1", 10, follow=False)


class TestCertificates:
    async def test_renewal_is_for_the_caller_alone(self, world):
        agent = await world.agent("web-1")
        key, csr = new_key_and_csr()
        answer = await agent.stub.RenewCertificate(link_pb2.RenewCertificateRequest(csr_pem=csr))
        channel = await world.channel(key, answer.certificate_pem)

        again = link_pb2_grpc.AgentLinkServiceStub(channel).Attach()
        await again.write(link_pb2.AttachRequest(hello=link_pb2.Hello(wire_version=1)))
        assert (await again.read()).welcome.session == "7-2"
        assert {one.server for one in observed(world, Attached)} == {"web-1"}
        again.cancel()

    async def test_bad_request_for_a_certificate_is_the_agents_fault(self, world):
        agent = await world.agent("web-1")
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await agent.stub.RenewCertificate(link_pb2.RenewCertificateRequest(csr_pem=b"nonsense"))

        assert refusal.value.code() is Code.INVALID_ARGUMENT

    async def test_operators_cannot_attach_and_the_attempt_is_recorded(self, world):
        call = link_pb2_grpc.AgentLinkServiceStub(await world.operator_channel("eve")).Attach()

        assert (await call.code(), await call.details()) == (
            Code.PERMISSION_DENIED,
            "operator eve has the role admin, but Attach needs a server's certificate",
        )
        refused = world.mind.records[-1]
        assert (refused.cause, refused.event.caller, refused.event.call) == (
            "operator:eve",
            "operator:eve",
            "Attach",
        )


async def test_hundred_agents_beat_without_being_in_each_others_way(world):
    agents = [await world.agent(f"web-{number}") for number in range(100)]
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LIMIT_SECONDS):
            for _ in range(10):
                await asyncio.gather(*(agent.report() for agent in agents))
            await world.mind.until(lambda: len(observed(world, Reported)) == 1_000)

    sight = world.mind.view().sight
    assert {agent.server: sight.servers[agent.server].sequence for agent in agents} == {
        agent.server: 10 for agent in agents
    }


async def _all(source):
    return [data async for data in source]


class TestEpochs:
    async def test_an_agent_that_obeyed_a_newer_scheduler_is_overtaken_before_it_is_told_anything(
        self, world
    ):
        (await world.agent("web-1")).call.cancel()
        agent = await world.agent("web-1", epoch=40)
        assert agent.welcome.epoch == 41
        assert world.mind.core.fleet.epoch == 41
        world.dispatcher.send([Decommission("web-1", "web/0.1", "")])
        assert (await agent.hear()).instructions.epoch == 41
        later = await world.agent("web-2", epoch=3)
        assert later.welcome.epoch == 41

    async def test_an_agent_that_obeyed_an_unknown_start_of_a_known_epoch_is_overtaken_too(self, world):
        (await world.agent("web-1", epoch=1, start="this start")).call.cancel()
        assert world.mind.core.fleet.epoch == 1
        (await world.agent("web-1", epoch=1, start="lost with a newer journal")).call.cancel()
        assert world.mind.core.fleet.epoch == 2

    async def test_a_server_has_the_epoch_raised_a_few_times_only(self, world):
        for number in range(10):
            (await world.agent("web-1", epoch=1, start=f"made up {number}")).call.cancel()
        assert world.mind.core.fleet.epoch == 1 + STRANGE_STARTS_LIMIT

    async def test_an_epoch_beyond_belief_is_refused_and_changes_nothing(self, world):
        before = world.mind.core.fleet.epoch
        agent = await world.agent("web-1", attached=False)
        await agent.say(hello=link_pb2.Hello(wire_version=1, epoch=2**60))
        code, details = await agent.ending()
        assert code is Code.FAILED_PRECONDITION
        assert "believes at most 1000000 more" in details
        assert world.mind.core.fleet.epoch == before
