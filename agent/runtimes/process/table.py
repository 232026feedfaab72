"""The kernel's process table: identifies processes, shows how they ended, and finds the processes of a cell.

A pid alone does not identify a process, because the kernel reuses pids. A ``Process`` is a pid and its start time.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from galactica.agent.runtimes.port import RuntimeFailure

KILL_ROUNDS = 100
KILL_PAUSE_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Process:
    """``start_ticks``: clock ticks from the machine's boot to the process's start (proc(5), stat field 22)."""

    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class Stat:
    """``status``: as from wait(2); valid only for a zombie of our own user, or if we are root."""

    state: str
    session: int
    start_ticks: int
    status: int

    @property
    def has_ended(self) -> bool:
        return self.state in "ZX"


def boot_id() -> str:
    """Start ticks begin at 0 with each boot, so they identify a process only within one boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def stat_of(pid: int) -> Stat | None:
    """None if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field, the name in brackets, may contain any characters, even brackets and spaces.
    fields = text[text.rindex(b")") + 2 :].split()
    return Stat(fields[0].decode(), int(fields[3]), int(fields[19]), int(fields[49]))


def identify(pid: int) -> Process:
    """Raises ProcessLookupError."""
    stat = stat_of(pid)
    if stat is None:
        raise ProcessLookupError(f"process {pid} is gone")
    return Process(pid, stat.start_ticks)


def look_at(process: Process) -> Stat | None:
    """None if the process is gone, even if another process has its pid now."""
    stat = stat_of(process.pid)
    return stat if stat is not None and stat.start_ticks == process.start_ticks else None


def open_pidfd(process: Process) -> int | None:
    """A descriptor that becomes readable when the process ends; None if it is gone."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    # Check again: the pid may have been reused before the descriptor was opened.
    if look_at(process) is None:
        os.close(descriptor)
        return None
    return descriptor


def signal_group(leader: Process, number: int) -> None:
    """Signal the process group that ``leader`` leads or led. Does nothing if another process has its pid now."""
    if look_at(leader) is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader.pid, number)


def kill_and_reap(process: Process) -> None:
    """Kill one process, and reap it if it is our child. Blocks for a moment."""
    if look_at(process) is None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process.pid, 0)


def kill_members(leader: Process, marker: bytes) -> None:
    """Kill the leader's group, its session, and every process whose environment has the entry ``marker``.

    The kernel does not reuse the number of an existing group or session. So if another process has the leader's pid
    now, both are empty. The marker finds processes that have left them. Blocks for up to about two seconds. Raises
    RuntimeFailure if some processes do not end.
    """
    signal_group(leader, signal.SIGKILL)
    _kill_until_none(lambda pid, stat: stat.session == _session_of(leader) or _has_entry(pid, marker))


def kill_marked(marker: bytes) -> None:
    """Like ``kill_members``, by the marker alone."""
    _kill_until_none(lambda pid, _: _has_entry(pid, marker))


def _kill_until_none(belongs: Callable[[int, Stat], bool]) -> None:
    for _ in range(KILL_ROUNDS):
        left = [pid for pid, stat in _living() if belongs(pid, stat)]
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(KILL_PAUSE_SECONDS)
    raise RuntimeFailure(
        f"processes {left} do not end on SIGKILL; check them with ps (state D: waiting for a disk)"
    )


def _session_of(leader: Process) -> int | None:
    holder = stat_of(leader.pid)
    return leader.pid if holder is None or holder.start_ticks == leader.start_ticks else None


def _living() -> Iterator[tuple[int, Stat]]:
    for name in os.listdir("/proc"):  # noqa: PTH208 -- names are wanted, not paths
        stat = stat_of(int(name)) if name.isdecimal() else None
        if stat is not None and not stat.has_ended:
            yield int(name), stat


def _has_entry(pid: int, entry: bytes) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # gone already, or of another user and so not of this cell
        return False
    return entry in environment.split(b"\0")
