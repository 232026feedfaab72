"""How process cells die, and that an agent knows of it even if it was away: with real processes."""

import json
import marshal
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from galactica.agent.core.model import Found
from galactica.agent.runtimes.process.launch import Folder
from galactica.agent.runtimes.process.runtime import ProcessRuntime
from galactica.v1 import cell_pb2, link_pb2
from tests.support.process_cells import (
    DEADLINE_SECONDS,
    FLEET_ID,
    HOME,
    LIMITERS,
    REPOSITORY,
    SLEEP,
    agent_on,
    keeper_of,
    left_in,
    limiter_or_skip,
    next_death,
    order,
    quiet,
    settled,
    shell,
    until,
    without_time,
)
from tests.support.processes import is_alive


async def test_kill_from_outside_is_told_at_once_and_truly(runtime):
    running = await runtime.start(shell("echo hello; exec sleep 300"), quiet)
    deaths = runtime.watch()
    await until(lambda: "sleep" in psutil.Process(int(running.runtime_id)).name())
    os.kill(int(running.runtime_id), signal.SIGKILL)
    death = await next_death(deaths)
    expected = cell_pb2.Autopsy(
        reason="killed by SIGKILL", exit_code=137, signal="SIGKILL", last_lines=["hello"]
    )
    assert (death.cell_id, without_time(death.autopsy)) == ("web/0.1", expected)
    assert await runtime.list() == [Found(shell("echo hello; exec sleep 300"), None, death.autopsy)]


async def test_exit_code_and_the_last_lines_are_in_the_autopsy(runtime):
    script = "i=0; while [ $i -lt 60 ]; do echo line $i; i=$((i+1)); done; printf '%02000d' 7 >&2; exit 3"
    await runtime.start(shell(script), quiet)
    death = await next_death(runtime.watch())
    lines = [f"line {number}" for number in range(11, 60)] + ["0" * 1000]
    assert without_time(death.autopsy) == cell_pb2.Autopsy(
        reason="exited with 3", exit_code=3, last_lines=lines
    )
    assert 0 <= death.autopsy.lived_seconds < DEADLINE_SECONDS


async def test_exit_137_is_not_taken_for_a_signal(runtime):
    await runtime.start(shell("exit 137"), quiet)
    death = await next_death(runtime.watch())
    assert without_time(death.autopsy) == cell_pb2.Autopsy(reason="exited with 137", exit_code=137)


async def test_death_of_the_keeper_is_the_death_of_the_cell(runtime):
    running = await runtime.start(order(SLEEP), quiet)
    pid = int(running.runtime_id)
    os.kill(keeper_of(pid), signal.SIGKILL)
    death = await next_death(runtime.watch())
    assert without_time(death.autopsy) == cell_pb2.Autopsy(
        reason="killed by SIGKILL, because somebody ended its keeper process",
        exit_code=137,
        signal="SIGKILL",
    )
    assert not is_alive(pid)


async def test_what_a_dead_cell_leaves_running_is_killed_before_its_death_is_told(runtime, tmp_path):
    pids = tmp_path / "pids"
    script = f"""
        sleep 300 & echo $! >> {pids}
        setsid sleep 300 & echo $! >> {pids}
        (trap '' TERM; setsid sh -c 'echo $$ >> {pids}; sleep 300 & wait') &
        while [ $(wc -l < {pids}) -lt 3 ]; do sleep 0.01; done
        exit 0
    """
    await runtime.start(shell(script), quiet)
    death = await next_death(runtime.watch())
    assert death.autopsy.reason == "exited with 0"
    assert [is_alive(int(pid)) for pid in pids.read_text().split()] == [False, False, False]


