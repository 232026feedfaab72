"""Resource limits of a process cell: by control groups if the agent may create them, else by rlimit.

With control groups (version 1 or 2, below the agent's own group) all of ``resources`` applies to the cell as a whole,
the kernel reports when it ran out of memory, and the agent finds its processes (see ``groups``). Without them (an
agent that is not root and has no delegated group) only memory is limited, for each process separately: by
RLIMIT_DATA, so that an allocation above the limit fails. RLIMIT_AS does not fit: many language runtimes reserve far
more address space than they use. For CPU there is no suitable rlimit, and RLIMIT_NPROC counts all processes of a
user. So ``cpu`` and ``pids`` are then not limited; the agent's log says so.
"""

import os
import resource
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from galactica.agent.runtimes.process import groups as process_groups
from galactica.v1 import cell_pb2

CONTROLLERS = ("cpu", "memory", "pids")
PERIOD_MICROSECONDS = 100_000
LEAST_QUOTA_MICROSECONDS = 1_000
"""Least quota for a period that the kernel accepts."""

Settings = Mapping[str, str]
"""File name in a control group to its content."""


@dataclass(frozen=True, slots=True)
class Limiter:
    """Where control groups are created. ``unified``: the parent (version 2). ``separate``: controller to parent
    (version 1). Both empty: rlimits."""

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
            "memory by rlimit for each process; cpu and pids are NOT limited, because the agent cannot create "
            "control groups (run it as root, or in a systemd unit with Delegate=yes)"
        )

    def make(self, name: str, limits: cell_pb2.Resources) -> tuple[Path, ...]:
        """Create one cell's control groups and set their limits. Empty: no control groups. Raises OSError."""
        groups: list[Path] = []
        try:
            for directory, settings in self._wanted(name, limits):
                directory.mkdir(exist_ok=True)
                groups.append(directory)
                _write(directory, settings)
        except OSError:
            process_groups.remove(groups)
            raise
        return tuple(groups)

    def existing(self, name: str) -> tuple[Path, ...]:
        """The existing groups of that name."""
        return tuple(parent / name for parent in self._parents() if (parent / name).exists())

    def names(self, prefix: str) -> set[str]:
        """The names of the existing groups that begin with that. Raises OSError."""
        return {
            path.name
            for parent in self._parents()
            for path in parent.iterdir()
            if path.name.startswith(prefix)
        }

    def _parents(self) -> Sequence[Path]:
        return [*self.separate.values(), *([self.unified] if self.unified else [])]

    def holds_memory(self) -> bool:
        return "memory" in self.separate or "memory" in self.controllers

    def _wanted(self, name: str, limits: cell_pb2.Resources) -> Iterable[tuple[Path, Settings]]:
        if self.unified is not None:
            yield self.unified / name, _settings_v2(limits, self.controllers)
        for controller, parent in self.separate.items():
            settings = _SETTINGS_V1[controller](limits)
            # The pids group is always created: with it the agent finds all processes of a cell.
            if settings or controller == "pids":
                yield parent / name, settings


def detect(proc: Path = Path("/proc/self"), root: Path = Path("/sys/fs/cgroup")) -> Limiter:
    """Find out what this host offers. Tests it: creates and removes an empty group."""
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


def joining(groups: Iterable[Path], directory: Path, words: Sequence[str]) -> list[str]:
    """A command that joins these groups, goes to that directory and then becomes that one. What it starts is in the
    groups from the first moment; a process that is moved later may have children already. And only that process waits
    for the directory if its disk hangs."""
    return ["/bin/sh", "-c", _JOIN, "sh", *map(str, groups), "--", str(directory), *words]


_JOIN = (
    'until [ "$1" = -- ]; do echo $$ > "$1/cgroup.procs"; shift; done 2> /dev/null; '
    'shift; cd -- "$1" || exit; shift; exec "$@"'
)


def limit_process(pid: int, limits: cell_pb2.Resources, limiter: Limiter) -> None:
    """Set the rlimits of a cell's first process; its children inherit them. No core dumps: they could fill the disk."""
    resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
    if limits.memory_bytes and not limiter.holds_memory():
        resource.prlimit(pid, resource.RLIMIT_DATA, (limits.memory_bytes, limits.memory_bytes))


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
    """Enable the controllers for groups below ``own`` (version 2). Returns the enabled ones.

    A group that enables controllers for its children must not contain processes itself. So if it has to, the agent
    moves itself, and no other process, one level down.
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
        # Some kernels do not count swap.
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
