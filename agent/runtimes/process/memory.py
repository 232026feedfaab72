"""Whether the kernel killed a cell's main process because its memory ran out.

The counters of a control group also count other processes of the cell: a child that was killed long ago does not
explain the cell's death. The kernel's log names each process that it kills. Where the log cannot be read, or has been
overwritten, the counters decide. Everything here blocks.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from galactica.agent.runtimes.process.table import Process

KERNEL_LOG = Path("/dev/kmsg")
RECORD_BYTES = 8_192
RECORDS_LIMIT = 100_000
"""More than the kernel's buffer holds."""
FIRST_PID_NAMESPACE = "pid:[4026531836]"
"""The log has the process ids of this namespace (PROC_PID_INIT_INO)."""

_KILLED = re.compile(rb"(?:Killed|Kill) process (\d+) \(")
_VICTIM = re.compile(rb"oom-kill:.*task_memcg=([^,]*),.*pid=(\d+),")


def was_killed_for_it(main: Process, groups: Sequence[Path]) -> bool:
    """``main`` was ended by SIGKILL. ``groups``: the cell's control groups."""
    if not _ran_out(groups):
        return False
    verdict = told_by(_records(), main, {group.name for group in groups})
    return True if verdict is None else verdict


def told_by(records: Iterable[bytes], main: Process, names: Iterable[str]) -> bool | None:
    """What the kernel's log says. ``names``: of the cell's control groups. None: it has nothing about this cell."""
    began_seconds = main.start_ticks / os.sysconf("SC_CLK_TCK")
    marks = [os.fsencode(f"/{name}") for name in names]
    others = False
    for record in records:
        if _seconds_of(record) < began_seconds - 1.0:  # the two clocks differ a little
            continue
        killed = _KILLED.search(record)
        if killed and int(killed[1]) == main.pid:
            return True
        victim = _VICTIM.search(record)
        others = others or (victim is not None and any(mark in victim[1] for mark in marks))
    return False if others else None


def _seconds_of(record: bytes) -> float:
    """Since the machine's boot. A record is "priority,sequence,microseconds,flags;text"."""
    parts = record.partition(b";")[0].split(b",")
    return int(parts[2]) / 1e6 if len(parts) > 2 and parts[2].isdigit() else 0.0


def _ran_out(groups: Iterable[Path]) -> bool:
    """Whether the kernel killed any process of these groups for lack of memory."""
    for group in groups:
        for name in ("memory.oom_control", "memory.events"):
            with contextlib.suppress(OSError, ValueError):
                words = (group / name).read_text().split()
                return int(words[words.index("oom_kill") + 1]) > 0
    return False


def _records() -> Iterator[bytes]:
    """All that the kernel still has; nothing where we may not read it, or its process ids are not ours."""
    with contextlib.suppress(OSError):
        if os.readlink("/proc/self/ns/pid") != FIRST_PID_NAMESPACE:  # noqa: PTH115 - no path
            return
        descriptor = os.open(KERNEL_LOG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            for _ in range(RECORDS_LIMIT):
                try:
                    record = os.read(descriptor, RECORD_BYTES)
                except BrokenPipeError:  # overwritten before it was read
                    continue
                if not record:
                    return
                yield record
        finally:
            os.close(descriptor)
