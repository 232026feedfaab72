"""The agents' link: real gRPC with mTLS on loopback, agents played by hand, the real core behind it."""

import asyncio
import contextlib

import grpc
import pytest

from galactica.scheduler.ca import new_key_and_csr
from galactica.scheduler.commands import Decommission, Order
from galactica.scheduler.model import Policy, Resources, RuntimeKind
from galactica.scheduler.requests import ApplyGroups, DrainServer, Refused
from galactica.scheduler.session import LinkLimits
from galactica.scheduler.sight import (
    Attached,
    CellReport,
    CellState,
    Detached,
    ProbeStatus,
    Reported,
    ServerFacts,
)
from galactica.scheduler.vitals import Vitals
from galactica.v1 import cell_pb2, link_pb2, link_pb2_grpc
from tests.support.link_world import LIMIT_SECONDS, link_world, running
from tests.support.memory_mind import MemoryMind, kinds
from tests.support.world import pool, service, spec

Code = grpc.StatusCode


@pytest.fixture
async def world(tmp_path, request):
    """Parametrised indirectly by the limits of a link."""
    async with link_world(tmp_path, limits=getattr(request, "param", None)) as world:
        yield world


def limited(**limits):
    return pytest.mark.parametrize("world", [LinkLimits(**limits)], indirect=True, ids=["limited"])


def observed(world, kind):
    return [one for one in world.mind.observed if isinstance(one, kind)]


class TestAttaching:
    async def test_hello_becomes_an_attached_session_and_is_welcomed(self, world):
        before = world.mind.now()
        agent = await world.agent(
            "web-1", labels={"zone": "a"}, inventory=[running("web/0.1")], agent_version="0.1.0"
        )

        assert agent.welcome == link_pb2.Welcome(
            session="7-1", epoch=7, tempo=link_pb2.Tempo(beat_ms=1_000, lease_ms=5_000), fleet="alpha"
        )
        (attached,) = observed(world, Attached)
        assert before <= attached.at <= world.mind.now()
        assert attached == Attached(
            "web-1",
            "7-1",
            attached.at,
            ServerFacts({"zone": "a"}, Resources(8_000, 2**34), 2**36, (RuntimeKind.PROCESS,), "0.1.0"),
            (
                CellReport(
                    "web/0.1", "", CellState.RUNNING, "42", {"http": "127.0.0.1:8080"}, ProbeStatus(True)
                ),
            ),
        )
        assert "ServerJoined" in kinds(world.mind.records)

    @pytest.mark.parametrize(("version", "newer"), [(0, "agent"), (2, "scheduler")])
    async def test_agent_of_another_wire_version_is_told_both_versions(self, world, version, newer):
        agent = await world.agent("web-1", attached=False)
        await agent.say(hello=link_pb2.Hello(wire_version=version))

        assert await agent.ending() == (
            Code.FAILED_PRECONDITION,
            f"the agent speaks wire version {version} and this scheduler 1; install a newer {newer}",
        )
        assert world.mind.observed == []

    async def test_server_that_never_enrolled_is_told_to(self, world):
        await world.mind.enrol("other")
        stub = link_pb2_grpc.AgentLinkServiceStub(await world.server_channel("web-1"))
        call = stub.Attach()

        assert (await call.code(), await call.details()) == (
            Code.FAILED_PRECONDITION,
            "server web-1 is not in this fleet; enrol it anew with a token",
        )

    async def test_drained_server_may_attach_for_its_orphans_but_gets_no_new_certificate(self, world):
        agent = await world.agent("web-1")
        await world.mind.ask(DrainServer("web-1"), "operator:ann")
        agent.call.cancel()
        await world.mind.until(lambda: observed(world, Detached))

        again = await world.agent("web-1")
        assert world.mind.view().fleet.servers["web-1"].phase == "DECOMMISSIONED"
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await again.stub.RenewCertificate(link_pb2.RenewCertificateRequest(csr_pem=new_key_and_csr()[1]))
        assert refusal.value.code() is Code.FAILED_PRECONDITION
        assert refusal.value.details() == "server web-1 was drained; enrol it anew with a token"

    @limited(hello_seconds=0.1)
    async def test_agent_that_says_no_hello_is_let_go(self, world):
        agent = await world.agent("web-1", attached=False)

        assert await agent.ending() == (Code.DEADLINE_EXCEEDED, "no Hello within 0.1 s")

    async def test_newer_session_of_a_server_takes_the_place_of_the_older(self, world):
        older = await world.agent("web-1")
        newer = await world.agent("web-1")

        assert await older.ending() == (Code.ABORTED, "session 7-2 of the same server took its place")
        await newer.report()
        await world.mind.until(lambda: observed(world, Reported))
        assert [one.session for one in observed(world, Reported)] == ["7-2"]
        assert world.mind.view().sight.servers["web-1"].is_open

    async def test_stream_that_ends_is_observed(self, world):
        agent = await world.agent("web-1")
        agent.call.cancel()

        await world.mind.until(lambda: observed(world, Detached))
        assert not world.mind.view().sight.servers["web-1"].is_open

    async def test_agent_that_ends_its_stream_gets_ok(self, world):
        agent = await world.agent("web-1")
        await agent.call.done_writing()

        assert await agent.ending() == (Code.OK, "")
        assert [one.reason for one in observed(world, Detached)] == ["the agent ended its stream"]


