"""The scheduler's side of the operators' contract from plain data, behind real mTLS, to test command lines with.

``Answers`` holds what is said; a test sets it. What was asked is kept in ``asked``.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, NoReturn

import grpc

from galactica.scheduler.security.ca import CertificateAuthority, new_key_and_csr
from galactica.scheduler.security.gate import NOW_KEY
from galactica.scheduler.security.identities import OperatorIdentity, Role, identity_of
from galactica.scheduler.settings.context import Context, keep_context
from galactica.v1 import cell_pb2, operator_pb2, operator_pb2_grpc

FLEET = "demo"
DAY_SECONDS = 86_400.0


@dataclass
class Refusal:
    code: grpc.StatusCode
    message: str
    rule: str = ""


@dataclass
class Answers:
    """``refuse``: name of a call to how it is refused. ``ended``: set when the server ends; streams wait for it.
    ``now``: the scheduler's time; None: it does not tell it, as 0.1."""

    status: operator_pb2.GetStatusResponse = field(default_factory=operator_pb2.GetStatusResponse)
    cells: list[operator_pb2.Cell] = field(default_factory=list)
    servers: list[operator_pb2.Server] = field(default_factory=list)
    providers: list[operator_pb2.Provider] = field(default_factory=list)
    events: list[operator_pb2.Event] = field(default_factory=list)
    certificate: operator_pb2.GetCertificateResponse = field(
        default_factory=operator_pb2.GetCertificateResponse
    )
    plan: operator_pb2.PlanGroupsResponse = field(default_factory=operator_pb2.PlanGroupsResponse)
    changes: list[operator_pb2.GroupChange] = field(default_factory=list)
    logs: list[bytes] = field(default_factory=list)
    is_ready: bool = True
    blamed: str = ""
    held_after_apply: list[operator_pb2.Hold] = field(default_factory=list)
    refuse: dict[str, Refusal] = field(default_factory=dict)
    asked: list[Any] = field(default_factory=list)
    ended: Event = field(default_factory=Event)
    now: float | None = None


