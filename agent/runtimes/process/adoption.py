"""The cells that an earlier agent left: read from their folders. Everything here blocks."""

import contextlib
import itertools
import logging
import time
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from urllib.parse import unquote

from galactica.agent.core.model import Found
from galactica.agent.runtimes.port import RuntimeFailure
from galactica.agent.runtimes.process import groups as process_groups
from galactica.agent.runtimes.process import limits as process_limits
from galactica.agent.runtimes.process import plan as process_plan
from galactica.agent.runtimes.process import record as process_record
from galactica.agent.runtimes.process import table as process_table
from galactica.agent.runtimes.process.launch import Folder
from galactica.agent.runtimes.process.leftovers import ASIDE, Leftovers
from galactica.v1 import cell_pb2, link_pb2

SET_ASIDE = ".corrupt"

log = logging.getLogger(__name__)


def scan(
    homes: Sequence[Path],
    limiter: process_limits.Limiter,
    leftovers: Leftovers,
    wanted: AbstractSet[str] | None,
) -> tuple[list[tuple[Folder, process_record.Record]], dict[str, str]]:
    """The cells of earlier agents; ``wanted``: only these. And those whose record cannot be read now, with the reason.
    New cells will be in the last of the homes.

    A folder without a record is of a cell that never ran, and is removed. A folder with a corrupt record is set
    aside. What cannot be removed or set aside does not keep the other cells from being taken over."""
    homes[-1].mkdir(mode=0o700, parents=True, exist_ok=True)
    found, unread = [], {}
    for path in itertools.chain(*(sorted(home.iterdir()) for home in homes if home.is_dir())):
        cell_id = unquote(path.name)
        if path.name in {SET_ASIDE, ASIDE} or (wanted is not None and cell_id not in wanted):
            continue
        folder = Folder(path)
        try:
            found.append((folder, process_record.read(folder.record)))
        except (FileNotFoundError, NotADirectoryError, process_record.CorruptRecordError) as error:
            _clear(folder, limiter, leftovers, error)
        except OSError as error:
            log.warning("the record of cell %s cannot be read: %s", cell_id, error)
            unread[cell_id] = str(error)
    return found, unread


def _clear(folder: Folder, limiter: process_limits.Limiter, leftovers: Leftovers, error: Exception) -> None:
    try:
        if isinstance(error, process_record.CorruptRecordError):
            _set_aside(folder, error)
        groups = limiter.existing(folder.group_name)
        process_groups.doom(groups)
        process_table.kill_until_none(lambda: process_groups.members(groups))
        leftovers.discard_groups(groups)
        if folder.path.is_dir():
            leftovers.discard(folder.path)
    except (OSError, RuntimeFailure) as stubborn:
        log.error("the folder %s (%s) cannot be cleared: %s", folder.path, error, stubborn)  # noqa: TRY400 - for people


def unread(cell_id: str, reason: str) -> Found:
    order = link_pb2.Order(cell_id=cell_id, spec=cell_pb2.Spec(runtime=cell_pb2.RUNTIME_KIND_PROCESS))
    return Found(order, None, doubt=f"its record cannot be read: {reason}")


def cells_of_others(directory: Path, own: AbstractSet[Path]) -> int:
    """How many folders of cells are below the homes of other fleets. Usually there are no such homes. What cannot be
    read is not counted."""
    with contextlib.suppress(OSError):
        others = [home for home in directory.iterdir() if home not in own and home.is_dir()]
        return sum(Folder(path).record.exists() for home in others for path in home.iterdir())
    return 0


def _set_aside(folder: Folder, error: Exception) -> None:
    """End a cell whose record is unreadable. Its folder is kept, so that a person can examine it."""
    aside = folder.path.parent / SET_ASIDE / f"{folder.path.name}.{time.time_ns()}"
    for marker in (process_plan.marker_of(folder.scratch), process_plan.keeper_marker_of(folder.scratch)):
        process_table.kill_marked(marker)
    aside.parent.mkdir(mode=0o700, exist_ok=True)
    folder.path.rename(aside)
    log.error(
        "corrupt record of a cell (%s): its processes were killed, its folder was moved to %s",
        error,
        aside,
    )
