"""One agent's session: the messages to the agent, and the logs and shells from it, all bounded.

A session queues instructions without waiting. Its writer sends the queued instructions in batches. An agent that does
not read its stream loses its session; other agents are not affected.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import NamedTuple, Protocol

import grpc
import structlog
from msgspec import Struct

from galactica.scheduler.core.model.requests import Refused
from galactica.scheduler.link.rivals import Claimant
from galactica.scheduler.link.shells import SHELLS_LIMIT, ShellStream
from galactica.v1 import link_pb2

BATCH_LIMIT = 1_000
SKIPPED_TOLD = 20
"""How many wrong entries of an agent's messages are logged in one session."""
BATCH_BYTES_LIMIT = 1024 * 1024
"""Agents accept messages of up to 4 MiB. The last order of a batch is far smaller than the rest of that."""

log = structlog.get_logger("scheduler.link")


class LinkLimits(Struct, frozen=True):
    """Limits for one agent and the readers of its logs. ``instructions``: queued ones; twice the cells of a server, so
    that orders and decommissions of all its cells fit. ``hello_seconds``: from the stream's opening to the Hello.
    ``write_seconds``: how long writing one message may take. ``log_streams``: for each server; agents have the same
    limit. ``log_bytes``: unread bytes of one log stream."""

    hello_seconds: float = 5.0
    write_seconds: float = 10.0
    instructions: int = 20_000
    log_streams: int = 16
    log_bytes: int = 4 * 1024 * 1024


class Ending(NamedTuple):
    """How a session ended: the gRPC status for its agent."""

    code: grpc.StatusCode
    reason: str


class Writer(Protocol):
    async def write(self, message: link_pb2.AttachResponse, /) -> None: ...


class LogStream:
    """The log of one cell for one reader. Chunks wait here until they are read; too many unread bytes end it."""

    def __init__(self, bytes_limit: int) -> None:
        self._bytes_limit = bytes_limit
        self._chunks: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._news = asyncio.Event()
        self._error = ""
        self.ended = False

    def put(self, chunk: bytes) -> None:
        if self.ended:
            return
        self._waiting_bytes += len(chunk)
        if self._waiting_bytes > self._bytes_limit:
            self.end(f"more than {self._bytes_limit} bytes are unread: read faster, or ask for fewer lines")
            return
        self._chunks.append(chunk)
        self._news.set()

    def end(self, error: str = "") -> None:
        if not self.ended:
            self.ended = True
            self._error = error
            self._news.set()

    async def read(self) -> bytes | None:
        """The next chunk; None at the end. Raises Refused if the stream ended with an error."""
        while not self._chunks:
            if self.ended:
                if self._error:
                    raise Refused("logs", self._error)
                return None
            self._news.clear()
            await self._news.wait()
        chunk = self._chunks.popleft()
        self._waiting_bytes -= len(chunk)
        return chunk


