"""Cells as containers: what the runtime does with a healthy engine."""

import asyncio
import contextlib
from pathlib import Path

import docker
import pytest

from galactica.agent.core.model import Found
from galactica.agent.runtimes.docker.autopsy import Death
from galactica.agent.runtimes.docker.events import news_of
from galactica.agent.runtimes.port import Exited, StartFailed
from galactica.v1 import cell_pb2
from tests.support.docker_cells import (
    WAIT_SECONDS,
    a_runtime,
    answer_of,
    client_of,
    ignore_progress,
    news,
    order,
    own_engine,
    until,
    web,
)

pytestmark = pytest.mark.docker

SLEEPER = ("sleep", "1000")

IGNORES_SIGTERM = ("sh", "-c", 'trap "" TERM; echo deaf; while :; do sleep 0.1; done')


@pytest.fixture(scope="module")
def other_engine(engine, busybox_image):
    """One whose files cannot be read from here, as on another host, and which has no init for its containers."""
    with own_engine(engine, busybox_image, "--init-path", "/nowhere/docker-init", files="hidden") as own:
        yield own.url


@pytest.fixture
def client(engine):
    with contextlib.closing(client_of(engine)) as client:
        yield client


def test_engine_events_count_only_where_they_say_whose_they_are():
    died = {
        "Action": "die",
        "Actor": {"ID": "c1", "Attributes": {"exitCode": "3"}},
        "timeNano": 7_500_000_000,
    }
    events = (
        died,
        {"status": "die", "id": "c2"},
        {"Action": "oom", "Actor": {"ID": "c1"}},
        {"Action": "die", "Actor": {}},
        {"Action": "start", "Actor": {"ID": "c1"}},
        {"error": "daemon is going away"},
        [],
    )
    news = [news_of(event) for event in events]
    assert news == [Death("c1", 3, 7.5), Death("c2", -1, 0.0), "c1", None, None, None, None]


async def test_a_started_cell_answers_http_at_its_endpoint(engine, busybox_image):
    async with a_runtime(engine) as runtime:
        running = await runtime.start(web("web/0.1", busybox_image), ignore_progress)
        assert list(running.endpoints) == ["http"]
        assert await asyncio.to_thread(answer_of, running.endpoints["http"]) == "web/0.1\n"


async def test_a_local_image_is_started_without_asking_a_registry(engine, busybox_image):
    told: list[str] = []
    async with a_runtime(engine) as runtime:
        await runtime.start(order("web/0.1", busybox_image, *SLEEPER), told.append)
    assert told == []


async def test_starting_a_cell_again_and_at_once_tells_of_the_same_one(engine, busybox_image):
    async with a_runtime(engine) as runtime:
        cell = web("web/0.1", busybox_image)
        first, *others = await asyncio.gather(*(runtime.start(cell, ignore_progress) for _ in range(4)))
        again = await runtime.start(cell, ignore_progress)
        assert [*others, again] == [first] * 4
        assert await runtime.list() == (Found(cell, first),)


async def test_a_cell_learns_its_id_and_ports_from_its_environment(engine, busybox_image):
    async with a_runtime(engine) as runtime:
        cell = order(
            "web/0.1",
            busybox_image,
            *("sh", "-c", "echo $CELL_ID $PORT_HTTP_API $GREETING {port.http-api}"),
            ports={"http-api": 8080},
            env={"GREETING": "on {port.http-api}"},
        )
        watch = runtime.watch()
        await runtime.start(cell, ignore_progress)
        exited = await news(watch)
        assert list(exited.autopsy.last_lines) == ["web/0.1 8080 on 8080 8080"]


async def test_a_kill_from_outside_is_told_with_its_autopsy(engine, busybox_image, client):
    async with a_runtime(engine) as runtime:
        watch = runtime.watch()
        running = await runtime.start(order("web/0.1", busybox_image, *SLEEPER), ignore_progress)
        await asyncio.to_thread(client.kill, running.runtime_id, "SIGKILL")
        exited = await news(watch)
        lived_seconds = exited.autopsy.lived_seconds
        assert 0 < lived_seconds < 30
        assert exited == Exited(
            "web/0.1",
            cell_pb2.Autopsy(
                reason="killed by SIGKILL", exit_code=137, signal="SIGKILL", lived_seconds=lived_seconds
            ),
        )


