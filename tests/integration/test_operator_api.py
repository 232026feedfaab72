"""The operators' contract: real gRPC with mTLS on loopback, the real core behind it, agents played by hand."""

import asyncio
import contextlib
import json

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from msgspec.structs import replace

from galactica.scheduler.authorisation import OPERATOR_CALLS
from galactica.scheduler.ca import new_key_and_csr
from galactica.scheduler.identities import OperatorIdentity, Role
from galactica.scheduler.requests import Enrol
from galactica.scheduler.tokens import parse_token
from galactica.scheduler.wire_groups import group_to_proto
from galactica.v1 import cell_pb2, link_pb2, operator_pb2, operator_pb2_grpc
from tests.support.link_world import LIMIT_SECONDS, link_world, running
from tests.support.memory_mind import kinds
from tests.support.world import pool, service, spec

Code = grpc.StatusCode


@pytest.fixture
async def world(tmp_path):
    async with link_world(tmp_path) as world:
        yield world


@contextlib.asynccontextmanager
async def obedient(world, *servers):
    """Servers whose agents do at once what they are told."""
    async with asyncio.TaskGroup() as tasks:
        agents = [await world.agent(server) for server in servers]
        obeying = [tasks.create_task(agent.obey()) for agent in agents]
        yield agents
        for task in obeying:
            task.cancel()


def groups(*wanted):
    return [group_to_proto(group) for group in wanted]


async def apply(operator, *wanted):
    return await operator.ApplyGroups(
        operator_pb2.ApplyGroupsRequest(groups=groups(*wanted)), timeout=LIMIT_SECONDS
    )


async def wait_ready(operator, name="web"):
    return await operator.WaitReady(operator_pb2.WaitReadyRequest(group=name), timeout=LIMIT_SECONDS)


