"""What process cells may use: with real processes and, where they can be had, real control groups."""

import os
import signal as signals
import sys
import textwrap
from pathlib import Path

import pytest

from galactica.agent.runtimes.process import limits as process_limits
from galactica.agent.runtimes.process import memory as process_memory
from galactica.agent.runtimes.process.launch import Folder
from galactica.agent.runtimes.process.table import Process
from galactica.v1 import cell_pb2
from tests.support.process_cells import (
    HOME,
    LIMITERS,
    agent_on,
    next_death,
    order,
    quiet,
    shell,
    until,
    without_time,
)
from tests.support.processes import is_alive


@pytest.mark.root
async def test_memory_limit_is_held_and_named_in_the_autopsy(tmp_path):
    limiter = LIMITERS["control groups"]
    if not limiter.holds_memory():
        pytest.skip("no memory control group can be made here: run the tests as root")
    limits = cell_pb2.Resources(memory_bytes=32 << 20)
    async with agent_on(tmp_path, limiter=limiter) as runtime:
        await runtime.start(order((sys.executable, "-c", "x = b'x' * (256 << 20)"), resources=limits), quiet)
        death = await next_death(runtime.watch())
        assert without_time(death.autopsy) == cell_pb2.Autopsy(
            reason="out of memory: killed by SIGKILL", exit_code=137, signal="SIGKILL", oom_killed=True
        )


@pytest.mark.root
@pytest.mark.parametrize(
    ("signal", "reason"), [("TERM", "exited with 3"), ("KILL", "killed by SIGKILL")], ids=["exit", "kill"]
)
async def test_child_that_outgrew_the_memory_does_not_explain_the_end_of_its_cell(tmp_path, signal, reason):
    limiter = LIMITERS["control groups"]
    if not limiter.holds_memory() or not os.access(process_memory.KERNEL_LOG, os.R_OK):
        pytest.skip("this needs a memory control group and the kernel's log: run the tests as root")
    limits = cell_pb2.Resources(memory_bytes=32 << 20)
    eats = f"{sys.executable} -c 'x = bytearray(b\"x\") * (256 << 20)'"
    script = f"trap 'exit 3' TERM; {eats}; echo eaten $?; while :; do sleep 0.1; done"
    async with agent_on(tmp_path, limiter=limiter) as runtime:
        running = await runtime.start(shell(script, resources=limits), quiet)
        log = tmp_path / HOME / "web%2F0.1" / "log"
        await until(lambda: "eaten 137" in log.read_text())
        os.kill(int(running.runtime_id), getattr(signals, f"SIG{signal}"))
        death = (await next_death(runtime.watch())).autopsy
        assert (death.reason, death.oom_killed) == (reason, False)


def record_of(text: str, at_seconds: float) -> bytes:
    return f"6,100,{at_seconds * 1e6:.0f},-;{text}\n".encode()


def victim(pid: int, group: str, at_seconds: float = 50.0) -> list[bytes]:
    return [
        record_of(
            f"oom-kill:constraint=CONSTRAINT_MEMCG,task_memcg=/x/{group},task=a,pid={pid},uid=0", at_seconds
        ),
        record_of(f"Memory cgroup out of memory: Killed process {pid} (a) total-vm:1kB", at_seconds),
    ]


@pytest.mark.parametrize(
    ("records", "told"),
    [
        ([], None),
        (victim(8, "other"), None),
        (victim(7, "ours", at_seconds=5.0), None),
        (victim(7, "ours"), True),
        (victim(8, "ours"), False),
        (victim(8, "ours/inner"), False),
        ([*victim(8, "ours"), *victim(7, "ours")], True),
        (victim(7, "ours")[1:], True),
        ([b"", b"garbage;Killed process x ("], None),
    ],
)
def test_kernels_log_tells_whether_it_was_the_main_process_that_the_kernel_killed(records, told):
    main = Process(7, 20 * os.sysconf("SC_CLK_TCK"))
    assert process_memory.told_by(records, main, ["ours"]) is told


async def test_memory_limit_without_control_groups_refuses_the_allocation(tmp_path):
    limits = cell_pb2.Resources(memory_bytes=64 << 20)
    async with agent_on(tmp_path, limiter=LIMITERS["rlimits"]) as runtime:
        await runtime.start(order((sys.executable, "-c", "x = b'x' * (256 << 20)"), resources=limits), quiet)
        death = await next_death(runtime.watch())
        assert (death.autopsy.exit_code, death.autopsy.last_lines[-1]) == (1, "MemoryError")


@pytest.mark.root
async def test_cell_has_no_more_processes_and_cpu_than_its_limits(tmp_path):
    limiter = LIMITERS["control groups"]
    if not {"cpu", "pids"} <= {*limiter.separate, *limiter.controllers}:
        pytest.skip("no cpu and pids control groups can be made here: run the tests as root")
    limits = cell_pb2.Resources(pids=3, cpu_millis=100)
    script = """
        import os, time
        children = 0
        try:
            while children < 20:
                if os.fork() == 0:
                    time.sleep(300)
                children += 1
        except BlockingIOError:
            print("children", children)
        end = time.monotonic() + 1
        while time.monotonic() < end:
            pass
        print("frugal" if time.process_time() < 0.5 else time.process_time())
    """
    async with agent_on(tmp_path, limiter=limiter) as runtime:
        await runtime.start(order((sys.executable, "-c", textwrap.dedent(script)), resources=limits), quiet)
        death = await next_death(runtime.watch())
        assert list(death.autopsy.last_lines) == ["children 2", "frugal"]


@pytest.mark.root
async def test_all_of_a_cell_ends_in_a_control_group_of_version_2(tmp_path):
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    mount = next((Path(where) for _, where, kind, *_ in mounts if kind == "cgroup2"), None)
    if mount is None or not os.access(mount, os.W_OK):
        pytest.skip("no cgroup2 is mounted here that may be written: run the tests as root")
    limiter = process_limits.Limiter(unified=mount)
    folder = Folder(tmp_path / HOME / "web%2F0.1")
    async with agent_on(tmp_path, limiter=limiter) as runtime:
        script = "env -i setsid sleep 300 & echo $!; wait"
        running = await runtime.start(shell(script), quiet)
        [group] = limiter.existing(folder.group_name)
        await until(lambda: len((group / "cgroup.procs").read_text().split()) == 2)
        pids = [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
        assert int(running.runtime_id) in pids
        await runtime.stop("web/0.1", "SIGTERM", 5)
        assert [is_alive(pid) for pid in pids] == [False, False]
        assert limiter.existing(folder.group_name) == ()
