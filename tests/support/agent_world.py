"""A scheduler's end of the agents' link, real gRPC with mTLS on loopback, that tests can order about."""

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import grpc
from rpds import HashTrieMap

from galactica.agent.link.identity import Identity, store
from galactica.scheduler.core.model.fleet import Fleet, Phase, Server
from galactica.scheduler.security.ca import CertificateAuthority, new_key_and_csr
from galactica.scheduler.security.gate import REFUSAL_KEY
from galactica.scheduler.security.identities import identity_of
from galactica.scheduler.security.renewal import NotRenewed, server_to_renew
from galactica.v1 import cell_pb2, link_pb2, link_pb2_grpc
from tests.support.forked import Begun, begin
from tests.support.orders import CELL, order
from tests.support.processes import agent_command, is_alive

FLEET = "testfleet"
DEADLINE_SECONDS = 20.0
ROOT = Path(__file__).parents[2]
TOKEN_ID = "aa11"


async def until(condition: Callable[[], Any], what: str, seconds: float = DEADLINE_SECONDS) -> Any:
    """Wait for a condition; its value. Fails with what was waited for."""
    began = time.monotonic()
    while not (value := condition()):
        waited = time.monotonic() - began
        assert waited < seconds, f"not within {seconds} s: {what}"
        await asyncio.sleep(min(0.01 + waited / 50, 0.1))  # a look at all processes costs as much as an agent
    return value


@dataclass(eq=False)
class Session:
    """One stream, as the scheduler sees it."""

    id: str
    server: str
    hello: link_pb2.Hello
    context: grpc.aio.ServicerContext
    certificate: bytes
    outgoing: asyncio.Queue[link_pb2.AttachResponse | None] = field(default_factory=asyncio.Queue)
    reports: list[link_pb2.Report] = field(default_factory=list)
    logs: list[link_pb2.LogChunk] = field(default_factory=list)
    moves: list[link_pb2.Moved] = field(default_factory=list)
    goodbyes: list[link_pb2.Goodbye] = field(default_factory=list)
    cells: dict[str, cell_pb2.CellReport] = field(default_factory=dict)
    sequence: int = 0
    epoch: int = 0
    beat_at: float = 0.0
    opened_at: float = field(default_factory=time.monotonic)
    over_at: float | None = None

    @property
    def is_over(self) -> bool:
        return self.over_at is not None

    def instruct(
        self, *instructions: link_pb2.Instruction, sequence: int | None = None, session: str = ""
    ) -> None:
        self.sequence = self.sequence + 1 if sequence is None else sequence
        for instruction in instructions:
            instruction.beat_at = self.beat_at
        batch = link_pb2.Instructions(
            session=session or self.id, sequence=self.sequence, instructions=instructions, epoch=self.epoch
        )
        self.outgoing.put_nowait(link_pb2.AttachResponse(instructions=batch))

    def state_of(self, cell_id: str) -> int:
        return self.cells[cell_id].state if cell_id in self.cells else 0

    async def until_state(self, cell_id: str, state: int) -> cell_pb2.CellReport:
        name = cell_pb2.CellState.Name(state)
        await until(
            lambda: self.state_of(cell_id) == state, f"{cell_id} {name}, is {self.cells.get(cell_id)}"
        )
        return self.cells[cell_id]