async def refusal(call):
    """Code, message and rule of a refused call."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    error = refused.value
    return error.code(), error.details(), dict(error.trailing_metadata() or ()).get("galactica-refusal")


class TestWhoMayCall:
    @pytest.mark.parametrize("role", list(Role))
    async def test_each_call_is_open_to_its_role_and_those_above(self, world, role):
        operator = await world.operator("joe", role)
        allowed = set()
        for call in OPERATOR_CALLS:
            request = getattr(operator_pb2, f"{call}Request")()
            sent = iter([request]) if call == "OpenShell" else request
            answer = getattr(operator, call)(sent, timeout=LIMIT_SECONDS)
            if await answer.code() is not Code.PERMISSION_DENIED:
                allowed.add(call)

        readers = {
            "GetStatus", "ListCells", "ListServers", "ListProviders", "WatchEvents", "GetCertificate", "ReadLogs",
            "GetVersion", "PlanGroups", "WaitReady",
        }  # fmt: skip
        deployers = readers | {"ApplyGroups", "DeleteGroup", "CondemnCell", "OpenShell"}
        admins = deployers | {"DrainServer", "ReleaseStorm", "CreateToken", "CreateOperator"}
        assert allowed == {Role.VIEWER: readers, Role.DEPLOYER: deployers, Role.ADMIN: admins}[role]

    async def test_every_call_of_the_contract_is_in_the_table(self):
        contract = operator_pb2.DESCRIPTOR.services_by_name["OperatorService"].methods_by_name
        assert set(OPERATOR_CALLS) == set(contract)

    async def test_refused_call_names_operator_role_and_call_and_is_recorded(self, world):
        operator = await world.operator("joe", Role.VIEWER)

        assert await refusal(operator.DrainServer(operator_pb2.DrainServerRequest(server_id="a"))) == (
            Code.PERMISSION_DENIED,
            "operator joe has the role viewer, and DrainServer needs the role admin",
            "not_authorised",
        )
        record = world.mind.records[-1]
        assert (record.cause, record.event.caller, record.event.role, record.event.call) == (
            "operator:joe", "operator:joe", "viewer", "DrainServer",
        )  # fmt: skip

    async def test_servers_cannot_call_operators_methods_and_the_attempt_is_recorded(self, world):
        stub = operator_pb2_grpc.OperatorServiceStub(await world.server_channel("web-1"))

        assert await refusal(stub.GetStatus(operator_pb2.GetStatusRequest())) == (
            Code.PERMISSION_DENIED,
            "server web-1 may not call GetStatus: that needs an operator's certificate",
            "not_authorised",
        )
        assert world.mind.records[-1].event.caller == "server:web-1"

    async def test_refusal_is_told_even_when_the_journal_takes_nothing(self, world):
        world.mind.journal_refuses = "disk full"
        operator = await world.operator("joe", Role.VIEWER)
        code, _, rule = await refusal(operator.DrainServer(operator_pb2.DrainServerRequest()))

        assert (code, rule) == (Code.PERMISSION_DENIED, "not_authorised")


class TestApplying:
    async def test_service_is_applied_ordered_and_seen_ready(self, world):
        operator = await world.operator()
        async with obedient(world, "web-1", "web-2"):
            applied = await apply(operator, service("web", 3))
            ready = await wait_ready(operator)

            (change,) = applied.changes
            assert (change.group, change.change, change.revision) == ("web", "created", 1)
            assert applied.position <= world.mind.view().fleet.position
            assert ready.group == operator_pb2.GroupStatus(
                kind="service", name="web", wanted=3, ready=3, revision=1
            )
            status = await operator.GetStatus(operator_pb2.GetStatusRequest())
            assert status == operator_pb2.GetStatusResponse(
                fleet="alpha",
                healthy=True,
                groups=[ready.group],
                position=world.mind.view().fleet.position,
                epoch=1,
            )
            again = await apply(operator, service("web", 3))
            assert [one.change for one in again.changes] == ["unchanged"]

    async def test_all_problems_of_all_groups_are_told_at_once(self, world):
        operator = await world.operator()
        bad = groups(service("Web"), service("api", of=spec(command=())), service("ok"), service("ok"))

        code, details, rule = await refusal(operator.ApplyGroups(operator_pb2.ApplyGroupsRequest(groups=bad)))

        assert (code, rule) == (Code.INVALID_ARGUMENT, "invalid")
        assert [line.partition(":")[0] for line in details.split("\n")] == ["Web", "api", "ok"]
        assert details.endswith("ok: it is there twice")
        assert world.mind.view().fleet.groups.get("ok") is None

    async def test_message_of_a_very_long_refusal_is_cut_and_arrives(self, world):
        operator = await world.operator()
        bad = groups(*(service("Ü" * 60 + str(number)) for number in range(200)))

        code, details, _ = await refusal(operator.ApplyGroups(operator_pb2.ApplyGroupsRequest(groups=bad)))

        assert code is Code.INVALID_ARGUMENT
        assert details.endswith(" ...")

    async def test_journal_that_takes_nothing_refuses_orders_and_serves_reads(self, world):
        operator = await world.operator()
        world.mind.journal_refuses = "disk full: no space in /data"

        assert await refusal(apply(operator, service())) == (
            Code.UNAVAILABLE,
            "disk full: no space in /data",
            "journal",
        )
        status = await operator.GetStatus(operator_pb2.GetStatusRequest())
        assert not status.healthy
        assert [(hold.rule, hold.reason) for hold in status.held] == [
            ("journal", "disk full: no space in /data")
        ]

    async def test_plan_tells_births_and_deaths_and_changes_nothing(self, world):
        operator = await world.operator()
        async with obedient(world, "web-1"):
            await apply(operator, service("web", 2))
            await wait_ready(operator)
            before = world.mind.view().fleet
            request = operator_pb2.PlanGroupsRequest(groups=groups(service("web", 2, spec("2"))))
            planned = await operator.PlanGroups(request)

            assert [(one.cell_id, one.server, one.replaces) for one in planned.births] == [
                ("web/0.2", "web-1", "web/0.1"),
                ("web/1.2", "web-1", "web/1.1"),
            ]
            assert [(one.cell_id, one.rule) for one in planned.deaths] == [
                ("web/0.1", "outdated"),
                ("web/1.1", "outdated"),
            ]
            assert [(one.change, one.revision) for one in planned.changes] == [("changed", 2)]
            assert world.mind.view().fleet is before

    async def test_delete_and_drain_tell_how_many_cells_go(self, world):
        operator = await world.operator()
        async with obedient(world, "web-1"):
            await apply(operator, service("web", 2))
            await wait_ready(operator)
            drained = await operator.DrainServer(operator_pb2.DrainServerRequest(server_id="web-1"))
            deleted = await operator.DeleteGroup(operator_pb2.DeleteGroupRequest(group="web"))

            assert (drained.cells, deleted.cells) == (2, 2)

    @pytest.mark.parametrize(
        ("call", "request_of", "message"),
        [
            ("DeleteGroup", {"group": "no"}, "there is no group no"),
            ("WaitReady", {"group": "no"}, "there is no group no"),
            ("ListCells", {"group": "no"}, "there is no group no"),
            (
                "CondemnCell",
                {"cell_id": "no/1.1"},
                "there is no cell no/1.1, or it is decommissioned already",
            ),
            ("DrainServer", {"server_id": "no"}, "there is no server no"),
            ("ReleaseStorm", {"storm_id": "no-1"}, "there is no storm no-1"),
            ("WaitReady", {"group": "no", "kind": "GROUP_KIND_POOL"}, "there is no pool no"),
            ("GetCertificate", {"cell_id": "no/1.1"}, "there is and was no cell no/1.1"),
            ("ReadLogs", {"cell_id": "no/1.1"}, "there is no cell no/1.1"),
        ],
    )
    async def test_what_does_not_exist_is_not_found(self, world, call, request_of, message):
        operator = await world.operator()
        answer = getattr(operator, call)(getattr(operator_pb2, f"{call}Request")(**request_of))

        assert (await answer.code(), await answer.details()) == (Code.NOT_FOUND, message)


class TestPools:
    async def test_a_pool_is_applied_and_its_servers_are_listed_before_they_enrol(self, world):
        operator = await world.operator()
        await apply(operator, pool("rack", 2))
        listed = await operator.ListServers(operator_pb2.ListServersRequest())

        assert [(row.id, row.phase, row.pool, row.slot) for row in listed.servers] == [
            ("rack/0.1", "ORDERED", "rack", 0), ("rack/1.1", "ORDERED", "rack", 1),
        ]  # fmt: skip

    @pytest.mark.parametrize("call", ["ApplyGroups", "PlanGroups"])
    async def test_a_pool_of_a_provider_that_nobody_configured_is_refused(self, world, call):
        operator = await world.operator()
        stranger = pool("rack", 1)
        spec_of_it = replace(stranger.spec, server=replace(stranger.spec.server, provider="nobody"))
        request = getattr(operator_pb2, f"{call}Request")(groups=groups(replace(stranger, spec=spec_of_it)))

        code, details, _ = await refusal(getattr(operator, call)(request))

        assert code is Code.INVALID_ARGUMENT
        assert details == "rack: no provider 'nobody' is configured (configured: cloud, local)"
        status = await operator.GetStatus(operator_pb2.GetStatusRequest())
        assert not status.groups

    async def test_a_group_of_another_kind_is_not_deleted_and_not_waited_for(self, world):
        operator = await world.operator()
        await apply(operator, pool("rack", 1))
        for request, call in (
            (operator_pb2.DeleteGroupRequest(group="rack", kind="GROUP_KIND_SERVICE"), operator.DeleteGroup),
            (operator_pb2.WaitReadyRequest(group="rack", kind="GROUP_KIND_SERVICE"), operator.WaitReady),
        ):
            assert await refusal(call(request, timeout=LIMIT_SECONDS)) == (
                Code.NOT_FOUND,
                "there is no service rack; rack is a pool: write pool/rack",
                "no_such_group",
            )
        deleted = await operator.DeleteGroup(
            operator_pb2.DeleteGroupRequest(group="rack", kind="GROUP_KIND_POOL")
        )
        assert deleted.cells == 1

    async def test_a_server_of_a_pool_has_no_logs(self, world):
        operator = await world.operator()
        await apply(operator, pool("rack", 1))
        call = operator.ReadLogs(operator_pb2.ReadLogsRequest(cell_id="rack/0.1"))

        assert await call.code() is Code.FAILED_PRECONDITION
        assert await call.details() == "rack/0.1 is a server; logs are those of cells that run on one"

    async def test_a_shell_in_a_server_of_a_pool_is_refused_as_what_it_is(self, world):
        operator = await world.operator()
        await apply(operator, pool("rack", 1))
        start = operator_pb2.OpenShellRequest(start=operator_pb2.OpenShellStart(cell_id="rack/0.1"))
        assert await refusal(operator.OpenShell(iter([start])).read()) == (
            Code.FAILED_PRECONDITION,
            "rack/0.1 is a server; a shell is opened in a cell that runs on one",
            "is_server",
        )

    async def test_providers_that_pools_name_are_listed(self, world):
        operator = await world.operator()
        await apply(operator, pool("rack", 1))
        listed = await operator.ListProviders(operator_pb2.ListProvidersRequest())

        assert [(row.name, row.servers) for row in listed.providers] == [("local", 0)]

    async def test_a_server_that_joined_by_itself_has_a_story(self, world):
        operator = await world.operator()
        await world.agent("web-1")
        story = await operator.GetCertificate(operator_pb2.GetCertificateRequest(cell_id="web-1"))

        assert (story.cell.id, story.cell.kind, story.verdict) == ("web-1", "server", "healthy")
        await operator.DrainServer(operator_pb2.DrainServerRequest(server_id="web-1"))
        story = await operator.GetCertificate(operator_pb2.GetCertificateRequest(cell_id="web-1"))
        assert (story.rule, story.cell.reason, story.cause) == ("operator", "drained by ann", "operator:ann")


class TestWaiting:
    async def test_wait_ends_when_the_last_cell_is_ready(self, world):
        operator = await world.operator()
        agent = await world.agent("web-1")
        await apply(operator, service("web", 1))
        waiting = asyncio.ensure_future(wait_ready(operator))
        await agent.instructions()
        assert not waiting.done()
        await agent.report(running("web/0.1"))

        assert (await waiting).group.ready == 1

    async def test_wait_for_a_group_that_is_deleted_ends_as_not_found(self, world):
        operator = await world.operator()
        await apply(operator, service("web", 1))
        waiting = asyncio.ensure_future(wait_ready(operator))
        await asyncio.sleep(0)
        await operator.DeleteGroup(operator_pb2.DeleteGroupRequest(group="web"))

        code, details, _ = await refusal(waiting)
        assert (code, details) in [
            (Code.NOT_FOUND, "web was deleted"),
            (Code.NOT_FOUND, "there is no group web"),
        ]

    async def test_wait_is_bounded_by_the_callers_deadline(self, world):
        operator = await world.operator()
        await apply(operator, service("web", 1))
        call = operator.WaitReady(operator_pb2.WaitReadyRequest(group="web"), timeout=0.2)

        assert await call.code() is Code.DEADLINE_EXCEEDED


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
        assert (answer.verdict, answer.rule, answer.budget) == ("dead", "exited", "a dead cell needs none")
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
        assert details == "'web' is no cell and no server; write GROUP/SLOT.GENERATION, such as web/2.7"


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
        await world.mind.ask(Enrol(token.id, token.secret_sha256, "web-9"), "server:web-9")

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
        assert version == operator_pb2.GetVersionResponse(version="0.1.0", wire_version=1, fleet="alpha")
        _, details, _ = await refusal(joe.CreateToken(operator_pb2.CreateTokenRequest()))
        assert details.startswith(f"operator joe has the role {OperatorIdentity('joe', Role.VIEWER).role}")

    @pytest.mark.parametrize(
        ("call", "fields", "message"),
        [
            (
                "CreateToken",
                {},
                "uses: 0 is not within 1 and 10000\nttl_seconds: 0 is not within 1 and 2592000",
            ),
            (
                "CreateOperator",
                {"ttl_seconds": 5, "role": "king"},
                "'king' is no role; roles are viewer, deployer, admin",
            ),
            ("CreateOperator", {"ttl_seconds": 0}, "ttl_seconds: 0 is not within 1 and 94608000"),
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