class TestReports:
    async def test_report_is_observed_with_the_schedulers_time(self, world):
        agent = await world.agent("web-1")
        before = world.mind.now()
        await agent.report(
            running("web/0.1"),
            vitals=cell_pb2.Vitals(cpu_fraction=0.5, engine_latency_ms=-1.0),
            complete=True,
        )

        await world.mind.until(lambda: observed(world, Reported))
        (reported,) = observed(world, Reported)
        assert before <= reported.at <= world.mind.now()
        assert reported == Reported(
            "web-1",
            "7-1",
            1,
            reported.at,
            (
                CellReport(
                    "web/0.1", "", CellState.RUNNING, "42", {"http": "127.0.0.1:8080"}, ProbeStatus(True)
                ),
            ),
            Vitals(cpu_fraction=0.5, engine_latency_ms=-1.0),
            complete=True,
        )

    async def test_report_that_carries_its_time_is_echoed(self, world):
        agent = await world.agent("web-1")
        before = world.mind.now()
        await agent.report(sent_at=12.5)

        echo = (await agent.hear()).echo
        assert echo.sent_at == 12.5
        assert before <= echo.received_at <= world.mind.now()

    async def test_report_of_another_session_is_void(self, world):
        agent = await world.agent("web-1")
        await agent.say(report=link_pb2.Report(session="6-9", sequence=1))
        await agent.report()

        await world.mind.until(lambda: observed(world, Reported))
        assert [one.session for one in observed(world, Reported)] == ["7-1"]

    @pytest.mark.parametrize(
        ("message", "reason"),
        [
            ({"report": {"sequence": 0}}, "report: its sequence is 0; the first one is 1"),
            (
                {"report": {"sequence": 1, "cells": [{"cell_id": "web/0.1"}]}},
                "web/0.1: its state 0 is not known here",
            ),
            (
                {"report": {"sequence": 1, "vitals": {"load_1m": float("nan")}}},
                "vitals.load_1m: nan cannot be",
            ),
            ({"hello": {"wire_version": 1}}, "a link has one Hello"),
            ({}, "a message of the link is empty, or of a kind that is not known here"),
        ],
    )
    async def test_message_that_cannot_be_closes_that_session_alone(self, world, message, reason):
        bad, good = await world.agent("web-1"), await world.agent("web-2")
        if "report" in message:
            message = {"report": {"session": bad.welcome.session, **message["report"]}}
        await bad.say(**message)

        assert await bad.ending() == (Code.INVALID_ARGUMENT, reason)
        await good.report(sent_at=1.0)
        assert (await good.hear()).HasField("echo")
        assert [one.server for one in observed(world, Detached)] == ["web-1"]

    async def test_bad_hello_does_not_cost_the_server_the_session_that_it_has(self, world):
        good = await world.agent("web-1")
        bad = await world.agent("web-1", attached=False)
        await bad.say(hello=link_pb2.Hello(wire_version=1, labels={"x" * 300: ""}))

        assert await bad.ending() == (
            Code.INVALID_ARGUMENT,
            "hello.labels: 300 characters are more than 256",
        )
        await good.report(sent_at=1.0)
        assert (await good.hear()).HasField("echo")


