"""What a process cell may use: by control group where the agent may make one, else by rlimit.

With control groups (version 1 or 2, below the agent's own group) all of ``resources`` holds for the cell as a
whole, the kernel says when it ran out of memory, and no process of a cell can get away from it. Without (an
agent that is not root and has no delegated group) only memory is limited, and for each process by itself:
RLIMIT_DATA, so that an allocation above it fails. It is not RLIMIT_AS, because many language runtimes reserve
far more address space than they use. CPU time has no rlimit that fits, and RLIMIT_NPROC counts all processes
of a user, so ``cpu`` and ``pids`` are then not held; the agent says so in its log.
"""

import contextlib
import errno
import os
import resource
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from galactica.agent.runtimes.port import RuntimeFailure
from galactica.v1 import cell_pb2

CONTROLLERS = ("cpu", "memory", "pids")
PERIOD_MICROSECONDS = 100_000
LEAST_QUOTA_MICROSECONDS = 1_000
"""The kernel refuses a smaller share of a period."""

KILL_ROUNDS = 200
KILL_PAUSE_SECONDS = 0.01

Settings = Mapping[str, str]
"""File name in a control group to what is written there."""


@dataclass(frozen=True, slots=True)
class Limiter:
    """Where control groups are made. ``separate``: controller to directory (version 1). Both empty:
    rlimits."""

    unified: Path | None = None
    controllers: frozenset[str] = frozenset()
    separate: Mapping[str, Path] = field(default_factory=dict)

    @property
    def description(self) -> str:
        if self.separate:
            return f"{', '.join(sorted(self.separate))} by control groups (version 1)"
        if self.unified is not None and self.controllers:
            return f"{', '.join(sorted(self.controllers))} by control groups (version 2)"
        return (
            "memory by rlimit for each process; cpu and pids are NOT limited, because the agent may not make "
            "control groups here (run it as root, or in a systemd unit with Delegate=yes)"
        )

    def make(self, name: str, limits: cell_pb2.Resources) -> tuple[Path, ...]:
        """The control groups for one cell, limits set; empty where there are none. Raises OSError."""
        made: list[Path] = []
        try:
            for directory, settings in self._wanted(name, limits):
                directory.mkdir(exist_ok=True)
                made.append(directory)
                _write(directory, settings)
        except OSError:
            remove(made)
            raise
        return tuple(made)

    def existing(self, name: str) -> tuple[Path, ...]:
        """The groups of that name that there are."""
        parents = [*self.separate.values(), *([self.unified] if self.unified else [])]
        return tuple(parent / name for parent in parents if (parent / name).exists())

    def holds_memory(self) -> bool:
        return "memory" in self.separate or "memory" in self.controllers

    def _wanted(self, name: str, limits: cell_pb2.Resources) -> Iterable[tuple[Path, Settings]]:
        if self.unified is not None:
            yield self.unified / name, _settings_v2(limits, self.controllers)
        for controller, parent in self.separate.items():
            settings = _SETTINGS_V1[controller](limits)
            # The pids group is made in any case: it is how all processes of a cell are found.
            if settings or controller == "pids":
                yield parent / name, settings


def detect(proc: Path = Path("/proc/self"), root: Path = Path("/sys/fs/cgroup")) -> Limiter:
    """What can be had here. Tries it: makes and removes an empty group."""
    own = dict(_own_groups((proc / "cgroup").read_text()))
    separate = {
        controller: directory
        for controller in CONTROLLERS
        if controller in own and _may_make_groups(directory := root / controller / own[controller])
    }
    if separate:
        return Limiter(separate=separate) if "pids" in separate else Limiter()
    unified = root / own.get("", "")
    if "" in own and (unified / "cgroup.controllers").exists() and _may_make_groups(unified):
        return Limiter(unified=unified, controllers=_delegate(unified))
    return Limiter()


def join(groups: Iterable[Path], pid: int) -> None:
    """Raises OSError."""
    for group in groups:
        (group / "cgroup.procs").write_text(str(pid))


def limit_process(pid: int, limits: cell_pb2.Resources, limiter: Limiter) -> None:
    """The rlimits of a cell's first process, which its children inherit. No core dumps: they would fill the
    disk."""
    resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
    if limits.memory_bytes and not limiter.holds_memory():
        resource.prlimit(pid, resource.RLIMIT_DATA, (limits.memory_bytes, limits.memory_bytes))


