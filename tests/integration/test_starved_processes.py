"""Process cells while the agent has no free file descriptor: none is blamed, none is called gone, and each can end."""

import errno
import os

import pytest

from galactica.agent.runtimes.port import RuntimeFailure
from galactica.agent.runtimes.process import groups, table
from galactica.agent.starved import lack_of
from tests.support.probing import every_descriptor_taken, no_free_descriptor
from tests.support.process_cells import SLEEP, order, quiet
from tests.support.processes import is_alive


async def test_cells_end_although_they_have_every_descriptor(runtime):
    running = [await runtime.start(order(SLEEP, cell_id=f"web/{slot}.1"), quiet) for slot in range(3)]
    with every_descriptor_taken():
        for slot in range(3):
            await runtime.stop(f"web/{slot}.1", "SIGTERM", 0.5)
    assert not any(is_alive(int(one.runtime_id)) for one in running)
    assert await runtime.list() == []


async def test_a_command_that_cannot_be_run_for_lack_of_a_descriptor_says_so(runtime):
    await runtime.start(order(SLEEP), quiet)
    with no_free_descriptor(), pytest.raises((OSError, RuntimeFailure)) as failure:
        await runtime.execute(order(SLEEP).cell_id, ["true"], 5.0)
    assert lack_of(failure.value) == errno.errorcode[errno.EMFILE]


def test_who_cannot_look_does_not_say_that_nothing_is_there(tmp_path):
    (tmp_path / "cgroup.procs").write_text(f"{os.getpid()}\n")
    assert groups.members([tmp_path]) == {os.getpid()}
    with no_free_descriptor():
        with pytest.raises(OSError, match="Too many open files"):
            groups.members([tmp_path])
        with pytest.raises(OSError, match="Too many open files"):
            table.entries(os.getpid())
    assert groups.members([tmp_path / "gone"]) == set()
    assert table.entries(2**22 + 1) == []
