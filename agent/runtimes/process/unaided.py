"""Ends exclusive cells by what the kernel alone tells of them. No file of theirs is read, since their disk may hang.

The keeper of an exclusive cell has the cell's grace in its environment. What it keeps stays for the agent: the exit
status and the folder.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

from galactica.agent.runtimes.process import plan as process_plan
from galactica.agent.runtimes.process import table as process_table
from galactica.agent.runtimes.process.table import Process


def kill_overdue(homes: Sequence[Path], is_over: Callable[[float], bool]) -> list[str]:
    """Send SIGKILL to all processes of the exclusive cells in these homes whose grace (seconds) is over. Their ids, if
    they had any. Waits for nothing: who calls it looks again. Raises OSError if this agent lacks what it needs."""
    killed = []
    for scratch, grace_seconds in _exclusive(homes).items():
        if is_over(grace_seconds) and _kill(scratch):
            killed.append(unquote(scratch.parent.name))
    return killed


def _exclusive(homes: Sequence[Path]) -> dict[Path, float]:
    """Scratch directory to grace, of each exclusive cell that has a keeper."""
    found = {}
    for pid in process_table.all_living():
        kept = process_plan.exclusive_kept_by(process_table.entries(pid))
        if kept is not None and kept[0].parent.parent in homes:
            found[kept[0]] = kept[1]
    return found


def _kill(scratch: Path) -> bool:
    has_killed = False
    for pid in _processes(scratch):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
            has_killed = True
    return has_killed


def _processes(scratch: Path) -> Iterator[int]:
    """All but its keeper and reaper."""
    holders: set[Process] = process_table.bearers(process_plan.keeper_marker_of(scratch))
    yield from process_table.descendants(holders)
    for process in process_table.bearers(process_plan.marker_of(scratch)):
        yield process.pid
