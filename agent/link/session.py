"""The link to the scheduler: one stream at a time, opened again for as long as the agent lives.

``Link.run`` opens streams one after the other, with growing pauses between failures. Messages from the scheduler
become events. ``send`` queues messages to the scheduler; they are written in order. Logs wait behind reports and are
bounded, so that they never delay a report. The certificate is renewed before it expires. The stream with the new
certificate is open before the old stream is closed, so that the agent is always connected. If the certificate has
expired because no scheduler was reachable, it is renewed through the enrolment port (``renewal``) before the next
stream.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc

from galactica.agent import clock
from galactica.agent.core.events import Connected, Disconnected, Event, Welcomed
from galactica.agent.link import wire
from galactica.agent.link.identity import Identity, IdentityError, channel_options, store_renewed
from galactica.agent.link.pauses import Pauses
from galactica.agent.link.renewal import NotRenewedError, renew_expired
from galactica.v1 import link_pb2, link_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    Stream = grpc.aio.StreamStreamCall[link_pb2.AttachRequest, link_pb2.AttachResponse]

WELCOME_SECONDS = 10.0
"""How long a scheduler may take to answer a Hello."""
GOODBYE_SECONDS = 1.0
FAREWELL_SECONDS = 5.0
"""How long a scheduler may take to make a maintenance lease durable."""
OUTGOING_LIMIT = 256
LOG_CHUNKS_LIMIT = 4
RENEW_AGAIN_SECONDS = 15.0
UNTIL_WELCOME_SECONDS = 0.5
UNHEARD_LIMIT = 5
"""After this many streams in a row without a welcome, the certificate may have expired by the scheduler's clock."""

_FINAL = {
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
}

log = logging.getLogger(__name__)


class RefusedError(Exception):
    """The scheduler refuses this agent for good; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a stream ended. ``is_final``: another attempt is useless. ``was_turned_away``: another live machine has this
    server's identity, and its session."""

    reason: str
    is_final: bool = False
    was_turned_away: bool = False


@dataclass(slots=True, eq=False)
class _Attachment:
    """One stream from its opening to its end."""

    number: int
    identity: Identity
    outgoing: deque[link_pb2.AttachRequest] = field(default_factory=deque)
    logs: asyncio.Queue[link_pb2.AttachRequest] = field(
        default_factory=lambda: asyncio.Queue(LOG_CHUNKS_LIMIT)
    )
    something: asyncio.Event = field(default_factory=asyncio.Event)
    welcomed: asyncio.Event = field(default_factory=asyncio.Event)
    serves_since: float | None = None
    """When it was welcomed, or the stream whose place it took."""
    wire_version: int = 0
    """The one that both sides speak; known with the welcome."""
    farewell: asyncio.Future[link_pb2.Farewell] | None = None
    """The answer to our goodbye; None: we did not say it."""
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    reason: str = ""
    is_leaving: bool = False
    """Nothing more is queued: the writer ends when the queues are empty."""
    stub: link_pb2_grpc.AgentLinkServiceAsyncStub | None = None
    task: asyncio.Task[Ending] | None = None

    def close(self, reason: str) -> None:
        self.reason = self.reason or reason
        self.closing.set()

    def served_seconds(self, now: float) -> float:
        return now - self.serves_since if self.serves_since is not None else 0.0


