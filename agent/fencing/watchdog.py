"""The watchdog of exclusive cells: a small process beside the agent that ends them if the agent cannot.

An agent that was killed or is frozen ends no cell. If its host is cut off too, the scheduler cannot tell whether the
cell still runs, and it could not safely order the next one. So the agent stores in a file until when exclusive cells
may live (``keeping``), and the watchdog watches that file. After that time a cell still has its grace, in which a
working agent ends it. The watchdog kills the cells that are left after the grace.

The agent starts the watchdog with its first exclusive cell. The watchdog outlives the agent: it ends when the cells
have ended, or when the file says that there are none, or that a later agent has taken them over with its own watchdog.
A file that is missing or unreadable says nothing: the watchdog goes on with what it knew last, at first with the lease
that it was started with. So it does while the disk with the file and the cells hangs: then it kills them by what the
kernel alone tells of them, and tidies up when the disk answers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from galactica.agent import clock
from galactica.agent.core.cells import stop_of
from galactica.agent.fencing.keeping import FenceFile, Kept
from galactica.agent.fencing.patience import Patience
from galactica.agent.log import log_to_stderr
from galactica.agent.runtimes.port import RuntimeFailure
from galactica.agent.runtimes.process.launch import homes_of
from galactica.agent.runtimes.process.unaided import kill_overdue
from galactica.v1 import cell_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from galactica.agent.runtimes.port import Runtime
    from galactica.v1 import link_pb2

LOOK_EVERY_SECONDS = 0.5
AFTER_GRACE_SECONDS = 0.2
"""By then a working agent has killed a cell that did not end within its grace."""
READY_LINE = b"ready\n"

log = logging.getLogger("watchdog")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="galactica.agent.fencing.watchdog",
        description="Ends exclusive cells when their lease has ended. Started by the agent.",
    )
    for name in ("--data", "--fleet", "--fleet-id", "--server", "--host", "--owner"):
        parser.add_argument(name, required=True)
    parser.add_argument("--fence-at", type=float)
    parser.add_argument("--runtime", action="append", type=int, default=[])
    arguments = parser.parse_args()
    log_to_stderr("INFO")
    data = Path(arguments.data)

    def runtimes() -> list[Runtime]:
        return [_runtime(kind, data, arguments) for kind in arguments.runtime]

    homes = homes_of(data / "cells", str(arguments.fleet), str(arguments.fleet_id))
    watched = Watched(FenceFile(data), Kept(arguments.fence_at, arguments.owner))
    asyncio.run(_guard(watched, runtimes, homes))


def _runtime(kind: int, data: Path, given: argparse.Namespace) -> Runtime:
    """The same runtime as the agent's. Only the used libraries are loaded."""
    fleet, fleet_id = str(given.fleet), str(given.fleet_id)
    if kind == cell_pb2.RUNTIME_KIND_DOCKER:
        from galactica.agent.runtimes.docker.runtime import DockerRuntime  # noqa: PLC0415

        return DockerRuntime(fleet, fleet_id, host=given.host, server=given.server)
    from galactica.agent.runtimes.process.runtime import ProcessRuntime  # noqa: PLC0415

    return ProcessRuntime(data / "cells", fleet, fleet_id, given.host)


class Watched:
    """What the watchdog goes by: the newest of what it was started with and what it has read since."""

    def __init__(self, file: FenceFile, started_with: Kept) -> None:
        self._file = file
        self._owner = started_with.owner
        earlier = file.read()
        self._earlier_owner = earlier.owner if earlier and earlier.owner != self._owner else None
        self._kept = started_with

    def look(self) -> bool:
        """Read the file. Blocks. Always True."""
        read = self._file.read()
        # The line of an earlier agent says nothing of ours, which may have ended before it could write its own.
        if read is not None and read.owner != self._earlier_owner:
            self._kept = read
        return True

    def fence_at(self) -> float | None:
        """The lease's end as it is known now. None: there is nothing to watch."""
        return self._kept.fence_at if self._kept.owner == self._owner else None


async def _guard(watched: Watched, runtimes: Callable[[], Sequence[Runtime]], homes: Sequence[Path]) -> None:
    """``watched`` has looked before the agent writes its line, which waits for READY_LINE."""
    for runtime in runtimes():  # a missing library shows now, not in an emergency
        await runtime.close()
    is_orphaned = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), _notice_end, is_orphaned)
    with contextlib.suppress(BrokenPipeError):  # the agent is dead already: the watchdog goes on
        os.write(sys.stdout.fileno(), READY_LINE)
    looking = Patience(lambda: asyncio.to_thread(watched.look))
    ending = Patience(lambda: _end(runtimes, watched.fence_at))
    while True:
        await looking.result()
        fence_at = watched.fence_at()
        is_over = fence_at is None
        if fence_at is not None and clock.now() >= fence_at:
            _kill_overdue(homes, fence_at)
            is_over = await ending.result() == 0
        if is_over and is_orphaned.is_set():
            return
        await asyncio.sleep(LOOK_EVERY_SECONDS)


def _notice_end(is_orphaned: asyncio.Event) -> None:
    """The agent never writes to this pipe, so it is readable only when the agent has ended."""
    asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
    is_orphaned.set()


def _kill_overdue(homes: Sequence[Path], fence_at: float) -> None:
    try:
        for cell_id in kill_overdue(homes, lambda grace_seconds: _is_over(fence_at, grace_seconds)):
            log.warning("exclusive cell killed cell=%s reason='the agent did not end it'", cell_id)
    except Exception:
        log.exception("exclusive cells not killed yet: unexpected error")


async def _end(runtimes: Callable[[], Sequence[Runtime]], fence_at: Callable[[], float | None]) -> int:
    """Kill the exclusive cells whose grace is over. Returns how many are left. Each runtime and each cell is on its
    own: what fails for one of them does not keep another one alive."""
    try:
        found = runtimes()
    except Exception:
        log.exception("exclusive cells not ended yet: unexpected error")
        return 1
    return sum(await asyncio.gather(*(_end_in(runtime, fence_at) for runtime in found)))


async def _end_in(runtime: Runtime, fence_at: Callable[[], float | None]) -> int:
    try:
        exclusive = [order for order in await runtime.living() if order.spec.exclusive]
        return sum(await asyncio.gather(*(_end_cell(runtime, order, fence_at) for order in exclusive)))
    except RuntimeFailure as failure:
        log.warning("exclusive cells not ended yet reason=%r", str(failure))
        return 1
    except Exception:
        log.exception("exclusive cells not ended yet: unexpected error")
        return 1
    finally:
        await runtime.close()


async def _end_cell(runtime: Runtime, order: link_pb2.Order, fence_at: Callable[[], float | None]) -> int:
    """Returns 1 if the cell may live on, else 0. ``fence_at`` is asked now: to list the cells may have taken long."""
    known, (_, grace_seconds) = fence_at(), stop_of(order)
    if known is None or not _is_over(known, grace_seconds):
        return 1
    try:
        await runtime.stop(order.cell_id, "SIGKILL", 0.0)
    except RuntimeFailure as failure:
        log.warning("exclusive cell not ended yet cell=%s reason=%r", order.cell_id, str(failure))
        return 1
    except Exception:
        log.exception("exclusive cell not ended yet: unexpected error cell=%s", order.cell_id)
        return 1
    log.warning("exclusive cell killed cell=%s reason='the agent did not end it'", order.cell_id)
    return 0


def _is_over(fence_at: float, grace_seconds: float) -> bool:
    return clock.now() >= fence_at + grace_seconds + AFTER_GRACE_SECONDS


if __name__ == "__main__":
    main()
