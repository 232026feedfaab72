"""The operators' calls that wait, watch and read: the real service behind mTLS, the real core."""

import asyncio
import json

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from galactica.scheduler.core.model.requests import Asker, Enrol
from galactica.scheduler.core.model.spec import RuntimeKind
from galactica.scheduler.security.ca import new_key_and_csr
from galactica.scheduler.security.gate import NOW_KEY
from galactica.scheduler.security.identities import OperatorIdentity, Role
from galactica.scheduler.security.tokens import parse_token
from galactica.v1 import cell_pb2, link_pb2, operator_pb2, operator_pb2_grpc
from tests.support.link_world import LIMIT_SECONDS, link_world, running
from tests.support.memory_mind import kinds
from tests.support.operator_world import Code, apply, proven_at_once, refusal, wait_ready
from tests.support.world import service, spec


@pytest.fixture
async def world(tmp_path):
    async with link_world(tmp_path) as world:
        yield world


class TestWaiting:
    async def test_wait_ends_when_the_last_cell_is_ready(self, world):
        operator = await world.operator()
        agent = await world.agent("web-1")
        await apply(operator, proven_at_once(service("web", 1)))
        waiting = asyncio.ensure_future(wait_ready(operator))
        await agent.instructions()
        assert not waiting.done()
        await agent.report(running("web/0.1"))
        await world.mind.until(lambda: "CellReady" in kinds(world.mind.records))
        await agent.report()

        assert (await waiting).group.ready == 1

    async def test_one_sighting_of_a_ready_cell_does_not_end_the_wait(self, world):
        operator = await world.operator()
        agent = await world.agent("web-1")
        await apply(operator, service("web", 1))
        waiting = asyncio.ensure_future(wait_ready(operator))
        await agent.instructions()
        await agent.report(running("web/0.1"))
        await world.mind.until(lambda: "CellReady" in kinds(world.mind.records))
        seen = await operator.GetGroup(operator_pb2.GetGroupRequest(group="web"))
        assert (seen.group.ready, seen.unproven) == (1, 1)
        await agent.report(running("web/0.1", cell_pb2.CELL_STATE_EXITED))
        await world.mind.until(lambda: "CellCondemned" in kinds(world.mind.records))
        await operator.GetGroup(operator_pb2.GetGroupRequest(group="web"))

        assert not waiting.done()
        waiting.cancel()

    async def test_wait_for_a_group_that_is_deleted_ends_as_not_found(self, world):
        operator = await world.operator()
        await apply(operator, service("web", 1))
        waiting = asyncio.ensure_future(wait_ready(operator))
        await asyncio.sleep(0)
        await operator.DeleteGroup(operator_pb2.DeleteGroupRequest(group="web"))

        code, details, _ = await refusal(waiting)
        assert (code, details) in [
            (Code.NOT_FOUND, "web was deleted"),
            (Code.NOT_FOUND, "no such group: web"),
        ]

    async def test_wait_is_bounded_by_the_callers_deadline(self, world):
        operator = await world.operator()
        await apply(operator, service("web", 1))
        call = operator.WaitReady(operator_pb2.WaitReadyRequest(group="web"), timeout=0.2)

        assert await call.code() is Code.DEADLINE_EXCEEDED


async def test_each_answer_tells_the_schedulers_time(world):
    operator = await world.operator()
    world.mind.off_seconds = 3_456_000.0
    before = world.mind.now()
    for call in (
        operator.GetStatus(operator_pb2.GetStatusRequest()),
        operator.WatchEvents(operator_pb2.WatchEventsRequest(tail=1)),
    ):
        told = float(dict(await call.initial_metadata())[NOW_KEY])
        assert before - 0.001 <= told <= world.mind.now() + 0.001


