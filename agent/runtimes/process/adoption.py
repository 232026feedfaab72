"""The cells that an earlier agent left: read from their folders. Everything here blocks."""

import contextlib
import itertools
import logging
import time
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from galactica.agent.core.model import Found
from galactica.agent.runtimes.port import RuntimeFailure
from galactica.agent.runtimes.process import groups as process_groups
from galactica.agent.runtimes.process import limits as process_limits
from galactica.agent.runtimes.process import plan as process_plan
from galactica.agent.runtimes.process import record as process_record
from galactica.agent.runtimes.process import table as process_table
from galactica.agent.runtimes.process.launch import Folder, folder_name, group_prefix
from galactica.agent.runtimes.process.leftovers import ASIDE, Leftovers
from galactica.v1 import cell_pb2, link_pb2

SET_ASIDE = ".corrupt"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Inheritance:
    """What earlier agents left. ``unread``: cells whose record cannot be read now, with the reason. ``unended``: what
    runs without a record and could not be ended, with the reason: cells, or the name of a control group."""

    found: list[tuple[Folder, process_record.Record]] = field(default_factory=list)
    unread: dict[str, str] = field(default_factory=dict)
    unended: dict[str, str] = field(default_factory=dict)


def scan(
    homes: Sequence[Path],
    limiter: process_limits.Limiter,
    leftovers: Leftovers,
    wanted: AbstractSet[str] | None,
) -> Inheritance:
    """The cells of earlier agents; ``wanted``: only these. New cells will be in the last of the homes.

    No record does not prove that there is no cell: what runs without one was not ordered as it is now, so it is ended.
    After that a folder without a record is removed, and one with a corrupt record is set aside. What cannot be removed
    or set aside does not keep the other cells from being taken over."""
    left = Inheritance()
    lost: dict[Path, Exception | None] = {}
    for path in itertools.chain(*map(_folders_in, homes)):
        cell_id = unquote(path.name)
        if path.name in {SET_ASIDE, ASIDE} or (wanted is not None and cell_id not in wanted):
            continue
        folder = Folder(path)
        try:
            left.found.append((folder, process_record.read(folder.record)))
        except (FileNotFoundError, NotADirectoryError, process_record.CorruptRecordError) as error:
            lost[path] = error
        except OSError as error:
            log.warning("the record of cell %s cannot be read: %s", cell_id, error)
            left.unread[cell_id] = str(error)
    known = {folder.path for folder, _ in left.found}
    for path in _running_in(homes) - known:
        cell_id = unquote(path.name)
        if cell_id not in left.unread and (wanted is None or cell_id in wanted):
            lost.setdefault(path, None)
    for path, reason in lost.items():
        _clear(Folder(path), limiter, leftovers, reason, left)
    told = {Folder(path).group_name for path in (*known, *lost)}
    told |= {Folder(home / folder_name(cell_id)).group_name for home in homes for cell_id in left.unread}
    told |= {group.name for _, record in left.found for group in record.groups}
    groups = {name for home in homes for name in limiter.names(group_prefix(home))} - told
    _end_groups(groups if wanted is None else groups & wanted, limiter, leftovers, left)
    homes[-1].mkdir(mode=0o700, parents=True, exist_ok=True)
    return left


