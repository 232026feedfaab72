"""Control groups as trees: a cell may make groups below its own and move its processes into them, as engines, init
systems and sandboxes do. A cell has ended only when no group of its trees has a process.

Everything here blocks.
"""

import contextlib
import errno
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from galactica.agent.starved import lack_of

REMOVE_ROUNDS = 200
REMOVE_PAUSE_SECONDS = 0.01


def members(groups: Iterable[Path]) -> set[int]:
    """The processes of the groups and of all groups below them. Without zombies: they do not block the removal. Raises
    OSError if this agent lacks what it needs to look: that proves nothing."""
    return {pid for top in groups for group in _tree(top) for pid in _pids_in(group)}


def doom(groups: Iterable[Path]) -> None:
    """No process of these trees can begin another one from now on, and version 2 kills all of them at once. What this
    cannot do here is left to signals."""
    for group in groups:
        for name, value in (("pids.max", "0"), ("cgroup.kill", "1")):
            if (group / name).exists():
                with contextlib.suppress(OSError):
                    (group / name).write_text(value)


def remove(groups: Sequence[Path]) -> None:
    """Remove trees of groups without processes. Does nothing for a group that does not exist. Raises OSError."""
    for top in groups:
        for group in reversed(tuple(_tree(top))):
            _remove_one(group)


def _remove_one(group: Path) -> None:
    for round_number in range(REMOVE_ROUNDS):
        try:
            group.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            # A killed process blocks the removal for a moment after it has disappeared from the list.
            if error.errno != errno.EBUSY or round_number == REMOVE_ROUNDS - 1:
                raise
            time.sleep(REMOVE_PAUSE_SECONDS)
        else:
            return


def _tree(top: Path) -> Iterator[Path]:
    """The group and all below it, each before those below it."""
    waiting = [top]
    while waiting:
        group = waiting.pop()
        yield group
        try:
            waiting += [path for path in group.iterdir() if path.is_dir()]
        except OSError as error:
            if lack_of(error):
                raise  # else it is gone


def _pids_in(group: Path) -> list[int]:
    try:
        return [int(line) for line in (group / "cgroup.procs").read_text().split()]
    except OSError as error:
        if lack_of(error):
            raise
        return []