async def test_a_token_tells_people_its_end_by_the_wall_clock(world):
    operator = await world.operator()
    before = world.ca.now()
    world.mind.off_seconds = 3_456_000.0
    answer = await operator.CreateToken(operator_pb2.CreateTokenRequest(uses=1, ttl_seconds=60))
    assert before + 60 <= answer.expires_at <= world.ca.now() + 60
    status = await operator.GetStatus(operator_pb2.GetStatusRequest())
    assert "times in the journal are 40d ahead of the scheduler's wall clock" in status.notes[0]


class TestGroups:
    async def test_apply_says_what_is_held_right_after_and_the_group_says_it_too(self, world):
        operator = await world.operator()
        await world.agent("web-1")
        applied = await apply(
            operator, service("web", 1, spec(runtime=RuntimeKind.DOCKER, image="web:1", ports={"http": 80}))
        )
        answer = await operator.GetGroup(operator_pb2.GetGroupRequest(group="web"))

        assert [(hold.group, hold.rule) for hold in applied.held] == [("web", "no_capacity")]
        assert (answer.healthy, answer.held) == (False, applied.held)

    async def test_a_group_tells_its_newest_deaths_with_their_autopsies(self, world):
        operator = await world.operator()
        agent = await world.agent("web-1")
        await apply(operator, service("web", 1))
        await agent.instructions()
        ended = running("web/0.1", cell_pb2.CELL_STATE_EXITED)
        ended.autopsy.CopyFrom(cell_pb2.Autopsy(reason="exited with code 3", exit_code=3))
        await agent.report(ended)
        await world.mind.until(lambda: "CellCondemned" in kinds(world.mind.records))
        answer = await operator.GetGroup(operator_pb2.GetGroupRequest(group="web"))

        (death,) = answer.deaths
        assert (death.cell.id, death.rule, death.autopsy.exit_code) == ("web/0.1", "exited", 3)
        assert answer.group.wanted == 1


class TestWatching:
    async def watched(self, operator, count, **request):
        call = operator.WatchEvents(operator_pb2.WatchEventsRequest(**request), timeout=LIMIT_SECONDS)
        seen = []
        async for answer in call:
            seen += answer.events
            if len(seen) >= count:
                break
        call.cancel()
        return seen

    async def test_all_events_from_a_position_are_told_in_order_and_the_call_ends(self, world):
        operator = await world.operator()
        await world.agent("web-1")
        await apply(operator, service("web", 2))

        seen = await self.watched(operator, 10_000, from_position=1)

        assert [event.type for event in seen] == kinds(world.mind.records)
        assert [event.position for event in seen] == list(range(1, len(seen) + 1))
        ordered = next(event for event in seen if event.type == "CellOrdered")
        assert (ordered.cell, ordered.group, ordered.server) == ("web/0.1", "web", "web-1")
        assert json.loads(ordered.details_json)["revision"] == 1

    async def test_new_events_follow_the_tail(self, world):
        operator = await world.operator()
        await apply(operator, service("web", 1))
        last = world.mind.records[-1]
        request = operator_pb2.WatchEventsRequest(tail=1, follow=True)
        call = operator.WatchEvents(request, timeout=LIMIT_SECONDS)
        seen = list((await call.read()).events)
        await operator.DeleteGroup(operator_pb2.DeleteGroupRequest(group="web"))
        seen += (await call.read()).events
        call.cancel()
        assert [(event.position, event.type) for event in seen] == [
            (last.position, type(last.event).__name__),
            (last.position + 1, "GroupDeleted"),
        ]
        assert seen[1].cause == "operator:ann"

    async def test_secrets_in_events_are_not_shown(self, world):
        operator = await world.operator()
        await apply(operator, service("web", 1, spec(env={"PASSWORD": "hunter2"})))
        await operator.CreateToken(operator_pb2.CreateTokenRequest(uses=1, ttl_seconds=60))

        seen = await self.watched(operator, 10_000, from_position=1)

        told = "".join(event.details_json for event in seen)
        assert "PASSWORD" in told
        assert "hunter2" not in told
        assert "sha256" not in told