class Session:
    """One agent's session. ``ended`` is done when the session must be closed. ``holder``: who has it. ``heard_at``: the
    scheduler's time when the agent was heard last."""

    def __init__(
        self,
        server: str,
        session_id: str,
        welcome: link_pb2.Welcome,
        limits: LinkLimits,
        *,
        holder: Claimant,
        heard_at: float,
    ) -> None:
        self._limits = limits
        self.server = server
        self.id = session_id
        self.holder = holder
        self.heard_at = heard_at
        self.tempo = welcome.tempo
        """The newest tempo that was sent to the agent."""
        self.beat_at = welcome.beat_at
        """The agent's time in its newest message that was processed."""
        self._epoch = welcome.epoch
        self.ended: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._notices: deque[link_pb2.AttachResponse] = deque([link_pb2.AttachResponse(welcome=welcome)])
        self._instructions: deque[link_pb2.Instruction] = deque()
        self._wake = asyncio.Event()
        self._wake.set()
        self._sequence = 0
        self._logs: dict[int, LogStream] = {}
        self._log_streams_made = 0
        self._typed: deque[link_pb2.ShellInput] = deque()  # bounded by the shells' windows
        self._shells: dict[int, ShellStream] = {}
        self._shells_made = 0
        self._skipped: set[str] = set()

    def end(self, code: grpc.StatusCode, reason: str) -> None:
        """The first ending counts."""
        if not self.ended.done():
            self.ended.set_result(Ending(code, reason))

    def tell_skipped(self, entries: Sequence[str]) -> None:
        """Log the entries of a message that are wrong. Each text once in a session, and only the first ones."""
        for text in entries:
            if len(self._skipped) >= SKIPPED_TOLD:
                return
            if text not in self._skipped:
                self._skipped.add(text)
                log.warning("entry_skipped", server=self.server, session=self.id, reason=text)
                if len(self._skipped) == SKIPPED_TOLD:
                    log.warning("entries_skipped", server=self.server, session=self.id, more="not told")

    # --- out ------------------------------------------------------------------------------------------------------

    def instruct(self, instruction: link_pb2.Instruction) -> None:
        """Queue an instruction for the next batch. Never waits; a full queue ends the session."""
        if len(self._instructions) >= self._limits.instructions:
            reason = f"the agent reads too slowly: {self._limits.instructions} instructions are waiting"
            self.end(grpc.StatusCode.RESOURCE_EXHAUSTED, reason)
            return
        # Set now, not when it is written: an instruction that waits here long must not look fresh.
        instruction.beat_at = self.beat_at
        self._instructions.append(instruction)
        self._wake.set()

    def notice(self, message: link_pb2.AttachResponse) -> None:
        """Queue an echo, a tempo or neighbours; they are sent before instructions. Only the newest of each kind is
        kept."""
        kind = message.WhichOneof("message")
        older = next((notice for notice in self._notices if notice.WhichOneof("message") == kind), None)
        if older is not None:
            self._notices.remove(older)
        self._notices.append(message)
        self._wake.set()

    async def write(self, stream: Writer) -> None:
        """Send queued messages until the session ends. A write that fails or takes too long ends the session."""
        while not self.ended.done():
            await self._wake.wait()
            self._wake.clear()
            for message in self._messages():
                try:
                    async with asyncio.timeout(self._limits.write_seconds):
                        await stream.write(message)
                except TimeoutError:
                    reason = f"the agent did not read a message within {self._limits.write_seconds:g} s"
                    self.end(grpc.StatusCode.RESOURCE_EXHAUSTED, reason)
                    return
                except (grpc.aio.BaseError, asyncio.InvalidStateError) as error:
                    self.end(grpc.StatusCode.UNAVAILABLE, f"the stream broke: {error}")
                    return

    def _messages(self) -> Iterator[link_pb2.AttachResponse]:
        while self._notices or self._instructions or self._typed:
            if self._notices:
                yield self._notices.popleft()
                continue
            if self._typed:
                yield link_pb2.AttachResponse(shell_input=self._typed.popleft())
            if not self._instructions:
                continue
            self._sequence += 1
            batch = link_pb2.Instructions(
                session=self.id, sequence=self._sequence, instructions=self._batch(), epoch=self._epoch
            )
            yield link_pb2.AttachResponse(instructions=batch)

    def _batch(self) -> list[link_pb2.Instruction]:
        batch: list[link_pb2.Instruction] = []
        size = 0
        while self._instructions and len(batch) < BATCH_LIMIT and size < BATCH_BYTES_LIMIT:
            batch.append(self._instructions.popleft())
            size += batch[-1].ByteSize()
        return batch

    # --- logs -----------------------------------------------------------------------------------------------------

    async def read_logs(self, cell: str, tail: int, *, follow: bool) -> AsyncIterator[bytes]:
        """The cell's output. Raises Refused if the stream ends with an error."""
        if len(self._logs) >= self._limits.log_streams:
            raise Refused(
                "logs",
                f"{self._limits.log_streams} logs are already being read from server {self.server}, its limit; "
                "try again later",
            )
        if self.ended.done():
            raise Refused("not_attached", f"server {self.server} is not attached now; try again")
        self._log_streams_made += 1
        number = self._log_streams_made
        stream = self._logs[number] = LogStream(self._limits.log_bytes)
        fetch = link_pb2.FetchLogs(stream=number, cell_id=cell, tail=tail, follow=follow)
        self.instruct(link_pb2.Instruction(fetch_logs=fetch))
        ended_by_agent = False
        try:
            while (chunk := await stream.read()) is not None:
                yield chunk
            ended_by_agent = True
        finally:
            del self._logs[number]
            if not ended_by_agent and not self.ended.done():
                self.instruct(link_pb2.Instruction(stop_logs=link_pb2.StopLogs(stream=number)))

    def take_log_chunk(self, chunk: link_pb2.LogChunk) -> None:
        """Take a chunk. Late chunks of a closed stream are dropped."""
        stream = self._logs.get(chunk.stream)
        if stream is None:
            return
        if chunk.data:
            stream.put(chunk.data)
        if chunk.end:
            stream.end(chunk.error)

    # --- shells ---------------------------------------------------------------------------------------------------

    def open_shell(self) -> ShellStream:
        """A stream for a shell that is not started yet. Raises Refused."""
        if len(self._shells) >= SHELLS_LIMIT:
            raise Refused(
                "shells",
                f"{SHELLS_LIMIT} shells are already open on server {self.server}, its limit; close one of them",
            )
        if self.ended.done():
            raise Refused("not_attached", f"server {self.server} is not attached now; try again")
        self._shells_made += 1
        number = self._shells_made
        self._shells[number] = ShellStream(number, self._type, lambda: self._forget_shell(number))
        return self._shells[number]

    def _forget_shell(self, number: int) -> None:
        self._shells.pop(number, None)

    def _type(self, typed: link_pb2.ShellInput) -> None:
        if not self.ended.done():
            self._typed.append(typed)
            self._wake.set()

    def take_shell_output(self, output: link_pb2.ShellOutput) -> None:
        """Take output. Output of a closed shell is dropped."""
        if (stream := self._shells.get(output.stream)) is not None:
            stream.take(output)

    def end_streams(self, reason: str) -> None:
        for shell in tuple(self._shells.values()):
            shell.lose(reason)
        for stream in self._logs.values():
            stream.end(reason)
