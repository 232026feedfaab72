"""Containers that are there already: the cells of an earlier agent, those of others, leftovers."""

import asyncio
import contextlib

import pytest

from galactica.agent.core.model import Found
from galactica.agent.runtimes.docker.spec import Scope, body_of
from galactica.agent.runtimes.port import StartFailed
from tests.support.docker_cells import (
    SERVER,
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
from tests.support.engine import remove_fleet

pytestmark = pytest.mark.docker

SLEEPER = ("sleep", "1000")


@pytest.fixture
def client(engine):
    with contextlib.closing(client_of(engine)) as client:
        yield client


async def test_another_runtime_finds_every_cell_with_its_order(engine, busybox_image):
    fleet = new_fleet()
    async with a_runtime(engine, fleet=fleet) as first, a_runtime(engine, fleet=fleet) as second:
        alive, short = web("web/0.1", busybox_image), order("web/1.1", busybox_image, "sh", "-c", "exit 4")
        watch = first.watch()
        running = await first.start(alive, ignore_progress)
        await first.start(short, ignore_progress)
        exited = await news(watch)
        await first.close()
        found = sorted(await second.list(), key=lambda one: one.order.cell_id)
        corpse = found[1].autopsy
        assert 0 <= corpse.lived_seconds < 30
        corpse.lived_seconds = exited.autopsy.lived_seconds  # told by another clock reading of the engine
        assert found == [Found(alive, running), Found(short, None, exited.autopsy)]
        assert exited.autopsy.exit_code == 4


async def test_containers_of_others_are_neither_listed_nor_touched(engine, busybox_image, client):
    fleet, other_fleet = new_fleet(), new_fleet()
    labels = {"galactica.fleet": other_fleet, "galactica.server": SERVER, "galactica.cell": "web/0.1"}
    foreign = [
        client.create_container(busybox_image, list(SLEEPER), labels=these)["Id"]
        for these in (
            labels,
            {"test": fleet},
            {**labels, "galactica.fleet": fleet, "galactica.server": "another"},
        )
    ]
    try:
        for container_id in foreign:
            client.start(container_id)
        async with a_runtime(engine, fleet=fleet) as runtime:
            assert await runtime.list() == ()
            await runtime.stop("web/0.1", "SIGKILL", 0.0)
            assert all(client.inspect_container(one)["State"]["Running"] for one in foreign)
    finally:
        for container_id in foreign[:2]:
            client.remove_container(container_id, force=True)
        remove_fleet(engine, fleet)


async def test_two_fleets_of_one_name_run_the_same_cell_side_by_side(engine, busybox_image, client):
    fleet, cell = new_fleet(), order("web/0.1", busybox_image, *SLEEPER)
    async with (
        a_runtime(engine, fleet=fleet) as ours,
        a_runtime(engine, fleet=fleet, fleet_id="fedcba9876543210") as theirs,
    ):
        own = await ours.start(cell, ignore_progress)
        foreign = await theirs.start(cell, ignore_progress)
        assert await ours.list() == (Found(cell, own),)
        assert await theirs.list() == (Found(cell, foreign),)
        assert (ours.foreign, theirs.foreign) == (1, 1)
        await theirs.stop("web/0.1", "SIGKILL", 0.0)
        assert await ours.list() == (Found(cell, own),)
        assert ours.foreign == 0
        assert client.inspect_container(own.runtime_id)["State"]["Running"]


async def test_a_cell_that_was_made_before_fleets_had_an_id_stays_ours(engine, busybox_image, client):
    fleet, cell = new_fleet(), order("web/0.1", busybox_image, *SLEEPER)
    async with a_runtime(engine, fleet=fleet) as runtime:
        body = body_of(Scope(fleet, id_of(fleet), SERVER, "127.0.0.1"), cell, init=False)
        del body["Labels"]["galactica.fleet-id"]
        container_id = client.create_container_from_config(body, f"galactica.{fleet}.web.0.1")["Id"]
        client.start(container_id)
        (found,) = await runtime.list()
        assert (found.order, found.running.runtime_id) == (cell, container_id)
        await runtime.stop("web/0.1", "SIGKILL", 0.0)
        assert (await runtime.list(), runtime.foreign) == ((), 0)


async def test_a_stranger_with_the_cells_name_is_left_alone_and_named(engine, busybox_image, client):
    fleet = new_fleet()
    name = f"galactica.{fleet}.{id_of(fleet)[:8]}.web.0.1"
    stranger = client.create_container(busybox_image, list(SLEEPER), name=name)["Id"]
    try:
        async with a_runtime(engine, fleet=fleet) as runtime:
            with pytest.raises(
                StartFailed, match=f"{name} does not belong to this server's fleet; remove or rename it"
            ):
                await runtime.start(order("web/0.1", busybox_image, *SLEEPER), ignore_progress)
            assert client.inspect_container(stranger)["State"]["Status"] == "created"
    finally:
        client.remove_container(stranger, force=True)


async def test_a_leftover_that_never_ran_is_told_of_and_makes_way(engine, busybox_image, client):
    fleet = new_fleet()
    async with a_runtime(engine, fleet=fleet) as runtime:
        cell = order("web/0.1", busybox_image, *SLEEPER)
        client.create_container(
            busybox_image,
            list(SLEEPER),
            name=f"galactica.{fleet}.{id_of(fleet)[:8]}.web.0.1",
            labels={"galactica.fleet": fleet, "galactica.server": SERVER, "galactica.cell": "web/0.1"},
        )
        (leftover,) = await runtime.list()
        assert (leftover.order.cell_id, leftover.running, leftover.autopsy.reason) == (
            "web/0.1",
            None,
            "was created but never started",
        )
        running = await runtime.start(cell, ignore_progress)
        assert await runtime.list() == (Found(cell, running),)


async def test_a_cell_lives_once(engine, busybox_image):
    async with a_runtime(engine) as runtime:
        watch = runtime.watch()
        cell = order("web/0.1", busybox_image, "sh", "-c", "exit 7")
        await runtime.start(cell, ignore_progress)
        await news(watch)
        with pytest.raises(StartFailed, match=r"ended \(exited with 7\); a cell runs only once"):
            await runtime.start(cell, ignore_progress)
        assert await runtime.list() == ()


async def test_a_cancelled_start_leaves_nothing(engine, busybox_image, client):
    fleet = new_fleet()
    async with a_runtime(engine, fleet=fleet) as runtime:
        await runtime.list()

        def exists() -> bool:
            return bool(client.containers(all=True, filters={"label": f"galactica.fleet={fleet}"}))

        async with asyncio.TaskGroup() as tasks:
            starting = tasks.create_task(
                runtime.start(order("web/0.1", busybox_image, *SLEEPER), ignore_progress)
            )
            await until(exists, "the container was created")
            starting.cancel()
        assert starting.cancelled()
        await until(lambda: not exists(), "the container of the cancelled start is gone")


async def test_ping_tells_the_round_trip(engine):
    async with a_runtime(engine) as runtime:
        assert 0 < await runtime.ping() < 2


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        ({"galactica.cell": "w" * 201}, "galactica.cell has 201 characters; the limit is 200"),
        ({"galactica.cell": "web/1.1", "galactica.digest": "d" * 201}, "galactica.digest has 201 characters"),
        ({"galactica.cell": ""}, "it has no label galactica.cell"),
    ],
    ids=["a long id", "a long digest", "no id"],
)
async def test_a_container_whose_labels_name_no_cell_is_skipped_and_told_once(
    engine, busybox_image, client, caplog, labels, why
):
    fleet, cell = new_fleet(), order("web/0.1", busybox_image, *SLEEPER)
    async with a_runtime(engine, fleet=fleet) as runtime:
        running = await runtime.start(cell, ignore_progress)
        ours = {"galactica.fleet": fleet, "galactica.server": SERVER, "galactica.fleet-id": id_of(fleet)}
        strange = client.create_container(busybox_image, list(SLEEPER), labels={**ours, **labels})["Id"]
        client.start(strange)
        for _ in range(2):
            assert await runtime.list() == (Found(cell, running),)
            assert [one.cell_id for one in await runtime.living()] == ["web/0.1"]
        told = [record.getMessage() for record in caplog.records if "container skipped" in record.message]
        assert len(told) == 1
        assert why in told[0]


async def test_a_container_whose_spec_cannot_be_read_hides_no_other(engine, busybox_image, client):
    fleet, cell = new_fleet(), order("web/0.1", busybox_image, *SLEEPER)
    async with a_runtime(engine, fleet=fleet) as runtime:
        running = await runtime.start(cell, ignore_progress)
        labels = {
            "galactica.fleet": fleet,
            "galactica.server": SERVER,
            "galactica.fleet-id": id_of(fleet),
            "galactica.cell": "web/1.1",
            "galactica.order": "not what a scheduler wrote",
        }
        client.start(client.create_container(busybox_image, list(SLEEPER), labels=labels)["Id"])
        found = {one.order.cell_id: one.running for one in await runtime.list()}
        assert found["web/0.1"] == running
        assert found["web/1.1"] is not None