def _folders_in(home: Path) -> list[Path]:
    try:
        return sorted(home.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _running_in(homes: Sequence[Path]) -> set[Path]:
    """The folders of all cells in these homes of which any process runs, as their environments say."""
    scratches = {
        scratch
        for pid in process_table.all_living()
        for entry in process_table.entries(pid)
        if (scratch := process_plan.scratch_in(entry)) is not None
    }
    return {
        scratch.parent
        for scratch in scratches
        if scratch.parent.parent in homes and scratch == Folder(scratch.parent).scratch
    }


def _clear(
    folder: Folder,
    limiter: process_limits.Limiter,
    leftovers: Leftovers,
    error: Exception | None,
    left: Inheritance,
) -> None:
    cell_id = unquote(folder.path.name)
    try:
        _end(cell_id, folder, limiter)
    except (OSError, RuntimeFailure) as stubborn:
        log.error("cell %s has no record and cannot be ended: %s", cell_id, stubborn)  # noqa: TRY400 - for people
        left.unended[cell_id] = str(stubborn)
        return
    try:
        if isinstance(error, process_record.CorruptRecordError):
            _set_aside(folder, error)
        leftovers.discard_groups(limiter.existing(folder.group_name))
        if folder.path.is_dir():
            leftovers.discard(folder.path)
    except OSError as stubborn:
        log.error("the folder %s (%s) cannot be cleared: %s", folder.path, error, stubborn)  # noqa: TRY400 - for people


def _end(cell_id: str, folder: Folder, limiter: process_limits.Limiter) -> None:
    """End all processes of a cell without a record: those that its environment, its control groups and its keeper and
    reaper tell, and last these two. Raises RuntimeFailure if a process does not end."""
    keeper_marker, marker = (
        process_plan.keeper_marker_of(folder.scratch),
        process_plan.marker_of(folder.scratch),
    )
    groups = limiter.existing(folder.group_name)
    holders = process_table.bearers(keeper_marker)

    def find() -> set[int]:
        own = {process.pid for process in process_table.bearers(marker)}
        return own | process_groups.members(groups) | process_table.descendants(holders)

    if holders or find():
        log.warning("cell %s runs without a record: it cannot be taken over and is ended", cell_id)
    process_groups.doom(groups)
    process_table.kill_until_none(find)
    for holder in holders:
        process_table.kill_and_reap(holder)
    process_table.kill_until_none(
        lambda: {process.pid for process in process_table.bearers(keeper_marker)} | find()
    )


def _end_groups(
    names: AbstractSet[str], limiter: process_limits.Limiter, leftovers: Leftovers, left: Inheritance
) -> None:
    """End what runs in these control groups of cells that nothing else tells."""
    for name in sorted(names):
        groups = limiter.existing(name)
        if process_groups.members(groups):
            log.warning("processes run in %s, which is of a cell without a record: they are ended", name)
        process_groups.doom(groups)
        try:
            process_table.kill_until_none(lambda groups=groups: process_groups.members(groups))  # type: ignore[misc]
        except RuntimeFailure as stubborn:
            left.unended[name] = str(stubborn)
        else:
            leftovers.discard_groups(groups)


def unread(cell_id: str, reason: str) -> Found:
    return Found(unknown_order(cell_id), None, doubt=f"its record cannot be read: {reason}")


def unknown_order(cell_id: str) -> link_pb2.Order:
    """Of a cell without a readable record. It may be exclusive, so it counts as that."""
    spec = cell_pb2.Spec(runtime=cell_pb2.RUNTIME_KIND_PROCESS, exclusive=True)
    return link_pb2.Order(cell_id=cell_id, spec=spec)


def cells_of_others(directory: Path, own: AbstractSet[Path]) -> int:
    """How many folders of cells are below the homes of other fleets. Usually there are no such homes. What cannot be
    read is not counted."""
    with contextlib.suppress(OSError):
        others = [home for home in directory.iterdir() if home not in own and home.is_dir()]
        return sum(Folder(path).record.exists() for home in others for path in home.iterdir())
    return 0


def _set_aside(folder: Folder, error: Exception) -> None:
    """Keep the folder of a cell whose record is corrupt, so that a person can examine it."""
    aside = folder.path.parent / SET_ASIDE / f"{folder.path.name}.{time.time_ns()}"
    aside.parent.mkdir(mode=0o700, exist_ok=True)
    folder.path.rename(aside)
    log.error(
        "corrupt record of a cell (%s): its processes were killed, its folder was moved to %s",
        error,
        aside,
    )