class TestCertificates:
    async def test_death_certificate_has_evidence_verdict_budget_and_both_neighbours(self, world):
        operator = await world.operator()
        agent = await world.agent("web-1")
        await apply(operator, service("web", 1))
        await agent.instructions()
        await agent.report(running("web/0.1"))
        autopsy = cell_pb2.Autopsy(
            reason="killed by SIGKILL", signal="SIGKILL", last_lines=["bye"], lived_seconds=2.5
        )
        await agent.report(
            cell_pb2.CellReport(cell_id="web/0.1", state=cell_pb2.CELL_STATE_EXITED, autopsy=autopsy)
        )
        await agent.instructions()
        await agent.report(cell_pb2.CellReport(cell_id="web/0.1", state=cell_pb2.CELL_STATE_GONE))
        await world.mind.until(lambda: "CellDecommissioned" in kinds(world.mind.records))

        answer = await operator.GetCertificate(operator_pb2.GetCertificateRequest(cell_id="web/0.1"))
        condemned = next(r for r in world.mind.records if type(r.event).__name__ == "CellCondemned")
        assert answer.cell.phase == "DECOMMISSIONED"
        assert (answer.verdict, answer.rule, answer.budget) == ("dead", "exited", "none: the cell is dead")
        assert (answer.cause, answer.condemned_at) == ("report:web-1", condemned.at)
        assert [(one.source, one.says) for one in answer.evidence] == [("agent web-1", "killed by SIGKILL")]
        assert answer.autopsy == autopsy

    async def test_cell_that_lives_has_a_verdict_and_no_death(self, world):
        operator = await world.operator()
        agent = await world.agent("web-1")
        await apply(operator, service("web", 1))
        await agent.instructions()
        failing = running("web/0.1")
        failing.probe.consecutive_failures = 2
        failing.probe.last_error = "connection refused"
        await agent.report(running("web/0.1"))
        await agent.report(failing)
        seen = world.mind.view
        await world.mind.until(
            lambda: (
                (report := seen().sight.report_of("web-1", "web/0.1")) and report.probe.consecutive_failures
            )
        )

        answer = await operator.GetCertificate(operator_pb2.GetCertificateRequest(cell_id="web/0.1"))
        assert (answer.verdict, answer.rule, answer.HasField("condemned_at")) == ("suspect", "", False)
        assert [one.says for one in answer.evidence] == ["its probe failed 2 of 3 times: connection refused"]

    async def test_what_is_no_cell_id_is_an_invalid_argument(self, world):
        operator = await world.operator()
        code, details, _ = await refusal(
            operator.GetCertificate(operator_pb2.GetCertificateRequest(cell_id="web"))
        )

        assert code is Code.INVALID_ARGUMENT
        assert details == (
            "no such cell or server: 'web'; write a cell as GROUP/SLOT.GENERATION, for example web/2.7, "
            "and a group as service/NAME or pool/NAME"
        )


class TestLogs:
    async def test_logs_come_from_the_cells_agent(self, world):
        operator = await world.operator()
        agent = await world.agent("web-1")
        await apply(operator, service("web", 1))
        await agent.instructions()
        call = operator.ReadLogs(operator_pb2.ReadLogsRequest(cell_id="web/0.1", tail=5))
        (asked,) = await agent.instructions()
        stream = asked.fetch_logs.stream
        await agent.say(log_chunk=link_pb2.LogChunk(stream=stream, data=b"hello\n"))
        await agent.say(log_chunk=link_pb2.LogChunk(stream=stream, end=True))

        assert [answer.data async for answer in call] == [b"hello\n"]
        assert asked.fetch_logs.tail == 5

    async def test_reader_who_goes_away_stops_the_stream_at_the_agent(self, world):
        operator = await world.operator()
        agent = await world.agent("web-1")
        await apply(operator, service("web", 1))
        await agent.instructions()
        call = operator.ReadLogs(operator_pb2.ReadLogsRequest(cell_id="web/0.1", follow=True))
        (asked,) = await agent.instructions()
        call.cancel()

        assert await agent.instructions() == [
            link_pb2.Instruction(stop_logs=link_pb2.StopLogs(stream=asked.fetch_logs.stream))
        ]