AGENT = """
import asyncio, sys
from pathlib import Path
from galactica.v1 import link_pb2
from galactica.agent.runtimes.process.runtime import ProcessRuntime
from galactica.agent.runtimes.process.launch import Folder

async def main():
    runtime = ProcessRuntime(Path(sys.argv[1]), "test", "0123456789abcdef")
    for text in sys.argv[2:]:
        running = await runtime.start(link_pb2.Order.FromString(bytes.fromhex(text)), lambda text: None)
        print(running.runtime_id, running.started_at, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def agent_that_is_killed_after_starting(directory: Path, orders: Sequence[link_pb2.Order]) -> list[list[str]]:
    """Pid and start of each cell that an agent, which was killed by SIGKILL, left behind."""
    texts = [order.SerializeToString().hex() for order in orders]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path]),
    }
    command = [sys.executable, "-c", AGENT, str(directory), *texts]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as agent:
        lines = [agent.stdout.readline().split() for _ in orders]
        agent.kill()
    return lines


async def test_agent_that_comes_back_knows_its_cells_and_how_they_die(tmp_path):
    gate = tmp_path / "gate"
    waits = f"while [ ! -e {gate} ]; do sleep 0.01; done; echo bye; exit 7"
    orders = [
        shell("exit 5", "died-alone/0.1"),
        shell(waits, "exits/0.1"),
        order(SLEEP, "killed/0.1"),
        order(SLEEP, "stays/0.1", ports={"http": 0}),
    ]
    left = agent_that_is_killed_after_starting(tmp_path / "cells", orders)
    await until(lambda: not is_alive(int(left[0][0])))
    async with agent_on(tmp_path / "cells") as runtime:
        found = {it.order.cell_id: it for it in await runtime.list()}
        assert [found[it.cell_id].order for it in orders] == orders
        running = [found[it.cell_id].running for it in orders]
        assert running[0] is None
        assert [[it.runtime_id, str(it.started_at)] for it in running[1:]] == left[1:]
        assert await runtime.start(orders[3], quiet) == running[3]
        deaths = runtime.watch()
        gate.touch()
        os.kill(int(left[2][0]), signal.SIGKILL)
        told = [await next_death(deaths) for _ in range(3)]
        assert {death.cell_id: without_time(death.autopsy) for death in told} == {
            "died-alone/0.1": cell_pb2.Autopsy(reason="exited with 5", exit_code=5),
            "exits/0.1": cell_pb2.Autopsy(reason="exited with 7", exit_code=7, last_lines=["bye"]),
            "killed/0.1": cell_pb2.Autopsy(reason="killed by SIGKILL", exit_code=137, signal="SIGKILL"),
        }
        keeper = keeper_of(int(left[3][0]))
        await runtime.stop("stays/0.1", "SIGTERM", 5)
        await until(lambda: not is_alive(int(left[3][0])) and not is_alive(keeper))


async def test_corpse_keeps_its_autopsy_for_an_agent_that_comes_back(tmp_path, limiter):
    async with agent_on(tmp_path, limiter=limiter) as runtime:
        await runtime.start(shell("echo last words; exit 9"), quiet)
        before = await settled(runtime)
        await runtime.close()
        async with agent_on(tmp_path, limiter=limiter) as successor:
            assert await successor.list() == before


async def test_close_leaves_cells_running(tmp_path, limiter):
    async with agent_on(tmp_path, limiter=limiter) as runtime:
        running = await runtime.start(order(SLEEP), quiet)
        await runtime.close()
        assert is_alive(int(running.runtime_id))
        async with agent_on(tmp_path, limiter=limiter) as successor:
            assert [found.running for found in await successor.list()] == [running]
        assert not is_alive(int(running.runtime_id))


async def test_process_that_only_has_the_pid_of_a_cell_is_neither_taken_for_it_nor_harmed(tmp_path):
    record = tmp_path / HOME / "web%2F0.1" / "record"
    async with agent_on(tmp_path, limiter=LIMITERS["rlimits"]) as runtime:
        await runtime.start(order(SLEEP), quiet)
        kept = record.read_text()
        await runtime.stop("web/0.1", "SIGKILL", 5)
    stranger = subprocess.Popen(SLEEP, start_new_session=True)
    try:
        (record.parent / "scratch").mkdir(parents=True)
        record.write_text(with_pids(kept, stranger.pid))
        async with agent_on(tmp_path, limiter=LIMITERS["rlimits"]) as runtime:
            [found] = await runtime.list()
            assert (found.running, found.autopsy.reason) == (
                None,
                "ended together with its keeper process; the cause is unknown",
            )
            await runtime.stop("web/0.1", "SIGKILL", 5)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def with_pids(record: str, pid: int) -> str:
    content = json.loads(record)
    return json.dumps({**content, "main": [pid, content["main"][1]], "keeper": [pid, content["keeper"][1]]})


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\x00", b'{"format": 99}'])
async def test_corrupt_record_is_set_aside_and_its_processes_are_ended(tmp_path, content, caplog):
    async with agent_on(tmp_path) as runtime:
        running = await runtime.start(order(SLEEP), quiet)
        await runtime.start(order(SLEEP, "other/0.1"), quiet)
        await runtime.close()
        (tmp_path / HOME / "web%2F0.1" / "record").write_bytes(content)
        keeper = keeper_of(int(running.runtime_id))
        async with agent_on(tmp_path) as successor:
            assert [found.order.cell_id for found in await successor.list()] == ["other/0.1"]
            assert "corrupt record of a cell" in caplog.text
            [aside] = (tmp_path / HOME / ".corrupt").iterdir()
            assert (aside / "record").read_bytes() == content
            await until(lambda: not is_alive(int(running.runtime_id)) and not is_alive(keeper))
            assert (await successor.start(order(SLEEP), quiet)).runtime_id != running.runtime_id


LOSSES = {
    "record": lambda cells: (cells / HOME / "web%2F0.1" / "record").unlink(),
    "folder": lambda cells: shutil.rmtree(cells / HOME / "web%2F0.1"),
    "all folders": shutil.rmtree,
}


@pytest.mark.parametrize("lose", LOSSES.values(), ids=LOSSES)
async def test_cell_without_a_record_is_ended_before_the_first_list(tmp_path, limiter, lose, caplog):
    cells, pids = tmp_path / "cells", tmp_path / "pids"
    script = f"env -i setsid sh -c 'echo $$ > {pids}; exec sleep 300' & exec sleep 300"
    async with agent_on(cells, limiter=limiter) as runtime:
        running = await runtime.start(shell(script), quiet)
        await until(lambda: pids.exists() and pids.read_text().endswith("\n"))
        main = int(running.runtime_id)
        keeper = keeper_of(main)
        tree = [main, keeper, keeper_of(keeper), int(pids.read_text())]
        await runtime.close()
        lose(cells)
        async with agent_on(cells, limiter=limiter) as successor:
            assert (await successor.list(), left_in(cells)) == ([], [])
            assert [pid for pid in tree if is_alive(pid)] == []
            assert "cell web/0.1 runs without a record" in caplog.text
        assert limiter.existing(Folder(cells / HOME / "web%2F0.1").group_name) == ()


async def test_cell_that_only_its_control_groups_tell_is_ended_too(tmp_path, caplog):
    limiter, cells = limiter_or_skip("control groups"), tmp_path / "cells"
    async with agent_on(cells, limiter=limiter) as runtime:
        running = await runtime.start(order(("env", "-i", "sleep", "300")), quiet)
        main = int(running.runtime_id)
        keeper = keeper_of(main)
        await until(lambda: psutil.Process(main).name() == "sleep")
        await runtime.close()
        shutil.rmtree(cells)
        for pid in (keeper_of(keeper), keeper):
            os.kill(pid, signal.SIGKILL)
        await until(lambda: not is_alive(keeper))
        async with agent_on(cells, limiter=limiter) as successor:
            assert await successor.list() == []
            assert not is_alive(main)
            assert "of a cell without a record: they are ended" in caplog.text


async def test_cells_with_a_record_outlive_the_search_for_those_without(tmp_path, limiter):
    async with agent_on(tmp_path, limiter=limiter) as runtime:
        cell, lost = order(SLEEP), order(SLEEP, "web/1.1")
        running = await runtime.start(cell, quiet)
        await runtime.start(lost, quiet)
        await runtime.close()
        shutil.rmtree(tmp_path / HOME / "web%2F1.1")
        async with agent_on(tmp_path, limiter=limiter) as successor:
            assert await successor.list() == [Found(cell, running)]
            assert is_alive(int(running.runtime_id))


async def test_cell_whose_record_cannot_be_read_may_live_and_be_exclusive(tmp_path):
    async with agent_on(tmp_path) as runtime:
        running = await runtime.start(order(SLEEP), quiet)
        await runtime.close()
        record = tmp_path / HOME / "web%2F0.1" / "record"
        record.rename(tmp_path / "kept")
        record.mkdir()
        successor = ProcessRuntime(tmp_path, "test", FLEET_ID)
        (living,) = await successor.living()
        assert (living.cell_id, living.spec.exclusive) == ("web/0.1", True)
        assert is_alive(int(running.runtime_id))
        await successor.close()
        record.rmdir()
        (tmp_path / "kept").rename(record)


POWERLESS_AGENT = """
import asyncio, sys
from pathlib import Path
from galactica.agent.runtimes.port import RuntimeUnavailable
from galactica.agent.runtimes.process.runtime import ProcessRuntime

