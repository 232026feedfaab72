"""Processes of this machine that outlive the scheduler. They run in their own session, are recognised by pid and start
time, watched by pidfd, and killed with everything that belongs to them. Linux only.

The processes of a server are found by their environment: the agent's contains the server's directory (``MARKER``), and
its cells' contain a directory below it. Functions that block say so; call them in a thread.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from msgspec import Struct

MARKER = "GALACTICA_SERVER_DIRECTORY"
KILL_SECONDS = 5.0
KILL_PAUSE_SECONDS = 0.02
_OF_A_PERSON = (b"PWD", b"OLDPWD")
"""Variables that do not count: a person's shell in the directory does not belong to the server."""


class Process(Struct, frozen=True):
    """The kernel reuses pids. Together with the boot and the clock ticks from boot to start (proc(5), stat field 22) a
    pid identifies one process."""

    pid: int
    start_ticks: int
    boot_id: str


class StubbornProcesses(Exception):
    """Some processes do not end on SIGKILL; the message names them."""


def spawn(command: Sequence[str], environment: Mapping[str, str], directory: Path, log: Path) -> Process:
    """Start the program of the server in ``directory``. Ctrl-C at the scheduler's terminal does not reach it. Blocks
    for a moment. Raises OSError."""
    pid = os.posix_spawn(
        command[0],
        list(command),
        {**environment, MARKER: str(directory)},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
        setsigmask=(),
    )
    # Even if it has already ended it is still in the process table: it is our child, and only we reap it.
    return Process(pid, _start_ticks(pid), boot_id())


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def open_pidfd(process: Process) -> int | None:
    """A descriptor that becomes readable when the process ends (or has ended and is not reaped yet); None if it is
    gone. Raises OSError."""
    if process.boot_id != boot_id():
        return None
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    # Check again: the pid may have been reused before the descriptor was opened.
    if _start_ticks(process.pid) != process.start_ticks:
        os.close(descriptor)
        return None
    return descriptor


def send_signal(descriptor: int, number: signal.Signals) -> None:
    """Does nothing if the process has ended."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(descriptor, number)


def has_ended(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0)[0])


def bury(descriptor: int) -> str:
    """Reap an ended process. Returns how it ended; the details are known only if it is our child."""
    try:
        ended = os.waitid(os.P_PIDFD, descriptor, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        ended = None
    if ended is None:
        return "ended"
    if ended.si_code == os.CLD_EXITED:
        return f"ended with exit code {ended.si_status}"
    return f"was killed by {signal.Signals(ended.si_status).name}"


def find(directory: Path) -> Process | None:
    """The program that ``spawn`` started for this directory, if it lives. Blocks."""
    marker = f"{MARKER}={directory}".encode()
    for pid in _living():
        if marker in _read(pid, "environ").split(b"\0") and _session(pid) == pid:
            return Process(pid, _start_ticks(pid), boot_id())
    return None


def kill_all_of(directory: Path) -> None:
    """Kill every process whose environment has the directory or one below it. Blocks. Raises StubbornProcesses."""
    deadline = time.monotonic() + KILL_SECONDS
    while left := [pid for pid in _living() if _belongs(pid, directory)]:
        if time.monotonic() > deadline:
            raise StubbornProcesses(f"processes {left} do not end on SIGKILL; check them with ps")
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(KILL_PAUSE_SECONDS)


def _belongs(pid: int, directory: Path) -> bool:
    own = os.fsencode(directory)
    for entry in _read(pid, "environ").split(b"\0"):
        name, _, value = entry.partition(b"=")
        if name not in _OF_A_PERSON and (value == own or value.startswith(own + b"/")):
            return True
    return False


def _living() -> Iterator[int]:
    """All living processes except this one."""
    for name in os.listdir("/proc"):  # noqa: PTH208 - names, not paths
        if name.isdecimal() and int(name) != os.getpid():
            fields = _fields(int(name))
            if fields and fields[0] not in {b"Z", b"X"}:
                yield int(name)


def _read(pid: int, name: str) -> bytes:
    """Empty if the process is gone, or is of another user and so not ours."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _fields(pid: int) -> list[bytes]:
    """The fields of stat from the third on. The second, the name in brackets, may contain any characters."""
    text = _read(pid, "stat")
    return text[text.rindex(b")") + 2 :].split() if text else []


def _start_ticks(pid: int) -> int:
    fields = _fields(pid)
    return int(fields[19]) if fields else 0


def _session(pid: int) -> int:
    fields = _fields(pid)
    return int(fields[3]) if fields else 0