class _Service(operator_pb2_grpc.OperatorServiceServicer):
    def __init__(self, answers: Answers, ca: CertificateAuthority) -> None:
        self._answers = answers
        self._ca = ca

    def _take(self, request: Any, context: grpc.ServicerContext, needed: Role = Role.VIEWER) -> None:
        self._answers.asked.append(request)
        if self._answers.now is not None:
            context.send_initial_metadata(((NOW_KEY, f"{self._answers.now:.3f}"),))
        call = type(request).__name__.removesuffix("Request")
        if refusal := self._answers.refuse.get(call):
            _refuse(context, refusal)
        who = identity_of(context.auth_context())
        assert isinstance(who, OperatorIdentity)
        if not who.role.allows(needed):
            message = f"{who.name} is a {who.role.value} and may not call {call}: it needs {needed.value}"
            _refuse(context, Refusal(grpc.StatusCode.PERMISSION_DENIED, message, "role"))

    def GetStatus(self, request, context):  # noqa: N802
        self._take(request, context)
        return self._answers.status

    def ListCells(self, request, context):  # noqa: N802
        self._take(request, context)
        cells = [cell for cell in self._answers.cells if request.group in ("", cell.group)]
        shown = [cell for cell in cells if request.all or cell.phase != "DECOMMISSIONED"]
        return operator_pb2.ListCellsResponse(cells=shown)

    def ListServers(self, request, context):  # noqa: N802
        self._take(request, context)
        return operator_pb2.ListServersResponse(servers=self._answers.servers)

    def ListProviders(self, request, context):  # noqa: N802
        self._take(request, context)
        return operator_pb2.ListProvidersResponse(providers=self._answers.providers)

    def WatchEvents(self, request, context):  # noqa: N802
        self._take(request, context)
        events = self._answers.events
        if request.from_position:
            events = [event for event in events if event.position >= request.from_position]
        else:
            events = events[len(events) - min(request.tail, len(events)) :]
        for start in range(0, len(events), 1_000):
            yield operator_pb2.WatchEventsResponse(events=events[start : start + 1_000])
        if request.follow:
            yield from self._until_the_end(context)

    def ReadLogs(self, request, context):  # noqa: N802
        self._take(request, context)
        for data in self._answers.logs:
            yield operator_pb2.ReadLogsResponse(data=data)
        if request.follow:
            yield from self._until_the_end(context)

    def _until_the_end(self, context: grpc.ServicerContext) -> Iterator[Any]:
        context.add_callback(self._answers.ended.set)
        self._answers.ended.wait()
        yield from ()

    def GetCertificate(self, request, context):  # noqa: N802
        self._take(request, context)
        return self._answers.certificate

    def GetGroup(self, request, context):  # noqa: N802
        self._take(request, context)
        status = self._answers.status
        group = next((group for group in status.groups if group.name == request.group), None)
        if group is None:
            _refuse(
                context,
                Refusal(grpc.StatusCode.NOT_FOUND, f"no such group: {request.group}", "no_such_group"),
            )
        certificate = self._answers.certificate
        return operator_pb2.GetGroupResponse(
            group=group,
            healthy=status.healthy,
            held=[hold for hold in status.held if hold.group == request.group],
            deaths=[certificate] if certificate.cell.group == request.group else [],
            blamed=self._answers.blamed,
        )

    def GetVersion(self, request, context):  # noqa: N802
        self._take(request, context)
        return operator_pb2.GetVersionResponse(version="9.9.9", wire_version=1, fleet=FLEET)

    def PlanGroups(self, request, context):  # noqa: N802
        self._take(request, context)
        return self._answers.plan

    def WaitReady(self, request, context):  # noqa: N802
        self._take(request, context)
        if not self._answers.is_ready:
            gone = Event()
            context.add_callback(gone.set)
            gone.wait()
        return operator_pb2.WaitReadyResponse(group=self._answers.status.groups[0])

    def ApplyGroups(self, request, context):  # noqa: N802
        self._take(request, context, Role.DEPLOYER)
        return operator_pb2.ApplyGroupsResponse(
            changes=self._answers.changes, position=7, held=self._answers.held_after_apply
        )

    def DeleteGroup(self, request, context):  # noqa: N802
        self._take(request, context, Role.DEPLOYER)
        return operator_pb2.DeleteGroupResponse(cells=6, position=8)

    def CondemnCell(self, request, context):  # noqa: N802
        self._take(request, context, Role.DEPLOYER)
        return operator_pb2.CondemnCellResponse(position=9)

    def DrainServer(self, request, context):  # noqa: N802
        self._take(request, context, Role.ADMIN)
        return operator_pb2.DrainServerResponse(cells=1, position=10)

    def ReleaseStorm(self, request, context):  # noqa: N802
        self._take(request, context, Role.ADMIN)
        return operator_pb2.ReleaseStormResponse(servers=3, position=11)

    def AdoptCells(self, request, context):  # noqa: N802
        self._take(request, context, Role.ADMIN)
        return operator_pb2.AdoptCellsResponse(cells=2, notes=["web/5.9: web wants 3 cells"], position=12)

    def CondemnUnknown(self, request, context):  # noqa: N802
        self._take(request, context, Role.ADMIN)
        return operator_pb2.CondemnUnknownResponse(cells=3, position=12)

    def Regrow(self, request, context):  # noqa: N802
        self._take(request, context, Role.ADMIN)
        return operator_pb2.RegrowResponse(done="the genome of epoch 3, position 90 is planted", position=12)

    def CreateToken(self, request, context):  # noqa: N802
        self._take(request, context, Role.ADMIN)
        return operator_pb2.CreateTokenResponse(
            token="gal_secret", expires_at=4_000_000_000.0, uses=request.uses, scheduler="10.0.0.1:7400"
        )

    def CreateOperator(self, request, context):  # noqa: N802
        self._take(request, context, Role.ADMIN)
        issued = self._ca.issue_operator(
            request.csr_pem, request.name, Role(request.role), request.ttl_seconds
        )
        return operator_pb2.CreateOperatorResponse(
            certificate_pem=issued.certificate_pem,
            ca_pem=self._ca.certificate_pem,
            expires_at=issued.expires_at,
        )


