"""``galactica shell``: a look inside a cell. Whatever happens, the caller's terminal is given back as it was."""

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
from galactica.scheduler.cli.client import connect
from galactica.scheduler.cli.output import safe
from galactica.scheduler.settings.errors import CommandFailed, ExitCode
from galactica.scheduler.units import format_duration
from galactica.v1 import cell_pb2, operator_pb2

READ_BYTES = 16_384
WAITING_PIECES = 8
LEAVE_KEY = b"\x1d"
"""Ctrl-]: leaves from here, also where nothing answers any more."""
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class _Ended(BaseException):
    """A signal asks us to end."""


def shell(
    cell: Annotated[str, typer.Argument(metavar="CELL", help="Its id, such as web/2.7.")],
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[-- COMMAND...]", help="Instead of /bin/sh.")
    ] = None,
    scheduler: Scheduler = None,
) -> None:
    """Open a shell in a cell for diagnosis. It touches the cell, which dies soon after: by default in 15 minutes."""
    interactive = sys.stdin.isatty()
    with connect(scheduler) as client:
        _say(f"A shell in {cell} begins its death timer: it gets no more traffic, is replaced, and goes.")
        typed = _Typed(_start(cell, command or [], interactive=interactive), interactive=interactive)
        answers = client.stream(client.stub.OpenShell, typed.requests())
        try:
            with _signals(), contextlib.closing(typed):
                code = _converse(answers, typed, cell, interactive=interactive)
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
    answers: Iterator[operator_pb2.OpenShellResponse], typed: _Typed, cell: str, *, interactive: bool
) -> int:
    """The exit code. Nothing is typed before the scheduler has let us in."""
    with contextlib.ExitStack() as terminal:
        for answer in answers:
            match answer.WhichOneof("what"):
                case "dies_at":
                    left = format_duration(max(0.0, answer.dies_at - time.time()))
                    hint = " Ctrl-] leaves." if interactive else ""
                    _say(
                        f"{cell} goes in {left}, at {time.strftime('%H:%M:%S', time.localtime(answer.dies_at))}.{hint}"
                    )
                    if interactive:
                        terminal.enter_context(_raw_terminal())
                    typed.begin()
                case "output":
                    _write(sys.stdout.fileno(), answer.output)
                case "error_output":
                    _write(sys.stderr.fileno(), answer.error_output)
                case "exit_code":
                    return answer.exit_code
    raise CommandFailed(f"the scheduler ended the shell in {cell} without saying how")


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Every key goes to the shell in the cell, Ctrl-C too."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor, termios.TCSANOW)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Signals that end a program end this one by an exception, so that the terminal is given back on the way."""

    def end(number: int, _: object) -> None:
        for again in ENDING_SIGNALS:  # once is enough: what follows must not be cut short
            signal.signal(again, signal.SIG_IGN)
        raise _Ended(number)

    before = {number: signal.signal(number, end) for number in ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Typed:
    """Standard input as requests. One thread reads it, and waits where the scheduler does not take them."""

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
        """Ends the thread and the requests."""
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
