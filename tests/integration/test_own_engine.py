"""The engine that the tests start where none runs: it serves, and it leaves nothing behind."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.engine import HELLO_1, HELLO_2, OwnEngine, client_of, import_hello_images
from tests.support.processes import below

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.xdist_group("engines")]


def traces_of(engine_directory):
    """What an engine of this directory has on the machine: mounts, network links, processes, files."""
    name = Path(engine_directory).name
    bridge = f"gal{name[-8:]}"
    found = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if name in line]
    found += [str(link) for link in Path("/sys/class/net").glob(bridge)]
    found += [rule for rule in packet_filter_rules() if bridge in rule]
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if f"{name}/".encode() in entry.read_bytes():
                found.append(str(entry))
    return found + [path for path in [str(engine_directory)] if Path(path).exists()]


def packet_filter_rules():
    return subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout.splitlines()


def run_in(client, image, *command):
    """Starts a container with the command; answers its exit code and what it wrote."""
    container = client.create_container(image, list(command) or None)["Id"]
    client.start(container)
    return client.wait(container)["StatusCode"], client.logs(container).decode()


def test_the_images_say_their_version_and_have_a_shell():
    own = OwnEngine()
    try:
        own.start()
        import_hello_images(own.host)
        with contextlib.closing(client_of(own.host)) as client:
            told = [
                run_in(client, image, "sh", "-c", "cat index.html; exit 3") for image in (HELLO_1, HELLO_2)
            ]
            made = {image["Id"] for image in client.images()}
            import_hello_images(own.host)
            assert {image["Id"] for image in client.images()} == made
        assert told == [(3, "hello 1\n"), (3, "hello 2\n")]
    finally:
        own.stop()
    assert traces_of(own.directory) == []


def test_an_engine_that_was_killed_leaves_nothing_behind_either():
    own = OwnEngine()
    try:
        own.start()
        import_hello_images(own.host)
        with contextlib.closing(client_of(own.host)) as client:
            container = client.create_container(HELLO_1, ["sleep", "1000"])["Id"]
            client.start(container)
            cell = client.inspect_container(container)["State"]["Pid"]
        os.kill(int((own.directory / "pid").read_text()), signal.SIGKILL)
    finally:
        own.stop()
    assert traces_of(own.directory) == []
    assert not Path(f"/proc/{cell}").exists()
    assert [path for path in below(Path("/sys/fs/cgroup")) if container in path.name and path.is_dir()] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_engine_ends_with_its_command_when_both_are_asked_to_end(number):
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.with_engine", "sh", "-c", 'echo "$DOCKER_HOST"; exec sleep 1000'],
        env=os.environ | {"DOCKER_HOST": "unix:///nowhere"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        host = process.stdout.readline().strip()
        directory = Path(host.removeprefix("unix://")).parent
        assert traces_of(directory) != []
        process.send_signal(number)
        assert process.wait(60) == 128 + number
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()
    assert traces_of(directory) == []


def test_the_commands_exit_code_is_handed_on():
    command = [sys.executable, "-m", "tests.with_engine", "sh", "-c", "exit 7"]
    assert subprocess.run(command, check=False).returncode == 7
