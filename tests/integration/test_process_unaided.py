"""Exclusive process cells end by what the kernel alone tells of them."""

from galactica.agent.runtimes.process.launch import homes_of
from galactica.agent.runtimes.process.unaided import kill_overdue
from galactica.v1 import cell_pb2
from tests.support.process_cells import FLEET_ID, SLEEP, order, quiet, shell, until
from tests.support.processes import is_alive

STOP = cell_pb2.Stop(signal="SIGTERM", grace_ms=2_500)
FORKS = "sleep 1000 & setsid sleep 1001 & wait"


async def test_only_exclusive_cells_of_these_homes_end_and_only_when_their_grace_is_over(runtime, tmp_path):
    homes = homes_of(tmp_path / "cells", "test", FLEET_ID)
    single = await runtime.start(shell(FORKS, "single/0.1", exclusive=True, stop=STOP), quiet)
    other = await runtime.start(order(SLEEP, "web/0.1", stop=STOP), quiet)
    graces = []
    assert kill_overdue(homes, graces.append) == []
    assert graces == [2.5]
    assert kill_overdue(homes_of(tmp_path / "cells", "test", "another"), lambda _: True) == []
    assert is_alive(int(single.runtime_id))
    assert kill_overdue(homes, lambda _: True) == ["single/0.1"]
    await until(lambda: not is_alive(int(single.runtime_id)))
    await until(lambda: kill_overdue(homes, lambda _: True) == [])
    assert is_alive(int(other.runtime_id))
