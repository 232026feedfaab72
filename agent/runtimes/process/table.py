"""The kernel's process table: identifies processes, shows how they ended, and finds the processes of a cell.

A pid alone does not identify a process, because the kernel reuses pids. A ``Process`` is a pid and its start time.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from galactica.agent.runtimes.port import RuntimeFailure
from galactica.agent.starved import lack_of

STAT_BYTES = 4_096
KILL_ROUNDS = 100
KILL_PAUSE_SECONDS = 0.02
REAP_ROUNDS = 50
REAP_PAUSE_SECONDS = 0.002
THAW_ROUND = 5
"""Most processes have ended by then."""


@dataclass(frozen=True, slots=True)
class Process:
    """``start_ticks``: clock ticks from the machine's boot to the process's start (proc(5), stat field 22)."""

    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class Stat:
    """``status``: as from wait(2); valid only for a zombie of our own user, or if we are root."""

    state: str
    parent: int
    session: int
    threads: int
    start_ticks: int
    status: int

    @property
    def has_ended(self) -> bool:
        """A process whose first thread has ended lives on in its other threads."""
        return self.state in "ZX" and self.threads <= 1


def stat_of(pid: int) -> Stat | None:
    """None if there is no such process."""
    # All processes of the machine are read for each end of a cell: plain calls take a third of the time.
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(descriptor, STAT_BYTES)
        finally:
            os.close(descriptor)
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field, the name in brackets, may contain any characters, even brackets and spaces.
    fields = text[text.rindex(b")") + 2 :].split()
    state, parent, session = fields[0].decode(), int(fields[1]), int(fields[3])
    return Stat(state, parent, session, int(fields[17]), int(fields[19]), int(fields[49]))


def identify(pid: int) -> Process:
    """Raises ProcessLookupError."""
    stat = stat_of(pid)
    if stat is None:
        raise ProcessLookupError(f"process {pid} is gone")
    return Process(pid, stat.start_ticks)


def parent_of(pid: int) -> Process:
    """Raises ProcessLookupError."""
    stat = stat_of(pid)
    if stat is None:
        raise ProcessLookupError(f"process {pid} is gone")
    return identify(stat.parent)


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


def is_stopped(process: Process) -> bool:
    """Whether somebody has stopped it (SIGSTOP)."""
    stat = look_at(process)
    return stat is not None and stat.state == "T"


def kill_and_reap(process: Process) -> None:
    """Kill one process, and reap it if it is our child. Blocks for a moment."""
    if look_at(process) is None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    try:
        os.waitpid(process.pid, 0)
    except ChildProcessError:
        wait_until_reaped(process)


def wait_until_reaped(process: Process) -> None:
    """Wait until its parent or the kernel has collected it. Blocks for up to a tenth of a second: on some hosts nobody
    collects."""
    for _ in range(REAP_ROUNDS):
        if look_at(process) is None:
            return
        time.sleep(REAP_PAUSE_SECONDS)


def descendants(roots: Iterable[Process]) -> set[int]:
    """All living processes below these, without the roots themselves."""
    children: dict[int, list[int]] = {}
    everybody = dict(_everybody())
    for pid, stat in everybody.items():
        children.setdefault(stat.parent, []).append(pid)
    waiting = [
        root.pid
        for root in roots
        if root.pid in everybody and everybody[root.pid].start_ticks == root.start_ticks
    ]
    spared, found = frozenset(waiting), set[int]()
    while waiting:
        for pid in children.get(waiting.pop(), ()):
            if pid not in found:
                found.add(pid)
                waiting.append(pid)
    return {pid for pid in found - spared if not everybody[pid].has_ended}


def marked(leader: Process, marker: bytes) -> set[int]:
    """All living processes of the leader's session, and all whose environment has the entry ``marker``.

    The kernel does not reuse the number of an existing session. So if another process has the leader's pid now, the
    session is empty."""
    session = _session_of(leader)
    return {pid for pid, stat in _living() if stat.session == session or has_entry(pid, marker)}


def all_living() -> set[int]:
    """All processes of this machine."""
    return {pid for pid, _ in _living()}


def bearers(marker: bytes) -> set[Process]:
    """All living processes whose environment has that entry."""
    return {Process(pid, stat.start_ticks) for pid, stat in _living() if has_entry(pid, marker)}


def kill_until_none(find: Callable[[], AbstractSet[int]]) -> None:
    """Kill what ``find`` finds until it finds nothing twice: a process may move while it looks.

    Blocks for up to about two seconds, then raises RuntimeFailure: some do not end."""
    has_killed = False
    for round_number in range(KILL_ROUNDS):
        left = find()
        if not left and (not has_killed or not (left := find())):
            return
        has_killed = True
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
                if round_number == THAW_ROUND:
                    thaw(pid)
        time.sleep(KILL_PAUSE_SECONDS)
    raise RuntimeFailure(
        f"processes {sorted(left)} do not end on SIGKILL; check them with ps (state D: waiting for a disk)"
    )


def thaw(pid: int) -> None:
    """A process that somebody has frozen by a control group of version 1 dies only after that group is thawed."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "freezer":
                top = Path("/sys/fs/cgroup/freezer")
                group = top / path.lstrip("/")
                for frozen in (group, *group.parents):
                    if frozen == top:
                        break
                    (frozen / "freezer.state").write_text("THAWED")


def _session_of(leader: Process) -> int | None:
    holder = stat_of(leader.pid)
    return leader.pid if holder is None or holder.start_ticks == leader.start_ticks else None


def _everybody() -> Iterator[tuple[int, Stat]]:
    for name in os.listdir("/proc"):  # noqa: PTH208 -- names are wanted, not paths
        stat = stat_of(int(name)) if name.isdecimal() else None
        if stat is not None:
            yield int(name), stat


def _living() -> Iterator[tuple[int, Stat]]:
    return ((pid, stat) for pid, stat in _everybody() if not stat.has_ended)


def has_entry(pid: int, entry: bytes) -> bool:
    """Whether that process's environment has the entry."""
    return entry in entries(pid)


def entries(pid: int) -> list[bytes]:
    """That process's environment. Raises OSError if this agent lacks what it needs to read it: that proves nothing."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError as error:
        if lack_of(error):
            raise
        return []  # gone already, or of another user and so not of a cell of this agent
