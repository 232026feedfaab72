"""What process cells leave behind is removed, and keeps none of them from being gone: with real files and mounts."""

import fcntl
import os
import shutil
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from galactica.agent.runtimes.process import clearing
from tests.support.process_cells import (
    FLEET_ID,
    HOME,
    REPOSITORY,
    SLEEP,
    agent_on,
    left_in,
    order,
    quiet,
    shell,
    until,
)

LEGACIES = {
    "directories without permissions": "mkdir -p a/b/c; touch a/b/c/f; chmod 000 a/b/c a/b a",
    "a socket and a pipe": f"mkfifo p; {sys.executable} -c 'import socket; socket.socket(1).bind(\"s\")'",
    "names that are no text": "touch \"$(printf '\\377\\n')\"; mkdir -- '-rf' ' '",
    "links out of its folder": "ln -s {outside} link; ln -s /nowhere broken",
    "a tree deeper than a path may be long": f"{sys.executable} -c '"
    'import os; [(os.mkdir(name), os.chdir(name)) for name in ["dddd"] * 1200]\'',
    "names like those of the removal": "mkdir -p .lifted-1-0/x .lifted-1-1; touch .lifted-1-2",
}
LEGACIES_OF_ROOT = {
    "immutable files": "mkdir d; touch d/f; chattr +i d/f; chattr +a d; chattr +i .",
    "a mounted file system": "mkdir -p m/n; mount -t tmpfs tmpfs m; mkdir m/o; mount -t tmpfs tmpfs m/o; touch m/o/f",
    "a directory of the host": "mkdir m; mount --bind {outside} m",
}


async def emptied(tmp_path: Path, legacy: str) -> None:
    """Run a cell that leaves this behind, and end it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    cells = tmp_path / "cells"
    async with agent_on(cells) as runtime:
        script = f"{legacy.replace('{outside}', str(outside))}; echo done; exec sleep 300"
        await runtime.start(shell(script), quiet)
        log = cells / HOME / "web%2F0.1" / "log"
        await until(lambda: "done" in log.read_text())
        assert log.read_text() == "done\n"
        await runtime.stop("web/0.1", "SIGTERM", 5)
        assert (await runtime.list(), left_in(cells)) == ([], [])
    assert (outside / "kept").exists()


@pytest.mark.parametrize("legacy", LEGACIES.values(), ids=LEGACIES)
async def test_folder_is_removed_with(tmp_path, legacy):
    await emptied(tmp_path, legacy)


@pytest.mark.root
@pytest.mark.parametrize("legacy", LEGACIES_OF_ROOT.values(), ids=LEGACIES_OF_ROOT)
async def test_folder_of_a_cell_of_root_is_removed_with(tmp_path, legacy):
    if os.geteuid() != 0 or ("chattr" in legacy and not set_immutable(tmp_path, True)):
        pytest.skip("this needs root, and a file system with immutable files")
    set_immutable(tmp_path, False)
    await emptied(tmp_path, legacy)


def set_immutable(path: Path, wanted: bool) -> bool:
    """Whether the file system can do that."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        flags = struct.unpack("l", fcntl.ioctl(descriptor, clearing.GET_FLAGS, struct.pack("l", 0)))[0]
        flags = flags | 0x10 if wanted else flags & ~0x10
        fcntl.ioctl(descriptor, clearing.SET_FLAGS, struct.pack("l", flags))
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


STUBBORN_AGENT = """
import asyncio, sys
from pathlib import Path
from galactica.v1 import cell_pb2, link_pb2
from galactica.agent.runtimes.process.runtime import ProcessRuntime

def order(cell_id):
    return link_pb2.Order(cell_id=cell_id, digest="d1", spec=cell_pb2.Spec(runtime=2, command=["sleep", "300"]))

async def main():
    runtime = ProcessRuntime(Path(sys.argv[1]), "test", sys.argv[2])
    await runtime.start(order("web/0.1"), lambda text: None)
    print("started", flush=True)
    sys.stdin.readline()
    await runtime.stop("web/0.1", "SIGTERM", 5)
    print([one.order.cell_id for one in await runtime.list()], flush=True)
    await runtime.start(order("web/0.2"), lambda text: None)
    await runtime.stop("web/0.2", "SIGTERM", 5)
    print([one.order.cell_id for one in await runtime.list()], flush=True)
    await runtime.close()

asyncio.run(main())
"""


@pytest.mark.root
async def test_folder_that_cannot_be_removed_is_told_and_tried_again_and_holds_up_nothing(tmp_path):
    if os.geteuid() != 0 or shutil.which("setpriv") is None or not set_immutable(tmp_path, False):
        pytest.skip("this needs root, setpriv, and a file system with immutable files")
    cells = tmp_path / "cells"
    command = [
        *("setpriv", "--bounding-set", "-linux_immutable"),
        *(sys.executable, "-c", textwrap.dedent(STUBBORN_AGENT), str(cells), FLEET_ID),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])}
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as agent:
        assert agent.stdout.readline() == "started\n"
        kept = cells / HOME / "web%2F0.1" / "scratch" / "kept"
        kept.touch()
        assert set_immutable(kept, True)
        told, errors = agent.communicate("go on\n", timeout=60)
    assert told == "[]\n[]\n"
    assert "cannot be removed" in errors
    [aside] = (cells / HOME / ".leftovers").iterdir()
    [kept] = aside.rglob("kept")
    assert set_immutable(kept, False)
    async with agent_on(cells) as successor:
        assert await successor.list() == []
        await until(lambda: left_in(cells) == [])


async def test_next_agent_takes_no_leftover_for_a_cell(tmp_path):
    (tmp_path / HOME / ".leftovers" / "web%2F0.1.17" / "scratch").mkdir(parents=True)
    async with agent_on(tmp_path) as runtime:
        assert await runtime.list() == []
        await runtime.start(order(SLEEP), quiet)
        await until(lambda: not (tmp_path / HOME / ".leftovers").exists())
        assert [found.order.cell_id for found in await runtime.list()] == ["web/0.1"]
