"""The live view: asks the scheduler once a second and draws. q or Ctrl-C ends it; in a pipe it prints plain text once.

If the scheduler does not answer, a line at the top says so above the last picture, and the view keeps asking.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from galactica.scheduler.cli.client import Client
from galactica.scheduler.cli.output import console, is_terminal, write
from galactica.scheduler.cli.top_view import EVENTS_SHOWN, Picture, draw, plain
from galactica.scheduler.settings.errors import CommandFailed, ExitCode
from galactica.v1 import operator_pb2

SECONDS_BETWEEN = 1.0
ANSWER_SECONDS = 3.0
CELLS_LIMIT = 2_000
"""In a larger fleet the view does not ask for single cells: the list is long, and they do not fit on a screen."""


@dataclass(frozen=True, slots=True)
class _Frame:
    picture: Picture
    failure: str = ""


def show(client: Client) -> None:
    """Run until q or Ctrl-C. Raises CommandFailed if the first request fails."""
    picture = _look(client)
    if not is_terminal():
        write(plain(picture))
        return
    from rich.live import Live

    frame = _Frame(picture)
    with _keys() as keys, Live(console=console(), screen=True, auto_refresh=False) as live:
        try:
            while True:
                live.update(draw(frame.picture, frame.failure, live.console.size), refresh=True)
                if _quits(keys, SECONDS_BETWEEN):
                    return
                frame = _next(client, frame)
        except KeyboardInterrupt:
            return


def _next(client: Client, frame: _Frame) -> _Frame:
    try:
        return _Frame(_look(client))
    except CommandFailed as failed:
        if failed.code in {ExitCode.UNAUTHORISED, ExitCode.USAGE}:
            raise
        return replace(frame, failure=str(failed))


def _look(client: Client) -> Picture:
    stub = client.stub
    status = client.ask(stub.GetStatus, operator_pb2.GetStatusRequest(), ANSWER_SECONDS)
    servers = client.ask(stub.ListServers, operator_pb2.ListServersRequest(), ANSWER_SECONDS)
    now = client.now
    wanted = sum(group.wanted for group in status.groups)
    cells = operator_pb2.ListCellsResponse()
    if wanted <= CELLS_LIMIT:
        cells = client.ask(stub.ListCells, operator_pb2.ListCellsRequest(), ANSWER_SECONDS)
    request = operator_pb2.WatchEventsRequest(tail=EVENTS_SHOWN)
    batches = client.stream(stub.WatchEvents, request, ANSWER_SECONDS)
    events = tuple(event for batch in batches for event in batch.events)
    return Picture(now, status, tuple(servers.servers), tuple(cells.cells), events)


def _quits(keys: int | None, seconds: float) -> bool:
    """Wait for the given time. True as soon as q is pressed."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if keys is None:
            time.sleep(left)
            continue
        ready, _, _ = select.select([keys], [], [], left)
        if ready:
            pressed = os.read(keys, 64)
            if not pressed:  # the terminal was closed
                return True
            if b"q" in pressed.lower() or b"\x03" in pressed:
                return True
    return False


@contextmanager
def _keys() -> Iterator[int | None]:
    """Standard input in a mode that delivers each key at once; None if it is not a terminal. Restores the mode."""
    if not sys.stdin.isatty():
        yield None
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
