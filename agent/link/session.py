"""The link to the scheduler: one stream at a time, made again for as long as the agent lives.

``Link.run`` opens streams one after the other, with growing pauses between failures. What it reads becomes
events; what the state wants said is queued with ``send`` and written in order. Logs wait behind reports and are
bounded, so that they never delay one. Before the certificate ends it is renewed, and the stream with the new
one is open before the old one is closed, so that the scheduler never misses the agent. Where it has ended while no
scheduler could be reached, it is renewed on another way (``renewal``) before the next stream.
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
from galactica.agent.link.renewal import NotRenewedError, renew_expired
from galactica.v1 import link_pb2, link_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    Stream = grpc.aio.StreamStreamCall[link_pb2.AttachRequest, link_pb2.AttachResponse]

PAUSE_FIRST_SECONDS = 0.1
PAUSE_LIMIT_SECONDS = 5.0
WELCOME_SECONDS = 10.0
"""How long a scheduler may take to answer a Hello."""
GOODBYE_SECONDS = 1.0
OUTGOING_LIMIT = 256
LOG_CHUNKS_LIMIT = 4
RENEW_AGAIN_SECONDS = 15.0
UNTIL_WELCOME_SECONDS = 0.5
UNHEARD_LIMIT = 5
"""After so many streams in a row without a welcome the certificate may have ended by the scheduler's clock only."""

_FINAL = {
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
}

log = logging.getLogger(__name__)


class RefusedError(Exception):
    """The scheduler will never let this agent in as it is; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a stream ended. ``is_final``: trying again is of no use."""

    reason: str
    is_final: bool = False


@dataclass(slots=True, eq=False)
class _Attachment:
    """One stream, from its opening until its end."""

    number: int
    identity: Identity
    outgoing: deque[link_pb2.AttachRequest] = field(default_factory=deque)
    logs: asyncio.Queue[link_pb2.AttachRequest] = field(
        default_factory=lambda: asyncio.Queue(LOG_CHUNKS_LIMIT)
    )
    something: asyncio.Event = field(default_factory=asyncio.Event)
    welcomed: asyncio.Event = field(default_factory=asyncio.Event)
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    reason: str = ""
    is_leaving: bool = False
    """No more is queued: the writer ends when it has written what is."""
    stub: link_pb2_grpc.AgentLinkServiceAsyncStub | None = None
    task: asyncio.Task[Ending] | None = None

    def close(self, reason: str) -> None:
        self.reason = self.reason or reason
        self.closing.set()


@dataclass(slots=True)
class _Pauses:
    """Growing pauses between attempts, with jitter so that a fleet does not come back as one."""

    count: int = 0
    """How many there were since the last success."""
    _seconds: float = PAUSE_FIRST_SECONDS

    def begin_anew(self) -> None:
        self.count, self._seconds = 0, PAUSE_FIRST_SECONDS

    async def wait(self) -> None:
        self.count += 1
        seconds = self._seconds
        self._seconds = min(PAUSE_LIMIT_SECONDS, 2 * seconds)
        await asyncio.sleep(seconds * random.uniform(0.5, 1.0))  # noqa: S311 - no secret


