"""The scheduler's end of the agents' link. It authenticates messages, stamps them with the time and passes them on; it
decides nothing.

``Dispatcher`` owns the sessions. It implements ``ports.Outbox`` for the controller and ``AgentLinkService`` for agents.
The tasks of a session belong to its gRPC call: a reader and a writer. When one ends, it ends the other.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar, cast

import grpc
import structlog
from msgspec.structs import replace

from galactica.scheduler.core.epochs import is_overtaken
from galactica.scheduler.core.membership import is_member
from galactica.scheduler.core.model.commands import Command
from galactica.scheduler.core.model.policy import Tempo
from galactica.scheduler.core.model.requests import (
    Asker,
    AskerKind,
    BeginMaintenance,
    ClaimEpoch,
    Obeyed,
    RecogniseServer,
    Refused,
)
from galactica.scheduler.core.ports import Mind
from galactica.scheduler.core.sight.observations import Attached, Detached, Moved, Reported, Rivalled
from galactica.scheduler.core.verdicts.evidence import TEMPO_WORTH_TELLING, terms_of
from galactica.scheduler.link.genomes import Genomes
from galactica.scheduler.link.members import check_may_attach, check_may_renew
from galactica.scheduler.link.rivals import Claim, Claimant, claim_of, words_for
from galactica.scheduler.link.session import Ending, LinkLimits, Session
from galactica.scheduler.link.shells import ShellStream
from galactica.scheduler.link.watch import Watch
from galactica.scheduler.security.ca import SERVER_TTL_SECONDS, AuthorityError, CertificateAuthority, CsrError
from galactica.scheduler.security.gate import Context, InvalidRequest, abort, server_of
from galactica.scheduler.wire import cell as cell_wire
from galactica.scheduler.wire import link as wire
from galactica.scheduler.wire.versions import spoken_with
from galactica.v1 import link_pb2, link_pb2_grpc

T = TypeVar("T")

STRANGE_STARTS_LIMIT = 3
"""So often one server may have the epoch raised by naming a start that the journal does not know."""

log = structlog.get_logger("scheduler.dispatcher")


class Dispatcher(link_pb2_grpc.AgentLinkServiceServicer):
    """One for each scheduler. ``epoch``: the epoch that this scheduler claimed at its start, which ``start`` names."""

    def __init__(
        self,
        mind: Mind,
        ca: CertificateAuthority,
        *,
        fleet: str,
        epoch: int,
        start: str = "",
        limits: LinkLimits | None = None,
    ) -> None:
        self._mind = mind
        self._policy = mind.view().policy
        self._ca = ca
        self._fleet = fleet
        self._epoch = epoch
        self._start = start
        self._strange: Counter[str] = Counter()
        """How often each server named a start that the journal does not know."""
        self._limits = limits or LinkLimits()
        self._sessions: dict[str, Session] = {}
        self._numbers = itertools.count(1)
        secret = ca.secret_for("neighbours")
        self._watch = Watch(
            epoch, secret, lambda server: is_member(mind.fleet(), server), self._tell_neighbours
        )
        self.genomes = Genomes(mind, ca, self._pass_on)

    # --- for the controller and the operators' side ---------------------------------------------------------------

    def send(self, commands: Sequence[Command]) -> None:
        for command in commands:
            session = self._sessions.get(command.server)
            if session is not None:
                session.instruct(wire.instruction(command))

    def open_logs(self, server: str, cell: str, tail: int, *, follow: bool) -> AsyncIterator[bytes]:
        """A cell's output: the last ``tail`` lines, and with ``follow`` the new output. Raises Refused, now or while
        reading."""
        session = self._sessions.get(server)
        if session is None:
            raise Refused(
                "not_attached", f"server {server} is not attached now, and the logs of its cells are there"
            )
        return session.read_logs(cell, tail, follow=follow)

    def open_shell(self, server: str) -> ShellStream:
        """A stream for one shell on that server; the shell is not started yet. Raises Refused."""
        session = self._sessions.get(server)
        if session is None:
            raise Refused(
                "not_attached", f"server {server} is not attached now, so its cells cannot be reached"
            )
        return session.open_shell()

    def close(self) -> None:
        """End all sessions. Agents keep their cells and attach to the next scheduler."""
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
        check_may_renew(self._mind.fleet(), server)
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
        check_may_attach(self._mind.fleet(), server)
        hello = await self._hello(context)
        wire_version = spoken_with(hello)
        await self._overtake(server, _checked(lambda: wire.obeyed(hello)))
        if server not in self._mind.fleet().servers:
            await self._mind.ask(RecogniseServer(server), Asker(AskerKind.SCHEDULER))
        session_id = f"{self._epoch}-{next(self._numbers)}"
        now = self._mind.now()
        attached, skipped = _checked(lambda: wire.attached(hello, server, session_id, now, wire_version))
        watching, not_watched = _checked(lambda: wire.watching(hello))
        newcomer = Claimant(_checked(lambda: wire.instance(hello)), attached.machine, context.peer())
        ousted = await self._settle(server, newcomer, context)
        session = self._open(attached, hello.beat_at, newcomer)
        session.tell_skipped((*skipped, *not_watched))
        self.genomes.attached(server, hello)
        ending = Ending(grpc.StatusCode.CANCELLED, "the stream broke")
        try:
            await self._mind.observe(attached)
            if ousted is not None:
                await self._tell_rival(server, ousted.address)
            cells = len(attached.inventory)
            log.info("attached", server=server, session=session.id, cells=cells, wire_version=wire_version)
            if self._sessions.get(server) is session:
                self._watch.attached(server, attached.place.address, watching)
            ending = await self._serve(session, context)
        finally:
            self._close(session, ending)
            await self._mind.observe(Detached(server, session.id, self._mind.now(), ending.reason))
        if ending.code is not grpc.StatusCode.OK:
            await abort(context, ending.code, ending.reason)

    async def _overtake(self, server: str, obeyed: Obeyed) -> None:
        """Go above the epoch that the agent has obeyed of a scheduler that this journal does not know, durably, before
        it is told anything. Raises Refused."""
        fleet = self._mind.fleet()
        if not is_overtaken(fleet, obeyed, self._epoch, self._start):
            return
        if obeyed.epoch <= fleet.epoch:
            if self._strange[server] >= STRANGE_STARTS_LIMIT:
                return
            self._strange[server] += 1
        await self._mind.ask(ClaimEpoch(obeyed, server), Asker(AskerKind.SCHEDULER))
        self._epoch = max(self._epoch, self._mind.fleet().epoch)
        log.warning("overtaken", server=server, its_epoch=obeyed.epoch, epoch=self._epoch)

    async def _settle(self, server: str, newcomer: Claimant, context: Context) -> Claimant | None:
        """Which of two machines is the server. Answers whose session ended for that, if any did; a newcomer that is the
        second one is turned away, and nothing else is waited for."""
        session = self._sessions.get(server)
        if session is None or session.ended.done():
            return None
        claim = claim_of(self._mind.view(), server, newcomer, session.holder, session.heard_at)
        if claim is Claim.SECOND:
            await self._tell_rival(server, context.peer())
            await abort(context, grpc.StatusCode.ALREADY_EXISTS, words_for(server), "second_machine")
        if claim is Claim.SUCCEEDS:
            return None
        session.end(grpc.StatusCode.ALREADY_EXISTS, words_for(server))
        return session.holder

    async def _tell_rival(self, server: str, address: str) -> None:
        log.warning("second_machine", server=server, peer=address)
        await self._mind.observe(Rivalled(server, address, self._mind.now()))

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
            raise InvalidRequest("the first message of a link must be a Hello")
        return first.hello

    def _open(self, attached: Attached, beat_at: float, holder: Claimant) -> Session:
        """Open a session; it replaces an older session of the same server."""
        server, session_id = attached.server, attached.session
        welcome = link_pb2.Welcome(
            session=session_id,
            epoch=self._epoch,
            tempo=self._tempo(server),
            fleet=self._fleet,
            beat_at=beat_at,
            start=self._start,
            position=self._mind.fleet().position,
            wire_version=attached.wire_version,
        )
        older = self._sessions.get(server)
        session = Session(server, session_id, welcome, self._limits, holder=holder, heard_at=self._mind.now())
        self._sessions[server] = session
        if older is not None:
            older.end(grpc.StatusCode.ABORTED, f"session {session_id} of the same server replaced this one")
        return session

    def _close(self, session: Session, ending: Ending) -> None:
        session.end(*ending)
        session.end_streams(f"the link to server {session.server} ended: {ending.reason}")
        if self._sessions.get(session.server) is session:
            del self._sessions[session.server]
            self._watch.detached(session.server)
            self.genomes.detached(session.server)
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
            session.end(grpc.StatusCode.UNAVAILABLE, f"the stream broke: {error}")
        else:
            session.end(grpc.StatusCode.OK, "the agent ended its stream")

    async def _take(self, session: Session, message: link_pb2.AttachRequest) -> None:
        match message.WhichOneof("message"):
            case "report":
                await self._take_report(session, message.report)
            case "log_chunk":
                if len(message.log_chunk.data) > wire.CHUNK_BYTES_LIMIT:
                    raise InvalidRequest(f"log chunk too large: the limit is {wire.CHUNK_BYTES_LIMIT} bytes")
                session.take_log_chunk(message.log_chunk)
            case "shell_output":
                if len(message.shell_output.data) > wire.CHUNK_BYTES_LIMIT:
                    raise InvalidRequest(
                        f"shell output too large: the limit is {wire.CHUNK_BYTES_LIMIT} bytes"
                    )
                session.take_shell_output(message.shell_output)
            case "goodbye":
                await self._take_goodbye(session, message.goodbye)
            case "moved":
                await self._take_moved(session, message.moved)
            case "genome":
                self.genomes.given(session.server, message.genome)
            case "genome_kept":
                self.genomes.kept(session.server, message.genome_kept)
            case "hello":
                raise InvalidRequest("second Hello: a link has only one")
            case _:
                raise InvalidRequest("a message is empty, or of a kind that this scheduler does not know")

    async def _take_report(self, session: Session, report: link_pb2.Report) -> None:
        if report.session != session.id or session.ended.done():
            return  # the contract says: ignored
        now = session.heard_at = self._mind.now()
        observation, skipped = _checked(lambda: wire.reported(report, session.server, now))
        session.tell_skipped(skipped)
        await self._mind.observe(self._with_witnesses(observation, len(report.testimonies)))
        # Acknowledge only after the report is queued: agents extend leases on this.
        session.beat_at = report.beat_at
        if report.sent_at:
            received_at = self._ca.now()  # the wall clock: the agent compares its own with it
            echo = link_pb2.Echo(
                sent_at=report.sent_at,
                received_at=received_at,
                beat_at=report.beat_at,
                position=self._mind.fleet().position,
            )
            session.notice(link_pb2.AttachResponse(echo=echo))
        self._retune(session)

    async def _take_goodbye(self, session: Session, goodbye: link_pb2.Goodbye) -> None:
        """Answer when the maintenance lease is durable: then the agent may end."""
        asked = BeginMaintenance(session.server, session.id, goodbye.maintenance_ms / 1_000)
        try:
            await self._mind.ask(asked, Asker.server(session.server))
        except Refused as refused:
            farewell = link_pb2.Farewell(refusal=str(refused))
        else:
            limit_seconds = self._policy.maintenance_limit_seconds
            farewell = link_pb2.Farewell(maintenance_ms=round(1_000 * min(asked.seconds, limit_seconds)))
        session.notice(link_pb2.AttachResponse(farewell=farewell))

    async def _take_moved(self, session: Session, moved: link_pb2.Moved) -> None:
        place, skipped = wire.place(moved)
        session.tell_skipped(skipped)
        await self._mind.observe(Moved(session.server, session.id, place))
        log.info("moved", server=session.server, address=place.address, trouble=place.trouble)
        if self._sessions.get(session.server) is session:
            self._watch.moved(session.server, place.address)

    # --- neighbours -----------------------------------------------------------------------------------------------

    def _with_witnesses(self, report: Reported, sent: int) -> Reported:
        """Keep only the testimonies about servers that the sender was told to watch. ``sent``: how many it sent. If one
        of them cannot be read, none is withdrawn: that one may be about any server."""
        is_whole = (report.complete or report.sequence == 1) and len(report.testimonies) == sent
        heard = self._watch.heard(report.server, report.testimonies, is_whole=is_whole)
        if not report.testimonies and not heard.withdrawn:
            return report
        return replace(report, testimonies=heard.testimonies, withdrawn=heard.withdrawn)

    def _tell_neighbours(self, server: str, neighbours: link_pb2.Neighbours) -> None:
        self._pass_on(server, link_pb2.AttachResponse(neighbours=neighbours))

    def _pass_on(self, server: str, message: link_pb2.AttachResponse) -> None:
        session = self._sessions.get(server)
        if session is not None:
            session.notice(message)

    # --- tempo ----------------------------------------------------------------------------------------------------

    def _tempo(self, server: str) -> link_pb2.Tempo:
        """The server's tempo; it depends on its pool and on the size of the fleet."""
        fleet = self._mind.fleet()
        terms = terms_of(fleet, fleet.servers[server], self._policy)
        return wire.tempo_to_proto(Tempo(terms.tempo.beat_seconds, terms.lease_seconds))

    def _retune(self, session: Session) -> None:
        """Send the agent its tempo, if it has changed during the session."""
        if session.server not in self._mind.fleet().servers:
            return
        tempo, sent = self._tempo(session.server), session.tempo
        if _is_near(tempo.beat_ms, sent.beat_ms) and _is_near(tempo.lease_ms, sent.lease_ms):
            return
        session.tempo = tempo
        log.info("tempo", server=session.server, beat_ms=tempo.beat_ms, lease_ms=tempo.lease_ms)
        session.notice(link_pb2.AttachResponse(tempo=tempo))


def _is_near(wanted: int, sent: int) -> bool:
    return abs(wanted - sent) < TEMPO_WORTH_TELLING * sent


def _checked(convert: Callable[[], T]) -> T:
    try:
        return convert()
    except cell_wire.WireError as error:
        raise InvalidRequest(str(error)) from error
