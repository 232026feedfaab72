"""Touched containers on a real engine: what hands do to a cell is told, and what a cell does itself is not."""

import asyncio
import contextlib
import os
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from galactica.agent.core.model import Cell, CellState
from galactica.agent.health.drift import DriftWatch
from galactica.agent.runtimes.docker.runtime import DockerRuntime
from galactica.agent.runtimes.port import Stirred
from galactica.v1 import cell_pb2, link_pb2
from tests.support.docker_cells import (
    a_runtime,
    client_of,
    id_of,
    ignore_progress,
    new_fleet,
    news,
    order,
    until,
    web,
)

pytestmark = pytest.mark.docker

CELL = "web/0.1"
WRITES = (
    'echo own > /var/cache/app/file; echo own > /tmp/file; echo "$CELL_ID" > /tmp/index.html; exec sleep 1000'
)


class Touched:
    """A running cell, and a person's hands beside it."""

    def __init__(
        self, engine: str, fleet: str, runtime: DockerRuntime, made: link_pb2.Order, runtime_id: str
    ) -> None:
        self.engine, self.fleet, self.runtime = engine, fleet, runtime
        self.order, self.runtime_id = made, runtime_id
        self.watch: Any = runtime.watch()

    def docker(self, *arguments: str) -> str:
        done = subprocess.run(
            ["docker", *arguments],
            env={**os.environ, "DOCKER_HOST": self.engine},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.strip()

    async def compare(self) -> tuple[str, ...]:
        return await self.runtime.compare(self.order, self.runtime_id)

    async def news_of_hands(self) -> None:
        assert await news(self.watch) == Stirred(CELL)


@contextlib.asynccontextmanager
async def touched_cell(engine: str, image: str, *command: str, **spec: Any) -> AsyncIterator[Touched]:
    made = order(
        CELL,
        image,
        *(command or ("sh", "-c", WRITES)),
        writable=["/var/cache/app"],
        env={"SECRET": "hunter2"},
        resources=cell_pb2.Resources(cpu_millis=100, memory_bytes=64 * 2**20, pids=64),
        **spec,
    )
    fleet = new_fleet()
    async with a_runtime(engine, fleet=fleet) as runtime:
        running = await runtime.start(made, ignore_progress)
        yield Touched(engine, fleet, runtime, made, running.runtime_id)


@pytest.fixture
def network(engine: str) -> Iterator[str]:
    name = f"galactica-test-{uuid.uuid4().hex[:8]}"
    with contextlib.closing(client_of(engine)) as client:
        made = client.create_network(name)["Id"]
        yield name
        for container in client.inspect_network(made)["Containers"]:
            client.disconnect_container_from_network(container, made, force=True)
        client.remove_network(made)


async def test_a_cell_that_writes_where_it_may_is_untouched(engine, busybox_image):
    async with touched_cell(engine, busybox_image) as cell:
        wrote = ["sh", "-c", "cat /var/cache/app/file /tmp/file"]
        assert await cell.runtime.execute(CELL, wrote, 10) == (0, "own")
        assert await cell.compare() == ()


async def test_commands_of_the_agent_itself_touch_nothing(engine, busybox_image):
    async with touched_cell(engine, busybox_image) as cell:
        for _ in range(3):
            await cell.runtime.execute(CELL, ["true"], 10)
        running = asyncio.create_task(cell.runtime.execute(CELL, ["sleep", "3"], 10))
        client = client_of(engine)
        await until(lambda: bool(client.inspect_container(cell.runtime_id)["ExecIDs"]), "the command runs")
        assert await cell.compare() == ()
        async with a_runtime(engine, fleet=cell.fleet) as successor:
            await successor.list()
            assert await successor.compare(cell.order, cell.runtime_id) == ()
            client.close()
            await running


async def test_a_command_run_by_hand_is_told_by_its_program_alone(engine, busybox_image):
    async with touched_cell(engine, busybox_image) as cell:
        cell.docker("exec", cell.runtime_id, "sh", "-c", "echo hunter2")
        await cell.news_of_hands()
        assert await cell.compare() == ("somebody ran sh in it (docker exec)",)


async def test_a_command_that_a_hand_began_while_no_agent_was_there_is_told(engine, busybox_image):
    fleet = new_fleet()
    made = order(CELL, busybox_image, "sleep", "1000")
    first = DockerRuntime(fleet, id_of(fleet), engine, server="one")
    running = await first.start(made, ignore_progress)
    await first.close()
    async with a_runtime(engine, fleet=fleet) as runtime:
        client = client_of(engine)
        exec_id = client.exec_create(running.runtime_id, ["sleep", "100"])["Id"]
        client.exec_start(exec_id, detach=True)
        client.close()
        await runtime.list()
        assert await runtime.compare(made, running.runtime_id) == ("somebody ran sleep in it (docker exec)",)


async def test_a_copy_into_a_cell_is_told_even_where_the_cell_may_write(engine, busybox_image, tmp_path):
    (tmp_path / "file").write_text("by hand")
    async with touched_cell(engine, busybox_image) as cell:
        cell.docker("cp", str(tmp_path / "file"), f"{cell.runtime_id}:/var/cache/app/file")
        await cell.news_of_hands()
        assert await cell.compare() == ("somebody copied files into it (docker cp)",)


async def test_a_file_that_changed_under_a_read_only_root_is_told_by_its_path(engine, busybox_image):
    async with touched_cell(engine, busybox_image) as cell:
        with contextlib.closing(client_of(engine)) as client:
            root = client.inspect_container(cell.runtime_id)["GraphDriver"]["Data"]["MergedDir"]
        (Path(root) / "etc/motd\n").write_text("by hand")
        (Path(root) / "var/cache/other").write_text("by hand")
        assert await cell.compare() == ("/etc/motd? was added", "/var/cache/other was added")


async def test_changed_limits_are_told_with_what_they_were_and_are_not_forgotten(engine, busybox_image):
    async with touched_cell(engine, busybox_image) as cell:
        change = ("update", "--memory", "32m", "--memory-swap", "32m", "--cpus", "0.5", "--pids-limit", "7")
        cell.docker(*change, "--restart", "always", cell.runtime_id)
        await cell.news_of_hands()
        told = (
            "its memory limit is 32 MiB instead of 64 MiB",
            "its limit of memory and swap is 32 MiB instead of 64 MiB",
            "its cpu limit is 0.5 cores instead of 0.1 cores",
            "its limit of processes is 7 instead of 64",
            "its restart policy is always instead of no",
        )
        assert await cell.compare() == told
        back = ("update", "--memory", "64m", "--memory-swap", "64m", "--cpus", "0.1", "--pids-limit", "64")
        cell.docker(*back, "--restart", "no", cell.runtime_id)
        await cell.news_of_hands()
        assert await cell.compare() == told


async def test_a_paused_cell_was_touched_even_after_it_goes_on(engine, busybox_image):
    async with touched_cell(engine, busybox_image) as cell:
        cell.docker("pause", cell.runtime_id)
        await cell.news_of_hands()
        told = ("somebody paused it (docker pause)",)
        assert await cell.compare() == told
        async with a_runtime(engine, fleet=cell.fleet) as successor:
            await successor.list()
            assert await successor.compare(cell.order, cell.runtime_id) == told
            cell.docker("unpause", cell.runtime_id)
            assert await cell.compare() == told


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGUSR1", "SIGKILL"])
async def test_a_paused_cell_is_really_ended(engine, busybox_image, signal):
    async with touched_cell(engine, busybox_image) as cell:
        cell.docker("pause", cell.runtime_id)
        await cell.runtime.stop(CELL, signal, 0.5)
        assert await cell.runtime.list() == ()
        assert cell.docker("ps", "-aq", "--no-trunc", "--filter", f"id={cell.runtime_id}") == ""


async def test_a_signal_of_a_strangers_hand_is_told(engine, busybox_image):
    async with touched_cell(
        engine, busybox_image, "sh", "-c", "trap : HUP; while :; do sleep 0.1; done"
    ) as cell:
        cell.docker("kill", "--signal", "STOP", cell.runtime_id)
        await cell.news_of_hands()
        cell.docker("kill", "--signal", "HUP", cell.runtime_id)
        await cell.news_of_hands()
        told = [f"somebody sent it {name} (docker kill)" for name in ("SIGSTOP", "SIGHUP")]
        assert await cell.compare() == tuple(told)


async def test_networks_and_names_are_told(engine, busybox_image, network):
    async with touched_cell(engine, busybox_image) as cell:
        cell.docker("network", "connect", network, cell.runtime_id)
        await cell.news_of_hands()
        cell.docker("rename", cell.runtime_id, network)
        await cell.news_of_hands()
        cell.docker("network", "disconnect", "bridge", cell.runtime_id)
        await cell.news_of_hands()
        assert await cell.compare() == (
            f"it was renamed to {network}",
            f"it was connected to network {network}",
            "it was disconnected from network bridge",
        )


async def test_a_container_of_a_strangers_making_is_told_without_any_value(engine, busybox_image):
    """Somebody made it anew under the same name and labels, as tools do that exchange images."""
    async with touched_cell(engine, busybox_image) as cell:
        with contextlib.closing(client_of(engine)) as client:
            before = client.inspect_container(cell.runtime_id)
        name, labels = before["Name"], before["Config"]["Labels"]
        await cell.runtime.stop(CELL, "SIGKILL", 0.0)
        given = [word for key, value in labels.items() for word in ("--label", f"{key}={value}")]
        made = cell.docker(
            *(
                "run",
                "-d",
                "--name",
                name,
                *given,
                "-e",
                "SECRET=other",
                "-e",
                "NEW=hunter3",
                "-v",
                "/etc:/host",
            ),
            *("--memory", "64m", "--memory-swap", "64m", "--cpus", "0.1", "--pids-limit", "64"),
            *(busybox_image, "sleep", "1000"),
        )
        await cell.runtime.list()
        told = await cell.runtime.compare(cell.order, made)
    assert set(told) >= {
        "its root filesystem is not read-only",
        "bind mounted at /host",
        "no volume at /var/cache/app",
        "its command differs from the spec",
        "environment variable CELL_ID was removed",
        "environment variable NEW was added",
        "environment variable SECRET was changed",
    }
    assert not any("hunter" in line or "other" in line for line in told)
    assert len(told) <= 10


async def test_a_name_that_means_another_image_now_is_told(engine, busybox_image):
    tag = f"galactica-test/drift-{uuid.uuid4().hex[:8]}:1"
    client = client_of(engine)
    try:
        client.tag(busybox_image, tag)
        async with touched_cell(engine, tag) as cell:
            client.tag(busybox_image.replace(":1", ":2"), tag)
            (told,) = await cell.compare()
        assert told.startswith(f"image {tag} is now ")
    finally:
        client.remove_image(tag, force=True)
        client.close()


async def test_an_image_that_was_looked_at_before_the_cell_began_is_looked_at_again(engine, busybox_image):
    tag = f"galactica-test/drift-{uuid.uuid4().hex[:8]}:1"
    client = client_of(engine)
    try:
        client.tag(busybox_image, tag)
        async with touched_cell(engine, tag) as cell:
            assert await cell.compare() == ()
            client.tag(busybox_image.replace(":1", ":2"), tag)
            younger = order("web/1.1", tag, "sleep", "1000")
            running = await cell.runtime.start(younger, ignore_progress)
            assert await cell.runtime.compare(younger, running.runtime_id) == ()
            (told,) = await cell.compare()
        assert told.startswith(f"image {tag} is now ")
    finally:
        client.remove_image(tag, force=True)
        client.close()


async def test_an_ended_cell_is_not_compared(engine, busybox_image):
    async with touched_cell(engine, busybox_image) as cell:
        await cell.runtime.stop(CELL, "SIGKILL", 0.0)
        assert await cell.compare() == ()


async def test_every_cell_is_compared_in_time_and_a_touched_one_at_once(engine, busybox_image):
    async with a_runtime(engine) as runtime:
        cells: dict[str, Cell] = {}
        for number in range(8):
            made = web(f"web/{number}.1", busybox_image)
            running = await runtime.start(made, ignore_progress)
            cells[made.cell_id] = Cell(
                order=made,
                id=made.cell_id,
                digest=made.digest,
                kind=cell_pb2.RUNTIME_KIND_DOCKER,
                sick_after=0,
                state=CellState.RUNNING,
                runtime_id=running.runtime_id,
            )
        told: dict[str, tuple[str, ...]] = {}
        seen = asyncio.Event()

        async def tell(cell_id: str, lines: tuple[str, ...]) -> None:
            told[cell_id] = lines
            if len(told) == len(cells) or lines:
                seen.set()

        async def compare(cell: Cell) -> tuple[str, ...]:
            return await runtime.compare(cell.order, cell.runtime_id)

        watch = DriftWatch(lambda: cells, compare, tell, every_seconds=2.0)
        async with asyncio.TaskGroup() as tasks:
            looking = tasks.create_task(watch.run())
            async with asyncio.timeout(20):
                await seen.wait()
            assert told == dict.fromkeys(cells, ())
            looking.cancel()
            seen.clear()
            # A watch to which no cell is due for years, but for the one that is touched.
            watch = DriftWatch(lambda: cells, compare, tell, every_seconds=1e12)
            looking = tasks.create_task(watch.run())
            client = client_of(engine)
            exec_id = client.exec_create(cells["web/3.1"].runtime_id, ["true"])["Id"]
            client.exec_start(exec_id)
            client.close()
            hands: Any = runtime.watch()
            while (await news(hands)) != Stirred("web/3.1"):
                pass
            watch.stir("web/3.1")
            async with asyncio.timeout(20):
                await seen.wait()
            looking.cancel()
        assert told["web/3.1"] == ("somebody ran true in it (docker exec)",)