@dataclass(slots=True)
class Link:
    """``address`` and ``enrolment``: HOST:PORT of the scheduler's two ports. ``directory`` is the identity's.
    ``deliver`` takes events, and may make the reader wait."""

    address: str
    enrolment: str
    directory: Path
    identity: Identity
    deliver: Callable[[Event], Awaitable[None]]
    on_shell: Callable[[int, link_pb2.ShellInput], None] | None = None
    """What goes past the state: a shell's input, with the link that brought it. Never waits."""
    clock_offset_ms: float | None = None
    """Our wall clock minus the scheduler's, by the newest echo."""
    _attachments: dict[int, _Attachment] = field(default_factory=dict)
    _numbers: int = 0
    _renew_not_before: float = 0.0

    def send(self, number: int, request: link_pb2.AttachRequest) -> None:
        """Queue for that stream; where it is gone the next Hello will tell. A full queue ends the stream."""
        attachment = self._attachments.get(number)
        if attachment is None or attachment.closing.is_set():
            return
        if len(attachment.outgoing) >= OUTGOING_LIMIT:
            attachment.close(f"the scheduler does not take reports: {OUTGOING_LIMIT} wait")
            return
        attachment.outgoing.append(request)
        attachment.something.set()

    async def send_log(self, number: int, request: link_pb2.AttachRequest) -> bool:
        """Wait for room behind the reports. False where that stream is gone."""
        attachment = self._attachments.get(number)
        if attachment is None:
            return False
        await attachment.logs.put(request)
        attachment.something.set()
        return True

    def close(self, number: int, reason: str) -> None:
        if attachment := self._attachments.get(number):
            attachment.close(reason)

    async def run(self) -> None:
        """Keep a stream open until ``leave``. Raises RefusedError, renewal.RenewalRefusedError."""
        pauses = _Pauses()
        async with asyncio.TaskGroup() as tasks:
            await self._renew_expired(pauses.count)
            current = self._attach(tasks)
            while True:
                ending = await self._watch(current)
                if ending is None:
                    current = await self._renew(current, tasks)
                    continue
                log.warning("detached link=%d reason=%r", current.number, ending.reason)
                if ending.is_final:
                    raise RefusedError(ending.reason)
                if current.welcomed.is_set():
                    pauses.begin_anew()
                await pauses.wait()
                await self._renew_expired(pauses.count)
                current = self._attach(tasks)

    async def _renew_expired(self, failures: int) -> None:
        """Before a stream is opened, where the certificate has ended by our clock or may have by the scheduler's.

        One attempt; the stream is tried whatever comes of it, for the clock may be what is wrong."""
        is_unheard = failures > 0 and failures % UNHEARD_LIMIT == 0
        if not is_unheard and not self.identity.has_expired(time.time()):
            return
        try:
            self.identity = await renew_expired(self.enrolment, self.directory, self.identity)
        except NotRenewedError as error:
            log.warning("certificate not renewed scheduler=%s reason=%r", self.enrolment, str(error))
        else:
            log.info("ended certificate renewed scheduler=%s", self.enrolment)

    async def leave(self) -> None:
        """Say what is queued, then close every stream properly. ``run`` is to be cancelled after this."""
        leaving = [one for one in self._attachments.values() if one.task]
        for attachment in leaving:
            attachment.close("the agent ends")
        if leaving:
            await asyncio.wait([one.task for one in leaving if one.task], timeout=2 * GOODBYE_SECONDS)

    def _attach(self, tasks: asyncio.TaskGroup) -> _Attachment:
        self._numbers += 1
        attachment = _Attachment(self._numbers, self.identity)
        self._attachments[attachment.number] = attachment
        attachment.task = tasks.create_task(self._serve(attachment))
        return attachment

    async def _watch(self, attachment: _Attachment) -> Ending | None:
        """The stream's ending, None when the certificate is to be renewed before that."""
        assert attachment.task  # noqa: S101 - _attach has set it
        now = time.time()
        due = max(attachment.identity.renew_at(now), self._renew_not_before)
        done, _ = await asyncio.wait({attachment.task}, timeout=max(0.0, due - now))
        return attachment.task.result() if done else None

    async def _renew(self, current: _Attachment, tasks: asyncio.TaskGroup) -> _Attachment:
        """The stream to go on with: one with a fresh certificate, or the current one where that failed."""
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
            log.warning("certificate not kept error=%r", str(error))
            return current
        successor = self._attach(tasks)
        await _first(successor.task, successor.welcomed)  # a stream that is not welcomed ends by itself
        if not successor.welcomed.is_set():
            return current
        log.info("certificate renewed link=%d", successor.number)
        current.close("its certificate was renewed")
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
                if response.HasField("echo"):
                    self._measure_clocks(response.echo)
                if event is not None:
                    await self.deliver(event)
                if isinstance(event, Welcomed):
                    log.info("attached link=%d scheduler=%s", attachment.number, self.address)
                    attachment.welcomed.set()
        except grpc.aio.AioRpcError as error:
            return _ending(self.address, error.code(), error.details())

    def _measure_clocks(self, echo: link_pb2.Echo) -> None:
        """The scheduler wrote its time about half way through the round trip."""
        half_way = (echo.sent_at + time.time()) / 2
        self.clock_offset_ms = (half_way - echo.received_at) * 1_000


def _ending(address: str, code: grpc.StatusCode, details: str | None) -> Ending:
    if code is grpc.StatusCode.OK:
        return Ending("the scheduler ended the session")
    if code in _FINAL:
        return Ending(f"the scheduler at {address} refuses this agent: {details or code.name}", is_final=True)
    return Ending(f"{code.name}: {details}")


async def _write(attachment: _Attachment, call: Stream) -> None:
    """Write what is queued, reports before logs. A broken stream is the reader's to tell."""
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
    """Let what is queued go out and end our half, so that nothing said is lost on the way."""
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
    """Wait until one of the tasks has ended or one of the events is set; tasks go on."""
    waits = [asyncio.ensure_future(one.wait()) for one in things if isinstance(one, asyncio.Event)]
    try:
        await asyncio.wait(
            [*waits, *(one for one in things if isinstance(one, asyncio.Task))],
            return_when=asyncio.FIRST_COMPLETED,
        )
    finally:
        for one in waits:
            one.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