def ran_out_of_memory(groups: Iterable[Path]) -> bool:
    """Whether the kernel killed a process of these groups for its memory."""
    for group in groups:
        for name in ("memory.oom_control", "memory.events"):
            with contextlib.suppress(OSError):
                words = (group / name).read_text().split()
                return int(words[words.index("oom_kill") + 1]) > 0
    return False


def kill_all(groups: Sequence[Path]) -> None:
    """Until no process is left in any. Blocks for at most about two seconds. Raises RuntimeFailure beyond
    that."""
    for _ in range(KILL_ROUNDS):
        pids = {pid for group in groups for pid in _pids_in(group)}
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(KILL_PAUSE_SECONDS)
    raise RuntimeFailure(f"processes {sorted(pids)} do not end on SIGKILL; look at them with ps (state D)")


def remove(groups: Iterable[Path]) -> None:
    """Removes empty groups. Fine where there is none. Raises OSError."""
    for group in groups:
        for round_number in range(KILL_ROUNDS):
            try:
                group.rmdir()
            except FileNotFoundError:
                break
            except OSError as error:
                # A process that was just killed leaves its group a moment after it has left the list.
                if error.errno != errno.EBUSY or round_number == KILL_ROUNDS - 1:
                    raise
                time.sleep(KILL_PAUSE_SECONDS)
            else:
                break


def _pids_in(group: Path) -> list[int]:
    """Zombies are not listed, and do not keep a group from being removed."""
    try:
        return [int(line) for line in (group / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def _own_groups(text: str) -> Iterable[tuple[str, str]]:
    """/proc/PID/cgroup: controller (empty for version 2) and the path below its mount."""
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            yield controller, path.lstrip("/")


def _may_make_groups(parent: Path) -> bool:
    attempt = parent / f"galactica-attempt-{os.getpid()}"
    try:
        attempt.mkdir()
        attempt.rmdir()
    except OSError:
        return False
    return True


def _delegate(own: Path) -> frozenset[str]:
    """Hands the controllers on to groups below ``own`` (version 2); those that could be had.

    A group that hands controllers on may hold no processes of its own, so the agent moves itself, and nobody
    else, one level down where that is what is in the way.
    """
    offered = frozenset(CONTROLLERS) & frozenset((own / "cgroup.controllers").read_text().split())
    if not offered or _hand_on(own, offered):
        return offered
    leaf = own / "galactica-agent"
    try:
        leaf.mkdir(exist_ok=True)
        join([leaf], os.getpid())
        if _hand_on(own, offered):
            return offered
        join([own], os.getpid())
        leaf.rmdir()
    except OSError:
        return frozenset()
    return frozenset()


def _hand_on(own: Path, controllers: Iterable[str]) -> bool:
    try:
        (own / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in sorted(controllers)))
    except OSError:
        return False
    return True


def _write(group: Path, settings: Settings) -> None:
    for name, value in settings.items():
        path = group / name
        # Swap is counted only by kernels that were started so.
        if path.exists() or ("swap" not in name and "memsw" not in name):
            path.write_text(value)


def _quota(limits: cell_pb2.Resources) -> int:
    return max(LEAST_QUOTA_MICROSECONDS, limits.cpu_millis * PERIOD_MICROSECONDS // 1_000)


def _cpu_v1(limits: cell_pb2.Resources) -> Settings:
    if not limits.cpu_millis:
        return {}
    return {"cpu.cfs_period_us": str(PERIOD_MICROSECONDS), "cpu.cfs_quota_us": str(_quota(limits))}


def _memory_v1(limits: cell_pb2.Resources) -> Settings:
    if not limits.memory_bytes:
        return {}
    most = str(limits.memory_bytes)
    return {"memory.limit_in_bytes": most, "memory.memsw.limit_in_bytes": most}


def _pids_v1(limits: cell_pb2.Resources) -> Settings:
    return {"pids.max": str(limits.pids)} if limits.pids else {}


_SETTINGS_V1 = {"cpu": _cpu_v1, "memory": _memory_v1, "pids": _pids_v1}


def _settings_v2(limits: cell_pb2.Resources, controllers: Iterable[str]) -> Settings:
    stated = {
        "cpu": {"cpu.max": f"{_quota(limits)} {PERIOD_MICROSECONDS}"} if limits.cpu_millis else {},
        "memory": {"memory.max": str(limits.memory_bytes), "memory.swap.max": "0"}
        if limits.memory_bytes
        else {},
        "pids": {"pids.max": str(limits.pids)} if limits.pids else {},
    }
    return {name: value for controller in controllers for name, value in stated[controller].items()}
