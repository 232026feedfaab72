"""The agents' link: real gRPC with mTLS on loopback, agents played by hand, the real core behind it."""

import grpc
import pytest
import structlog

from galactica.scheduler.core.model.commands import Decommission, Order
from galactica.scheduler.core.model.requests import ApplyGroups, Asker, DrainServer
from galactica.scheduler.core.model.spec import Resources, RuntimeKind
from galactica.scheduler.core.sight.observations import (
    Attached,
    CellReport,
    CellState,
    Detached,
    ProbeStatus,
    Reported,
    ServerFacts,
)
from galactica.scheduler.core.sight.vitals import Vitals
from galactica.scheduler.link.session import SKIPPED_TOLD
from galactica.scheduler.security.ca import new_key_and_csr
from galactica.scheduler.views.servers import servers
from galactica.v1 import cell_pb2, link_pb2, link_pb2_grpc
from tests.support.dispatcher_world import Code, limited, observed
from tests.support.link_world import link_world, running
from tests.support.memory_mind import kinds
from tests.support.world import service, spec


@pytest.fixture
async def world(tmp_path, request):
    """Parametrised indirectly by the limits of a link."""
    async with link_world(tmp_path, limits=getattr(request, "param", None)) as world:
        yield world


class TestAttaching:
    async def test_hello_becomes_an_attached_session_and_is_welcomed(self, world):
        before = world.mind.now()
        agent = await world.agent(
            "web-1", labels={"zone": "a"}, inventory=[running("web/0.1")], agent_version="0.1.0"
        )

        assert agent.welcome == link_pb2.Welcome(
            session="7-1",
            epoch=7,
            tempo=link_pb2.Tempo(beat_ms=1_000, lease_ms=5_000),
            fleet="alpha",
            start="this start",
            position=agent.welcome.position,
            wire_version=2,
        )
        assert agent.welcome.position > 0
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
            wire_version=2,
        )
        assert "ServerJoined" in kinds(world.mind.records)

    async def test_agent_of_the_wire_version_before_is_served_and_known_to_be_behind(self, world):
        agent = await world.agent("web-1", attached=False)
        welcome = await agent.attach(newest_wire_version=0)
        assert welcome.wire_version == 1
        (row,) = servers(world.mind.view())
        assert (row.wire_version, row.is_behind) == (1, True)

    @pytest.mark.parametrize(("version", "newer"), [(0, "agent"), (3, "scheduler")])
    async def test_agent_of_another_wire_version_is_told_both_versions(self, world, version, newer):
        agent = await world.agent("web-1", attached=False)
        await agent.say(hello=link_pb2.Hello(wire_version=version))

        code, words = await agent.ending()
        assert code is Code.FAILED_PRECONDITION
        assert words == (
            f"the agent uses wire version {version}, but this scheduler uses 2 and serves 1: "
            f"install a newer {newer}"
        )
        assert world.mind.observed == []

    async def test_server_that_never_enrolled_is_told_to(self, world):
        await world.mind.enrol("other")
        stub = link_pb2_grpc.AgentLinkServiceStub(await world.server_channel("web-1"))
        call = stub.Attach()

        assert (await call.code(), await call.details()) == (
            Code.FAILED_PRECONDITION,
            "server web-1 is not in this fleet: enrol it again with a new token",
        )

    async def test_drained_server_may_attach_for_its_orphans_but_gets_no_new_certificate(self, world):
        agent = await world.agent("web-1")
        await world.mind.ask(DrainServer("web-1"), Asker.operator("ann"))
        agent.call.cancel()
        await world.mind.until(lambda: observed(world, Detached))

        again = await world.agent("web-1")
        assert world.mind.view().fleet.servers["web-1"].phase == "DECOMMISSIONED"
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await again.stub.RenewCertificate(link_pb2.RenewCertificateRequest(csr_pem=new_key_and_csr()[1]))
        assert refusal.value.code() is Code.FAILED_PRECONDITION
        assert refusal.value.details() == "server web-1 was drained: enrol it again with a new token"

    @limited(hello_seconds=0.1)
    async def test_agent_that_says_no_hello_is_let_go(self, world):
        agent = await world.agent("web-1", attached=False)

        assert await agent.ending() == (Code.DEADLINE_EXCEEDED, "no Hello within 0.1 s")

    async def test_newer_session_of_a_server_takes_the_place_of_the_older(self, world):
        older = await world.agent("web-1")
        newer = await world.agent("web-1")

        assert await older.ending() == (Code.ABORTED, "session 7-2 of the same server replaced this one")
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
            ({"report": {"sequence": 0}}, "report: invalid sequence 0; the first one is 1"),
            ({"hello": {"wire_version": 1}}, "second Hello: a link has only one"),
            ({}, "a message is empty, or of a kind that this scheduler does not know"),
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

    async def test_wrong_entries_cost_no_session_and_are_logged_once_with_the_server(self, world):
        agent = await world.agent("web-1")
        cells = [{"cell_id": "web/0.1"}, {"cell_id": "web/1.1", "state": cell_pb2.CELL_STATE_RUNNING}]
        wrong = {"session": agent.welcome.session, "cells": cells, "vitals": {"load_1m": float("nan")}}
        with structlog.testing.capture_logs() as logs:
            for sequence in (1, 2):
                await agent.say(report={**wrong, "sequence": sequence, "sent_at": 1.0})
                assert (await agent.hear()).HasField("echo")
        told = [(one["server"], one["reason"]) for one in logs if one["event"] == "entry_skipped"]
        assert told == [
            ("web-1", "web/0.1: unknown state 0"),
            ("web-1", "vitals.load_1m: invalid value nan; the range is 0 to 1e+15"),
        ]
        assert [
            ([one.cell for one in report.cells], [one.cell for one in report.unread])
            for report in observed(world, Reported)
        ] == [(["web/1.1"], ["web/0.1"])] * 2

    async def test_of_very_many_wrong_entries_only_the_first_are_logged(self, world):
        agent = await world.agent("web-1")
        cells = [{"cell_id": f"web/{number}.1"} for number in range(1_000)]
        with structlog.testing.capture_logs() as logs:
            await agent.report(cells=cells, sent_at=1.0)
            assert (await agent.hear()).HasField("echo")
        events = [one["event"] for one in logs if one["event"].endswith("skipped")]
        assert events == ["entry_skipped"] * SKIPPED_TOLD + ["entries_skipped"]

    async def test_bad_hello_does_not_cost_the_server_the_session_that_it_has(self, world):
        good = await world.agent("web-1")
        bad = await world.agent("web-1", attached=False)
        await bad.say(hello=link_pb2.Hello(wire_version=1, labels={"x" * 300: ""}))

        assert await bad.ending() == (
            Code.INVALID_ARGUMENT,
            "hello.labels: 300 characters is too long; the limit is 256",
        )
        await good.report(sent_at=1.0)
        assert (await good.hear()).HasField("echo")


class TestInstructions:
    async def test_commands_given_together_travel_in_one_batch(self, world):
        agent = await world.agent("web-1")
        await world.mind.ask(ApplyGroups((service("web", 3),)), Asker.operator("ann"))

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
            ("web-1", "the agent did not read a message within 0.5 s")
        ]
        stuck.call.cancel()

    @limited(instructions=10)
    async def test_too_many_waiting_instructions_end_the_session(self, world):
        agent = await world.agent("web-1")
        world.dispatcher.send([Decommission("web-1", f"web/{n}.1", "") for n in range(11)])

        assert await agent.ending() == (
            Code.RESOURCE_EXHAUSTED,
            "the agent reads too slowly: 10 instructions are waiting",
        )
