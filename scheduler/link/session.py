"""What goes out to one agent, and the logs that come from it: bounded, and nobody else's concern.

A session takes instructions without waiting; its writer sends whatever has gathered as one batch. An agent that does
not drain its stream loses this session and no other agent notices.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import NamedTuple, Protocol

import grpc
from msgspec import Struct

from galactica.scheduler.core.model.requests import Refused
from galactica.scheduler.link.shells import SHELLS_LIMIT, ShellStream
from galactica.v1 import link_pb2

BATCH_LIMIT = 1_000
BATCH_BYTES_LIMIT = 1024 * 1024
"""Agents take messages of up to 4 MiB; one order stays far below the difference."""


class LinkLimits(Struct, frozen=True):
    """What one agent and its readers may cost. ``instructions``: waiting ones; twice what a server may carry, so that
    orders and decommissions of all its cells fit. ``hello_seconds``: from the stream's opening. ``write_seconds``: how
    long a message may wait for a stream that does not drain. ``log_streams``: per server; agents serve no more at
    once. ``log_bytes``: what waits for one reader of logs."""

    hello_seconds: float = 5.0
    write_seconds: float = 10.0
    instructions: int = 20_000
    log_streams: int = 16
    log_bytes: int = 4 * 1024 * 1024


class Ending(NamedTuple):
    """How a session ended: the status that its agent gets."""

    code: grpc.StatusCode
    reason: str


class Writer(Protocol):
    async def write(self, message: link_pb2.AttachResponse, /) -> None: ...


class LogStream:
    """What one reader wants of one cell. Chunks wait here until they are read; too many of them end it."""

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
            self.end(
                f"more than {self._bytes_limit} bytes wait to be read; read faster, or ask for fewer lines"
            )
            return
        self._chunks.append(chunk)
        self._news.set()

    def end(self, error: str = "") -> None:
        if not self.ended:
            self.ended = True
            self._error = error
            self._news.set()

    async def read(self) -> bytes | None:
        """The next chunk; None at the end. Raises Refused where it ended for a reason."""
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
    """One agent's session. ``ended`` is done as soon as it is to be closed."""

    def __init__(self, server: str, session_id: str, welcome: link_pb2.Welcome, limits: LinkLimits) -> None:
        self._limits = limits
        self.server = server
        self.id = session_id
        self.tempo = welcome.tempo
        """What the agent was told last."""
        self.beat_at = welcome.beat_at
        """The agent's clock in the newest of its messages that was taken."""
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

    def end(self, code: grpc.StatusCode, reason: str) -> None:
        """The first ending counts."""
        if not self.ended.done():
            self.ended.set_result(Ending(code, reason))

    # --- out ------------------------------------------------------------------------------------------------------

    def instruct(self, instruction: link_pb2.Instruction) -> None:
        """Queue for the next batch. Never waits; what does not fit ends the session."""
        if len(self._instructions) >= self._limits.instructions:
            reason = f"the agent does not take its instructions: {self._limits.instructions} wait"
            self.end(grpc.StatusCode.RESOURCE_EXHAUSTED, reason)
            return
        # Now and not when it is written: what waits here long must not look fresh.
        instruction.beat_at = self.beat_at
        self._instructions.append(instruction)
        self._wake.set()

    def notice(self, message: link_pb2.AttachResponse) -> None:
        """Queue an echo or a tempo, before instructions. Only the newest of each kind waits."""
        kind = message.WhichOneof("message")
        older = next((one for one in self._notices if one.WhichOneof("message") == kind), None)
        if older is not None:
            self._notices.remove(older)
        self._notices.append(message)
        self._wake.set()

    async def write(self, stream: Writer) -> None:
        """Send what is queued until the session ends; a stream that fails or does not drain ends it."""
        while not self.ended.done():
            await self._wake.wait()
            self._wake.clear()
            for message in self._messages():
                try:
                    async with asyncio.timeout(self._limits.write_seconds):
                        await stream.write(message)
                except TimeoutError:
                    reason = f"the agent did not take a message for {self._limits.write_seconds:g} s"
                    self.end(grpc.StatusCode.RESOURCE_EXHAUSTED, reason)
                    return
                except (grpc.aio.BaseError, asyncio.InvalidStateError) as error:
                    self.end(grpc.StatusCode.UNAVAILABLE, f"its stream broke: {error}")
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
        """What the cell wrote. Raises Refused where there is no more for another reason than its end."""
        if len(self._logs) >= self._limits.log_streams:
            raise Refused(
                "logs",
                f"{self._limits.log_streams} logs are read from server {self.server} already; try later",
            )
        if self.ended.done():
            raise Refused("not_attached", f"server {self.server} is not attached at the moment; try again")
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
        """Late chunks of a stream that nobody reads any more are dropped."""
        stream = self._logs.get(chunk.stream)
        if stream is None:
            return
        if chunk.data:
            stream.put(chunk.data)
        if chunk.end:
            stream.end(chunk.error)

    # --- shells ---------------------------------------------------------------------------------------------------

    def open_shell(self) -> ShellStream:
        """Not begun yet. Raises Refused."""
        if len(self._shells) >= SHELLS_LIMIT:
            raise Refused(
                "shells", f"{SHELLS_LIMIT} shells are open on server {self.server} already; close one of them"
            )
        if self.ended.done():
            raise Refused("not_attached", f"server {self.server} is not attached at the moment; try again")
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
        """What a shell says that nobody listens to any more is dropped."""
        if (stream := self._shells.get(output.stream)) is not None:
            stream.take(output)

    def end_streams(self, reason: str) -> None:
        for shell in tuple(self._shells.values()):
            shell.lose(reason)
        for stream in self._logs.values():
            stream.end(reason)