@dataclass(slots=True)
class Link:
    """``address`` and ``enrolment``: HOST:PORT of the scheduler's two ports. ``directory``: the identity's directory.
    ``deliver`` takes events; the reader waits for it."""

    address: str
    enrolment: str
    directory: Path
    identity: Identity
    deliver: Callable[[Event], Awaitable[None]]
    on_shell: Callable[[int, link_pb2.ShellInput], None] | None = None
    """Takes a shell's input and the number of its link; the input bypasses the state. Never waits."""
    on_genome: Callable[[int, link_pb2.AttachResponse], None] | None = None
    """The same for messages about the fleet's genome."""
    clock_offset_ms: float | None = None
    """Our wall clock minus the scheduler's, measured by the newest echo."""
    _attachments: dict[int, _Attachment] = field(default_factory=dict)
    _numbers: int = 0
    _renew_not_before: float = 0.0

    def send(self, number: int, request: link_pb2.AttachRequest) -> None:
        """Queue a message for that stream. If the stream has ended, the message is dropped: the next Hello has its
        facts. A full queue ends the stream."""
        attachment = self._attachments.get(number)
        if attachment is None or attachment.closing.is_set():
            return
        if len(attachment.outgoing) >= OUTGOING_LIMIT:
            attachment.close(f"the scheduler reads too slowly: {OUTGOING_LIMIT} messages are waiting")
            return
        attachment.outgoing.append(request)
        attachment.something.set()

    async def send_log(self, number: int, request: link_pb2.AttachRequest) -> bool:
        """Queue a log chunk behind the reports; waits for room. Returns False if the stream has ended."""
        attachment = self._attachments.get(number)
        if attachment is None:
            return False
        await attachment.logs.put(request)
        attachment.something.set()
        return True

    def tell_place(self, number: int, place: wire.Place) -> None:
        """Tell where neighbours reach this agent now. To an older scheduler only another stream's Hello tells it."""
        attachment = self._attachments.get(number)
        if attachment is not None and attachment.wire_version < wire.FIRST_WITH_MOVED:
            attachment.close("neighbours reach this agent elsewhere, which this scheduler hears in a Hello")
        self.send(number, wire.moved(place))

    def close(self, number: int, reason: str) -> None:
        if attachment := self._attachments.get(number):
            attachment.close(reason)

    async def run(self) -> None:
        """Keep a stream open until ``leave``. Raises RefusedError, renewal.RenewalRefusedError."""
        pauses, unheard = Pauses(), 0
        async with asyncio.TaskGroup() as tasks:
            await self._renew_expired(unheard)
            current = self._attach(tasks)
            while True:
                ending = await self._watch(current)
                if ending is None:
                    current = await self._renew(current, tasks)
                    continue
                if ending.is_final:
                    log.warning("detached link=%d reason=%r", current.number, ending.reason)
                    raise RefusedError(ending.reason)
                served_seconds = current.served_seconds(clock.now())
                pauses.ended(served_seconds, was_turned_away=ending.was_turned_away)
                pause_seconds = pauses.next_seconds()
                message = "detached link=%d reason=%r next_in_seconds=%.2f"
                log.warning(message, current.number, ending.reason, pause_seconds)
                await asyncio.sleep(pause_seconds)
                was_heard = current.welcomed.is_set() or ending.was_turned_away
                unheard = 0 if was_heard else unheard + 1
                await self._renew_expired(unheard)
                current = self._attach(tasks)

    async def _renew_expired(self, unheard: int) -> None:
        """Renew the certificate before a stream is opened, if it has expired by our clock or may have expired by the
        scheduler's.

        One attempt. The caller opens the stream in any case, because our clock may be wrong."""
        is_unheard = unheard > 0 and unheard % UNHEARD_LIMIT == 0
        if not is_unheard and not self.identity.has_expired(time.time()):
            return
        try:
            self.identity = await renew_expired(self.enrolment, self.directory, self.identity)
        except NotRenewedError as error:
            log.warning("certificate not renewed scheduler=%s reason=%r", self.enrolment, str(error))
        else:
            log.info("expired certificate renewed scheduler=%s", self.enrolment)

    async def ask_for_maintenance(self, seconds: float) -> None:
        """Tell the scheduler that the agent ends and its cells live on; wait for its answer. Call ``leave`` after."""
        welcomed = [one for one in self._attachments.values() if one.welcomed.is_set()]
        if not welcomed:
            log.warning("no maintenance lease reason='not attached to the scheduler'")
            return
        attachment = welcomed[-1]
        if attachment.wire_version < wire.FIRST_WITH_GOODBYE:
            log.warning("no maintenance lease reason='the scheduler is of a version that grants none'")
            return
        attachment.farewell = asyncio.get_running_loop().create_future()
        goodbye = link_pb2.Goodbye(maintenance_ms=round(1_000 * seconds))
        self.send(attachment.number, link_pb2.AttachRequest(goodbye=goodbye))
        await asyncio.wait({attachment.farewell}, timeout=FAREWELL_SECONDS)
        if not attachment.farewell.done() or attachment.farewell.cancelled():
            log.warning("no maintenance lease reason='the scheduler did not answer'")
            return
        farewell = attachment.farewell.result()
        if farewell.maintenance_ms:
            log.info("in maintenance seconds=%g", farewell.maintenance_ms / 1_000)
        else:
            log.warning("no maintenance lease reason=%r", farewell.refusal)

    async def leave(self) -> None:
        """Send the queued messages, then close every stream properly. Cancel ``run`` after this."""
        leaving = [attachment for attachment in self._attachments.values() if attachment.task]
        for attachment in leaving:
            attachment.close("the agent ends")
        if leaving:
            tasks = [attachment.task for attachment in leaving if attachment.task]
            await asyncio.wait(tasks, timeout=2 * GOODBYE_SECONDS)

    def _attach(self, tasks: asyncio.TaskGroup) -> _Attachment:
        self._numbers += 1
        attachment = _Attachment(self._numbers, self.identity)
        self._attachments[attachment.number] = attachment
        attachment.task = tasks.create_task(self._serve(attachment))
        return attachment

    async def _watch(self, attachment: _Attachment) -> Ending | None:
        """Wait for the stream's end. Returns None if it is time to renew the certificate."""
        assert attachment.task  # noqa: S101 - _attach has set it
        now = time.time()
        due = max(attachment.identity.renew_at(now), self._renew_not_before)
        done, _ = await asyncio.wait({attachment.task}, timeout=max(0.0, due - now))
        return attachment.task.result() if done else None

    async def _renew(self, current: _Attachment, tasks: asyncio.TaskGroup) -> _Attachment:
        """Renew the certificate. Returns the stream to use: a new one, or the current one if the renewal failed."""
        if current.stub is None or not current.welcomed.is_set():
            self._renew_not_before = time.time() + UNTIL_WELCOME_SECONDS
            return current
        self._renew_not_before = time.time() + RENEW_AGAIN_SECONDS * random.uniform(0.5, 1.0)  # noqa: S311
        request = link_pb2.RenewCertificateRequest(csr_pem=self.identity.csr_pem)
        try:
            answer = await current.stub.RenewCertificate(request, timeout=WELCOME_SECONDS)
            self.identity = await asyncio.to_thread(
                store_renewed, self.directory, answer.certificate_pem, answer.expires_at
            )
        except grpc.aio.AioRpcError as error:
            log.warning("certificate not renewed code=%s details=%s", error.code().name, error.details())
            return current
        except (IdentityError, OSError) as error:
            log.warning("certificate not stored error=%r", str(error))
            return current
        successor = self._attach(tasks)
        await _first(successor.task, successor.welcomed)  # without a welcome the stream ends by itself
        if not successor.welcomed.is_set():
            return current
        log.info("certificate renewed link=%d", successor.number)
        successor.serves_since = current.serves_since
        current.close("the certificate was renewed")
        if current.task:
            await asyncio.wait({current.task})
        return successor

    async def _serve(self, attachment: _Attachment) -> Ending:
        options = [*channel_options(), ("grpc.use_local_subchannel_pool", 1)]
        channel = grpc.aio.secure_channel(self.address, attachment.identity.credentials, options=options)
        try:
            attachment.stub = link_pb2_grpc.AgentLinkServiceStub(channel)
            return await self._converse(attachment, attachment.stub.Attach())
        finally:
            del self._attachments[attachment.number]
            if attachment.farewell is not None:
                attachment.farewell.cancel()
            await self.deliver(Disconnected(attachment.number, clock.now()))
            await channel.close()

    async def _converse(self, attachment: _Attachment, call: Stream) -> Ending:
        await self.deliver(Connected(attachment.number, clock.now()))
        async with asyncio.TaskGroup() as tasks:
            reader = tasks.create_task(self._read(attachment, call))
            writer = tasks.create_task(_write(attachment, call))
            try:
                ending = await self._until_ended(attachment, call, reader, writer)
            finally:
                reader.cancel()
                writer.cancel()
                call.cancel()
        return ending

    async def _until_ended(
        self, attachment: _Attachment, call: Stream, reader: asyncio.Task[Ending], writer: asyncio.Task[None]
    ) -> Ending:
        try:
            async with asyncio.timeout(WELCOME_SECONDS):
                await _first(reader, attachment.welcomed, attachment.closing)
        except TimeoutError:
            return Ending(f"no answer from {self.address} within {WELCOME_SECONDS:.0f} s")
        await _first(reader, attachment.closing)
        if reader.done():
            return reader.result()
        await _say_goodbye(attachment, call, reader, writer)
        return Ending(attachment.reason)

    async def _read(self, attachment: _Attachment, call: Stream) -> Ending:
        try:
            while True:
                response = await call.read()
                if not isinstance(response, link_pb2.AttachResponse):
                    code, details = await call.code(), await call.details()
                    return _ending(self.address, code, details)
                event = wire.event(response, attachment.number, clock.now())
                if response.HasField("shell_input") and self.on_shell:
                    self.on_shell(attachment.number, response.shell_input)
                if self.on_genome and (response.HasField("genome") or response.HasField("genome_wanted")):
                    self.on_genome(attachment.number, response)
                if response.HasField("echo"):
                    self._measure_clocks(response.echo)
                if response.HasField("welcome"):
                    attachment.wire_version = wire.spoken(response.welcome)
                _take_farewell(attachment, response)
                if event is not None:
                    await self.deliver(event)
                if isinstance(event, Welcomed):
                    log.info("attached link=%d scheduler=%s", attachment.number, self.address)
                    attachment.serves_since = clock.now()
                    attachment.welcomed.set()
        except grpc.aio.AioRpcError as error:
            return _ending(self.address, error.code(), error.details())

    def _measure_clocks(self, echo: link_pb2.Echo) -> None:
        """The scheduler read its clock about half way through the round trip."""
        half_way = (echo.sent_at + time.time()) / 2
        self.clock_offset_ms = (half_way - echo.received_at) * 1_000


