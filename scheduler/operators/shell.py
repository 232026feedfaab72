"""OpenShell: connects an operator's stream with the agent's stream, for a shell inside a cell."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, cast

import grpc

from galactica.scheduler.core.model import requests
from galactica.scheduler.core.model.fleet import Cell, CellKind, parse_cell_id
from galactica.scheduler.core.model.requests import Refused
from galactica.scheduler.core.ports import Mind
from galactica.scheduler.core.sight.observations import CellState, ShellBegun, ShellEnded
from galactica.scheduler.security.gate import Context, InvalidRequest
from galactica.scheduler.views import cells as cell_views
from galactica.scheduler.wire.link import WINDOW_BYTES
from galactica.v1 import cell_pb2, link_pb2, operator_pb2

WORDS_LIMIT = 256
COMMAND_BYTES_LIMIT = 65_536
TERM_CHARACTERS = 64

Ask = Callable[[requests.Request], Awaitable[requests.Accepted]]


class ShellStream(Protocol):
    """One shell in a cell, as this side uses it. A window limits both directions."""

    def start(self, start: link_pb2.ShellStart) -> None: ...

    async def type(self, data: bytes) -> None:
        """Waits until there is room in the window."""

    def end_input(self) -> None: ...

    def resize(self, size: cell_pb2.WindowSize) -> None: ...

    async def read(self) -> link_pb2.ShellOutput:
        """The next piece of output, or the end with its exit code. Raises Refused when the shell is lost."""

    def close(self) -> None:
        """The operator no longer reads or types."""

    def lose(self, reason: str) -> None:
        """End the shell; the reader gets the reason."""


class ShellOpener(Protocol):
    """Reaches a cell's agent. The dispatcher implements it."""

    def open_shell(self, server: str) -> ShellStream:
        """Raises Refused if the agent is not attached or already serves too many shells."""


async def serve(context: Context, mind: Mind, opener: ShellOpener, ask: Ask) -> None:
    """One call, from its start to the exit code. The cell is marked as touched only after all checks have passed."""
    start = await _start(context)
    cell = _running_cell(mind, start.cell_id)
    shell = opener.open_shell(cell.server)
    await mind.observe(ShellBegun(cell.server, cell.id))
    try:
        await ask(requests.OpenShell(cell.id))
        touched = mind.fleet().cell(cell.id)
        if touched is None or touched.dies_at is None:
            raise Refused("decommissioned", f"{cell.id} was decommissioned just now")
        await context.write(operator_pb2.OpenShellResponse(dies_at=touched.dies_at))
        size = start.size if start.HasField("size") else None
        shell.start(link_pb2.ShellStart(cell_id=cell.id, command=start.command, size=size, term=start.term))
        await _converse(context, shell)
    finally:
        shell.close()
        await mind.observe(ShellEnded(cell.server, cell.id))


async def _start(context: Context) -> operator_pb2.OpenShellStart:
    first = cast("operator_pb2.OpenShellRequest", await context.read())
    if not isinstance(first, operator_pb2.OpenShellRequest) or first.WhichOneof("what") != "start":
        raise InvalidRequest("the first message of a shell must be its start")
    start = first.start
    if parse_cell_id(start.cell_id) is None:
        raise InvalidRequest(
            f"invalid cell id {start.cell_id[:100]!r}: write GROUP/SLOT.GENERATION, for example web/2.7"
        )
    size = sum(len(word.encode()) for word in start.command)
    if len(start.command) > WORDS_LIMIT or size > COMMAND_BYTES_LIMIT:
        raise InvalidRequest(
            f"the command is too long; the limit is {WORDS_LIMIT} words and {COMMAND_BYTES_LIMIT:,} bytes"
        )
    if start.command and not start.command[0]:
        raise InvalidRequest("the program's name is empty")
    if any("\0" in word for word in (*start.command, start.term)) or len(start.term) > TERM_CHARACTERS:
        raise InvalidRequest(
            "invalid command or terminal type: no NUL characters, and at most "
            f"{TERM_CHARACTERS} characters for the terminal type"
        )
    return start


def _running_cell(mind: Mind, cell_id: str) -> Cell:
    """The running cell of this id. Raises Refused for any other: a shell there would condemn the cell for nothing."""
    view = mind.view()
    cell = cell_views.find_cell(view, cell_id)
    if cell is None:
        raise Refused("no_such_cell", f"no such cell: {cell_id}", missing=True)
    if cell.kind is CellKind.SERVER:
        raise Refused("is_server", f"{cell.id} is a server; open a shell in a cell that runs on a server")
    if cell.decommissioned_at is not None:
        raise Refused(
            "decommissioned", f"{cell_id} is decommissioned; its last lines: galactica why {cell_id}"
        )
    report = view.sight.report_of(cell.server, cell_id)
    if report is None or report.state is not CellState.RUNNING:
        raise Refused(
            "not_running",
            f"{cell_id} is not running on {cell.server or 'any server'} at the moment; "
            f"its state: galactica why {cell_id}",
        )
    return cell


async def _converse(context: Context, shell: ShellStream) -> None:
    """Ends when the shell ends. If the operator leaves, gRPC cancels the call."""
    typing = asyncio.ensure_future(_type(context, shell))
    try:
        while True:
            output = await shell.read()
            if typing.done() and not typing.cancelled() and (error := typing.exception()) is not None:
                raise error
            if output.data:
                await context.write(_response(output))
            if output.end:
                await context.write(operator_pb2.OpenShellResponse(exit_code=output.exit_code))
                return
    finally:
        typing.cancel()
        await asyncio.gather(typing, return_exceptions=True)


def _response(output: link_pb2.ShellOutput) -> operator_pb2.OpenShellResponse:
    if output.is_error:
        return operator_pb2.OpenShellResponse(error_output=output.data)
    return operator_pb2.OpenShellResponse(output=output.data)


async def _type(context: Context, shell: ShellStream) -> None:
    """Passes on what the operator types. An invalid message ends the shell."""
    try:
        while isinstance(request := await context.read(), operator_pb2.OpenShellRequest):
            match request.WhichOneof("what"):
                case "data" if len(request.data) <= WINDOW_BYTES:
                    await shell.type(request.data)
                case "input_ended":
                    shell.end_input()
                case "size":
                    shell.resize(request.size)
                case _:
                    shell.lose("invalid message in the shell: a second start, an empty or a too long message")
                    return
    except grpc.aio.BaseError:
        return  # the operator is gone, and the call with it
    shell.end_input()