async def test_many_deaths_at_once_are_all_told(engine, busybox_image, client):
    async with a_runtime(engine) as runtime:
        watch = runtime.watch()
        cells = [order(f"web/{slot}.1", busybox_image, *SLEEPER) for slot in range(6)]
        started = await asyncio.gather(*(runtime.start(cell, ignore_progress) for cell in cells))
        await asyncio.gather(*(asyncio.to_thread(client.kill, one.runtime_id) for one in started))
        told = {(await news(watch)).cell_id for _ in cells}
        assert told == {cell.cell_id for cell in cells}


async def test_a_cell_that_ends_by_itself_leaves_its_code_and_last_lines(engine, busybox_image):
    async with a_runtime(engine) as runtime:
        watch = runtime.watch()
        script = "for i in $(seq 60); do echo line $i; done; exit 3"
        await runtime.start(order("web/0.1", busybox_image, "sh", "-c", script), ignore_progress)
        autopsy = (await news(watch)).autopsy
        assert autopsy == cell_pb2.Autopsy(
            reason="exited with 3",
            exit_code=3,
            last_lines=[f"line {number}" for number in range(11, 61)],
            lived_seconds=autopsy.lived_seconds,
        )


async def test_a_death_is_told_in_full_though_the_engines_files_cannot_be_read(other_engine, busybox_image):
    async with a_runtime(other_engine) as runtime:
        watch = runtime.watch()
        script = "sleep 0.3; for i in $(seq 60); do echo line $i; done; exit 3"
        running = await runtime.start(order("web/0.1", busybox_image, "sh", "-c", script), ignore_progress)
        with contextlib.closing(client_of(other_engine)) as client:
            assert not Path(client.inspect_container(running.runtime_id)["LogPath"]).exists()
        autopsy = (await news(watch)).autopsy
        assert (autopsy.reason, len(autopsy.last_lines), autopsy.last_lines[-1]) == (
            "exited with 3",
            50,
            "line 60",
        )
        assert 0 < autopsy.lived_seconds < 30  # by when the engine noticed start and end


@pytest.mark.parametrize(
    ("then", "reason"), [("exit 3", "exited with 3"), ("kill", "killed by SIGKILL")], ids=["exit", "kill"]
)
async def test_a_child_that_outgrew_the_memory_does_not_explain_the_end_of_its_cell(
    engine, busybox_image, client, then, reason
):
    eats = "dd if=/dev/zero of=/dev/null bs=64M count=1 2>/dev/null"
    script = f"trap 'exit 3' TERM; {eats}; echo eaten $?; while :; do sleep 0.1; done"
    limits = cell_pb2.Resources(memory_bytes=16 << 20)
    async with a_runtime(engine) as runtime:
        cell = order("web/0.1", busybox_image, "sh", "-c", script, resources=limits)
        running = await runtime.start(cell, ignore_progress)
        watch = runtime.watch()
        await until(lambda: b"eaten 137" in client.logs(running.runtime_id), "the kernel kills the child")
        client.kill(running.runtime_id, "SIGTERM" if then != "kill" else "SIGKILL")
        autopsy = (await news(watch)).autopsy
        assert (autopsy.reason, autopsy.oom_killed) == (reason, False)


async def test_a_cell_that_outgrows_its_memory_is_said_to_have_done_so(engine, busybox_image):
    async with a_runtime(engine) as runtime:
        watch = runtime.watch()
        glutton = order(
            "web/0.1",
            busybox_image,
            *("dd", "if=/dev/zero", "of=/dev/null", "bs=256M"),
            resources=cell_pb2.Resources(memory_bytes=16 << 20),
        )
        await runtime.start(glutton, ignore_progress)
        autopsy = (await news(watch)).autopsy
        assert (autopsy.oom_killed, autopsy.signal) == (True, "SIGKILL")
        assert autopsy.reason == "ran out of memory (limit 16 MiB), killed by SIGKILL"


