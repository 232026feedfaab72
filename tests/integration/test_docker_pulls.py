"""Images: pulled when missing, once for all who wait, with credentials and progress."""

import asyncio
import contextlib
import io
import os
import tarfile
import uuid

import docker
import pytest

from galactica.agent.runtimes.docker.pull import Layers
from galactica.agent.runtimes.port import StartFailed
from tests.support.docker_cells import (
    REGISTRY_PASSWORD,
    REGISTRY_USER,
    a_registry,
    a_runtime,
    client_of,
    ignore_progress,
    order,
    until,
)

pytestmark = [pytest.mark.docker, pytest.mark.xdist_group("engines")]

BIG_BYTES = 24 << 20


@contextlib.contextmanager
def _pushed(engine, busybox, registry):
    """A reference in the registry that the engine lacks: busybox and a big layer that nothing else has."""
    reference = f"{registry.address}/app-{uuid.uuid4().hex[:8]}:1"
    repository = reference.removesuffix(":1")
    login = {"username": REGISTRY_USER, "password": REGISTRY_PASSWORD}
    with contextlib.closing(client_of(engine)) as client:
        container = client.create_container(busybox, ["true"])["Id"]
        client.put_archive(container, "/", _archive())
        client.commit(container, repository, "1")
        client.remove_container(container)
        for line in client.push(repository, "1", stream=True, decode=True, auth_config=login):
            assert "error" not in line, line
        client.remove_image(reference)
        try:
            yield reference
        finally:
            with contextlib.suppress(docker.errors.ImageNotFound):
                client.remove_image(reference, force=True)


def _archive():
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("big")
        entry.size = BIG_BYTES
        tar.addfile(entry, io.BytesIO(os.urandom(BIG_BYTES)))
    return archive.getvalue()


def _wait_and_remove(engine, runtime):
    """Cells go before their image does."""
    return asyncio.gather(*(runtime.stop(f"web/{slot}.1", "SIGKILL", 1.0) for slot in range(3)))


async def test_a_missing_image_is_pulled_once_for_all_who_wait_and_tells_its_progress(engine, busybox_image):
    with a_registry(with_password=False) as registry, _pushed(engine, busybox_image, registry) as image:
        async with a_runtime(engine) as runtime:
            told: list[list[str]] = [[], [], []]
            async with asyncio.timeout(90):
                await asyncio.gather(
                    *(
                        runtime.start(order(f"web/{slot}.1", image, "sleep", "1000"), lines.append)
                        for slot, lines in enumerate(told)
                    )
                )
            assert told[0][0] == f"pulling {image}"
            assert told[0][-1] == f"pulling {image}, 100 %"
            percents = [int(line.split(", ")[1].removesuffix(" %")) for line in told[0][1:]]
            assert percents == sorted(set(percents))
            assert (told[1][-1], told[2][-1]) == (told[0][-1], told[0][-1])
            await _wait_and_remove(engine, runtime)
        asked = (registry.directory / "log").read_text().count("GET /v2/app/manifests/1 HTTP")
        asked = (registry.directory / "log").read_text().count('/manifests/1 HTTP/1.1" 200')
        assert asked == 1


async def test_a_private_registry_gives_the_image_for_the_credentials_in_the_file(engine, busybox_image):
    with a_registry(with_password=True) as registry, _pushed(engine, busybox_image, registry) as image:
        async with a_runtime(engine, credentials=registry.credentials()) as runtime:
            await runtime.start(order("web/0.1", image, "sleep", "1000"), ignore_progress)
            assert [one.running is not None for one in await runtime.list()] == [True]
            await _wait_and_remove(engine, runtime)


@pytest.mark.parametrize("password", [None, "wrong"])
async def test_a_private_registry_refuses_without_the_right_credentials(engine, busybox_image, password):
    with a_registry(with_password=True) as registry:
        image = f"{registry.address}/app:1"
        credentials = registry.credentials(password) if password else None
        async with a_runtime(engine, credentials=credentials) as runtime:
            with pytest.raises(StartFailed) as failed:
                await runtime.start(order("web/0.1", image), ignore_progress)
            head = f"image {image} is not on this server and cannot be pulled: "
            assert str(failed.value).startswith(head)
            assert "no basic auth credentials" in str(failed.value) or "unauthorized" in str(failed.value)
            assert await runtime.list() == ()


async def test_an_image_that_no_registry_has_is_named_with_the_registrys_words(engine):
    with a_registry(with_password=False) as registry:
        image = f"{registry.address}/hello:9"
        async with a_runtime(engine) as runtime:
            with pytest.raises(StartFailed) as failed:
                await runtime.start(order("web/0.1", image), ignore_progress)
            head = f"image {image} is not on this server and cannot be pulled: "
            assert str(failed.value).startswith(head)
            assert "not found" in str(failed.value) or "manifest unknown" in str(failed.value)


@contextlib.asynccontextmanager
async def _silent_registry():
    """A registry that says hello and then never answers. Its address, and what is set when somebody waits for it."""
    asked = asyncio.Event()

    async def serve(reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"GET /v2/ "):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
            elif head.startswith((b"GET", b"HEAD")):
                asked.set()
                await reader.read()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{listening.sockets[0].getsockname()[1]}", asked
    finally:
        listening.close()


async def test_silent_registries_do_not_stand_in_the_way_of_one_that_answers(engine, busybox_image):
    with a_registry(with_password=False) as registry, _pushed(engine, busybox_image, registry) as image:
        async with contextlib.AsyncExitStack() as stack:
            runtime = await stack.enter_async_context(a_runtime(engine))
            silent = [await stack.enter_async_context(_silent_registry()) for _ in range(4)]
            starts = [
                asyncio.create_task(runtime.start(order(f"hung/{n}.1", f"{address}/x:1"), ignore_progress))
                for n, (address, _) in enumerate(silent)
            ]
            try:
                async with asyncio.timeout(60):
                    await asyncio.gather(*(asked.wait() for _, asked in silent[:3]))
                    await runtime.start(order("web/0.1", image, "sleep", "1000"), ignore_progress)
            finally:
                for one in starts:
                    one.cancel()
                await asyncio.wait(starts)
            await _wait_and_remove(engine, runtime)


async def test_a_pull_that_nobody_waits_for_any_more_does_not_stand_in_the_way_of_the_next(
    engine, busybox_image
):
    with a_registry(with_password=False) as registry, _pushed(engine, busybox_image, registry) as image:
        async with a_runtime(engine) as runtime:
            told: list[str] = []
            async with asyncio.TaskGroup() as tasks:
                start = tasks.create_task(runtime.start(order("web/0.1", image, "sleep", "9"), told.append))
                await until(lambda: bool(told), "the pull began")
                start.cancel()
            assert start.cancelled()
            async with asyncio.timeout(60):
                await runtime.start(order("web/1.1", image, "sleep", "1000"), ignore_progress)
            await _wait_and_remove(engine, runtime)


def test_progress_adds_up_layers_and_never_goes_back():
    layers = Layers()
    lines = [
        {"status": "Pulling from hello", "id": "1"},
        {"status": "Pulling fs layer", "id": "a"},
        {"status": "Pulling fs layer", "id": "b"},
        {"status": "Already exists", "id": "b"},
        {"status": "Downloading", "id": "a", "progressDetail": {"current": 30, "total": 99}},
        {"status": "Download complete", "id": "a"},
        {"status": "Pull complete", "id": "a"},
        {"status": "Status: Downloaded newer image"},
    ]
    assert [layers.see(line) for line in lines] == [0, 0, 0, 50, 50, 100, 100, 100]
