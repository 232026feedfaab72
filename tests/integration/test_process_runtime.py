"""The process runtime with real processes: what starts, runs and is stopped, and that nothing stays
behind."""

import asyncio
import os
import signal
import socket
import stat
import urllib.request

import psutil
import pytest

from galactica.agent.core.model import Found
from galactica.agent.runtimes.port import RuntimeFailure, StartFailed
from galactica.agent.runtimes.process.launch import Folder
from galactica.agent.runtimes.process.runtime import ProcessRuntime
from tests.support.process_cells import (
    DEADLINE_SECONDS,
    HOME,
    SERVER,
    SLEEP,
    agent_on,
    keeper_of,
    left_in,
    next_death,
    order,
    quiet,
    settled,
    shell,
    until,
)
from tests.support.processes import below, is_alive


def answers(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{endpoint}/", timeout=1) as response:
            return response.status == 200
    except OSError:
        return False


async def test_started_cell_serves_at_the_endpoint_it_was_given(runtime):
    running = await runtime.start(order(SERVER, ports={"http": 0}), quiet)
    await until(lambda: answers(running.endpoints["http"]))
    assert await runtime.list() == [Found(order(SERVER, ports={"http": 0}), running)]


async def test_order_of_a_cell_that_runs_starts_nothing(runtime):
    first, second = await asyncio.gather(*(runtime.start(order(SLEEP), quiet) for _ in range(2)))
    assert first == second == await runtime.start(order(SLEEP), quiet)
    assert len(await runtime.list()) == 1


async def test_order_that_its_sender_uses_again_does_not_change_the_cell(runtime):
    reused = order(SLEEP)
    running = await runtime.start(reused, quiet)
    reused.cell_id = "other/0.1"
    assert await runtime.list() == [Found(order(SLEEP), running)]
    await runtime.stop("web/0.1", "SIGTERM", 5)
    assert await runtime.list() == []


async def test_cell_sees_a_clean_environment_and_its_own_directories(runtime, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_AGENT", "x")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("LANG", "C.UTF-8")
    env = {"ADDRESS": "at {port.web-ui}", "CELL_ID": "a lie"}
    running = await runtime.start(order(("env",), "a/1.2", ports={"web-ui": 0}, env=env), quiet)
    [found] = await settled(runtime)
    scratch = tmp_path / "cells" / HOME / "a%2F1.2" / "scratch"
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
    loop = asyncio.get_running_loop()
    grace_ends_at = loop.time() + 0.5
    await runtime.stop("web/0.1", "SIGTERM", 0.5)
    assert loop.time() >= grace_ends_at
    assert not is_alive(int(running.runtime_id))
    await runtime.start(shell("exit 0", "next/0.1"), quiet)
    assert (await next_death(runtime.watch())).cell_id == "next/0.1"


async def test_taken_port_is_refused_by_name_and_leaves_nothing(runtime, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        number = holder.getsockname()[1]
        with pytest.raises(StartFailed) as refused:
            await runtime.start(order(SLEEP, ports={"http": number}), quiet)
    assert str(refused.value) == (
        f"port http: {number} on 127.0.0.1 is already used by {psutil.Process().name()} (pid {os.getpid()}); "
        "end it, choose another number, or write auto to get a free one"
    )
    assert (await runtime.list(), left_in(tmp_path / "cells")) == ([], [])


async def test_port_of_another_cell_is_refused_even_while_that_does_not_listen_yet(runtime):
    running = await runtime.start(order(SLEEP, "a/0.1", ports={"http": 0}), quiet)
    number = int(running.endpoints["http"].split(":")[1])
    with pytest.raises(StartFailed, match=rf"{number} on 127\.0\.0\.1 is already used by cell a/0\.1"):
        await runtime.start(order(SLEEP, "b/0.1", ports={"http": number}), quiet)
    await runtime.stop("a/0.1", "SIGTERM", 5)
    assert (
        await runtime.start(order(SLEEP, "b/0.1", ports={"http": number}), quiet)
    ).endpoints == running.endpoints


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("no-such-program",), "command 'no-such-program' not found in this server's PATH"),
        (("/no/such/program",), "command '/no/such/program' not found on this server"),
        (("/etc/passwd",), "command '/etc/passwd' is not an executable file"),
        ((), "a process cell needs a command"),
        (("echo", "{port.htpp}"), "{port.htpp} in '{port.htpp}': the spec has no such port; its ports: http"),
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
    with pytest.raises(StartFailed, match=r"web/0\.1 has already ended"):
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
    with pytest.raises(RuntimeFailure, match=r"no cell other/0\.1 on this server"):
        await anext(runtime.logs("other/0.1", 1, follow=False))


async def test_log_of_a_cell_that_writes_too_much_is_cut_to_its_newest_lines(tmp_path, limiter):
    limit = 256 << 10
    async with agent_on(tmp_path, log_limit_bytes=limit, limiter=limiter) as runtime:
        script = (
            "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); printf 'line %01000d\\n' $i; done; exec sleep 300"
        )
        await runtime.start(shell(script), quiet)
        folder = tmp_path / HOME / "web%2F0.1"
        tail = b"".join(b"line %01000d\n" % number for number in range(1951, 2001))
        async with asyncio.timeout(DEADLINE_SECONDS):
            while (folder / "log").stat().st_size or await tail_of(runtime, "web/0.1", 50) != tail:
                await asyncio.sleep(0.01)
        assert (folder / "log.1").stat().st_size <= limit


async def test_execute_runs_with_the_cells_environment_in_its_directory(runtime, tmp_path):
    await runtime.start(order(SLEEP, env={"GREETING": "hello"}), quiet)
    scratch = tmp_path / "cells" / HOME / "web%2F0.1" / "scratch"
    said = await runtime.execute("web/0.1", ("sh", "-c", "echo first; echo $GREETING $PWD; exit 4"), 10)
    assert said == (4, f"hello {scratch}")
    assert await runtime.execute("web/0.1", ("sh", "-c", "kill -9 $$"), 10) == (137, "")
    with pytest.raises(RuntimeFailure, match="command 'nope' not found in this server's PATH"):
        await runtime.execute("web/0.1", ("nope",), 10)
    with pytest.raises(RuntimeFailure, match=r"no cell other/0\.1 on this server"):
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


async def test_cancelled_start_is_finished_and_known(runtime):
    begun = asyncio.Event()
    start = asyncio.create_task(runtime.start(order(SLEEP), lambda _: begun.set()))
    await begun.wait()
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    # Nobody asks for it again: it is there because the start that was cancelled went on to its end.
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not (listed := await runtime.list()):
            await asyncio.sleep(0.01)
    (found,) = listed
    assert await runtime.start(order(SLEEP), quiet) == found.running


async def test_two_hundred_cells_come_and_go_and_leave_nothing(tmp_path, limiter):
    async with agent_on(tmp_path / "cells", limiter=limiter) as runtime:

        async def one(number: int) -> None:
            await runtime.start(order(SLEEP, f"web/{number}.1", ports={"http": 0}), quiet)
            await runtime.stop(f"web/{number}.1", "SIGTERM", 5)

        await one(0)
        descriptors = psutil.Process().num_fds()
        children = psutil.Process().children()
        for first in range(0, 200, 10):
            await asyncio.gather(*(one(number) for number in range(first, first + 10)))
        assert left_in(tmp_path / "cells") == []
        assert psutil.Process().children() == children
        assert psutil.Process().num_fds() <= descriptors  # some that are others' may be closed meanwhile
        folders = [Folder(tmp_path / "cells" / HOME / f"web%2F{number}.1") for number in range(200)]
        assert [limiter.existing(folder.group_name) for folder in folders] == [()] * 200


async def test_stopped_process_was_touched_even_after_it_goes_on(runtime):
    running = await runtime.start(order(SLEEP), quiet)
    pid, cell = int(running.runtime_id), (order(SLEEP), running.runtime_id)
    assert await runtime.compare(*cell) == ()
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    touched = ("somebody stopped its main process (SIGSTOP)",)
    assert await runtime.compare(*cell) == touched
    os.kill(pid, signal.SIGCONT)
    await until(lambda: psutil.Process(pid).status() == psutil.STATUS_SLEEPING)
    assert await runtime.compare(*cell) == touched


async def test_stopped_process_is_asked_to_end_too(runtime, tmp_path):
    said = tmp_path / "said"
    script = f"trap 'echo bye > {said}; exit' TERM; echo ready; while :; do sleep 0.05; done"
    running = await runtime.start(shell(script), quiet)
    await until(lambda: any("ready" in path.read_text() for path in below(tmp_path) if path.name == "log"))
    os.kill(int(running.runtime_id), signal.SIGSTOP)
    await until(lambda: psutil.Process(int(running.runtime_id)).status() == psutil.STATUS_STOPPED)
    await runtime.stop("web/0.1", "SIGTERM", 30)
    assert said.read_text() == "bye\n"