async def test_a_container_that_somebody_removed_is_a_death_too(engine, busybox_image, client):
    async with a_runtime(engine) as runtime:
        watch = runtime.watch()
        running = await runtime.start(order("web/0.1", busybox_image, *SLEEPER), ignore_progress)
        await asyncio.to_thread(client.remove_container, running.runtime_id, force=True)
        exited = await news(watch)
        assert (exited.cell_id, exited.autopsy.reason) == ("web/0.1", "killed by SIGKILL")
        assert await runtime.list() == ()


@pytest.mark.parametrize(
    ("command", "spec", "reason"),
    [
        (("frobnicate", "-x"), {}, "command not found: frobnicate is not in image {image}"),
        (("/etc",), {}, "command not executable: /etc in image {image}"),
        (
            ("echo", "{port.htpp}"),
            {"ports": {"http": 8080}},
            "{{port.htpp}}: the spec has no such port; its ports: http",
        ),
        (
            SLEEPER,
            {"ports": {"http": 0}},
            "invalid port http: 0; a container needs a number from 1 to 65535",
        ),
    ],
    ids=["no such command", "a directory", "no such port", "no number"],
)
async def test_a_cell_that_cannot_start_says_why_and_leaves_nothing(
    engine, busybox_image, command, spec, reason
):
    async with a_runtime(engine) as runtime:
        with pytest.raises(StartFailed) as failed:
            await runtime.start(order("web/0.1", busybox_image, *command, **spec), ignore_progress)
        assert str(failed.value) == reason.format(image=busybox_image)
        assert await runtime.list() == ()


async def test_an_engine_without_an_init_starts_cells_and_tells_of_missing_commands(
    other_engine, busybox_image
):
    async with a_runtime(other_engine) as runtime:
        running = await runtime.start(order("web/0.1", busybox_image, *SLEEPER), ignore_progress)
        with pytest.raises(StartFailed, match="executable file not found"):
            await runtime.start(order("web/1.1", busybox_image, "frobnicate"), ignore_progress)
        assert [one.running for one in await runtime.list()] == [running]


async def test_a_cell_writes_to_tmp_and_its_writable_paths_only(engine, busybox_image):
    async with a_runtime(engine) as runtime:
        cell = order("web/0.1", busybox_image, *SLEEPER, writable=["/var/cache/app", "/tmp"])
        await runtime.start(cell, ignore_progress)

        async def write(path: str) -> int:
            code, _ = await runtime.execute("web/0.1", ["sh", "-c", f"echo x > {path}"], 10)
            return code

        codes = {path: await write(path) for path in ("/tmp/x", "/var/cache/app/x", "/x", "/etc/x")}
        assert codes == {"/tmp/x": 0, "/var/cache/app/x": 0, "/x": 1, "/etc/x": 1}


async def test_limits_and_confinement_reach_the_engine(engine, busybox_image, client):
    async with a_runtime(engine) as runtime:
        cell = order(
            "web/0.1",
            busybox_image,
            *SLEEPER,
            resources=cell_pb2.Resources(cpu_millis=250, memory_bytes=64 << 20, pids=33),
            stop=cell_pb2.Stop(signal="SIGQUIT", grace_ms=2_500),
        )
        running = await runtime.start(cell, ignore_progress)
        inspected = await asyncio.to_thread(client.inspect_container, running.runtime_id)
        host = inspected["HostConfig"]
        assert {
            "NanoCpus": host["NanoCpus"],
            "Memory": host["Memory"],
            "MemorySwap": host["MemorySwap"],
            "PidsLimit": host["PidsLimit"],
            "RestartPolicy": host["RestartPolicy"],
            "ReadonlyRootfs": host["ReadonlyRootfs"],
            "SecurityOpt": host["SecurityOpt"],
            "CapDrop": host["CapDrop"],
            "Privileged": host["Privileged"],
            "LogConfig": host["LogConfig"],
            "StopSignal": inspected["Config"]["StopSignal"],
            "StopTimeout": inspected["Config"]["StopTimeout"],
        } == {
            "NanoCpus": 250_000_000,
            "Memory": 64 << 20,
            "MemorySwap": 64 << 20,
            "PidsLimit": 33,
            "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
            "ReadonlyRootfs": True,
            "SecurityOpt": ["no-new-privileges"],
            "CapDrop": ["ALL"],
            "Privileged": False,
            "LogConfig": {"Type": "json-file", "Config": {"max-file": "2", "max-size": "8m"}},
            "StopSignal": "SIGQUIT",
            "StopTimeout": 3,
        }


