"""Exclusive cells of a real agent: it ends them when nobody answers it, and its watchdog does where it cannot."""

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest

from galactica.agent.fencing.keeping import FenceFile
from galactica.v1 import cell_pb2
from tests.support.agent_world import DEADLINE_SECONDS, AgentWorld, agent_world, pid_of, until
from tests.support.orders import CELL, decommission, order
from tests.support.processes import is_alive

LEASE_SECONDS = 2.0
GRACE_SECONDS = 2.0
"""What the orders of these tests name."""
WATCHDOG_SECONDS = 1.5
"""The watchdog looks every half second, and a kill takes its time."""
EXITED = cell_pb2.CELL_STATE_EXITED
GONE = cell_pb2.CELL_STATE_GONE
STOPPING = cell_pb2.CELL_STATE_STOPPING
RUNNING = cell_pb2.CELL_STATE_RUNNING
DEAF = ("sh", "-c", "trap '' TERM; while :; do sleep 0.1; done")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[AgentWorld]:
    async with agent_world(tmp_path) as world:
        yield world
    await until(lambda: not watchdogs(world), "no watchdog outlives agents and cells")


def watchdogs(world: AgentWorld) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if "galactica.agent.fencing.watchdog" in words and str(world.data) in words:
            found.append(process.pid)
    return found


async def exclusive(world: AgentWorld, *command: str, number: int = 1) -> int:
    """The process of an exclusive cell that runs."""
    session = await world.scheduler.until_sessions(number)
    session.instruct(order(CELL, *command, exclusive=True))
    report = await session.until_state(CELL, RUNNING)
    world.pids.add(pid_of(report))
    return pid_of(report)


async def ended(pid: int) -> None:
    await until(lambda: not is_alive(pid), f"{pid} ends")


async def beats_for(world: AgentWorld, seconds: float) -> None:
    """As many beats as an agent sends in that time have been heard and answered."""
    session = world.scheduler.session
    wanted = len(session.reports) + int(1_000 * seconds / world.scheduler.beat_ms)
    await until(lambda: len(session.reports) >= wanted, f"beats for {seconds} s", seconds + DEADLINE_SECONDS)


async def test_it_lives_on_while_its_agent_is_answered(world: AgentWorld) -> None:
    world.enrolled().start()
    pid = await exclusive(world)
    await beats_for(world, 2 * LEASE_SECONDS)
    assert is_alive(pid)
    world.scheduler.session.instruct(decommission(CELL))
    await world.scheduler.session.until_state(CELL, GONE)


async def test_an_agent_that_is_not_answered_ends_it_and_says_so_when_it_is_heard_again(
    world: AgentWorld,
) -> None:
    world.enrolled().start()
    pid = await exclusive(world)
    await world.scheduler.stop()
    await ended(pid)
    await world.scheduler.start()
    session = await world.scheduler.until_sessions(2)
    report = await session.until_state(CELL, EXITED)
    assert report.autopsy.reason.startswith("fenced: no scheduler")


async def speak(world: AgentWorld) -> None:
    while True:
        world.scheduler.session.instruct(decommission("web/7.7"))
        await asyncio.sleep(0.1)


async def test_a_scheduler_that_is_deaf_but_speaks_grants_nothing(world: AgentWorld) -> None:
    world.enrolled().start()
    pid = await exclusive(world)
    world.scheduler.answers_echo = False
    speaks = asyncio.create_task(speak(world))
    await ended(pid)
    speaks.cancel()
    assert len(world.scheduler.sessions) == 1
    assert (await world.scheduler.session.until_state(CELL, EXITED)).autopsy.reason.startswith("fenced")
    world.scheduler.answers_echo = True


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL], ids=["frozen", "killed"])
async def test_the_watchdog_ends_it_where_the_agent_cannot(world: AgentWorld, number: signal.Signals) -> None:
    agent = world.enrolled()
    process = agent.start()
    pid = await exclusive(world)
    process.send_signal(number)
    await ended(pid)
    if number is signal.SIGSTOP:
        process.send_signal(signal.SIGCONT)
        session = await world.scheduler.until_sessions(2)
        await session.until_state(CELL, EXITED)
        session.instruct(decommission(CELL))
        await session.until_state(CELL, GONE)


async def test_what_ignores_its_signal_is_killed_when_its_grace_is_over(
    world: AgentWorld, tmp_path: Path
) -> None:
    asked = tmp_path / "asked"
    world.enrolled().start()
    pid = await exclusive(world, "sh", "-c", f"trap 'touch {asked}' TERM; while :; do sleep 0.1; done")
    await world.scheduler.stop()
    await until(asked.exists, "it is asked to end")
    assert is_alive(pid)
    await ended(pid)
    await world.scheduler.start()


@contextlib.contextmanager
def hanging(*files: Path) -> Iterator[None]:
    """Who opens one of these waits until the end of the block, as on a disk that hangs. Then they are gone."""
    for file in files:
        file.unlink()
        os.mkfifo(file)
    try:
        yield
    finally:
        for file in files:
            descriptor = os.open(file, os.O_RDWR | os.O_NONBLOCK)
            file.unlink()
            os.close(descriptor)