class TestHandingOut:
    async def test_token_is_good_for_one_enrolment_and_only_its_hash_is_kept(self, world):
        operator = await world.operator()
        answer = await operator.CreateToken(operator_pb2.CreateTokenRequest(uses=1, ttl_seconds=60))
        token = parse_token(answer.token)

        assert (answer.scheduler, answer.uses) == ("scheduler.example:7400", 1)
        assert abs(answer.expires_at - world.mind.now() - 60) < 10
        assert token.ca_digest == world.ca.digest
        assert answer.token.split(".")[2] not in str(world.mind.records)
        await world.mind.ask(Enrol(token.id, token.secret_sha256, "web-9"), Asker.server("web-9"))

    async def test_operators_certificate_works_and_is_on_record(self, world):
        operator = await world.operator()
        key, csr = new_key_and_csr()
        answer = await operator.CreateOperator(
            operator_pb2.CreateOperatorRequest(name="joe", role="viewer", csr_pem=csr, ttl_seconds=600)
        )
        recorded = world.mind.records[-1].event
        assert (recorded.operator, recorded.role, recorded.expires_at) == ("joe", "viewer", answer.expires_at)

        joe = operator_pb2_grpc.OperatorServiceStub(await world.channel(key, answer.certificate_pem))
        version = await joe.GetVersion(operator_pb2.GetVersionRequest())
        assert version == operator_pb2.GetVersionResponse(
            version="0.1.0", wire_version=2, fleet="alpha", fleet_id=world.ca.fleet_id
        )
        _, details, _ = await refusal(joe.CreateToken(operator_pb2.CreateTokenRequest()))
        assert details.startswith(f"operator joe has the role {OperatorIdentity('joe', Role.VIEWER).role}")

    @pytest.mark.parametrize(
        ("call", "fields", "message"),
        [
            (
                "CreateToken",
                {},
                "uses: 0 is not between 1 and 10000\nttl_seconds: 0 is not between 1 and 2592000",
            ),
            (
                "CreateOperator",
                {"ttl_seconds": 5, "role": "king"},
                "invalid role 'king'; the roles are viewer, deployer, admin",
            ),
            ("CreateOperator", {"ttl_seconds": 0}, "ttl_seconds: 0 is not between 1 and 94608000"),
        ],
    )
    async def test_wrong_wishes_are_invalid_arguments(self, world, call, fields, message):
        operator = await world.operator()
        answer = getattr(operator, call)(getattr(operator_pb2, f"{call}Request")(**fields))

        assert (await answer.code(), await answer.details()) == (Code.INVALID_ARGUMENT, message)


class TestThePort:
    async def test_health_and_reflection_are_on(self, world):
        channel = await world.operator_channel("joe", Role.VIEWER)
        health = health_pb2_grpc.HealthStub(channel)
        for service_name in ("", "galactica.v1.OperatorService", "galactica.v1.AgentLinkService"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service_name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING

        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = (await call.read()).list_services_response.service
        assert {one.name for one in listed} >= {
            "galactica.v1.OperatorService",
            "galactica.v1.AgentLinkService",
            "grpc.health.v1.Health",
        }
        call.cancel()

    async def test_fifty_thousand_cells_are_listed_in_one_answer(self, world):
        operator = await world.operator()
        await world.agent("web-1")
        await apply(operator, service("web", 2_000))
        fleet = world.mind.core.fleet
        for number in range(
            25
        ):  # the same slots under other names: a large fleet without the time to order it
            state = fleet.groups["web"]
            fleet = type(fleet)(groups=fleet.groups.insert(f"web-{number}", state), servers=fleet.servers)
        world.mind.core.fleet = fleet

        answer = await operator.ListCells(operator_pb2.ListCellsRequest(), timeout=60.0)

        assert len(answer.cells) == 52_000
        assert answer.ByteSize() > 4 * 2**20
