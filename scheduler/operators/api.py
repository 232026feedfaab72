"""The gRPC service for operators: reads from the controller's view and the journal, asks the controller for the rest.

``security.gate`` checks who may call what, and turns exceptions from here into a status. Long answers are made in a
thread: views are immutable, and agents' beats must not wait for a list of all cells.
"""

# ruff: noqa: ARG002, N802 - the contract's names and arguments

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import Protocol

from galactica.scheduler.core.model import requests
from galactica.scheduler.core.model.events import Record
from galactica.scheduler.core.model.fleet import CellKind, parse_cell_id
from galactica.scheduler.core.model.requests import Refused
from galactica.scheduler.core.ports import Mind
from galactica.scheduler.core.preview import preview
from galactica.scheduler.operators import shell as operator_shell
from galactica.scheduler.operators.checks import check_providers, check_range, groups_of
from galactica.scheduler.operators.regrow import GenomeKeeping, regrow
from galactica.scheduler.operators.waiting import until_it_stands
from galactica.scheduler.security.ca import AuthorityError, CertificateAuthority, CsrError
from galactica.scheduler.security.gate import Context, InvalidRequest, operator_of
from galactica.scheduler.security.identities import Role
from galactica.scheduler.security.tokens import new_token
from galactica.scheduler.views import cells as cell_views
from galactica.scheduler.views import certificates
from galactica.scheduler.views import events as event_views
from galactica.scheduler.views import groups as group_views
from galactica.scheduler.views import plans as plan_views
from galactica.scheduler.views import servers as server_views
from galactica.scheduler.views import status as status_views
from galactica.scheduler.wire.operator import KINDS
from galactica.scheduler.wire.versions import WIRE_VERSION
from galactica.v1 import operator_pb2, operator_pb2_grpc

TAIL_EVENTS_LIMIT = 10_000
EVENTS_BATCH = 500
TAIL_LINES_LIMIT = 10_000
TEXT_CHARACTERS = 500
TOKEN_USES_LIMIT = 10_000
TOKEN_SECONDS_LIMIT = 30 * 86_400
OPERATOR_SECONDS_LIMIT = 3 * 365 * 86_400


class History(Protocol):
    """The part of the journal that operators read."""

    async def read(self, from_position: int, limit: int) -> tuple[Record, ...]: ...

    async def records_of(self, cell_id: str) -> tuple[Record, ...]: ...

    async def tail(self, count: int) -> tuple[Record, ...]: ...


class Logs(operator_shell.ShellOpener, Protocol):
    """Fetches a cell's output and opens shells in cells. The dispatcher implements it."""

    def open_logs(self, server: str, cell: str, tail: int, *, follow: bool) -> AsyncIterator[bytes]: ...


