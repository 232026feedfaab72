"""The dead man's switch of exclusive cells: a small process beside the agent that ends them where the agent cannot.

An agent that was killed or is frozen ends nothing, and its host may be cut off at that moment, so that nobody sees that
the agent is gone: the scheduler could not order the next cell of a slot without the risk that the old one still runs.
So the agent keeps until when such cells may live in a file (``fence_keeping``), and here that file is watched. A cell
gets its grace in addition, in which an agent that is well ends it itself; what is left then is killed.

Begun by the agent with the first such cell. It outlives the agent, until the cells have ended or a next agent, with a
watchdog of its own, has taken them over.
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
from galactica.agent.fencing.keeping import FenceFile
from galactica.agent.runtimes.port import RuntimeFailure
from galactica.v1 import cell_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from galactica.agent.core.model import Found
    from galactica.agent.runtimes.port import Runtime

LOOK_EVERY_SECONDS = 0.5
AFTER_GRACE_SECONDS = 0.2
"""An agent that is well has killed by then what did not end within its grace."""
READY_LINE = b"ready\n"

log = logging.getLogger(__name__)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="agent.watchdog", description="Ends exclusive cells; begun by the agent."
    )
    for name in ("--data", "--fleet", "--server", "--host", "--owner"):
        parser.add_argument(name, required=True)
    parser.add_argument("--runtime", action="append", type=int, default=[])
    told = parser.parse_args()
    logging.basicConfig(level="INFO", format="level=%(levelname)s logger=watchdog event=%(message)s")
    data = Path(told.data)

    def runtimes() -> list[Runtime]:
        return [_runtime(kind, data, told.fleet, told.server, told.host) for kind in told.runtime]

    asyncio.run(_guard(FenceFile(data), told.owner, runtimes))


def _runtime(kind: int, data: Path, fleet: str, server: str, host: str) -> Runtime:
    """As the agent makes it; only what is used is loaded."""
    if kind == cell_pb2.RUNTIME_KIND_DOCKER:
        from galactica.agent.runtimes.docker.runtime import DockerRuntime  # noqa: PLC0415

        return DockerRuntime(fleet, host=host, server=server)
    from galactica.agent.runtimes.process.runtime import ProcessRuntime  # noqa: PLC0415

    return ProcessRuntime(data / "cells", fleet, host)


async def _guard(file: FenceFile, owner: str, runtimes: Callable[[], Sequence[Runtime]]) -> None:
    for one in runtimes():  # what cannot be loaded shows now and not when it is needed
        await one.close()
    is_orphaned = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), _notice_end, is_orphaned)
    with contextlib.suppress(BrokenPipeError):  # the agent died meanwhile, which is what this is for
        os.write(sys.stdout.fileno(), READY_LINE)
    while True:
        kept = file.read()
        is_ours = kept is not None and kept.owner == owner
        is_over = not is_ours
        if kept is not None and is_ours and clock.now() >= kept.fence_at:
            is_over = await _end(runtimes(), kept.fence_at) == 0
        if is_over and is_orphaned.is_set():
            return
        await asyncio.sleep(LOOK_EVERY_SECONDS)


def _notice_end(is_orphaned: asyncio.Event) -> None:
    """The agent never writes: what can be read is the end."""
    asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
    is_orphaned.set()


async def _end(runtimes: Sequence[Runtime], fence_at: float) -> int:
    """Kill what should have ended by now; how many are left."""
    left = 0
    for runtime in runtimes:
        try:
            found = [one for one in await runtime.list() if one.order.spec.exclusive and one.autopsy is None]
            left += len(found)
            for one in found:
                if clock.now() >= _over_at(one, fence_at):
                    await runtime.stop(one.order.cell_id, "SIGKILL", 0.0)
                    left -= 1
                    log.warning("exclusive cell ended cell=%s reason='its agent did not'", one.order.cell_id)
        except RuntimeFailure as failure:
            left += 1
            log.warning("exclusive cells not ended yet reason=%r", str(failure))
        finally:
            await runtime.close()
    return left


def _over_at(found: Found, fence_at: float) -> float:
    _, grace_seconds = stop_of(found.order)
    return fence_at + grace_seconds + AFTER_GRACE_SECONDS


if __name__ == "__main__":
    main()
