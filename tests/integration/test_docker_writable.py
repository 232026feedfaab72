"""The places that a manifest makes writable, in images with a USER: on a real engine."""

import contextlib
import io
import tarfile
import uuid
from collections.abc import Callable, Iterator

import pytest

from tests.support.docker_cells import a_runtime, client_of, ignore_progress, order

pytestmark = pytest.mark.docker

ACCOUNTS = {
    "etc/passwd": b"root:x:0:0::/:/bin/sh\napp:x:1234:2345::/:/bin/sh\n",
    "etc/group": b"root:x:0:\napp:x:2345:\nweb:x:3456:\n",
}
MakeImage = Callable[[str], str]


@pytest.fixture
def image_of(engine: str, busybox_image: str) -> Iterator[MakeImage]:
    """Makes an image with that USER, two accounts, and places of root's and of everybody's."""
    tags: list[str] = []
    client = client_of(engine)

    def make(user: str) -> str:
        tag = f"galactica-test/user-{uuid.uuid4().hex[:8]}:1"
        container = client.create_container(busybox_image, ["true"])["Id"]
        try:
            client.put_archive(container, "/", _files())
            client.commit(container, *tag.split(":"), changes=f"USER {user}")
        finally:
            client.remove_container(container)
        tags.append(tag)
        return tag

    with contextlib.closing(client):
        yield make
        for tag in tags:
            client.remove_image(tag, force=True)


def _files() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content in ACCOUNTS.items():
            file = tarfile.TarInfo(name)
            file.size = len(content)
            archive.addfile(file, io.BytesIO(content))
        for name, mode in (("srv/theirs", 0o755), ("srv/everybodys", 0o1777)):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, mode
            archive.addfile(directory)
        file = tarfile.TarInfo("srv/theirs/kept")
        archive.addfile(file)
    return data.getvalue()


@pytest.mark.parametrize(
    ("user", "owner"),
    [
        ("1000", "1000 0"),
        ("1000:4567", "1000 4567"),
        ("app", "1234 2345"),
        ("1234", "1234 2345"),
        ("app:web", "1234 3456"),
    ],
)
async def test_the_user_of_the_image_may_write_to_a_place_that_the_image_lacks(engine, image_of, user, owner):
    cell = order("web/0.1", image_of(user), "sleep", "1000", writable=["/var/cache/app", "/srv/new/"])
    async with a_runtime(engine) as runtime:
        running = await runtime.start(cell, ignore_progress)
        writes = "echo hi > /var/cache/app/f && echo hi > /srv/new/f && stat -c '%u %g' /var/cache/app"
        assert await runtime.execute("web/0.1", ["sh", "-c", writes], 10) == (0, owner)
        assert await runtime.compare(cell, running.runtime_id) == ()


async def test_places_of_the_image_keep_what_is_in_them(engine, image_of):
    places = ["/srv/theirs", "/srv/everybodys", "/tmp"]
    cell = order("web/0.1", image_of("app"), "sleep", "1000", writable=places)
    async with a_runtime(engine) as runtime:
        await runtime.start(cell, ignore_progress)
        look = "echo hi > /srv/theirs/f && echo hi > /srv/everybodys/f"
        look += " && stat -c '%u %a' /srv/theirs /srv/theirs/kept /srv/everybodys /tmp | tr '\\n' ' '"
        assert await runtime.execute("web/0.1", ["sh", "-c", look], 10) == (
            0,
            "1234 755 0 644 0 1777 0 1777",
        )


async def test_places_of_root_stay_roots(engine, busybox_image):
    cell = order("web/0.1", busybox_image, "sleep", "1000", writable=["/var/cache/app"])
    async with a_runtime(engine) as runtime:
        await runtime.start(cell, ignore_progress)
        command = ["stat", "-c", "%u %a", "/var/cache/app"]
        assert await runtime.execute("web/0.1", command, 10) == (0, "0 755")


async def test_what_hands_copy_into_it_later_is_still_told(engine, image_of):
    cell = order("web/0.1", image_of("1000"), "sleep", "1000", writable=["/var/cache/app"])
    async with a_runtime(engine) as runtime:
        running = await runtime.start(cell, ignore_progress)
        client = client_of(engine)
        with contextlib.closing(client):
            client.put_archive(running.runtime_id, "/var/cache/app", _files())
        await anext(runtime.watch())
        assert await runtime.compare(cell, running.runtime_id) == (
            "somebody copied files into it (docker cp)",
        )
