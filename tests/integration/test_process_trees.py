"""A process cell is gone only when nothing of it runs, wherever its processes have moved: with real processes."""

import contextlib
import os
import signal
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from galactica.agent.runtimes.process import groups as process_groups
from galactica.agent.runtimes.process import limits as process_limits
from tests.support.process_cells import (
    LIMITERS,
    SLEEP,
    agent_on,
    keeper_of,
    next_death,
    order,
    quiet,
    shell,
    until,
)
from tests.support.processes import below, is_alive

UNIFIED = next(
    (
        Path(where)
        for _, where, kind, *_ in map(str.split, Path("/proc/mounts").read_text().splitlines())
        if kind == "cgroup2"
    ),
    None,
)

ESCAPE = """
    import os, sys
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for line in open("/proc/self/cgroup"):
                _, names, _ = line.split(":", 2)
                places = [f"/sys/fs/cgroup/{name or 'unified'}/cgroup.procs" for name in names.split(",")]
                for place in [*places, "/sys/fs/cgroup/cgroup.procs"]:
                    try:
                        os.write(os.open(place, os.O_WRONLY), str(os.getpid()).encode())
                    except OSError:
                        pass
            open(sys.argv[1] + ".new", "w").write(str(os.getpid()))
            os.rename(sys.argv[1] + ".new", sys.argv[1])
            os.execve("/bin/sleep", ["sleep", "300"], {})
        os._exit(0)
    os.wait()
    if sys.argv[2] == "stay":
        os.execv("/bin/sleep", ["sleep", "300"])
"""
"""A daemon in a session of its own, without the cell's environment and, as root, out of its control groups. Writes its
pid."""


def escape(pid_file: Path, then: str):
    return order((sys.executable, "-c", textwrap.dedent(ESCAPE), str(pid_file), then))


async def written(path: Path) -> int:
    await until(lambda: path.exists() and path.read_text().strip())
    return int(path.read_text())


