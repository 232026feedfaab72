"""The operators' contract: real gRPC with mTLS on loopback, the real core behind it, agents played by hand."""

import asyncio
import contextlib

import pytest
from msgspec.structs import replace

from galactica.scheduler.security.gate import OPERATOR_CALLS
from galactica.scheduler.security.identities import Role
from galactica.v1 import operator_pb2, operator_pb2_grpc
from tests.support.link_world import LIMIT_SECONDS, link_world
from tests.support.operator_world import Code, apply, groups, proven_at_once, refusal, wait_ready
from tests.support.world import pool, service, spec


@pytest.fixture
async def world(tmp_path):
    async with link_world(tmp_path) as world:
        yield world


async def beat(agent):
    while True:
        await asyncio.sleep(0.1)
        await agent.report()


@contextlib.asynccontextmanager
async def obedient(world, *servers):
    """Servers whose agents do at once what they are told."""
    async with asyncio.TaskGroup() as tasks:
        agents = [await world.agent(server) for server in servers]
        obeying = [tasks.create_task(agent.obey()) for agent in agents]
        obeying += [tasks.create_task(beat(agent)) for agent in agents]
        yield agents
        for task in obeying:
            task.cancel()


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
            "GetGroup", "GetVersion", "PlanGroups", "WaitReady",
        }  # fmt: skip
        deployers = readers | {"ApplyGroups", "DeleteGroup", "CondemnCell", "OpenShell"}
        admins = deployers | {
            "DrainServer", "ReleaseStorm", "AdoptCells", "CondemnUnknown", "Regrow", "CreateToken", "CreateOperator",
        }  # fmt: skip
        assert allowed == {Role.VIEWER: readers, Role.DEPLOYER: deployers, Role.ADMIN: admins}[role]

    async def test_every_call_of_the_contract_is_in_the_table(self):
        contract = operator_pb2.DESCRIPTOR.services_by_name["OperatorService"].methods_by_name
        assert set(OPERATOR_CALLS) == set(contract)

    async def test_refused_call_names_operator_role_and_call_and_is_recorded(self, world):
        operator = await world.operator("joe", Role.VIEWER)

        assert await refusal(operator.DrainServer(operator_pb2.DrainServerRequest(server_id="a"))) == (
            Code.PERMISSION_DENIED,
            "operator joe has the role viewer, but DrainServer needs the role admin",
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
            "server web-1 may not call GetStatus: the call needs an operator's certificate",
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
            applied = await apply(operator, proven_at_once(service("web", 3)))
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
            again = await apply(operator, proven_at_once(service("web", 3)))
            assert [one.change for one in again.changes] == ["unchanged"]

    async def test_all_problems_of_all_groups_are_told_at_once(self, world):
        operator = await world.operator()
        bad = groups(service("Web"), service("api", of=spec(command=())), service("ok"), service("ok"))

        code, details, rule = await refusal(operator.ApplyGroups(operator_pb2.ApplyGroupsRequest(groups=bad)))

        assert (code, rule) == (Code.INVALID_ARGUMENT, "invalid")
        assert [line.partition(":")[0] for line in details.split("\n")] == ["Web", "api", "ok"]
        assert details.endswith("ok: duplicate group in the request")
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
            await apply(operator, proven_at_once(service("web", 2)))
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
            await apply(operator, proven_at_once(service("web", 2)))
            await wait_ready(operator)
            drained = await operator.DrainServer(operator_pb2.DrainServerRequest(server_id="web-1"))
            deleted = await operator.DeleteGroup(operator_pb2.DeleteGroupRequest(group="web"))

            assert (drained.cells, deleted.cells) == (2, 2)

    @pytest.mark.parametrize(
        ("call", "request_of", "message"),
        [
            ("DeleteGroup", {"group": "no"}, "no such group: no"),
            ("WaitReady", {"group": "no"}, "no such group: no"),
            ("ListCells", {"group": "no"}, "no such group: no"),
            (
                "CondemnCell",
                {"cell_id": "no/1.1"},
                "no such cell: no/1.1 (or it is already decommissioned)",
            ),
            ("DrainServer", {"server_id": "no"}, "no such server: no"),
            ("ReleaseStorm", {"storm_id": "no-1"}, "no such storm: no-1"),
            ("AdoptCells", {"cell_ids": ["no/1.1"]}, "no agent runs an unknown cell no/1.1"),
            ("CondemnUnknown", {"cell_ids": ["no/1.1"]}, "no agent runs an unknown cell no/1.1"),
            ("WaitReady", {"group": "no", "kind": "GROUP_KIND_POOL"}, "no such pool: no"),
            ("GetGroup", {"group": "no", "kind": "GROUP_KIND_POOL"}, "no such pool: no"),
            ("GetCertificate", {"cell_id": "no/1.1"}, "no such cell: no/1.1"),
            ("ReadLogs", {"cell_id": "no/1.1"}, "no such cell: no/1.1"),
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
        assert details == "rack: provider 'nobody' is not configured (configured: cloud, local)"
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
                "no such service: rack; rack is a pool, so write pool/rack",
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
        assert await call.details() == "rack/0.1 is a server; only cells that run on a server have logs"

    async def test_a_shell_in_a_server_of_a_pool_is_refused_as_what_it_is(self, world):
        operator = await world.operator()
        await apply(operator, pool("rack", 1))
        start = operator_pb2.OpenShellRequest(start=operator_pb2.OpenShellStart(cell_id="rack/0.1"))
        assert await refusal(operator.OpenShell(iter([start])).read()) == (
            Code.FAILED_PRECONDITION,
            "rack/0.1 is a server; open a shell in a cell that runs on a server",
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
