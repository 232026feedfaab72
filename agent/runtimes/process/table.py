"""The kernel's process table: who a process is, how it ended, and who belongs to a cell.

A pid alone says nothing, for it is given away again. A ``Process`` is a pid and the moment it began.
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
    """``start_ticks``: clock ticks from the machine's boot to its start (proc(5), stat field 22)."""

    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class Stat:
    """``status``: as by wait(2); meaningful for a zombie of our own user (or for root) only."""

    state: str
    session: int
    start_ticks: int
    status: int

    @property
    def has_ended(self) -> bool:
        return self.state in "ZX"


def boot_id() -> str:
    """Start ticks begin anew with each boot, so they identify within one boot only."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def stat_of(pid: int) -> Stat | None:
    """None where there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field, the name in brackets, may hold anything, brackets and spaces too.
    fields = text[text.rindex(b")") + 2 :].split()
    return Stat(fields[0].decode(), int(fields[3]), int(fields[19]), int(fields[49]))


def identify(pid: int) -> Process:
    """Raises ProcessLookupError."""
    stat = stat_of(pid)
    if stat is None:
        raise ProcessLookupError(f"process {pid} is gone")
    return Process(pid, stat.start_ticks)


def look_at(process: Process) -> Stat | None:
    """None where the process is gone, even if its pid lives on as somebody else's."""
    stat = stat_of(process.pid)
    return stat if stat is not None and stat.start_ticks == process.start_ticks else None


def open_pidfd(process: Process) -> int | None:
    """A descriptor that becomes readable when the process ends; None where it is gone."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    # Only now is it certain that the descriptor is not of one that came after.
    if look_at(process) is None:
        os.close(descriptor)
        return None
    return descriptor


def signal_group(leader: Process, number: int) -> None:
    """To the process group that ``leader`` leads or led. Does nothing where its pid is somebody else's by
    now."""
    if look_at(leader) is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader.pid, number)


def kill_and_reap(process: Process) -> None:
    """Ends one process, and buries it where it is our child. Blocks for a moment."""
    if look_at(process) is None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process.pid, 0)


def kill_members(leader: Process, marker: bytes) -> None:
    """Ends the leader's group, its session, and every process whose environment has the entry ``marker``.

    A group or session keeps its number from being given away, so if the leader's pid is somebody else's by
    now, both are empty; the marker finds those who left them. Blocks for at most about two seconds. Raises
    RuntimeFailure where some will not end.
    """
    signal_group(leader, signal.SIGKILL)
    _kill_until_none(lambda pid, stat: stat.session == _session_of(leader) or _has_entry(pid, marker))


def kill_marked(marker: bytes) -> None:
    """As ``kill_members``, where only the marker is known."""
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
        f"processes {left} do not end on SIGKILL; look at them with ps (state D: waiting for a disk)"
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
    except OSError:  # gone meanwhile, or another user's, who cannot be ours
        return False
    return entry in environment.split(b"\0")
