"""``galactica shell``: a shell inside a cell. However it ends, the caller's terminal gets its old settings back."""

from __future__ import annotations

import contextlib
import os
import queue
import select
import shutil
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator
from typing import Annotated

import typer

from galactica.scheduler.cli.arguments import Scheduler
from galactica.scheduler.cli.client import Client, connect
from galactica.scheduler.cli.output import safe
from galactica.scheduler.settings.errors import CommandFailed, ExitCode
from galactica.scheduler.units import format_duration
from galactica.v1 import cell_pb2, operator_pb2

READ_BYTES = 16_384
WAITING_PIECES = 8
LEAVE_KEY = b"\x1d"
"""Ctrl-]: leaves the shell locally, even if the other side no longer answers."""
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class _Ended(BaseException):
    """A signal asks this program to end."""


def shell(
    cell: Annotated[str, typer.Argument(metavar="CELL", help="Id of the cell, for example web/2.7.")],
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- COMMAND...]", help="Command to run. Default: /bin/sh."),
    ] = None,
    scheduler: Scheduler = None,
) -> None:
    """Open a shell in a cell for diagnosis. The cell is then touched and soon replaced (default: 15 minutes)."""
    interactive = sys.stdin.isatty()
    with connect(scheduler) as client:
        _say(f"A shell in {cell} touches it: it is replaced first, then gets no more traffic.")
        typed = _Typed(_start(cell, command or [], interactive=interactive), interactive=interactive)
        answers = client.stream(client.stub.OpenShell, typed.requests())
        try:
            with _signals(), contextlib.closing(typed):
                code = _converse(client, answers, typed, cell, interactive=interactive)
        except _Ended as ended:
            code = ExitCode.INTERRUPTED if typed.has_left else 128 + int(ended.args[0])
    raise typer.Exit(code)


def _say(text: str) -> None:
    sys.stderr.write(f"{safe(text)}\n")
    sys.stderr.flush()


def _start(cell: str, command: list[str], *, interactive: bool) -> operator_pb2.OpenShellRequest:
    start = operator_pb2.OpenShellStart(
        cell_id=cell,
        command=command,
        size=_size() if interactive else None,
        term=os.environ.get("TERM", "")[:64] if interactive else "",
    )
    return operator_pb2.OpenShellRequest(start=start)


def _size() -> cell_pb2.WindowSize:
    size = shutil.get_terminal_size()
    with contextlib.suppress(OSError):
        size = os.get_terminal_size(sys.stdin.fileno())
    return cell_pb2.WindowSize(rows=size.lines, columns=size.columns)


def _converse(
    client: Client,
    answers: Iterator[operator_pb2.OpenShellResponse],
    typed: _Typed,
    cell: str,
    *,
    interactive: bool,
) -> int:
    """Run the session and return the exit code. Input is sent only after the scheduler has opened the shell."""
    with contextlib.ExitStack() as terminal:
        for answer in answers:
            match answer.WhichOneof("what"):
                case "dies_at":
                    seconds = max(0.0, answer.dies_at - client.now)
                    left = format_duration(seconds)
                    hint = " Press Ctrl-] to leave." if interactive else ""
                    at = time.strftime("%H:%M:%S", time.localtime(time.time() + seconds))
                    _say(f"It goes when you leave, or in {left}, at {at}.{hint}")
                    if interactive:
                        terminal.enter_context(_raw_terminal())
                    typed.begin()
                case "output":
                    _write(sys.stdout.fileno(), answer.output)
                case "error_output":
                    _write(sys.stderr.fileno(), answer.error_output)
                case "exit_code":
                    return answer.exit_code
    raise CommandFailed(f"the scheduler ended the shell in {cell} without an exit code")


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Send every key, Ctrl-C too, to the shell in the cell."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor, termios.TCSANOW)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Turn ending signals into an exception, so that the terminal's settings are reset on the way out."""

    def end(number: int, _: object) -> None:
        for other in ENDING_SIGNALS:  # a second signal must not interrupt the cleanup
            signal.signal(other, signal.SIG_IGN)
        raise _Ended(number)

    before = {number: signal.signal(number, end) for number in ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Typed:
    """Standard input as requests. One thread reads it, and waits while the scheduler takes no more."""

    def __init__(self, start: operator_pb2.OpenShellRequest, *, interactive: bool) -> None:
        self._interactive = interactive
        self._pieces: queue.Queue[operator_pb2.OpenShellRequest | None] = queue.Queue(WAITING_PIECES)
        self._pieces.put(start)
        self._wake, self._waker = os.pipe()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._read, name="shell-input", daemon=True)
        self._resized = False
        self.has_left = False

    def requests(self) -> Iterator[operator_pb2.OpenShellRequest]:
        while (piece := self._pieces.get()) is not None:
            yield piece

    def begin(self) -> None:
        if self._interactive:
            signal.signal(signal.SIGWINCH, self._on_resize)
        self._thread.start()

    def close(self) -> None:
        """End the thread and the requests."""
        self._closed.set()
        if self._interactive:
            signal.signal(signal.SIGWINCH, signal.SIG_DFL)
        with contextlib.suppress(OSError):
            os.write(self._waker, b".")
        if self._thread.ident is not None:
            self._thread.join(1.0)
        with contextlib.suppress(queue.Empty):
            while True:
                self._pieces.get_nowait()
        self._pieces.put_nowait(None)

    def _on_resize(self, *_: object) -> None:
        self._resized = True
        with contextlib.suppress(OSError):
            os.write(self._waker, b".")

    def _read(self) -> None:
        source = sys.stdin.fileno()
        sources = [source, self._wake]
        while not self._closed.is_set():
            ready, _, _ = select.select(sources, [], [])
            if self._wake in ready:
                os.read(self._wake, 64)
                if self._resized:
                    self._resized = False
                    self._put(operator_pb2.OpenShellRequest(size=_size()))
                continue
            try:
                data = os.read(source, READ_BYTES)
            except OSError:
                data = b""
            if not data:
                sources.remove(source)
                self._put(operator_pb2.OpenShellRequest(input_ended=True))
                continue
            if self._interactive and LEAVE_KEY in data:
                self.has_left = True
                os.kill(os.getpid(), signal.SIGTERM)
                return
            self._put(operator_pb2.OpenShellRequest(data=data))

    def _put(self, piece: operator_pb2.OpenShellRequest) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._pieces.put(piece, timeout=0.5)
                return