class FakeScheduler(link_pb2_grpc.AgentLinkServiceServicer, link_pb2_grpc.EnrolmentServiceServicer):
    """Set the public attributes to change how it answers."""

    def __init__(self, directory: Path) -> None:
        self.ca = CertificateAuthority.open_or_create(directory, FLEET)
        self.sessions: list[Session] = []
        self.epoch = 1
        self.start_name = ""
        self.position = 0
        self.beat_ms = 100
        self.lease_ms = 2_000
        self.ttl_seconds = 3_600.0
        self.answers_echo = True
        self.farewell: link_pb2.Farewell | None = link_pb2.Farewell(maintenance_ms=60_000)
        """The answer to a goodbye; None: none."""
        self.wire_version = 2
        """The one that it speaks with agents; 0: it is too old to tell."""
        self.refusal: tuple[grpc.StatusCode, str] | None = None
        self.port = 0
        self.enrol_port = 0
        self.members: set[str] = set()
        self.renewed_expired: list[str] = []
        self.off_seconds = 0.0
        """So far its clock is ahead when it renews what has expired."""
        self.token = f"gal1.{TOKEN_ID}.c2VjcmV0.{self.ca.digest}"
        self._servers: list[grpc.aio.Server] = []
        self._reserved: list[socket.socket] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def session(self) -> Session:
        return self.sessions[-1]

    async def start(self) -> None:
        if not self._reserved:
            self._reserved = [_reserved(), _reserved()]
            self.port, self.enrol_port = (one.getsockname()[1] for one in self._reserved)
        key, certificate = self.ca.issue_scheduler()
        server = grpc.aio.server()
        link_pb2_grpc.add_AgentLinkServiceServicer_to_server(self, server)
        mutual = grpc.ssl_server_credentials([(key, certificate)], self.ca.certificate_pem, True)
        server.add_secure_port(self.address, mutual)
        await server.start()
        enrolment = grpc.aio.server()
        link_pb2_grpc.add_EnrolmentServiceServicer_to_server(self, enrolment)
        chain = certificate + self.ca.certificate_pem
        enrolment.add_secure_port(f"127.0.0.1:{self.enrol_port}", grpc.ssl_server_credentials([(key, chain)]))
        await enrolment.start()
        self._servers = [server, enrolment]

    async def stop(self) -> None:
        for session in self.sessions:
            session.outgoing.put_nowait(None)
        for server in self._servers:
            await server.stop(0)

    def close(self) -> None:
        for one in self._reserved:
            one.close()

    def identity(
        self, directory: Path, server_id: str, ttl_seconds: float | None = None, age_seconds: float = 0.0
    ) -> Identity:
        """Enrol without the network, as if it had been so long ago; the identity is stored in ``directory``."""
        key, csr = new_key_and_csr()
        issued = self.ca.issue_server(csr, server_id, ttl_seconds or self.ttl_seconds)
        identity = Identity(
            server_id=server_id,
            fleet=FLEET,
            scheduler=self.address,
            enrolment=f"127.0.0.1:{self.enrol_port}",
            issued_at=time.time() - age_seconds,
            expires_at=issued.expires_at,
            key_pem=key,
            csr_pem=csr,
            certificate_pem=issued.certificate_pem,
            ca_pem=self.ca.certificate_pem,
        )
        store(directory, identity)
        self.members.add(server_id)
        return identity

    async def until_sessions(self, number: int) -> Session:
        await until(lambda: len(self.sessions) >= number, f"{number} sessions")
        return self.sessions[number - 1]

    async def Enrol(self, request: link_pb2.EnrolRequest, context: Any) -> link_pb2.EnrolResponse:  # noqa: N802
        if request.token != self.token:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is unknown, used up or expired")
        issued = self.ca.issue_server(request.csr_pem, request.server_id, self.ttl_seconds)
        self.members.add(request.server_id)
        return link_pb2.EnrolResponse(
            certificate_pem=issued.certificate_pem,
            ca_pem=self.ca.certificate_pem,
            fleet=FLEET,
            expires_at=issued.expires_at,
        )

    async def RenewExpired(  # noqa: N802
        self, request: link_pb2.RenewExpiredRequest, context: Any
    ) -> link_pb2.RenewExpiredResponse:
        servers = {name: Server(name, 1, Phase.READY) for name in self.members}
        fleet = Fleet(servers=HashTrieMap(servers))
        try:
            now = time.time() + self.off_seconds
            server = server_to_renew(self.ca, fleet, request.certificate_pem, request.csr_pem, now)
        except NotRenewed as refusal:
            rule = ((REFUSAL_KEY, refusal.rule),) if refusal.rule else ()
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(refusal), rule)
        issued = self.ca.issue_server(request.csr_pem, server, 3_600.0)
        self.renewed_expired.append(server)
        return link_pb2.RenewExpiredResponse(
            certificate_pem=issued.certificate_pem, expires_at=issued.expires_at
        )

    async def RenewCertificate(  # noqa: N802
        self, request: link_pb2.RenewCertificateRequest, context: Any
    ) -> link_pb2.RenewCertificateResponse:
        server = identity_of(context.auth_context()).server_id
        issued = self.ca.issue_server(request.csr_pem, server, 3_600.0)
        return link_pb2.RenewCertificateResponse(
            certificate_pem=issued.certificate_pem, expires_at=issued.expires_at
        )

    async def Attach(  # noqa: N802
        self, requests: AsyncIterator[link_pb2.AttachRequest], context: Any
    ) -> AsyncIterator[link_pb2.AttachResponse]:
        if self.refusal:
            await context.abort(*self.refusal)
        first = await anext(requests)
        session = Session(
            id=f"s{len(self.sessions) + 1}",
            server=identity_of(context.auth_context()).server_id,
            hello=first.hello,
            context=context,
            certificate=context.auth_context()["x509_pem_cert"][0],
            epoch=self.epoch,
            beat_at=first.hello.beat_at,
        )
        session.cells.update((one.cell_id, one) for one in first.hello.inventory)
        tempo = link_pb2.Tempo(beat_ms=self.beat_ms, lease_ms=self.lease_ms)
        yield link_pb2.AttachResponse(
            welcome=link_pb2.Welcome(
                session=session.id,
                epoch=self.epoch,
                tempo=tempo,
                fleet=FLEET,
                beat_at=first.hello.beat_at,
                start=self.start_name,
                position=self.position,
                wire_version=self.wire_version,
            )
        )
        self.sessions.append(session)
        async with asyncio.TaskGroup() as tasks:
            reader = tasks.create_task(self._read(session, requests))
            try:
                while (response := await session.outgoing.get()) is not None:
                    yield response
            finally:
                session.over_at = time.monotonic()
                reader.cancel()

    async def _read(self, session: Session, requests: AsyncIterator[link_pb2.AttachRequest]) -> None:
        async for request in requests:
            if request.HasField("log_chunk"):
                session.logs.append(request.log_chunk)
                continue
            if request.HasField("moved"):
                session.moves.append(request.moved)
                continue
            if request.HasField("goodbye"):
                session.goodbyes.append(request.goodbye)
                if self.farewell is not None:
                    session.outgoing.put_nowait(link_pb2.AttachResponse(farewell=self.farewell))
                continue
            report = request.report
            session.reports.append(report)
            session.beat_at = report.beat_at
            session.cells.update((one.cell_id, one) for one in report.cells)
            if report.sent_at and self.answers_echo:
                echo = link_pb2.Echo(
                    sent_at=report.sent_at,
                    received_at=time.time(),
                    beat_at=report.beat_at,
                    position=self.position,
                )
                session.outgoing.put_nowait(link_pb2.AttachResponse(echo=echo))
        session.outgoing.put_nowait(None)


