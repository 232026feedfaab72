"""The product's programs in processes that do not load them anew: one process has loaded them, and forks for each.

Each is a process of its own, with its own words, environment, directory and streams, and it ends as the program ends.
Only the modules are shared, and ``/proc`` shows another command. Loading takes longer than most commands, and longer
than a scheduler's start does; the tests run hundreds.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from tests.support.processes import OURS, ROOT, cli_command

LOADED = {
    OURS.cli: (
        "galactica.scheduler.cli.__main__",
        "grpc.aio",
        "rich.console",
        "rich.table",
        "galactica.scheduler.cli.client",
        "galactica.scheduler.cli.people",
        "galactica.scheduler.manifest.loading",
        "galactica.scheduler.serve.run",
        "galactica.scheduler.providers.local.provider",
    ),
    OURS.agent: ("galactica.agent.__main__",),
}
"""For each program the module whose ``main`` it is, and what it loads where it needs it."""

MESSAGE_BYTES = 1 << 17
READ_AT_START = ("LD_", "PYTHON", "GRPC_")
"""Variables that are obeyed while a process begins."""


class Forked:
    """A process that was forked, with those of the words of ``subprocess.Popen`` that tests use."""

    def __init__(self, command: Sequence[str], answers: socket.socket) -> None:
        self.args = command
        self._answers = answers
        self.pid = int(answers.recv(32) or b"0")
        assert self.pid, "what processes are forked from has ended: see what it said on standard error"
        self.returncode: int | None = None

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0.0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            self._answers.settimeout(timeout)
            try:
                self.returncode = int(self._answers.recv(32))
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0) from None
            self._answers.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


Begun = subprocess.Popen[bytes] | Forked


def begin_anew(
    command: Sequence[str],
    environment: Mapping[str, str],
    directory: Path,
    *streams: int,
    own_session: bool = True,
) -> subprocess.Popen[bytes]:
    """Begin this command with nothing but this environment. ``streams``: what its standard streams are."""
    given, out, err = streams
    return subprocess.Popen(
        command,
        cwd=directory,
        env=environment,
        stdin=given,
        stdout=out,
        stderr=err,
        start_new_session=own_session,
    )


def begin(
    command: Sequence[str],
    environment: Mapping[str, str],
    directory: Path,
    *streams: int,
    own_session: bool = True,
) -> Begun:
    """As ``begin_anew`` does, but forked if it is one of our programs."""
    program = tuple(command[:3])
    if program not in LOADED or _read_at_start(environment) - _read_at_start(os.environ):
        return begin_anew(command, environment, directory, *streams, own_session=own_session)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        request = [program, command[3:], dict(environment), str(directory), own_session]
        socket.send_fds(_forker(), [json.dumps(request).encode()], [*streams, theirs.fileno()])
    return Forked(command, ours)


def run_command_line(
    words: Sequence[str], environment: Mapping[str, str], typed: str = "", seconds: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """``galactica WORDS`` in the root of the checkout, with nothing but this environment."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(typed.encode())
        given.seek(0)
        streams = [given.fileno(), out.fileno(), err.fileno()]
        process = begin([*cli_command(), *words], environment, ROOT, *streams, own_session=False)
        try:
            code = process.wait(seconds)
        except BaseException:
            process.kill()
            process.wait()
            raise
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(list(words), code, out.read().decode(), err.read().decode())


def _read_at_start(environment: Mapping[str, str]) -> set[tuple[str, str]]:
    return {(name, value) for name, value in environment.items() if name.startswith(READ_AT_START)}


@cache
def _forker() -> socket.socket:
    """Where it takes requests. It ends with the process that began it: it reads the end of this."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forked", str(theirs.fileno())],
            cwd=ROOT,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    atexit.register(process.wait)
    atexit.register(ours.close)
    return ours


def main(requests: socket.socket) -> None:
    program, words, environment, directory, own_session, streams = _next(requests)
    requests.close()
    if own_session:
        os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    sys.argv = [program, *words]
    sys.stdin, sys.stdout = open(0), open(1, "w")  # noqa: SIM115 - they are the process's own
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace")  # noqa: SIM115
    importlib.import_module(program).main()


def _next(requests: socket.socket) -> tuple[str, list[str], dict[str, str], str, bool, list[int]]:
    """Returns in the process that becomes the program. All others end here."""
    while True:
        request, received, *_ = socket.recv_fds(requests, MESSAGE_BYTES, 4)
        if not request:
            os._exit(0)
        program, *rest = json.loads(request)
        _load(tuple(program))
        *streams, answers = received
        if os.fork() == 0:
            child = os.fork()
            if child == 0:
                os.close(answers)
                words, environment, directory, own_session = rest
                return LOADED[tuple(program)][0], words, environment, directory, own_session, streams
            for stream in streams:
                os.close(stream)
            os.write(answers, b"%d" % child)
            _, status = os.waitpid(child, 0)
            os.write(answers, b"%d" % os.waitstatus_to_exitcode(status))
            os._exit(0)
        for descriptor in received:
            os.close(descriptor)
        _reap()


@cache
def _load(program: tuple[str, ...]) -> None:
    for name in LOADED[program]:
        importlib.import_module(name)
    gc.freeze()  # or each would look through all that was loaded, and with that copy it


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
