"""The process runtime's tests: orders, agents, and looks at the machine's processes."""

import asyncio
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from galactica.agent.core.model import Found
from galactica.agent.runtimes.port import Exited
from galactica.agent.runtimes.process import limits as process_limits
from galactica.agent.runtimes.process.runtime import ProcessRuntime
from galactica.v1 import cell_pb2, link_pb2
from tests.support.processes import below

REPOSITORY = Path(__file__).parents[2]
DEADLINE_SECONDS = 20.0
SERVER = (sys.executable, "-m", "http.server", "{port.http}", "--bind", "127.0.0.1")
SLEEP = ("sleep", "300")


def order(command: Sequence[str], cell_id: str = "web/0.1", **spec) -> link_pb2.Order:
    spec = {"runtime": cell_pb2.RUNTIME_KIND_PROCESS, "command": command, **spec}
    return link_pb2.Order(cell_id=cell_id, digest="d1", spec=cell_pb2.Spec(**spec))


def shell(script: str, cell_id: str = "web/0.1", **spec) -> link_pb2.Order:
    return order(("/bin/sh", "-c", textwrap.dedent(script)), cell_id, **spec)


def quiet(_text: str, /) -> None:
    """Progress that nobody looks at."""


async def until(look: Callable[[], object]) -> None:
    """Returns when ``look()`` is true."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not look():
            await asyncio.sleep(0.01)


async def next_death(deaths: AsyncIterator[Exited]) -> Exited:
    async with asyncio.timeout(DEADLINE_SECONDS):
        return await anext(deaths)


def keeper_of(pid: int) -> int:
    return psutil.Process(pid).ppid()


def without_time(autopsy: cell_pb2.Autopsy) -> cell_pb2.Autopsy:
    copy = cell_pb2.Autopsy.FromString(autopsy.SerializeToString())
    copy.lived_seconds = 0
    return copy


async def settled(runtime: ProcessRuntime) -> Sequence[Found]:
    """The list once every cell in it has ended."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            listed = await runtime.list()
            if all(found.autopsy is not None for found in listed):
                return listed
            await asyncio.sleep(0.01)


def left_in(directory: Path) -> list[Path]:
    return sorted(path for path in below(directory) if path.parent != directory)


FLEET_ID = "0123456789abcdef"
HOME = f"test@{FLEET_ID}"
"""The folder of the fleet's cells below the runtime's directory."""

LIMITERS = {"control groups": process_limits.detect(), "rlimits": process_limits.Limiter()}


@asynccontextmanager
async def agent_on(directory: Path, **settings) -> AsyncIterator[ProcessRuntime]:
    """A runtime whose cells are gone at the end."""
    runtime = ProcessRuntime(directory, "test", FLEET_ID, **settings)
    try:
        yield runtime
    finally:
        await runtime.close()
        await remove_all(ProcessRuntime(directory, "test", FLEET_ID, **settings))


async def remove_all(runtime: ProcessRuntime) -> None:
    for found in await runtime.list():
        await runtime.stop(found.order.cell_id, "SIGKILL", 5)
    await runtime.close()


def limiter_or_skip(name: str) -> process_limits.Limiter:
    if name == "control groups" and LIMITERS[name] == LIMITERS["rlimits"]:
        pytest.skip("no control groups can be made here: run the tests as root")
    return LIMITERS[name]