async def test_the_watchdog_ends_it_although_the_disk_hangs(world: AgentWorld) -> None:
    process = world.enrolled().start()
    pid = await exclusive(world)
    await beats_for(world, LEASE_SECONDS)  # the watchdog has read the lease meanwhile
    process.kill()
    process.wait()
    (record,) = world.data.glob("cells/*/*/record")
    with hanging(world.data / "fence", record):
        await ended(pid)


async def test_the_watchdog_goes_on_by_the_lease_that_it_knows_where_it_cannot_read_it_any_more(
    world: AgentWorld,
) -> None:
    process = world.enrolled().start()
    pid = await exclusive(world)
    await until((world.data / "fence").exists, "the lease is stored")
    await beats_for(world, LEASE_SECONDS)  # the watchdog has read it meanwhile
    process.kill()
    process.wait()
    (world.data / "fence").write_text("spoilt")
    await ended(pid)


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL], ids=["frozen", "killed"])
@pytest.mark.parametrize("lost", ["fence", ""], ids=["file", "all data"])
async def test_a_lease_that_is_missing_is_not_over_but_the_last_that_is_known(
    world: AgentWorld, number: signal.Signals, lost: str
) -> None:
    process = world.enrolled().start()
    pid = await exclusive(world)
    await until((world.data / "fence").exists, "the lease is stored")
    process.send_signal(number)
    if lost:
        (world.data / lost).unlink()
    else:
        shutil.rmtree(world.data)
    await ended(pid)
    process.kill()


async def test_the_end_of_the_last_exclusive_cell_is_said_in_the_file_and_ends_the_watch(
    world: AgentWorld,
) -> None:
    process = world.enrolled().start()
    await exclusive(world)
    world.scheduler.session.instruct(decommission(CELL))
    await world.scheduler.session.until_state(CELL, GONE)
    file = FenceFile(world.data)
    await until(lambda: (kept := file.read()) is not None and kept.fence_at is None, "the file says so")
    assert watchdogs(world)
    process.kill()  # and the watchdog ends, as after each test


async def test_cells_that_are_not_exclusive_are_nobodys_to_end(world: AgentWorld) -> None:
    agent = world.enrolled()
    process = agent.start()
    pid = await exclusive(world)
    world.scheduler.session.instruct(order("web/5.1"))
    other = pid_of(await world.scheduler.session.until_state("web/5.1", RUNNING))
    world.pids.add(other)
    process.kill()
    await ended(pid)
    await until(lambda: not watchdogs(world), "the watchdog has done its work")
    assert is_alive(other)


async def test_the_next_agent_takes_it_over_within_the_lease_and_its_own_watchdog_guards_it(
    world: AgentWorld,
) -> None:
    world.scheduler.lease_ms = 8_000  # so that the next agent is there in time on a busy machine too
    agent = world.enrolled()
    process = agent.start()
    pid = await exclusive(world)
    (first,) = watchdogs(world)
    process.kill()
    process.wait()
    world.agent().start()
    await world.scheduler.until_sessions(2)
    await until(
        lambda: len(watchdogs(world)) == 1 and first not in watchdogs(world), "the next watchdog alone"
    )
    await beats_for(world, 8.0 + GRACE_SECONDS + WATCHDOG_SECONDS)
    assert is_alive(pid)
    world.agents[-1].process.kill()  # type: ignore[union-attr]
    await ended(pid)


async def test_an_agent_that_comes_too_late_ends_it_before_it_says_hello(world: AgentWorld) -> None:
    agent = world.enrolled()
    process = agent.start()
    pid = await exclusive(world, *DEAF)
    (watchdog,) = watchdogs(world)
    os.kill(watchdog, signal.SIGSTOP)
    process.kill()
    process.wait()
    await asyncio.sleep(LEASE_SECONDS + GRACE_SECONDS + 0.1)  # the time by which it comes too late
    assert is_alive(pid)
    world.agent().start()
    session = await world.scheduler.until_sessions(2)
    (told,) = session.hello.inventory
    assert (told.cell_id, told.state in {EXITED, STOPPING}) == (CELL, True)
    await session.until_state(CELL, EXITED)
    await ended(pid)
    os.kill(watchdog, signal.SIGCONT)


async def test_a_watchdog_that_is_killed_is_followed_by_another(world: AgentWorld) -> None:
    world.enrolled().start()
    pid = await exclusive(world)
    (watchdog,) = watchdogs(world)
    os.kill(watchdog, signal.SIGKILL)
    await until(lambda: watchdogs(world) not in ([], [watchdog]), "another watchdog")
    world.agents[0].process.kill()  # type: ignore[union-attr]
    await ended(pid)


async def test_an_agent_without_exclusive_cells_has_no_watchdog(world: AgentWorld) -> None:
    world.enrolled().start()
    await world.running()
    assert watchdogs(world) == []
    assert not (world.data / "fence").exists()