def _reserved() -> socket.socket:
    """A port that stays ours while no scheduler listens on it, and refuses connections then."""
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    one.bind(("127.0.0.1", 0))
    return one


@contextlib.asynccontextmanager
async def fake_scheduler(directory: Path) -> AsyncIterator[FakeScheduler]:
    scheduler = FakeScheduler(directory)
    await scheduler.start()
    try:
        yield scheduler
    finally:
        await scheduler.stop()
        scheduler.close()


class AgentProcess:
    """The agent as a process of its own, with its data in ``data``."""

    def __init__(self, scheduler: FakeScheduler, data: Path, *arguments: str, **environment: str) -> None:
        self._command = [*agent_command(), "--scheduler", scheduler.address]
        self._command += ["--enrol", f"127.0.0.1:{scheduler.enrol_port}", "--data", str(data)]
        self._command += ["--runtime", "process", *arguments]
        self._environment = {**os.environ, **environment}
        self.process: Begun | None = None
        self._said: TextIO | None = None

    def start(self) -> Begun:
        reader, writer = os.pipe()
        self._said = os.fdopen(reader)
        with Path(os.devnull).open("r+") as nothing:
            streams = nothing.fileno(), nothing.fileno(), writer
            self.process = begin(self._command, self._environment, Path("/"), *streams)
        os.close(writer)
        return self.process

    async def until_said(self, words: str) -> None:
        """Returns when it has written a line with these words. What was read so far is not told again by ``ended``."""
        assert self._said
        async with asyncio.timeout(DEADLINE_SECONDS):
            while words not in (line := await asyncio.to_thread(self._said.readline)):
                assert line, f"it ended and never said: {words}"

    async def ended(self, number: int | None = signal.SIGTERM) -> tuple[int, str]:
        """Send it the signal, if any; its exit code and what it wrote."""
        assert self.process
        assert self._said
        if number is not None:
            self.process.send_signal(number)
        async with asyncio.timeout(DEADLINE_SECONDS):
            said = await asyncio.to_thread(self._said.read)
        return self.process.wait(DEADLINE_SECONDS), said

    def dispose(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
        if self._said:
            self._said.close()


def pid_of(report: cell_pb2.CellReport) -> int:
    """The main process of a process cell."""
    return int(report.runtime_id)


class AgentWorld:
    """One scheduler and one agent with the process runtime; ends both and every cell."""

    def __init__(self, scheduler: FakeScheduler, directory: Path) -> None:
        self.scheduler = scheduler
        self.data = directory / "agent"
        self.agents: list[AgentProcess] = []
        self.pids: set[int] = set()

    def agent(self, *arguments: str, **environment: str) -> AgentProcess:
        agent = AgentProcess(self.scheduler, self.data, *arguments, **environment)
        self.agents.append(agent)
        return agent

    def enrolled(self, ttl_seconds: float | None = None, age_seconds: float = 0.0) -> AgentProcess:
        """An agent that has its identity already."""
        self.scheduler.identity(self.data / "identity", "host1", ttl_seconds, age_seconds)
        return self.agent()

    async def running(self, cell_id: str = CELL, *command: str, number: int = 1) -> cell_pb2.CellReport:
        session = await self.scheduler.until_sessions(number)
        session.instruct(order(cell_id, *command))
        report = await session.until_state(cell_id, cell_pb2.CELL_STATE_RUNNING)
        self.pids.add(pid_of(report))
        return report


@contextlib.asynccontextmanager
async def agent_world(directory: Path) -> AsyncIterator[AgentWorld]:
    """At the end no agent and no cell is left."""
    (directory / "ca").mkdir()
    async with fake_scheduler(directory / "ca") as scheduler:
        world = AgentWorld(scheduler, directory)
        try:
            yield world
        finally:
            for agent in world.agents:
                agent.dispose()
            if any(is_alive(pid) for pid in world.pids):
                await _sweep(world)


async def _sweep(world: AgentWorld) -> None:
    scheduler = world.scheduler
    scheduler.refusal = None
    scheduler.identity(world.data / "identity", "host1")
    count = len(scheduler.sessions)
    sweeper = world.agent("--stop-cells")
    sweeper.start()
    await scheduler.until_sessions(count + 1)
    await sweeper.ended()
