"""The command line in processes that do not load the program anew: one process has loaded it, and forks for each.

Each is a process of its own, with its own words, environment, directory, input and outputs, and it ends as the program
ends. Only the modules are shared. Loading them takes longer than most commands, and the tests run hundreds.
"""

from __future__ import annotations

import atexit
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

from tests.support.processes import ROOT, cli_command

LOADED = (
    "grpc.aio",
    "rich.console",
    "rich.table",
    "galactica.scheduler.cli.client",
    "galactica.scheduler.cli.people",
    "galactica.scheduler.manifest.loading",
)
"""Beside the program itself: what commands load where they need it."""

MESSAGE_BYTES = 1 << 17
READ_AT_START = ("LD_", "PYTHON", "GRPC_")
"""Variables that are obeyed while a process begins."""


def run_command_line(
    words: Sequence[str], environment: Mapping[str, str], typed: str = "", seconds: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """``galactica WORDS`` in the root of the checkout, with nothing but this environment."""
    if _read_at_start(environment) - _read_at_start(os.environ):
        return _run_anew(words, environment, typed, seconds)
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(typed.encode())
        given.seek(0)
        request = json.dumps([list(words), dict(environment)]).encode()
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                streams = [given.fileno(), out.fileno(), err.fileno()]
                socket.send_fds(_forker(), [request], [*streams, theirs.fileno()])
            code = _code_of(ours, words, seconds)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(list(words), code, out.read().decode(), err.read().decode())


def _read_at_start(environment: Mapping[str, str]) -> set[tuple[str, str]]:
    return {(name, value) for name, value in environment.items() if name.startswith(READ_AT_START)}


def _run_anew(
    words: Sequence[str], environment: Mapping[str, str], typed: str, seconds: float
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*cli_command(), *words],
        cwd=ROOT,
        env=environment,
        input=typed,
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
    )


def _code_of(connection: socket.socket, words: Sequence[str], seconds: float) -> int:
    with connection.makefile("r") as answers:
        pid = int(answers.readline() or "0")
        assert pid, "the process that commands are forked from has ended: see what it said on standard error"
        connection.settimeout(seconds)
        try:
            return int(answers.readline())
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(list(words), seconds) from None


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
    program = importlib.import_module("galactica.scheduler.cli.__main__")
    for name in LOADED:
        importlib.import_module(name)
    gc.freeze()  # or each would look through all that was loaded, and with that copy it
    words, environment, streams = _next(requests)
    requests.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    sys.argv = ["galactica", *words]
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115 - they are the process's own
    program.main()


def _next(requests: socket.socket) -> tuple[list[str], dict[str, str], list[int]]:
    """Returns in the process that becomes the command. All others end here."""
    while True:
        request, received, *_ = socket.recv_fds(requests, MESSAGE_BYTES, 4)
        if not request:
            os._exit(0)
        *streams, answers = received
        if os.fork() == 0:
            child = os.fork()
            if child == 0:
                os.close(answers)
                words, environment = json.loads(request)
                return words, environment, streams
            os.write(answers, b"%d\n" % child)
            _, status = os.waitpid(child, 0)
            os.write(answers, b"%d\n" % os.waitstatus_to_exitcode(status))
            os._exit(0)
        for descriptor in received:
            os.close(descriptor)
        _reap()


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