class OperatorApi(operator_pb2_grpc.OperatorServiceServicer):
    """One per scheduler. ``advertised`` returns the HOST:PORT where agents find this scheduler; it goes out with each
    token. ``providers`` returns the names of the configured providers: a pool of any other provider is refused,
    because its servers would never come."""

    def __init__(
        self,
        mind: Mind,
        journal: History,
        logs: Logs,
        ca: CertificateAuthority,
        *,
        fleet: str,
        version: str,
        advertised: Callable[[], str],
        providers: Callable[[], Collection[str]],
        genomes: GenomeKeeping,
    ) -> None:
        self._mind = mind
        self._journal = journal
        self._logs = logs
        self._ca = ca
        self._fleet = fleet
        self._version = version
        self._advertised = advertised
        self._providers = providers
        self._genomes = genomes

    # --- reading --------------------------------------------------------------------------------------------------

    async def GetStatus(
        self, request: operator_pb2.GetStatusRequest, context: Context
    ) -> operator_pb2.GetStatusResponse:
        view, spread = self._mind.view(), self._genomes.spread()
        wall = self._ca.now()
        return await asyncio.to_thread(status_views.status, view, self._fleet, spread, wall)

    async def ListCells(
        self, request: operator_pb2.ListCellsRequest, context: Context
    ) -> operator_pb2.ListCellsResponse:
        view = self._mind.view()
        if request.group:
            self._check_group_known(request.group)

        def make() -> operator_pb2.ListCellsResponse:
            rows = cell_views.cells(view, request.group, with_graves=request.all)
            return operator_pb2.ListCellsResponse(cells=rows)

        return await asyncio.to_thread(make)

    async def ListServers(
        self, request: operator_pb2.ListServersRequest, context: Context
    ) -> operator_pb2.ListServersResponse:
        view = self._mind.view()
        return await asyncio.to_thread(
            lambda: operator_pb2.ListServersResponse(servers=server_views.servers(view))
        )

    async def ListProviders(
        self, request: operator_pb2.ListProvidersRequest, context: Context
    ) -> operator_pb2.ListProvidersResponse:
        return operator_pb2.ListProvidersResponse(providers=server_views.providers(self._mind.view()))

    async def GetVersion(
        self, request: operator_pb2.GetVersionRequest, context: Context
    ) -> operator_pb2.GetVersionResponse:
        return operator_pb2.GetVersionResponse(
            version=self._version,
            wire_version=WIRE_VERSION,
            fleet=self._fleet,
            fleet_id=self._ca.fleet_id,
        )

    async def GetCertificate(
        self, request: operator_pb2.GetCertificateRequest, context: Context
    ) -> operator_pb2.GetCertificateResponse:
        parsed = parse_cell_id(request.cell_id)
        if parsed is None:
            return await self._server_certificate(request.cell_id)
        successor = f"{parsed.group}/{parsed.slot}.{parsed.generation + 1}"
        records = await self._journal.records_of(request.cell_id)
        followers = await self._journal.records_of(successor)
        answer = certificates.certificate(self._mind.view(), request.cell_id, records, followers)
        if answer is None:
            raise Refused("no_such_cell", f"no such cell: {request.cell_id}", missing=True)
        return answer

    async def GetGroup(
        self, request: operator_pb2.GetGroupRequest, context: Context
    ) -> operator_pb2.GetGroupResponse:
        self._check_group_known(request.group, request.kind)
        view = self._mind.view()
        state = view.fleet.groups.get(request.group)
        if state is None:
            raise Refused("no_such_group", f"{request.group} was deleted", missing=True)
        deaths: list[operator_pb2.GetCertificateResponse] = []
        for cell in group_views.newest_dead(view, state):
            records = await self._journal.records_of(cell.id)
            certificate = certificates.certificate(view, cell.id, records, ())
            deaths += [certificate] if certificate is not None else []
        return await asyncio.to_thread(group_views.group, view, state, deaths)

    async def _server_certificate(self, server_id: str) -> operator_pb2.GetCertificateResponse:
        view = self._mind.view()
        server = view.fleet.servers.get(server_id)
        if server is None:
            raise InvalidRequest(
                f"no such cell or server: {server_id[:100]!r}; write a cell as GROUP/SLOT.GENERATION, "
                "for example web/2.7, and a group as service/NAME or pool/NAME"
            )
        records = await self._journal.tail(TAIL_EVENTS_LIMIT) if server.condemned_at is not None else ()
        return certificates.server_certificate(view, server, records)

    async def WatchEvents(  # type: ignore[override]  # a coroutine that writes
        self, request: operator_pb2.WatchEventsRequest, context: Context
    ) -> None:
        position = request.from_position
        head = self._mind.fleet().position
        if not position:
            count = min(request.tail, TAIL_EVENTS_LIMIT)
            records = await self._journal.tail(count) if count else ()
            await _write_events(context, records)
            position = records[-1].position + 1 if records else head + 1
        if request.follow:
            async for records in self._mind.feed(position):
                await _write_events(context, records)
            return
        while position <= head:
            records = await self._journal.read(position, EVENTS_BATCH)
            if not records:
                return
            await _write_events(context, records)
            position = records[-1].position + 1

    async def ReadLogs(  # type: ignore[override]  # a coroutine that writes
        self, request: operator_pb2.ReadLogsRequest, context: Context
    ) -> None:
        cell = cell_views.find_cell(self._mind.view(), request.cell_id)
        if cell is None:
            raise Refused("no_such_cell", f"no such cell: {request.cell_id[:100]}", missing=True)
        if cell.kind is CellKind.SERVER:
            raise Refused("is_server", f"{cell.id} is a server; only cells that run on a server have logs")
        if cell.decommissioned_at is not None:
            raise Refused(
                "decommissioned",
                f"{cell.id} is decommissioned and its logs are deleted; its last lines: galactica why {cell.id}",
            )
        tail = min(request.tail, TAIL_LINES_LIMIT)
        async for data in self._logs.open_logs(cell.server, cell.id, tail, follow=request.follow):
            await context.write(operator_pb2.ReadLogsResponse(data=data))

    async def PlanGroups(
        self, request: operator_pb2.PlanGroupsRequest, context: Context
    ) -> operator_pb2.PlanGroupsResponse:
        groups = groups_of(request.groups)
        check_providers(groups, self._providers())
        return plan_views.plan(await asyncio.to_thread(preview, self._mind.view(), groups))

    async def WaitReady(
        self, request: operator_pb2.WaitReadyRequest, context: Context
    ) -> operator_pb2.WaitReadyResponse:
        self._check_group_known(request.group, request.kind)
        return operator_pb2.WaitReadyResponse(group=await until_it_stands(self._mind, request.group))

    def _check_group_known(self, name: str, sent_kind: int = operator_pb2.GROUP_KIND_UNSPECIFIED) -> None:
        """Raises Refused if the group does not exist or is of another kind."""
        kind = KINDS.get(operator_pb2.GroupKind.ValueType(sent_kind))
        state = self._mind.fleet().groups.get(name)
        if state is None:
            raise Refused("no_such_group", f"no such {kind or 'group'}: {name[:100]}", missing=True)
        if kind is not None and state.group.kind is not kind:
            own = state.group.kind
            message = f"no such {kind}: {name}; {name} is a {own}, so write {own}/{name}"
            raise Refused("no_such_group", message, missing=True)

    # --- asking ---------------------------------------------------------------------------------------------------

    async def ApplyGroups(
        self, request: operator_pb2.ApplyGroupsRequest, context: Context
    ) -> operator_pb2.ApplyGroupsResponse:
        groups = groups_of(request.groups)
        check_providers(groups, self._providers())
        accepted = await self._ask(requests.ApplyGroups(groups), context)
        names = {group.name for group in groups}
        held = [hold for hold in status_views.holds(self._mind.view()) if hold.group in names]
        return operator_pb2.ApplyGroupsResponse(
            changes=map(plan_views.change_row, accepted.changes), position=accepted.position, held=held
        )

    async def DeleteGroup(
        self, request: operator_pb2.DeleteGroupRequest, context: Context
    ) -> operator_pb2.DeleteGroupResponse:
        self._check_group_known(request.group, request.kind)
        accepted = await self._ask(requests.DeleteGroup(request.group), context)
        return operator_pb2.DeleteGroupResponse(cells=accepted.cells, position=accepted.position)

    async def CondemnCell(
        self, request: operator_pb2.CondemnCellRequest, context: Context
    ) -> operator_pb2.CondemnCellResponse:
        if len(request.reason) > TEXT_CHARACTERS:
            raise InvalidRequest(f"the reason is longer than {TEXT_CHARACTERS} characters")
        accepted = await self._ask(requests.CondemnCell(request.cell_id, request.reason), context)
        return operator_pb2.CondemnCellResponse(position=accepted.position)

    async def OpenShell(  # type: ignore[override]  # a coroutine that reads and writes
        self, request_iterator: object, context: Context
    ) -> None:
        await operator_shell.serve(context, self._mind, self._logs, lambda asked: self._ask(asked, context))

    async def DrainServer(
        self, request: operator_pb2.DrainServerRequest, context: Context
    ) -> operator_pb2.DrainServerResponse:
        accepted = await self._ask(requests.DrainServer(request.server_id), context)
        return operator_pb2.DrainServerResponse(cells=accepted.cells, position=accepted.position)

    async def ReleaseStorm(
        self, request: operator_pb2.ReleaseStormRequest, context: Context
    ) -> operator_pb2.ReleaseStormResponse:
        accepted = await self._ask(requests.ReleaseStorm(request.storm_id), context)
        return operator_pb2.ReleaseStormResponse(servers=accepted.cells, position=accepted.position)

    async def AdoptCells(
        self, request: operator_pb2.AdoptCellsRequest, context: Context
    ) -> operator_pb2.AdoptCellsResponse:
        accepted = await self._ask(requests.AdoptCells(tuple(request.cell_ids), request.server_id), context)
        return operator_pb2.AdoptCellsResponse(
            cells=accepted.cells, notes=accepted.notes, position=accepted.position
        )

    async def CondemnUnknown(
        self, request: operator_pb2.CondemnUnknownRequest, context: Context
    ) -> operator_pb2.CondemnUnknownResponse:
        accepted = await self._ask(
            requests.CondemnUnknown(tuple(request.cell_ids), request.server_id), context
        )
        return operator_pb2.CondemnUnknownResponse(cells=accepted.cells, position=accepted.position)

    async def Regrow(
        self, request: operator_pb2.RegrowRequest, context: Context
    ) -> operator_pb2.RegrowResponse:
        return await regrow(request, self._mind, self._genomes, operator_of(context).asker)

    async def CreateToken(
        self, request: operator_pb2.CreateTokenRequest, context: Context
    ) -> operator_pb2.CreateTokenResponse:
        """Only the operator gets the secret."""
        check_range(
            ("uses", request.uses, TOKEN_USES_LIMIT),
            ("ttl_seconds", request.ttl_seconds, TOKEN_SECONDS_LIMIT),
        )
        text, token_id, secret_sha256 = new_token(self._ca.digest)
        expires_at = self._mind.now() + request.ttl_seconds
        await self._ask(requests.CreateToken(token_id, secret_sha256, request.uses, expires_at), context)
        return operator_pb2.CreateTokenResponse(
            token=text,
            expires_at=self._ca.now()
            + request.ttl_seconds,  # for people, whose clocks the wall clock is like
            uses=request.uses,
            scheduler=self._advertised(),
        )

    async def CreateOperator(
        self, request: operator_pb2.CreateOperatorRequest, context: Context
    ) -> operator_pb2.CreateOperatorResponse:
        """The certificate is returned only after the journal has recorded it."""
        check_range(("ttl_seconds", request.ttl_seconds, OPERATOR_SECONDS_LIMIT))
        if request.role not in set(Role):
            raise InvalidRequest(f"invalid role {request.role[:100]!r}; the roles are {', '.join(Role)}")
        role = Role(request.role)
        try:
            issued = self._ca.issue_operator(request.csr_pem, request.name, role, request.ttl_seconds)
        except (CsrError, AuthorityError) as error:
            raise InvalidRequest(str(error)) from error
        await self._ask(requests.EnrolOperator(request.name, role.value, issued.expires_at), context)
        return operator_pb2.CreateOperatorResponse(
            certificate_pem=issued.certificate_pem,
            ca_pem=self._ca.certificate_pem,
            expires_at=issued.expires_at,
        )

    async def _ask(self, request: requests.Request, context: Context) -> requests.Accepted:
        return await self._mind.ask(request, by=operator_of(context).asker)


async def _write_events(context: Context, records: Sequence[Record]) -> None:
    for start in range(0, len(records), EVENTS_BATCH):
        rows = map(event_views.event_row, records[start : start + EVENTS_BATCH])
        await context.write(operator_pb2.WatchEventsResponse(events=rows))
