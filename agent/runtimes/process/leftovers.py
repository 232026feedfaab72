"""What cells leave behind and cannot be removed at once. It never keeps a cell from being gone, nor others from their
places: it is told, moved aside, and tried again.
"""

import contextlib
import logging
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from galactica.agent.runtimes.process import clearing as process_clearing
from galactica.agent.runtimes.process import groups as process_groups
from galactica.agent.seldom import Seldom

ASIDE = ".leftovers"
"""In the folder of a fleet's cells: folders that could not be removed."""
TRY_AGAIN_SECONDS = 30.0

log = logging.getLogger(__name__)


class Leftovers:
    """Of the cells of one runtime. Everything here blocks and raises nothing."""

    def __init__(self, homes: Sequence[Path]) -> None:
        self._homes = homes
        self._stuck: set[Path] = set()
        self._groups: set[Path] = set()
        self._seldom = Seldom()

    def discard(self, folder: Path) -> None:
        """Remove the folder of a cell that has ended, or that never ran."""
        try:
            # The record goes first: after a crash the next agent removes a folder without a record.
            with contextlib.suppress(OSError):
                (folder / "record").unlink(missing_ok=True)
            process_clearing.clear(folder)
        except (OSError, subprocess.SubprocessError) as error:
            self._move_aside(folder, error)

    def discard_groups(self, groups: Sequence[Path]) -> None:
        """Remove control groups without processes."""
        for group in groups:
            try:
                process_groups.remove([group])
            except OSError as error:
                log.warning("the empty control group %s cannot be removed yet: %s", group, error)
                self._groups.add(group)

    def try_again(self) -> None:
        for group in tuple(self._groups):
            with contextlib.suppress(OSError):
                process_groups.remove([group])
                self._groups.discard(group)
        for folder in (*self._stuck, *self._aside()):
            try:
                process_clearing.clear(folder)
            except (OSError, subprocess.SubprocessError) as error:
                if self._seldom.is_time(str(folder)):
                    log.error("%s still cannot be removed: %s", folder, error)  # noqa: TRY400 - for people
            else:
                self._stuck.discard(folder)
        for home in self._homes:
            with contextlib.suppress(OSError):  # not empty, or not there
                (home / ASIDE).rmdir()

    def _aside(self) -> Iterable[Path]:
        for home in self._homes:
            with contextlib.suppress(OSError):
                yield from sorted((home / ASIDE).iterdir())

    def _move_aside(self, folder: Path, error: Exception) -> None:
        aside = folder.parent / ASIDE / f"{folder.name}.{time.time_ns()}"
        try:
            aside.parent.mkdir(mode=0o700, exist_ok=True)
            folder.rename(aside)
        except OSError:
            aside = folder
            self._stuck.add(folder)
        log.error(
            "the cell in %s has ended, but what it left behind cannot be removed: %s; it is in %s, and is tried again "
            "every %.0f s",
            folder,
            error,
            aside,
            TRY_AGAIN_SECONDS,
        )
