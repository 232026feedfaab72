"""The process runtime with real processes: it starts them, knows how they died, and leaves nothing behind."""

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from agent.runtimes import Exited, Found, RuntimeFailure, StartFailed, process_limits
from agent.runtimes.process import ProcessRuntime
from galactica.v1 import cell_pb2, link_pb2

REPOSITORY = Path(__file__).parents[2]
DEADLINE_SECONDS = 20.0
SERVER = ("python3", "-m", "http.server", "{port.http}", "--bind", "127.0.0.1")
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


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def keeper_of(pid: int) -> int:
    return psutil.Process(pid).ppid()


def answers(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{endpoint}/", timeout=1) as response:
            return response.status == 200
    except OSError:
        return False


def without_time(autopsy: cell_pb2.Autopsy) -> cell_pb2.Autopsy:
    copy = cell_pb2.Autopsy.FromString(autopsy.SerializeToString())
    copy.lived_seconds = 0
    return copy


def left_in(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.parent != directory)


LIMITERS = {"control groups": process_limits.detect(), "rlimits": process_limits.Limiter()}


@pytest.fixture(params=LIMITERS)
def limiter(request) -> process_limits.Limiter:
    limiter = LIMITERS[request.param]
    if request.param == "control groups" and limiter == LIMITERS["rlimits"]:
        pytest.skip("no control groups can be made here: run the tests as root")
    return limiter


@asynccontextmanager
async def agent_on(directory: Path, **settings) -> AsyncIterator[ProcessRuntime]:
    """A runtime whose cells are gone at the end."""
    runtime = ProcessRuntime(directory, "test", **settings)
    try:
        yield runtime
    finally:
        await runtime.close()
        await remove_all(ProcessRuntime(directory, "test", **settings))


async def remove_all(runtime: ProcessRuntime) -> None:
    for found in await runtime.list():
        await runtime.stop(found.order.cell_id, "SIGKILL", 5)
    await runtime.close()


@pytest.fixture
async def runtime(tmp_path, limiter) -> AsyncIterator[ProcessRuntime]:
    async with agent_on(tmp_path / "cells", limiter=limiter) as it:
        yield it


async def test_started_cell_serves_at_the_endpoint_it_was_given(runtime):
    running = await runtime.start(order(SERVER, ports={"http": 0}), quiet)
    await until(lambda: answers(running.endpoints["http"]))
    assert await runtime.list() == [Found(order(SERVER, ports={"http": 0}), running)]


async def test_order_of_a_cell_that_runs_starts_nothing(runtime):
    first, second = await asyncio.gather(*(runtime.start(order(SLEEP), quiet) for _ in range(2)))
    assert first == second == await runtime.start(order(SLEEP), quiet)
    assert len(await runtime.list()) == 1


async def test_cell_sees_a_clean_environment_and_its_own_directories(runtime, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_AGENT", "x")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("LANG", "C.UTF-8")
    env = {"ADDRESS": "at {port.web-ui}", "CELL_ID": "a lie"}
    running = await runtime.start(order(("env",), "a/1.2", ports={"web-ui": 0}, env=env), quiet)
    [found] = await settled(runtime)
    scratch = tmp_path / "cells" / "test" / "a%2F1.2" / "scratch"
    number = running.endpoints["web-ui"].removeprefix("127.0.0.1:")
    assert sorted(found.autopsy.last_lines) == sorted(
        [
            f"ADDRESS=at {number}",
            f"CELL_DIRECTORY={scratch}",
            "CELL_ID=a/1.2",
            f"HOME={scratch}",
            "LANG=C.UTF-8",
            "PATH=/usr/bin:/bin",
            f"PORT_WEB_UI={number}",
            f"TMPDIR={scratch}/tmp",
        ]
    )
    assert {stat.S_IMODE(path.stat().st_mode) for path in (scratch, scratch / "tmp", scratch.parent)} == {
        0o700
    }


async def settled(runtime: ProcessRuntime) -> Sequence[Found]:
    """The list once every cell in it has ended."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            listed = await runtime.list()
            if all(found.autopsy is not None for found in listed):
                return listed
            await asyncio.sleep(0.01)


async def test_cell_inherits_no_descriptor_and_no_ignored_signal(runtime):
    script = "ls /proc/self/fd | tr '\\n' ' '; grep -E 'Sig(Blk|Ign)' /proc/self/status"
    leak = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(leak, True)
    await runtime.start(shell(script), quiet)
    [found] = await settled(runtime)
    os.close(leak)
    blocked, ignored = found.autopsy.last_lines
    assert blocked == "0 1 2 3 SigBlk:\t0000000000000000"  # 3: the listing itself
    # The C library keeps two signals for itself and lets nobody touch them.
    assert int(ignored.split()[1], 16) & sum(1 << (number - 1) for number in signal.valid_signals()) == 0


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
        reason="its keeper process was ended from outside, so it was killed by SIGKILL",
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


async def test_stop_asks_with_the_named_signal_and_removes_everything(runtime, tmp_path):
    said = tmp_path / "said"
    script = f"trap 'echo asked > {said}; exit 0' USR1; echo ready; while :; do sleep 0.01; done"
    running = await runtime.start(shell(script, ports={"http": 0}), quiet)
    keeper = keeper_of(int(running.runtime_id))
    async for chunk in runtime.logs("web/0.1", 1, follow=True):
        if b"ready" in chunk:
            break
    await runtime.stop("web/0.1", "SIGUSR1", DEADLINE_SECONDS)
    assert said.read_text() == "asked\n"
    assert (await runtime.list(), left_in(tmp_path / "cells")) == ([], [])
    assert not psutil.pid_exists(keeper)
    await runtime.stop("web/0.1", "SIGUSR1", 1)


async def test_cell_that_ignores_sigterm_ends_after_its_grace_and_is_not_told_of(runtime):
    running = await runtime.start(shell("trap '' TERM; echo ready; while :; do sleep 1; done"), quiet)
    async for chunk in runtime.logs("web/0.1", 1, follow=True):
        if b"ready" in chunk:
            break
    began = time.monotonic()
    await runtime.stop("web/0.1", "SIGTERM", 0.5)
    assert 0.5 <= time.monotonic() - began < 5
    assert not is_alive(int(running.runtime_id))
    await runtime.start(shell("exit 0", "next/0.1"), quiet)
    assert (await next_death(runtime.watch())).cell_id == "next/0.1"


async def test_taken_port_is_refused_by_name_and_leaves_nothing(runtime, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        number = holder.getsockname()[1]
        with pytest.raises(StartFailed) as refused:
            await runtime.start(order(SLEEP, ports={"http": number}), quiet)
    assert str(refused.value) == (
        f"port http: {number} on 127.0.0.1 is taken by {psutil.Process().name()} (pid {os.getpid()}); "
        "end it, choose another number, or write auto to have one picked"
    )
    assert (await runtime.list(), left_in(tmp_path / "cells")) == ([], [])


async def test_port_of_another_cell_is_refused_even_while_that_does_not_listen_yet(runtime):
    running = await runtime.start(order(SLEEP, "a/0.1", ports={"http": 0}), quiet)
    number = int(running.endpoints["http"].split(":")[1])
    with pytest.raises(StartFailed, match=rf"{number} on 127\.0\.0\.1 is taken by cell a/0\.1"):
        await runtime.start(order(SLEEP, "b/0.1", ports={"http": number}), quiet)
    await runtime.stop("a/0.1", "SIGTERM", 5)
    assert (
        await runtime.start(order(SLEEP, "b/0.1", ports={"http": number}), quiet)
    ).endpoints == running.endpoints


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("no-such-program",), "command 'no-such-program' not found in PATH"),
        (("/no/such/program",), "command '/no/such/program' not found on this server"),
        (("/etc/passwd",), "command '/etc/passwd' is not an executable file"),
        ((), "a process cell needs a command"),
        (("echo", "{port.htpp}"), "{port.htpp} in '{port.htpp}' names no port of the spec; its ports: http"),
        (("BROKEN",), "cannot run {broken}: Exec format error"),
        (("BROKEN INTERPRETER",), "cannot run {broken}: No such file or directory"),
    ],
)
async def test_command_that_cannot_be_run_is_refused_with_the_reason(runtime, tmp_path, command, reason):
    broken = tmp_path / "broken"
    broken.write_bytes(b"#!/no/such/interpreter\n" if command == ("BROKEN INTERPRETER",) else b"\x01\x02")
    broken.chmod(0o755)
    command = [str(broken) if word.startswith("BROKEN") else word for word in command]
    children = psutil.Process().children(recursive=True)
    with pytest.raises(StartFailed) as refused:
        await runtime.start(order(command, ports={"http": 0}), quiet)
    assert reason.replace("{broken}", str(broken)) in str(refused.value)
    assert (await runtime.list(), left_in(tmp_path / "cells")) == ([], [])
    assert psutil.Process().children(recursive=True) == children


async def test_dead_cell_does_not_come_back_by_a_second_order(runtime):
    await runtime.start(shell("exit 0"), quiet)
    before = await settled(runtime)
    with pytest.raises(StartFailed, match=r"web/0\.1 has ended already"):
        await runtime.start(shell("exit 0"), quiet)
    assert await runtime.list() == before


async def tail_of(runtime: ProcessRuntime, cell_id: str, lines: int) -> bytes:
    return b"".join([chunk async for chunk in runtime.logs(cell_id, lines, follow=False)])


async def test_logs_give_the_last_lines_and_follow_until_the_end(runtime, tmp_path):
    gate = tmp_path / "gate"
    script = f"echo one; echo two; while [ ! -e {gate} ]; do sleep 0.01; done; echo three; echo four"
    await runtime.start(shell(script), quiet)
    async with asyncio.timeout(DEADLINE_SECONDS):
        while await tail_of(runtime, "web/0.1", 9) != b"one\ntwo\n":
            await asyncio.sleep(0.01)
        read = b""
        async for chunk in runtime.logs("web/0.1", 1, follow=True):
            read += chunk
            gate.touch()
    assert read == b"two\nthree\nfour\n"
    with pytest.raises(RuntimeFailure, match=r"there is no cell other/0\.1 here"):
        await anext(runtime.logs("other/0.1", 1, follow=False))


async def test_log_of_a_cell_that_writes_without_end_stays_bounded(tmp_path, limiter):
    limit = 256 << 10
    async with agent_on(tmp_path, log_limit_bytes=limit, limiter=limiter) as runtime:
        script = "i=0; while :; do i=$((i+1)); printf 'line %01000d\\n' $i; done"
        await runtime.start(shell(script), quiet)
        folder = tmp_path / "test" / "web%2F0.1"
        await until((folder / "log.1").exists)
        kept = (folder / "log.1").stat().st_size
        assert kept <= limit
        tail = await tail_of(runtime, "web/0.1", 50)
        numbers = [int(line.removeprefix("line ")) for line in tail.decode().splitlines()[:-1]]
        assert len(numbers) in {49, 50}
        assert numbers == sorted(numbers)


async def test_execute_runs_with_the_cells_environment_in_its_directory(runtime, tmp_path):
    await runtime.start(order(SLEEP, env={"GREETING": "hello"}), quiet)
    scratch = tmp_path / "cells" / "test" / "web%2F0.1" / "scratch"
    said = await runtime.execute("web/0.1", ("sh", "-c", "echo first; echo $GREETING $PWD; exit 4"), 10)
    assert said == (4, f"hello {scratch}")
    assert await runtime.execute("web/0.1", ("sh", "-c", "kill -9 $$"), 10) == (137, "")
    with pytest.raises(RuntimeFailure, match="command 'nope' not found in PATH"):
        await runtime.execute("web/0.1", ("nope",), 10)
    with pytest.raises(RuntimeFailure, match=r"there is no cell other/0\.1 here"):
        await runtime.execute("other/0.1", ("true",), 10)


async def test_command_that_hangs_or_leaves_children_behind_is_ended(runtime, tmp_path):
    await runtime.start(order(SLEEP), quiet)
    pids = tmp_path / "pids"
    hang = f"sleep 300 & echo $! >> {pids}; echo $$ >> {pids}; yes; wait"
    with pytest.raises(TimeoutError):
        await runtime.execute("web/0.1", ("sh", "-c", hang), 0.5)
    leave = f"sleep 300 & echo $! >> {pids}; echo done"
    assert await runtime.execute("web/0.1", ("sh", "-c", leave), 10) == (0, "done")
    started = [int(pid) for pid in pids.read_text().split()]
    assert len(started) == 3
    await until(lambda: not any(is_alive(pid) for pid in started))


AGENT = """
import asyncio, sys
from pathlib import Path
from galactica.v1 import link_pb2
from agent.runtimes.process import ProcessRuntime

async def main():
    runtime = ProcessRuntime(Path(sys.argv[1]), "test")
    for text in sys.argv[2:]:
        running = await runtime.start(link_pb2.Order.FromString(bytes.fromhex(text)), lambda text: None)
        print(running.runtime_id, running.started_at, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def agent_that_is_killed_after_starting(directory: Path, orders: Sequence[link_pb2.Order]) -> list[list[str]]:
    """Pid and start of each cell that an agent, which was killed by SIGKILL, left behind."""
    texts = [order.SerializeToString().hex() for order in orders]
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'proto'}"}
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
    record = tmp_path / "test" / "web%2F0.1" / "record"
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
                "ended together with its keeper process; how is not known",
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
        (tmp_path / "test" / "web%2F0.1" / "record").write_bytes(content)
        keeper = keeper_of(int(running.runtime_id))
        async with agent_on(tmp_path) as successor:
            assert [found.order.cell_id for found in await successor.list()] == ["other/0.1"]
            assert "the record of a cell is corrupt" in caplog.text
            [aside] = (tmp_path / "test" / ".corrupt").iterdir()
            assert (aside / "record").read_bytes() == content
            await until(lambda: not is_alive(int(running.runtime_id)) and not is_alive(keeper))
            assert (await successor.start(order(SLEEP), quiet)).runtime_id != running.runtime_id


async def test_folder_of_a_start_that_never_happened_is_removed(tmp_path):
    (tmp_path / "test" / "web%2F0.1" / "scratch").mkdir(parents=True)
    async with agent_on(tmp_path) as runtime:
        assert (await runtime.list(), left_in(tmp_path)) == ([], [])


async def test_cancelled_start_is_finished_and_known(runtime):
    start = asyncio.create_task(runtime.start(order(SLEEP), quiet))
    await until(lambda: len(runtime._jobs) == 1)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    running = await runtime.start(order(SLEEP), quiet)
    assert await runtime.list() == [Found(order(SLEEP), running)]


async def test_two_hundred_cells_come_and_go_and_leave_nothing(tmp_path, limiter):
    async with agent_on(tmp_path / "cells", limiter=limiter) as runtime:

        async def one(number: int) -> None:
            await runtime.start(order(SLEEP, f"web/{number}.1", ports={"http": 0}), quiet)
            await runtime.stop(f"web/{number}.1", "SIGTERM", 5)

        await one(0)
        descriptors = psutil.Process().num_fds()
        groups = control_groups(limiter)
        for first in range(0, 200, 10):
            await asyncio.gather(*(one(number) for number in range(first, first + 10)))
        assert left_in(tmp_path / "cells") == []
        assert psutil.Process().children() == []
        assert psutil.Process().num_fds() == descriptors
        assert control_groups(limiter) == groups


def control_groups(limiter: process_limits.Limiter) -> list[str]:
    parents = [*limiter.separate.values(), *([limiter.unified] if limiter.unified else [])]
    return [path.name for parent in parents for path in parent.glob("galactica-*")]


@pytest.mark.root
async def test_memory_limit_is_held_and_named_in_the_autopsy(tmp_path):
    limiter = LIMITERS["control groups"]
    if not limiter.holds_memory():
        pytest.skip("no memory control group can be made here: run the tests as root")
    limits = cell_pb2.Resources(memory_bytes=32 << 20)
    async with agent_on(tmp_path, limiter=limiter) as runtime:
        await runtime.start(order(("python3", "-c", "x = b'x' * (256 << 20)"), resources=limits), quiet)
        death = await next_death(runtime.watch())
        assert without_time(death.autopsy) == cell_pb2.Autopsy(
            reason="out of memory: killed by SIGKILL", exit_code=137, signal="SIGKILL", oom_killed=True
        )


async def test_memory_limit_without_control_groups_refuses_the_allocation(tmp_path):
    limits = cell_pb2.Resources(memory_bytes=64 << 20)
    async with agent_on(tmp_path, limiter=LIMITERS["rlimits"]) as runtime:
        await runtime.start(order(("python3", "-c", "x = b'x' * (256 << 20)"), resources=limits), quiet)
        death = await next_death(runtime.watch())
        assert (death.autopsy.exit_code, death.autopsy.last_lines[-1]) == (1, "MemoryError")


@pytest.mark.root
async def test_cpu_and_pids_limits_reach_the_kernel(tmp_path):
    limiter = LIMITERS["control groups"]
    if "pids" not in limiter.separate and "pids" not in limiter.controllers:
        pytest.skip("no pids control group can be made here: run the tests as root")
    limits = cell_pb2.Resources(pids=3, cpu_millis=250)
    script = "sleep 300 & sleep 300 & sleep 300 & sleep 300 & wait"
    async with agent_on(tmp_path, limiter=limiter) as runtime:
        running = await runtime.start(shell(script, resources=limits), quiet)
        death = await next_death(runtime.watch())
        assert "Cannot fork" in death.autopsy.last_lines[-1] or "fork" in death.autopsy.last_lines[-1]
        assert running.runtime_id
