"""Shells that operators have opened in cells: passes on their input and output, with flow control by windows.

A window limits how many bytes are under way: the sender waits until the receiver says how many it has taken. So a
reader that stops reading stops its shell, but never the link.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from galactica.agent.core.model import CellState
from galactica.agent.runtimes.port import RuntimeFailure, Window
from galactica.v1 import cell_pb2, link_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from galactica.agent.core.model import Cell
    from galactica.agent.link.session import Link
    from galactica.agent.runtimes.port import Runtime, Shell

SHELLS_LIMIT = 4
"""Limit for one server."""
WINDOW_BYTES = 64 * 1024
"""Limit for the bytes under way, in each direction. The scheduler uses the same limit."""
DEFAULT_COMMAND = ("/bin/sh",)

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Open:
    """One shell. ``typed``: input that waits for the shell. ``room``: how many bytes of output it may still send."""

    typed: deque[bytes] = field(default_factory=deque)
    typed_bytes: int = 0
    input_ended: bool = False
    window: Window | None = None
    room: int = WINDOW_BYTES
    news: asyncio.Event = field(default_factory=asyncio.Event)
    has_room: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


@dataclass(slots=True)
class Shells:
    """The open shells. ``tasks`` owns their tasks. ``cells`` returns the cells of this server as they are now."""

    runtimes: Mapping[int, Runtime]
    link: Link
    tasks: asyncio.TaskGroup
    cells: Callable[[], Mapping[str, Cell]]
    _open: dict[tuple[int, int], _Open] = field(default_factory=dict)

    def take(self, link: int, message: link_pb2.ShellInput) -> None:
        """Take a message for a shell: its opening, or its input. Never waits."""
        key = (link, message.stream)
        if message.WhichOneof("what") == "start":
            self._start(key, message.start)
            return
        shell = self._open.get(key)
        if shell is not None:
            self._take(shell, message)

    def _start(self, key: tuple[int, int], start: link_pb2.ShellStart) -> None:
        cell = self.cells().get(start.cell_id)
        if key in self._open:
            return
        refusal = ""
        if cell is None:
            refusal = f"no cell {start.cell_id} on this server"
        elif cell.state is not CellState.RUNNING:
            refusal = f"cell {cell.id} is not running: its state is {cell.state.name}"
        elif len(self._open) >= SHELLS_LIMIT:
            refusal = f"{SHELLS_LIMIT} shells are already open on this server, its limit; close one of them"
        if refusal or cell is None:
            last = link_pb2.ShellOutput(stream=key[1], end=True, error=refusal)
            self.link.send(key[0], link_pb2.AttachRequest(shell_output=last))
            return
        shell = self._open[key] = _Open()
        shell.task = self.tasks.create_task(self._serve(key, shell, cell, start))
        shell.task.add_done_callback(lambda _: self._open.pop(key, None))

    def _take(self, shell: _Open, message: link_pb2.ShellInput) -> None:
        match message.WhichOneof("what"):
            case "data":
                shell.typed.append(message.data)
                shell.typed_bytes += len(message.data)
                if shell.typed_bytes > 2 * WINDOW_BYTES and shell.task:
                    shell.task.cancel()  # the sender ignores the window
            case "input_ended":
                shell.input_ended = True
            case "size":
                shell.window = _window(message.size)
            case "taken":
                shell.room += message.taken
                shell.has_room.set()
            case "close" if shell.task:
                shell.task.cancel()
        shell.news.set()

    def close_all_of(self, link: int) -> None:
        for (of_link, _), shell in self._open.items():
            if of_link == link and shell.task:
                shell.task.cancel()

    def close_all(self) -> None:
        for shell in self._open.values():
            if shell.task:
                shell.task.cancel()

    async def _serve(
        self, key: tuple[int, int], shell: _Open, cell: Cell, start: link_pb2.ShellStart
    ) -> None:
        last = link_pb2.ShellOutput(stream=key[1], end=True)
        try:
            last.exit_code = await self._converse(key, shell, cell, start)
        except RuntimeFailure as failure:
            last.error = str(failure)
        except Exception as error:
            log.exception("shell failed: unexpected error cell=%s", cell.id)
            last.error = f"unexpected error in the agent: {error!r}"
        await self.link.send_log(key[0], link_pb2.AttachRequest(shell_output=last))

    async def _converse(
        self, key: tuple[int, int], shell: _Open, cell: Cell, start: link_pb2.ShellStart
    ) -> int:
        command = tuple(start.command) or DEFAULT_COMMAND
        window = _window(start.size) if start.HasField("size") else None
        opened = await self.runtimes[cell.kind].open_shell(cell.id, command, start.term, window)
        log.info("shell opened cell=%s program=%s", cell.id, command[0])
        try:
            async with asyncio.TaskGroup() as tasks:
                typing = tasks.create_task(self._type(key, shell, opened))
                await self._say(key, shell, opened)
                typing.cancel()
        finally:
            code = await asyncio.shield(opened.end())
            log.info("shell ended cell=%s code=%d", cell.id, code)
        return code

    async def _type(self, key: tuple[int, int], shell: _Open, opened: Shell) -> None:
        while True:
            await shell.news.wait()
            shell.news.clear()
            if shell.window is not None:
                window, shell.window = shell.window, None
                await opened.resize(window)
            taken = 0
            while shell.typed:
                data = shell.typed.popleft()
                await opened.write(data)
                taken += len(data)
                shell.typed_bytes -= len(data)
            if taken:
                output = link_pb2.ShellOutput(stream=key[1], taken=taken)
                await self.link.send_log(key[0], link_pb2.AttachRequest(shell_output=output))
            if shell.input_ended and not shell.typed:
                await opened.end_input()

    async def _say(self, key: tuple[int, int], shell: _Open, opened: Shell) -> None:
        while True:
            while shell.room <= 0:
                shell.has_room.clear()
                await shell.has_room.wait()
            piece = await opened.read()
            if piece is None:
                return
            data, is_error = piece
            shell.room -= len(data)
            output = link_pb2.ShellOutput(stream=key[1], data=data, is_error=is_error)
            if not await self.link.send_log(key[0], link_pb2.AttachRequest(shell_output=output)):
                return


def _window(size: cell_pb2.WindowSize) -> Window:
    return Window(rows=min(max(size.rows, 1), 10_000), columns=min(max(size.columns, 1), 10_000))
