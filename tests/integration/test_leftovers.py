"""What a command leaves on the machine is named, removed, and a failure; and a fleet of the tests leaves nothing."""

import os
import re
import subprocess
import sys
import uuid
from pathlib import Path

import psutil
import pytest

from tests.support.fleet import a_fleet
from tests.support.processes import ROOT

LEAVE = """
import json, os, subprocess, sys
import docker
from tests.support.engine import HELLO_1, import_hello_images
name = sys.argv[1]
import_hello_images(os.environ["DOCKER_HOST"])
sleeper = subprocess.Popen(["sleep", "1000"], start_new_session=True)
subprocess.run(["ip", "netns", "add", name], check=True)
engine = docker.APIClient(os.environ["DOCKER_HOST"], version="auto")
made = engine.create_container(HELLO_1, ["sleep", "1000"], name=name, labels={"galactica.fleet": name})
engine.start(made["Id"])
print(sleeper.pid, flush=True)
"""


def run(*command, engine):
    return subprocess.run(
        [sys.executable, "-m", "tests.with_engine", *command],
        cwd=ROOT,
        env={**os.environ, "DOCKER_HOST": engine},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.root
@pytest.mark.xdist_group("engines")
def test_what_a_command_leaves_is_named_and_removed_and_fails_it():
    name = f"left-{uuid.uuid4().hex[:8]}"
    done = run(sys.executable, "-c", LEAVE, name, engine="unix:///nowhere")
    assert done.returncode == 1
    pid = int(done.stdout)
    assert done.stderr.splitlines() == [
        f"with_engine: the command has left {what}"
        for what in (f"process {pid}: sleep 1000", f"network namespace {name}", f"container {name}")
    ]
    assert not psutil.pid_exists(pid)
    assert not Path(f"/run/netns/{name}").exists()


@pytest.mark.root
def test_a_command_that_takes_all_of_it_along_is_fine_whatever_others_make_meanwhile(engine):
    name = f"left-{uuid.uuid4().hex[:8]}"
    others = f"nsenter --mount=/proc/{os.getpid()}/ns/mnt ip netns add {name}"
    try:
        done = run("sh", "-c", f"{others} && sleep 0.1 & wait", engine=engine)
        assert (done.returncode, done.stderr) == (0, "")
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False)


def test_a_fleet_leaves_nothing_of_a_pool_whose_servers_its_scheduler_began():
    """They live in sessions of their own and outlive the scheduler, as their cells outlive them."""
    with a_fleet() as fleet:
        pool = {"kind": "pool", "name": "rack", "size": 2, "provider": "local"}
        file = fleet.directory / "rack.yaml"
        file.write_text(f"{pool | {'server': {'runtime': 'process'}}}")
        fleet.done("apply", str(file))
        fleet.done("wait", "pool/rack", "--ready", "--timeout", "30s")
        cells = fleet.apply("web", 2)
        began = [int(re.sub("^pid:", "", one["provider_ref"])) for one in fleet.servers()]
        began += [int(cell["runtime_id"]) for cell in cells]
        assert len(began) == 4
        assert all(map(psutil.pid_exists, began))
    assert fleet.left_running() == []
    assert [pid for pid in began if psutil.pid_exists(pid)] == []
