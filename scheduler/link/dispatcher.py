"""The scheduler's end of the agents' link: authenticates, stamps and passes on, and decides nothing.

``Dispatcher`` owns the sessions. It implements ``ports.Outbox`` for the controller and ``AgentLinkService`` for agents.
A session's task tree is its gRPC call: a reader, a writer, and whatever ends first ends both.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar, cast

import grpc
import structlog
from msgspec.structs import replace

from galactica.scheduler.core.model.commands import Command
from galactica.scheduler.core.model.fleet import Phase
from galactica.scheduler.core.model.policy import Tempo
from galactica.scheduler.core.model.requests import Refused
from galactica.scheduler.core.ports import Mind
from galactica.scheduler.core.sight.observations import Detached, Reported
from galactica.scheduler.core.verdicts.evidence import TEMPO_WORTH_TELLING, terms_of
from galactica.scheduler.link.session import Ending, LinkLimits, Session
from galactica.scheduler.link.shells import ShellStream
from galactica.scheduler.link.watch import Watch
from galactica.scheduler.security.ca import SERVER_TTL_SECONDS, AuthorityError, CertificateAuthority, CsrError
from galactica.scheduler.security.gate import Context, InvalidRequest, abort, server_of
from galactica.scheduler.wire import cell as cell_wire
from galactica.scheduler.wire import link as wire
from galactica.v1 import link_pb2, link_pb2_grpc

T = TypeVar("T")

log = structlog.get_logger("scheduler.dispatcher")


class Dispatcher(link_pb2_grpc.AgentLinkServiceServicer):
    """One per scheduler. ``epoch`` is the one that this scheduler claimed."""

    def __init__(
        self,
        mind: Mind,
        ca: CertificateAuthority,
        *,
        fleet: str,
        epoch: int,
        limits: LinkLimits | None = None,
    ) -> None:
        self._mind = mind
        self._policy = mind.view().policy
        self._ca = ca
        self._fleet = fleet
        self._epoch = epoch
        self._limits = limits or LinkLimits()
        self._sessions: dict[str, Session] = {}
        self._numbers = itertools.count(1)
        secret = ca.secret_for("neighbours")
        self._watch = Watch(epoch, secret, self._is_member, self._tell_neighbours)

    # --- for the controller and the operators' side ---------------------------------------------------------------

    def send(self, commands: Sequence[Command]) -> None:
        for command in commands:
            session = self._sessions.get(command.server)
            if session is not None:
                session.instruct(wire.instruction(command))

    def open_logs(self, server: str, cell: str, tail: int, *, follow: bool) -> AsyncIterator[bytes]:
        """What a cell wrote: the last ``tail`` lines, then what comes. Raises Refused, also later on."""
        session = self._sessions.get(server)
        if session is None:
            raise Refused(
                "not_attached", f"server {server} is not attached at the moment; its cells' logs are there"
            )
        return session.read_logs(cell, tail, follow=follow)

    def open_shell(self, server: str) -> ShellStream:
        """A stream to one shell on that server, not begun yet. Raises Refused."""
        session = self._sessions.get(server)
        if session is None:
            raise Refused(
                "not_attached", f"server {server} is not attached at the moment; its cells cannot be reached"
            )
        return session.open_shell()

    def close(self) -> None:
        """End every session; agents keep their cells and come back to the next scheduler."""
        self._watch.close()
        for session in self._sessions.values():
            session.end(grpc.StatusCode.UNAVAILABLE, "the scheduler ends")

    # --- the contract ---------------------------------------------------------------------------------------------

    async def Attach(  # type: ignore[override]  # noqa: N802 (a coroutine that reads and writes)
        self,
        request_iterator: Any,  # noqa: ARG002
        context: Any,
    ) -> None:
        await self._converse(cast("Context", context))

    async def RenewCertificate(  # noqa: N802
        self, request: link_pb2.RenewCertificateRequest, context: Any
    ) -> link_pb2.RenewCertificateResponse:
        server = server_of(context)
        self._check_member(server)
        self._check_not_drained(server)
        try:
            issued = self._ca.issue_server(request.csr_pem, server, SERVER_TTL_SECONDS)
        except CsrError as error:
            raise InvalidRequest(str(error)) from error
        except AuthorityError as error:
            raise Refused("authority", str(error)) from error
        return link_pb2.RenewCertificateResponse(
            certificate_pem=issued.certificate_pem, expires_at=issued.expires_at
        )

    # --- one session ----------------------------------------------------------------------------------------------

    async def _converse(self, context: Context) -> None:
        server = server_of(context)
        self._check_member(server)
        hello = await self._hello(context)
        session_id = f"{self._epoch}-{next(self._numbers)}"
        attached = _checked(lambda: wire.attached(hello, server, session_id, self._mind.now()))
        watch_address = _checked(lambda: wire.watch_address(hello))
        watching = _checked(lambda: wire.watching(hello))
        session = self._open(server, session_id, hello.beat_at)
        ending = Ending(grpc.StatusCode.CANCELLED, "its stream broke")
        try:
            await self._mind.observe(attached)
            log.info("attached", server=server, session=session.id, cells=len(attached.inventory))
            if self._sessions.get(server) is session:
                self._watch.attached(server, watch_address, watching)
            ending = await self._serve(session, context)
        finally:
            self._close(session, ending)
            await self._mind.observe(Detached(server, session.id, self._mind.now(), ending.reason))
        if ending.code is not grpc.StatusCode.OK:
            await abort(context, ending.code, ending.reason)

    def _check_member(self, server: str) -> None:
        """A drained server may attach: it gets no cells, and what it may still run has to be removed."""
        if server not in self._mind.fleet().servers:
            raise Refused(
                "unknown_server", f"server {server} is not in this fleet; enrol it anew with a token"
            )

    def _check_not_drained(self, server: str) -> None:
        known = self._mind.fleet().servers[server]
        if known.phase is Phase.DECOMMISSIONED and known.is_drained:
            raise Refused("drained", f"server {server} was drained; enrol it anew with a token")

    async def _hello(self, context: Context) -> link_pb2.Hello:
        try:
            async with asyncio.timeout(self._limits.hello_seconds):
                first = await context.read()
        except TimeoutError:
            await abort(
                context,
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"no Hello within {self._limits.hello_seconds:g} s",
            )
        if not isinstance(first, link_pb2.AttachRequest) or not first.HasField("hello"):
            raise InvalidRequest("the first message of a link is a Hello")
        version = first.hello.wire_version
        if version != wire.WIRE_VERSION:
            older = "agent" if version < wire.WIRE_VERSION else "scheduler"
            raise Refused(
                "wire_version",
                f"the agent speaks wire version {version} and this scheduler {wire.WIRE_VERSION}; "
                f"install a newer {older}",
            )
        return first.hello

    def _open(self, server: str, session_id: str, beat_at: float) -> Session:
        """A new session of a server takes the place of the one before it."""
        welcome = link_pb2.Welcome(
            session=session_id,
            epoch=self._epoch,
            tempo=self._tempo(server),
            fleet=self._fleet,
            beat_at=beat_at,
        )
        older = self._sessions.get(server)
        self._sessions[server] = session = Session(server, session_id, welcome, self._limits)
        if older is not None:
            older.end(grpc.StatusCode.ABORTED, f"session {session_id} of the same server took its place")
        return session

    def _close(self, session: Session, ending: Ending) -> None:
        session.end(*ending)
        session.end_streams(f"the link to server {session.server} ended: {ending.reason}")
        if self._sessions.get(session.server) is session:
            del self._sessions[session.server]
            self._watch.detached(session.server)
        log.info("detached", server=session.server, session=session.id, reason=ending.reason)

    async def _serve(self, session: Session, context: Context) -> Ending:
        async with asyncio.TaskGroup() as tasks:
            reader = tasks.create_task(self._read(session, context), name=f"read {session.id}")
            writer = tasks.create_task(session.write(context), name=f"write {session.id}")
            ending = await session.ended
            reader.cancel()
            writer.cancel()
        return ending

    async def _read(self, session: Session, context: Context) -> None:
        try:
            while isinstance(message := await context.read(), link_pb2.AttachRequest):
                await self._take(session, message)
        except InvalidRequest as wrong:
            session.end(grpc.StatusCode.INVALID_ARGUMENT, str(wrong))
        except grpc.aio.BaseError as error:
            session.end(grpc.StatusCode.UNAVAILABLE, f"its stream broke: {error}")
        else:
            session.end(grpc.StatusCode.OK, "the agent ended its stream")

    async def _take(self, session: Session, message: link_pb2.AttachRequest) -> None:
        match message.WhichOneof("message"):
            case "report":
                await self._take_report(session, message.report)
            case "log_chunk":
                if len(message.log_chunk.data) > wire.CHUNK_BYTES_LIMIT:
                    raise InvalidRequest(f"a log chunk has more than {wire.CHUNK_BYTES_LIMIT} bytes")
                session.take_log_chunk(message.log_chunk)
            case "shell_output":
                if len(message.shell_output.data) > wire.CHUNK_BYTES_LIMIT:
                    raise InvalidRequest(f"a shell's output has more than {wire.CHUNK_BYTES_LIMIT} bytes")
                session.take_shell_output(message.shell_output)
            case "hello":
                raise InvalidRequest("a link has one Hello")
            case _:
                raise InvalidRequest("a message of the link is empty, or of a kind that is not known here")

    async def _take_report(self, session: Session, report: link_pb2.Report) -> None:
        if report.session != session.id or session.ended.done():
            return  # void by contract
        now = self._mind.now()
        observation = _checked(lambda: wire.reported(report, session.server, now))
        await self._mind.observe(self._with_witnesses(observation))
        # Only now: what the agent is told to have been heard is on its way to those who judge its silence.
        session.beat_at = report.beat_at
        if report.sent_at:
            echo = link_pb2.Echo(sent_at=report.sent_at, received_at=now, beat_at=report.beat_at)
            session.notice(link_pb2.AttachResponse(echo=echo))
        self._retune(session)

    # --- neighbours -----------------------------------------------------------------------------------------------

    def _with_witnesses(self, report: Reported) -> Reported:
        """Of others a server is heard only about those that it was given to watch."""
        is_whole = report.complete or report.sequence == 1
        heard = self._watch.heard(report.server, report.testimonies, is_whole=is_whole)
        if not report.testimonies and not heard.withdrawn:
            return report
        return replace(report, testimonies=heard.testimonies, withdrawn=heard.withdrawn)

    def _is_member(self, server: str) -> bool:
        known = self._mind.fleet().servers.get(server)
        return known is not None and known.phase is not Phase.DECOMMISSIONED

    def _tell_neighbours(self, server: str, neighbours: link_pb2.Neighbours) -> None:
        session = self._sessions.get(server)
        if session is not None:
            session.notice(link_pb2.AttachResponse(neighbours=neighbours))

    # --- tempo ----------------------------------------------------------------------------------------------------

    def _tempo(self, server: str) -> link_pb2.Tempo:
        """The server's, as its pool and the size of the fleet demand."""
        fleet = self._mind.fleet()
        terms = terms_of(fleet, fleet.servers[server], self._policy)
        return wire.tempo_to_proto(Tempo(terms.tempo.beat_seconds, terms.lease_seconds))

    def _retune(self, session: Session) -> None:
        """Tell an agent whose session goes on what became of its tempo."""
        if session.server not in self._mind.fleet().servers:
            return
        tempo, told = self._tempo(session.server), session.tempo
        if _is_near(tempo.beat_ms, told.beat_ms) and _is_near(tempo.lease_ms, told.lease_ms):
            return
        session.tempo = tempo
        log.info("tempo", server=session.server, beat_ms=tempo.beat_ms, lease_ms=tempo.lease_ms)
        session.notice(link_pb2.AttachResponse(tempo=tempo))


def _is_near(wanted: int, told: int) -> bool:
    return abs(wanted - told) < TEMPO_WORTH_TELLING * told


def _checked(convert: Callable[[], T]) -> T:
    try:
        return convert()
    except cell_wire.WireError as error:
        raise InvalidRequest(str(error)) from error