def _take_farewell(attachment: _Attachment, response: link_pb2.AttachResponse) -> None:
    awaited = attachment.farewell
    if response.HasField("farewell") and awaited is not None and not awaited.done():
        awaited.set_result(response.farewell)


def _ending(address: str, code: grpc.StatusCode, details: str | None) -> Ending:
    if code is grpc.StatusCode.OK:
        return Ending("the scheduler ended the session")
    if code in _FINAL:
        return Ending(f"the scheduler at {address} refuses this agent: {details or code.name}", is_final=True)
    return Ending(f"{code.name}: {details}", was_turned_away=code is grpc.StatusCode.ALREADY_EXISTS)


async def _write(attachment: _Attachment, call: Stream) -> None:
    """Write the queued messages, reports before logs. If the stream breaks, the reader reports it."""
    try:
        while not attachment.is_leaving:
            await attachment.something.wait()
            attachment.something.clear()
            while attachment.outgoing or not attachment.logs.empty():
                waiting = attachment.outgoing
                await call.write(waiting.popleft() if waiting else attachment.logs.get_nowait())
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        return


async def _say_goodbye(
    attachment: _Attachment, call: Stream, reader: asyncio.Task[Ending], writer: asyncio.Task[None]
) -> None:
    """Write the queued messages and close our half of the stream, so that no message is lost."""
    try:
        async with asyncio.timeout(GOODBYE_SECONDS):
            attachment.is_leaving = True
            attachment.something.set()
            await asyncio.wait({writer})
            await call.done_writing()
            await asyncio.wait({reader})
    except (TimeoutError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
        return


async def _first(*things: asyncio.Task[Ending] | asyncio.Event | None) -> None:
    """Wait until a task has ended or an event is set. The other tasks go on."""
    waits = [asyncio.ensure_future(thing.wait()) for thing in things if isinstance(thing, asyncio.Event)]
    try:
        await asyncio.wait(
            [*waits, *(thing for thing in things if isinstance(thing, asyncio.Task))],
            return_when=asyncio.FIRST_COMPLETED,
        )
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