def _refuse(context: grpc.ServicerContext, refusal: Refusal) -> NoReturn:
    if refusal.rule:
        context.set_trailing_metadata((("galactica-refusal", refusal.rule),))
    context.abort(refusal.code, refusal.message)
    raise AssertionError


@dataclass(frozen=True)
class Scheduler:
    """A running double. ``context_file`` is the admin's."""

    address: str
    answers: Answers
    ca: CertificateAuthority
    context_file: Path

    def context_for(self, name: str, role: Role, path: Path, ttl_seconds: float = DAY_SECONDS) -> Path:
        """A context file with a certificate of its own."""
        keep_context(path, context_of(self.ca, self.address, name, role, ttl_seconds))
        return path


@contextmanager
def operator_service(directory: Path) -> Iterator[Scheduler]:
    """A scheduler's operator port on a free port of this machine; all of its files are in ``directory``."""
    ca = CertificateAuthority.open_or_create(directory / "ca", FLEET)
    answers = Answers()
    key, certificate = ca.issue_scheduler()
    with ThreadPoolExecutor(max_workers=8) as threads:
        server = grpc.server(threads)
        operator_pb2_grpc.add_OperatorServiceServicer_to_server(_Service(answers, ca), server)
        credentials = grpc.ssl_server_credentials(
            [(key, certificate)], root_certificates=ca.certificate_pem, require_client_auth=True
        )
        address = f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials)}"
        server.start()
        path = directory / "context.json"
        keep_context(path, context_of(ca, address, "ada", Role.ADMIN, DAY_SECONDS))
        try:
            yield Scheduler(address, answers, ca, path)
        finally:
            answers.ended.set()
            server.stop(0).wait()


def context_of(ca: CertificateAuthority, address: str, name: str, role: Role, ttl_seconds: float) -> Context:
    key, csr = new_key_and_csr()
    issued = ca.issue_operator(csr, name, role, ttl_seconds)
    return Context(
        scheduler=address,
        ca_pem=ca.certificate_pem.decode(),
        cert_pem=issued.certificate_pem.decode(),
        key_pem=key.decode(),
        fleet=FLEET,
        operator=name,
        role=role.value,
        fleet_id=ca.fleet_id,
    )


def a_small_fleet(now: float) -> Answers:
    """One service of three cells of which one died 4 s ago, on two servers."""
    digest = "3f" * 32
    cells = [
        operator_pb2.Cell(
            id="web/0.1", group="web", slot=0, generation=1, kind="container", phase="READY", verdict="healthy",
            serving=True, reason="probe passes", server="north", digest=digest, revision=2, ordered_at=now - 90,
            ready_at=now - 89, endpoints={"http": "127.0.0.1:20001"}, runtime_id="pid-71",
        ),
        operator_pb2.Cell(
            id="web/1.1", group="web", slot=1, generation=1, kind="container", phase="DECOMMISSIONED",
            verdict="dead", reason="killed by SIGKILL", server="north", digest=digest, revision=2,
            ordered_at=now - 90, ready_at=now - 89, condemned_at=now - 4, decommissioned_at=now - 3,
            replaced_by="web/1.2", runtime_id="pid-72",
        ),
        operator_pb2.Cell(
            id="web/1.2", group="web", slot=1, generation=2, kind="container", phase="BOOTING",
            verdict="healthy", server="south", digest=digest, revision=2, ordered_at=now - 4,
            replaces="web/1.1", progress="starting",
        ),
    ]  # fmt: skip
    servers = [
        operator_pb2.Server(
            id="north", phase="READY", verdict="healthy", labels={"zone": "a"}, runtimes=["process"],
            capacity=cell_pb2.Capacity(cpu_millis=2_000, memory_bytes=2**32, disk_bytes=2**36),
            used=cell_pb2.Capacity(cpu_millis=100, memory_bytes=2**26), cells=["web/0.1"],
            agent_version="0.1.0", last_beat_at=now - 1,
            vitals=cell_pb2.Vitals(cpu_fraction=0.25, memory_fraction=0.5, load_1m=0.75, pressure_cpu=1.5),
        ),
        operator_pb2.Server(
            id="south", phase="READY", verdict="suspect", reason="no beat for 3s", runtimes=["process", "docker"],
            capacity=cell_pb2.Capacity(cpu_millis=4_000, memory_bytes=2**33), cells=["web/1.2"],
        ),
    ]  # fmt: skip
    events = [
        operator_pb2.Event(
            position=41, at=now - 4, type="CellCondemned", cell="web/1.1", group="web", server="north",
            cause="report:north", schema=1, details_json='{"rule": "exited", "position": 9}',
        ),
        operator_pb2.Event(
            position=42, at=now - 4, type="CellOrdered", cell="web/1.2", group="web", server="south",
            cause="event:41", schema=1, details_json='{"replaces": "web/1.1", "evidence": [{"at": 1.5}]}',
        ),
    ]  # fmt: skip
    status = operator_pb2.GetStatusResponse(
        fleet=FLEET,
        healthy=False,
        groups=[
            operator_pb2.GroupStatus(kind="service", name="web", wanted=3, ready=1, booting=1, revision=2)
        ],
        held=[
            operator_pb2.Hold(
                group="web",
                rule="backoff",
                reason="2 early deaths of this spec",
                slots=1,
                next_look_at=now + 30,
            )
        ],
    )
    certificate = operator_pb2.GetCertificateResponse(
        cell=cells[1], verdict="dead", rule="exited", condemned_at=now - 4, budget="none: the cell is dead",
        replaced_by="web/1.2", cause="report:north",
        evidence=[
            operator_pb2.Evidence(source="agent north", says="killed by SIGKILL", at=now - 4),
            operator_pb2.Evidence(source="probe", says="connection refused", at=now - 5),
        ],
        autopsy=cell_pb2.Autopsy(
            reason="killed by SIGKILL", signal="SIGKILL", last_lines=["serving", "bye \x1b[2J"], lived_seconds=85.5
        ),
        held=[status.held[0]],
    )  # fmt: skip
    return Answers(status=status, cells=cells, servers=servers, events=events, certificate=certificate)


