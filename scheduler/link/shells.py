"""The dispatcher's end of one shell: passes input to the agent and output back. A window for each direction bounds the
memory that a slow reader or a fast writer can use."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from galactica.scheduler.core.model.requests import Refused
from galactica.scheduler.wire.link import WINDOW_BYTES
from galactica.v1 import cell_pb2, link_pb2

SHELLS_LIMIT = 4
"""For each server; agents have the same limit."""


class ShellStream:
    """``send`` queues a message in the session and never waits. ``forget`` is called once, when the shell has ended."""

    def __init__(
        self, number: int, send: Callable[[link_pb2.ShellInput], None], forget: Callable[[], None]
    ) -> None:
        self._number = number
        self._send = send
        self._forget = forget
        self._outputs: deque[link_pb2.ShellOutput] = deque()
        self._waiting_bytes = 0
        self._news = asyncio.Event()
        self._room = WINDOW_BYTES
        self._has_room = asyncio.Event()
        self._is_over = False
        self._error = ""

    # --- for the operators' side ----------------------------------------------------------------------------------

    def start(self, start: link_pb2.ShellStart) -> None:
        self._send(link_pb2.ShellInput(stream=self._number, start=start))

    async def type(self, data: bytes) -> None:
        """Send input; waits for room in the window."""
        while data:
            while self._room <= 0:
                self._has_room.clear()
                await self._has_room.wait()
            piece, data = data[: self._room], data[self._room :]
            self._room -= len(piece)
            self._send(link_pb2.ShellInput(stream=self._number, data=piece))

    def end_input(self) -> None:
        self._send(link_pb2.ShellInput(stream=self._number, input_ended=True))

    def resize(self, size: cell_pb2.WindowSize) -> None:
        self._send(link_pb2.ShellInput(stream=self._number, size=size))

    async def read(self) -> link_pb2.ShellOutput:
        """The next piece of output, or the end with the exit code. Raises Refused if the shell has ended otherwise."""
        while not self._outputs:
            if self._is_over:
                raise Refused("shell", self._error or "the shell has ended")
            self._news.clear()
            await self._news.wait()
        output = self._outputs.popleft()
        self._waiting_bytes -= len(output.data)
        if output.end and output.error:
            raise Refused("shell", output.error)
        if output.data and not self._is_over:
            self._send(link_pb2.ShellInput(stream=self._number, taken=len(output.data)))
        return output

    def close(self) -> None:
        """The operator has left: end the shell."""
        if not self._is_over:
            self._send(link_pb2.ShellInput(stream=self._number, close=True))
        self._end("")

    # --- for the session ------------------------------------------------------------------------------------------

    def take(self, output: link_pb2.ShellOutput) -> None:
        if output.taken:
            self._room = min(self._room + output.taken, WINDOW_BYTES)
            self._has_room.set()
        if not output.data and not output.end:
            return
        self._waiting_bytes += len(output.data)
        if self._waiting_bytes > 2 * WINDOW_BYTES:
            self.close()
            self._error = "the agent sent more output than the window allows"
            return
        self._outputs.append(output)
        if output.end:
            self._end("")
        self._news.set()

    def lose(self, reason: str) -> None:
        """The link to the agent has ended."""
        self._end(reason)

    def _end(self, error: str) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._error = error
        self._room = 2**62  # further input is dropped, so nobody must wait for room
        self._has_room.set()
        self._news.set()
        self._forget()