@contextlib.contextmanager
def ended_at_last(pid: int) -> Iterator[None]:
    """Where the test fails, the process must not outlive it."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def test_daemon_that_shed_session_environment_and_groups_ends_with_its_cell(runtime, tmp_path):
    await runtime.start(escape(tmp_path / "pid", "stay"), quiet)
    pid = await written(tmp_path / "pid")
    with ended_at_last(pid):
        await until(lambda: psutil.Process(pid).name() == "sleep")
        await runtime.stop("web/0.1", "SIGTERM", 5)
        assert not is_alive(pid)


async def test_daemon_of_a_cell_that_died_ends_before_the_death_is_told(runtime, tmp_path):
    await runtime.start(escape(tmp_path / "pid", "die"), quiet)
    pid = await written(tmp_path / "pid")
    with ended_at_last(pid):
        assert (await next_death(runtime.watch())).autopsy.reason == "exited with 0"
        assert not is_alive(pid)


async def test_next_agent_ends_the_daemons_of_its_cells_too(tmp_path, limiter):
    async with agent_on(tmp_path / "cells", limiter=limiter) as runtime:
        await runtime.start(escape(tmp_path / "pid", "stay"), quiet)
        pid = await written(tmp_path / "pid")
        await runtime.close()
        with ended_at_last(pid):
            async with agent_on(tmp_path / "cells", limiter=limiter) as successor:
                await successor.stop("web/0.1", "SIGTERM", 5)
                assert not is_alive(pid)


async def test_daemons_that_ended_are_not_kept_as_zombies(runtime, tmp_path):
    script = f"(setsid true &); (setsid sh -c 'echo $$ > {tmp_path}/pid' &); exec sleep 300"
    running = await runtime.start(shell(script), quiet)
    pid = await written(tmp_path / "pid")
    await until(lambda: not psutil.pid_exists(pid))
    reaper = psutil.Process(keeper_of(keeper_of(int(running.runtime_id)) or 1) or 1)
    assert [child.status() for child in reaper.children(recursive=True)].count(psutil.STATUS_ZOMBIE) == 0


async def test_death_of_the_reaper_is_the_death_of_the_cell(runtime):
    running = await runtime.start(shell("env CELL=1 setsid sleep 300 & exec sleep 300"), quiet)
    pid = int(running.runtime_id)
    await until(lambda: psutil.Process(pid).children())
    [child] = [one.pid for one in psutil.Process(pid).children()]
    reaper = keeper_of(keeper_of(pid))
    assert reaper != os.getpid()
    os.kill(reaper, signal.SIGKILL)
    assert "because somebody ended its keeper" in (await next_death(runtime.watch())).autopsy.reason
    assert [is_alive(one) for one in (pid, child)] == [False, False]


async def test_process_whose_first_thread_has_ended_is_no_corpse(runtime, tmp_path):
    code = f"""
        import ctypes, os, threading, time
        threading.Thread(target=time.sleep, args=[300]).start()
        open("{tmp_path}/pid", "w").write(str(os.getpid()))
        ctypes.CDLL(None).pthread_exit(None)
    """
    script = f"setsid {sys.executable} -c '{textwrap.dedent(code)}' & exec sleep 300"
    await runtime.start(shell(script), quiet)
    pid = await written(tmp_path / "pid")
    with ended_at_last(pid):
        await until(lambda: psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
        await runtime.stop("web/0.1", "SIGTERM", 5)
        assert not Path(f"/proc/{pid}/task").exists()


def groups_below(parents: list[Path]) -> list[Path]:
    tops = [top for parent in parents for top in parent.glob("galactica-*")]
    return [group for top in tops for group in (top, *below(top)) if group.is_dir()]


@pytest.mark.root
@pytest.mark.parametrize("version", ["as this host has them", "version 2"])
async def test_control_groups_that_a_cell_made_below_its_own_end_with_it(tmp_path, version):
    limiter = LIMITERS["control groups"]
    if version == "version 2":
        limiter = process_limits.Limiter(unified=UNIFIED)
        if UNIFIED is None or not os.access(UNIFIED, os.W_OK):
            pytest.skip("no cgroup2 is mounted here that may be written: run the tests as root")
    parent = limiter.unified or limiter.separate.get("pids")
    if parent is None:
        pytest.skip("no control groups can be made here: run the tests as root")
    async with agent_on(tmp_path / "cells", limiter=limiter) as runtime:
        script = f"""
            own=$(grep -lx $$ {parent}/galactica-*/cgroup.procs)
            inner=${{own%/cgroup.procs}}/inner
            mkdir -p $inner/innermost
            env -i setsid sleep 300 & echo $! > $inner/innermost/cgroup.procs
            echo $! > {tmp_path}/pid
            wait
        """
        await runtime.start(shell(script), quiet)
        pid = await written(tmp_path / "pid")
        groups = [path for path in groups_below([parent]) if pid in process_groups.members([path])]
        assert [path.name for path in groups][-2:] == ["inner", "innermost"]
        await runtime.stop("web/0.1", "SIGTERM", 5)
        assert not is_alive(pid)
        assert [path.exists() for path in groups] == [False, False, False]


@pytest.mark.root
async def test_cell_that_somebody_froze_ends_all_the_same(tmp_path):
    freezer = Path("/sys/fs/cgroup/freezer")
    if not os.access(freezer, os.W_OK):
        pytest.skip("there is no freezer of version 1 here that may be written")
    frozen = freezer / f"test-{os.getpid()}"
    frozen.mkdir()
    try:
        async with agent_on(tmp_path) as runtime:
            pid = int((await runtime.start(order(SLEEP), quiet)).runtime_id)
            (frozen / "cgroup.procs").write_text(str(pid))
            (frozen / "freezer.state").write_text("FROZEN")
            await runtime.stop("web/0.1", "SIGTERM", 0)
            assert not is_alive(pid)
    finally:
        (frozen / "freezer.state").write_text("THAWED")
        frozen.rmdir()


async def test_what_a_command_leaves_in_a_session_of_its_own_ends_with_the_command(runtime, tmp_path):
    await runtime.start(order(SLEEP), quiet)
    pid_file = tmp_path / "pid"
    command = ("sh", "-c", f"setsid sh -c 'echo $$ > {pid_file}; exec sleep 300' & echo done")
    assert await runtime.execute("web/0.1", command, 30) == (0, "done")
    # It was killed before it wrote, or after.
    assert not pid_file.exists() or not is_alive(int(pid_file.read_text() or 1 << 30))


async def test_a_daemon_that_a_command_leaves_ends_with_the_command_or_the_cell(runtime, tmp_path, limiter):
    """Without control groups, looking at every process of the machine after each probe would take too long."""
    await runtime.start(order(SLEEP), quiet)
    pid_file = tmp_path / "pid"
    daemon = f"setsid sh -c 'echo $$ > {pid_file}; exec sleep 300' < /dev/null > /dev/null 2>&1 &"
    wait = f"while [ ! -s {pid_file} ]; do sleep 0.01; done"
    assert await runtime.execute("web/0.1", ("sh", "-c", f"{daemon} {wait}"), 30) == (0, "")
    pid = int(pid_file.read_text())
    with ended_at_last(pid):
        if limiter == LIMITERS["rlimits"]:
            assert is_alive(pid)
            await runtime.stop("web/0.1", "SIGTERM", 5)
        assert not is_alive(pid)