class TestInstructions:
    async def test_commands_given_together_travel_in_one_batch(self, world):
        agent = await world.agent("web-1")
        await world.mind.ask(ApplyGroups((service("web", 3),)), "operator:ann")

        answer = await agent.hear()
        batch = answer.instructions
        assert (batch.session, batch.sequence) == ("7-1", 1)
        assert [one.order.cell_id for one in batch.instructions] == ["web/0.1", "web/1.1", "web/2.1"]
        assert batch.instructions[0].order.spec.command == ["serve", "1"]

        world.dispatcher.send([Decommission("web-1", "web/0.1", "why not")])
        batch = (await agent.hear()).instructions
        assert batch.sequence == 2
        assert batch.instructions == [
            link_pb2.Instruction(decommission=link_pb2.Decommission(cell_id="web/0.1", reason="why not"))
        ]

    async def test_gap_in_reports_is_answered_by_a_resync(self, world):
        agent = await world.agent("web-1")
        agent.sequence = 4
        await agent.report()

        assert await agent.instructions() == [link_pb2.Instruction(resync=link_pb2.Resync())]

    async def test_commands_for_a_server_without_a_session_are_dropped(self, world):
        agent = await world.agent("web-1")
        world.dispatcher.send([Decommission("web-2", "a/0.1", ""), Decommission("web-1", "b/0.1", "")])

        assert [one.decommission.cell_id for one in await agent.instructions()] == ["b/0.1"]

    @limited(write_seconds=0.5)
    async def test_agent_that_does_not_drain_its_stream_loses_its_session_and_nobody_waits(self, world):
        stuck, quick = await world.agent("web-1"), await world.agent("web-2")
        large = spec(env={"LARGE": "x" * 60_000})
        for number in range(200):  # 12 MB, far beyond any window, and nobody reads
            world.dispatcher.send([Order("web-1", f"web/{number}.1", "d", large)])
        await quick.report(sent_at=1.0)

        assert (await quick.hear()).HasField("echo")
        await world.mind.until(lambda: observed(world, Detached))
        assert [(one.server, one.reason) for one in observed(world, Detached)] == [
            ("web-1", "the agent did not take a message for 0.5 s")
        ]
        stuck.call.cancel()

    @limited(instructions=10)
    async def test_too_many_waiting_instructions_end_the_session(self, world):
        agent = await world.agent("web-1")
        world.dispatcher.send([Decommission("web-1", f"web/{n}.1", "") for n in range(11)])

        assert await agent.ending() == (
            Code.RESOURCE_EXHAUSTED,
            "the agent does not take its instructions: 10 wait",
        )


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
        await world.mind.ask(ApplyGroups((pool("rack", 1, lease_seconds=15.0),)), "operator:ann")
        agent = await world.agent("rack/0.1")
        assert agent.welcome.tempo == link_pb2.Tempo(beat_ms=1_000, lease_ms=15_000)

        await world.mind.ask(ApplyGroups((pool("rack", 1, lease_seconds=30.0),)), "operator:ann")
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
        with pytest.raises(Refused, match="more than 10 bytes wait to be read"):
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
            "operator eve has the role admin, and Attach needs a server's certificate",
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