async def test_a_stop_returns_only_when_the_container_is_gone_whoever_removes_it(
    engine, busybox_image, client
):
    async with a_runtime(engine) as runtime:
        cell = order("web/0.1", busybox_image, *SLEEPER, writable=["/srv/a", "/srv/b"])
        running = await runtime.start(cell, ignore_progress)

        async def stop() -> None:
            await runtime.stop("web/0.1", "SIGKILL", 0.0)
            with pytest.raises(docker.errors.NotFound):
                client.inspect_container(running.runtime_id)

        await asyncio.gather(*(stop() for _ in range(8)))


async def test_stopping_is_quick_silent_and_leaves_nothing(engine, busybox_image, client):
    async with a_runtime(engine) as runtime:
        watch = runtime.watch()
        cell = order("web/0.1", busybox_image, *SLEEPER, writable=["/var/cache/app"])
        running = await runtime.start(cell, ignore_progress)
        other = await runtime.start(order("web/1.1", busybox_image, *SLEEPER), ignore_progress)
        (volume,) = (await asyncio.to_thread(client.inspect_container, running.runtime_id))["Mounts"]
        async with asyncio.timeout(WAIT_SECONDS):  # sleep handles no SIGTERM itself; the engine's init does
            await runtime.stop("web/0.1", "SIGTERM", 10 * WAIT_SECONDS)
        await runtime.stop("web/0.1", "SIGTERM", 10.0)
        with pytest.raises(docker.errors.NotFound):
            await asyncio.to_thread(client.inspect_volume, volume["Name"])
        assert [found.order.cell_id for found in await runtime.list()] == ["web/1.1"]
        await asyncio.to_thread(client.kill, other.runtime_id)
        assert (await news(watch)).cell_id == "web/1.1"


async def test_a_cell_that_ignores_the_signal_ends_after_its_grace(engine, busybox_image):
    async with a_runtime(engine) as runtime:
        await runtime.start(order("web/0.1", busybox_image, *IGNORES_SIGTERM), ignore_progress)
        lines = runtime.logs("web/0.1", 1, follow=True)
        assert await anext(lines) == b"deaf\n"
        await lines.aclose()
        loop = asyncio.get_running_loop()
        grace_ends_at = loop.time() + 1.0
        await runtime.stop("web/0.1", "SIGTERM", 1.0)
        assert loop.time() >= grace_ends_at
        assert await runtime.list() == ()


async def test_cell_is_also_reached_at_its_own_address_where_only_it_accepts(engine, busybox_image):
    async with a_runtime(engine) as runtime:
        listening = await runtime.start(web("web/0.1", busybox_image), ignore_progress)
        deaf = await runtime.start(
            order("deaf/0.1", busybox_image, "sleep", "1000", ports={"http": 8080}), ignore_progress
        )
        assert answer_of(listening.direct["http"]) == "web/0.1\n"
        assert listening.direct["http"].endswith(":8080")
        refused = deaf.direct["http"].rsplit(":", 1)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(refused[0], int(refused[1]))
        found = {one.order.cell_id: one.running for one in await runtime.list()}
        assert found == {"web/0.1": listening, "deaf/0.1": deaf}