def a_pool_in_a_storm(now: float) -> Answers:
    """A pool of three of which two are silent since 10 s, and a provider that does not answer."""
    digest = "4e" * 32
    answers = a_small_fleet(now)
    answers.servers = [
        operator_pb2.Server(
            id="rack/0.3", phase="READY", verdict="suspect", reason="no heartbeat for 10.0 s", labels={"zone": "a"},
            runtimes=["docker"], cells=["web/0.1"], last_beat_at=now - 10, pool="rack", slot=0, generation=3,
            provider_ref="i-0abc",
            evidence=[
                operator_pb2.Evidence(source="agent rack/0.3", says="last heard", at=now - 10),
                operator_pb2.Evidence(source="neighbour rack/1.1", says="nothing comes back \x1b[2J", at=now - 9),
            ],
            neighbours=[
                operator_pb2.NeighbourAnswer(server_id="rack/1.1", answer="silent"),
                operator_pb2.NeighbourAnswer(server_id="rack/2.1", answer="answers"),
                operator_pb2.NeighbourAnswer(server_id="north", answer="silent"),
            ],
        ),
    ]  # fmt: skip
    answers.cells = [
        operator_pb2.Cell(
            id="rack/0.3", group="rack", slot=0, generation=3, kind="server", phase="READY", verdict="suspect",
            digest=digest, revision=1, ordered_at=now - 90, ready_at=now - 60, runtime_id="i-0abc",
        ),
    ]  # fmt: skip
    answers.status = operator_pb2.GetStatusResponse(
        fleet=FLEET,
        healthy=False,
        groups=[
            operator_pb2.GroupStatus(kind="pool", name="rack", wanted=3, ready=3, revision=1, provider="cloud"),
            operator_pb2.GroupStatus(kind="service", name="web", wanted=1, ready=1, revision=2),
        ],
        storms=[
            operator_pb2.Storm(
                id="rack-1799999990", pool="rack", silent=2, of=3, since=now - 10, expires_at=now + 890,
                reason="2 of 3 of pool rack fell silent within 60 s",
            )
        ],
    )  # fmt: skip
    answers.providers = [
        operator_pb2.Provider(
            name="cloud", servers=3, deleting=1, trouble="no answer within 30 s", listed_at=now - 40
        ),
        operator_pb2.Provider(name="local"),
    ]
    return answers
