"""Starts of cells: whose turn it is, and what becomes of one that fails."""

import asyncio
import errno
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from galactica.agent.carrier import STARTS_OF_A_SERVICE, Carrier
from galactica.agent.core.events import Event, Progressed, StartDeferred, Started, StartFailed, StopFailed
from galactica.agent.core.instructions import StartCell, StopCell
from galactica.agent.core.model import Running
from galactica.agent.runtimes.port import (
    NotBegun,
    RuntimeFailure,
    RuntimeUnavailable,
    StartUncertain,
)
from galactica.agent.runtimes.port import StartFailed as CannotStart
from galactica.agent.starved import Lacks
from galactica.v1 import cell_pb2
from tests.support.agent_world import until
from tests.support.orders import order

KIND = cell_pb2.RUNTIME_KIND_PROCESS


class Starter:
    """A runtime that starts and stops. ``hangs``: the services whose starts wait until the test's end."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.hangs: set[str] = set()
        self.begun: list[str] = []

    async def start(self, wanted: Any, progress: Callable[[str], None]) -> Running:
        self.begun.append(wanted.cell_id)
        if wanted.cell_id.partition("/")[0] in self.hangs:
            await asyncio.Event().wait()
        if self.error:
            raise self.error
        return Running("id", {}, {})

    async def stop(self, cell_id: str, signal: str, grace_seconds: float) -> None:
        if self.error:
            raise self.error


class World:
    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.starter, self.lacks = Starter(), Lacks()
        self.events: list[Event] = []
        self.begun: list[asyncio.Task[None]] = []
        self._tasks = tasks
        self._carrier = Carrier(
            {KIND: self.starter},  # type: ignore[dict-item]
            deliver=self._deliver,
            offer=self.events.append,
            before_exclusive=lambda: asyncio.sleep(0),
            stirred=lambda _: None,
            lacks=self.lacks,
        )

    async def _deliver(self, event: Event) -> None:
        self.events.append(event)

    def start(self, cell_id: str) -> None:
        self._carrier.carry_out(StartCell(order(cell_id).order), self._work)

    async def outcome_of_a_stop(self) -> Event:
        self._carrier.carry_out(StopCell("web/0.1", KIND, "SIGTERM", 1.0), self._work)
        return await until(lambda: self.events and self.events[-1], "an outcome")

    def _work(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        self.begun.append(self._tasks.create_task(work))
        return self.begun[-1]

    async def outcome(self) -> Event:
        """Of the start of one cell."""
        self.start("web/0.1")
        return await until(lambda: self.events and self.events[-1], "an outcome")


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with asyncio.TaskGroup() as tasks:
        world = World(tasks)
        yield world
        for task in world.begun:
            task.cancel()


async def test_service_whose_starts_hang_holds_up_no_other_and_says_that_it_waits(world: World) -> None:
    world.starter.hangs = {"slow"}
    for slot in range(STARTS_OF_A_SERVICE + 1):
        world.start(f"slow/{slot}.1")
    world.start("web/0.1")
    await until(lambda: any(isinstance(event, Started) for event in world.events), "web starts")
    assert [cell for cell in world.starter.begun if cell.startswith("slow/")] == [
        f"slow/{slot}.1" for slot in range(STARTS_OF_A_SERVICE)
    ]
    (waiting,) = (event for event in world.events if isinstance(event, Progressed))
    assert waiting.cell_id == f"slow/{STARTS_OF_A_SERVICE}.1"
    assert waiting.text == "waiting for its turn: 16 cells of slow are starting on this server"


@pytest.mark.parametrize(
    ("error", "is_starved", "lack"),
    [
        (OSError(errno.EMFILE, "no file"), True, "EMFILE"),
        (OSError(errno.ENOSPC, "full"), True, "ENOSPC"),
        (RuntimeError("can't start new thread"), True, "EAGAIN"),
        (NotBegun("no lane"), False, ""),
        (RuntimeUnavailable("the engine is away"), False, ""),
        (CannotStart("cannot create: write /var/lib/x: no space left on device"), False, ""),
        (RuntimeFailure("accept4: too many open files"), False, ""),
    ],
    ids=str,
)
async def test_what_agent_or_engine_lack_defers_a_start(
    world: World, error: Exception, is_starved: bool, lack: str
) -> None:
    world.starter.error = error
    event = await world.outcome()
    assert isinstance(event, StartDeferred)
    assert (event.is_starved, event.may_run, world.lacks.take()) == (is_starved, False, lack)


async def test_start_that_may_have_worked_is_deferred_and_says_so(world: World) -> None:
    world.starter.error = StartUncertain("no answer")
    event = await world.outcome()
    assert isinstance(event, StartDeferred)
    assert event.may_run


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (CannotStart("no such image"), "no such image"),
        (KeyError("x"), "unexpected error in the agent: KeyError('x')"),
    ],
)
async def test_any_other_error_is_a_failed_start(world: World, error: Exception, reason: str) -> None:
    world.starter.error = error
    event = await world.outcome()
    assert isinstance(event, StartFailed)
    assert event.reason == reason


@pytest.mark.parametrize(
    ("error", "reason", "lack"),
    [
        (OSError(errno.EMFILE, "no file"), "this server's agent lacks EMFILE", "EMFILE"),
        (RuntimeFailure("processes do not end"), "processes do not end", ""),
        (KeyError("x"), "unexpected error in the agent: KeyError('x')", ""),
    ],
    ids=str,
)
async def test_a_stop_that_fails_says_why_and_what_the_agent_lacks(
    world: World, caplog: pytest.LogCaptureFixture, error: Exception, reason: str, lack: str
) -> None:
    world.starter.error = error
    event = await world.outcome_of_a_stop()
    assert isinstance(event, StopFailed)
    assert (event.reason, world.lacks.take()) == (reason, lack)
    assert bool(caplog.records and caplog.records[-1].exc_info) is isinstance(error, KeyError)