async def main():
    runtime = ProcessRuntime(Path(sys.argv[1]), "test", sys.argv[2])
    for _ in range(2):
        try:
            print(await runtime.list(), flush=True)
        except RuntimeUnavailable as error:
            print(error, flush=True)
            print([one.cell_id for one in await runtime.living()], flush=True)
            sys.stdin.readline()
    await runtime.close()

asyncio.run(main())
"""


@pytest.mark.root
async def test_no_list_is_told_while_a_cell_without_a_record_cannot_be_ended(tmp_path):
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("this needs root and setpriv")
    command = [
        *("setpriv", "--bounding-set", "-kill"),
        *(sys.executable, "-c", POWERLESS_AGENT, str(tmp_path), FLEET_ID),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])}
    async with agent_on(tmp_path) as runtime:
        other_user = ("setpriv", "--reuid", "65534", "--clear-groups", *SLEEP)
        running = await runtime.start(order(other_user), quiet)
        main = int(running.runtime_id)
        await until(lambda: psutil.Process(main).name() == "sleep")
        await runtime.close()
        shutil.rmtree(tmp_path / HOME)
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        ) as agent:
            assert "cells without a record do not end" in agent.stdout.readline()
            assert agent.stdout.readline() == "['web/0.1']\n"
            assert is_alive(main)
            os.kill(main, signal.SIGKILL)
            assert agent.communicate("go on\n", timeout=60)[0] == "[]\n"


async def test_folder_of_a_start_that_never_happened_is_removed(tmp_path):
    (tmp_path / HOME / "web%2F0.1" / "scratch").mkdir(parents=True)
    async with agent_on(tmp_path) as runtime:
        assert (await runtime.list(), left_in(tmp_path)) == ([], [])


async def test_agent_that_dies_in_the_middle_of_a_start_leaves_no_process(tmp_path):
    launcher = REPOSITORY / "agent" / "runtimes" / "process" / "launcher.py"
    touched = tmp_path / "touched"
    orders = (str(tmp_path), "/usr/bin/touch", ["touch", str(touched)], {}, ["/bin/sleep", "infinity"])
    read, write = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-I", "-S", launcher, str(write)], stdin=subprocess.PIPE, pass_fds=[write]
    ) as keeper:
        keeper.stdin.write(marshal.dumps(orders))
        keeper.stdin.flush()
        main = int(os.read(read, 32))
        assert is_alive(main)
        keeper.stdin.close()
        assert keeper.wait(DEADLINE_SECONDS) == 1
    for descriptor in (read, write):
        os.close(descriptor)
    await until(lambda: not is_alive(main))
    assert not touched.exists()
