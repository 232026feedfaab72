"""Process cells of two fleets of one name below one directory, and those from before fleets had an id."""

import asyncio

from galactica.agent.core.model import Found
from galactica.agent.runtimes.process.launch import Folder, launch
from galactica.agent.runtimes.process.limits import Limiter
from galactica.agent.runtimes.process.runtime import ProcessRuntime
from tests.support.process_cells import SLEEP, agent_on, order, quiet, remove_all
from tests.support.processes import is_alive


async def test_cells_of_a_fleet_of_the_same_name_are_counted_and_left_alone(tmp_path):
    theirs = ProcessRuntime(tmp_path, "test", "fedcba9876543210")
    cell = order(SLEEP)
    try:
        foreign = await theirs.start(cell, quiet)
        async with agent_on(tmp_path) as ours:
            assert (await ours.list(), ours.foreign) == ([], 1)
            own = await ours.start(cell, quiet)
            assert await ours.list() == [Found(cell, own)]
            await ours.stop(cell.cell_id, "SIGKILL", 0.0)
            assert not is_alive(int(own.runtime_id))
        assert await theirs.list() == [Found(cell, foreign)]
        assert is_alive(int(foreign.runtime_id))
    finally:
        await remove_all(theirs)


async def test_a_cell_from_before_fleets_had_an_id_is_of_the_fleet_of_its_name(tmp_path):
    cell = order(SLEEP)
    folder = Folder(tmp_path / "test" / "web%2F0.1")
    record = await asyncio.to_thread(launch, cell, {}, folder, Limiter())
    async with agent_on(tmp_path) as runtime:
        (found,) = await runtime.list()
        assert (found.order, found.running.runtime_id) == (cell, str(record.main.pid))
        assert runtime.foreign == 0
        assert (await runtime.start(cell, quiet)).runtime_id == str(record.main.pid)
        await runtime.stop(cell.cell_id, "SIGKILL", 0.0)
        assert not is_alive(record.main.pid)
        assert not folder.path.exists()
