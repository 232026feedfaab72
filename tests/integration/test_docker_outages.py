"""What becomes of cells, and of the news about them, when the Docker Engine dies, hangs or is not there."""

import asyncio
import contextlib

import psutil
import pytest

from galactica.agent.core.model import Found
from galactica.agent.runtimes.port import Exited, Relisted, RuntimeUnavailable
from tests.support.docker_cells import a_runtime, client_of, ignore_progress, news, order, own_engine

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.xdist_group("engines")]

SLEEPER = ("sleep", "1000")


def _by_cell(relisted):
    assert isinstance(relisted, Relisted)
    return {one.order.cell_id: one for one in relisted.found}


async def test_cells_outlive_a_killed_engine_with_live_restore_and_all_is_told_truly(engine, busybox_image):
    with own_engine(engine, busybox_image, "--live-restore") as own:
        async with a_runtime(own.url) as runtime:
            watch = runtime.watch()
            lives = order("web/0.1", busybox_image, *SLEEPER)
            dies = order("web/1.1", busybox_image, "sh", "-c", "sleep 1000; exit 9")
            running = await runtime.start(lives, ignore_progress)
            doomed = await runtime.start(dies, ignore_progress)
            process_id = client_of(own.url).inspect_container(doomed.runtime_id)["State"]["Pid"]
            own.kill()
            with pytest.raises(RuntimeUnavailable):
                await runtime.list()
            _kill_child_of(process_id)
            await asyncio.to_thread(own.start)
            told = _by_cell(await news(watch))
            assert told["web/0.1"] == Found(lives, running)
            if told["web/1.1"].running:  # the engine may notice it a moment after it is back
                exited = await news(watch)
                assert isinstance(exited, Exited)
                autopsy = exited.autopsy
            else:
                autopsy = told["web/1.1"].autopsy
            assert autopsy.exit_code != 0
            await asyncio.to_thread(client_of(own.url).kill, running.runtime_id)
            assert (await news(watch)).cell_id == "web/0.1"


def _kill_child_of(process_id):
    for child in psutil.Process(process_id).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it may end with the one before
            child.kill()


async def test_cells_end_with_a_killed_engine_without_live_restore_and_that_is_told(engine, busybox_image):
    with own_engine(engine, busybox_image) as own:
        async with a_runtime(own.url) as runtime:
            watch = runtime.watch()
            cells = [order(f"web/{slot}.1", busybox_image, *SLEEPER) for slot in range(2)]
            for cell in cells:
                await runtime.start(cell, ignore_progress)
            own.kill()
            await asyncio.to_thread(own.start)
            told = _by_cell(await news(watch))
            assert sorted(told) == ["web/0.1", "web/1.1"]
            assert [one.running for one in told.values()] == [None, None]
            # The engine that comes back ends them, by signals of its choice.
            assert {one.autopsy.signal for one in told.values()} <= {"SIGTERM", "SIGKILL"}
            await asyncio.gather(*(runtime.stop(cell.cell_id, "SIGTERM", 5.0) for cell in cells))
            assert await runtime.list() == ()


async def test_a_frozen_engine_is_unavailable_within_a_bounded_time_and_serves_again(engine, busybox_image):
    with own_engine(engine, busybox_image) as own:
        async with a_runtime(own.url, timeout_seconds=2) as runtime:
            running = await runtime.start(order("web/0.1", busybox_image, *SLEEPER), ignore_progress)
            own.freeze()
            try:
                async with asyncio.timeout(15), asyncio.TaskGroup() as tasks:
                    for _ in range(40):  # many more than there are threads
                        tasks.create_task(_is_unavailable(runtime.list()))
                    await _is_unavailable(runtime.ping())
            finally:
                own.thaw()
            assert [one.running for one in await runtime.list()] == [running]
            assert await runtime.ping() > 0


async def _is_unavailable(call):
    with pytest.raises(RuntimeUnavailable):
        await call


async def test_an_engine_that_comes_later_is_found_and_tells_what_it_has(engine, busybox_image):
    with own_engine(engine, busybox_image) as own:
        own.kill()
        async with a_runtime(own.url) as runtime:
            with pytest.raises(RuntimeUnavailable, match="check that it runs"):
                await runtime.list()
            with pytest.raises(RuntimeUnavailable):
                await runtime.start(order("web/0.1", busybox_image, *SLEEPER), ignore_progress)
            watch = runtime.watch()
            await asyncio.to_thread(own.start)
            assert await news(watch) == Relisted(())


async def test_stopping_ends_though_the_engine_dies_while_the_cell_takes_its_grace(engine, busybox_image):
    deaf = ("sh", "-c", 'trap "echo asked to end" TERM; echo deaf; while :; do sleep 0.1; done')
    with own_engine(engine, busybox_image, "--live-restore") as own:
        async with a_runtime(own.url) as runtime:
            await runtime.start(order("web/0.1", busybox_image, *deaf), ignore_progress)
            said = runtime.logs("web/0.1", 1, follow=True)
            assert await anext(said) == b"deaf\n"
            async with asyncio.TaskGroup() as tasks:
                stopping = tasks.create_task(_outcome(runtime.stop("web/0.1", "SIGTERM", 5.0)))
                assert await anext(said) == b"asked to end\n"
                own.kill()
            await said.aclose()
            assert isinstance(stopping.result(), RuntimeUnavailable)
            await asyncio.to_thread(own.start)
            await runtime.stop("web/0.1", "SIGTERM", 0.5)
            assert await runtime.list() == ()


async def _outcome(call):
    try:
        await call
    except RuntimeUnavailable as error:
        return error
    return None
