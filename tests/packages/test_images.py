"""The container images: built without a network, run by users without power, and a cell of a fleet made of them."""

from __future__ import annotations

import json
import shlex
import subprocess
import uuid

import pytest

from galactica import __version__
from tests.support.debian import Root, command, until
from tests.support.engine import HELLO_1
from tests.support.processes import ROOT

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("packages"), pytest.mark.timeout(600)]

BASE = "galactica-test/python"
PREFIX = "galactica-test/galactica"
LOCKED = ["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--tmpfs=/tmp"]


@pytest.fixture(scope="module")
def images(wheelhouse, engine):
    """The base has what python:3.11-slim has that matters here: Debian 12, Python 3.11 as python3, and no more."""
    made = {part: f"{PREFIX}-{part}:{__version__}" for part in ("scheduler", "agent")}
    try:
        with Root.fresh() as root:
            root.apt_install("python3")
            pack = f"tar -C {shlex.quote(str(root.directory))} --exclude=./var/lib/apt/lists -c ."
            command("bash", "-o", "pipefail", "-c", f"{pack} | docker import - {BASE}")
        build = ["env", f"PREFIX={PREFIX}", str(ROOT / "deploy/containers/build"), str(wheelhouse)]
        command(*build, "--network=none", "--build-arg", f"BASE={BASE}")
        yield made
    finally:
        subprocess.run(["docker", "image", "rm", "--force", *made.values(), BASE], check=False)


@pytest.fixture
def run():
    """Begins containers; they and their volumes are gone afterwards."""
    names = []

    def begin(*words):
        names.append(f"galactica-test-{uuid.uuid4().hex[:8]}")
        command("docker", "run", "--detach", f"--name={names[-1]}", *words)
        return names[-1]

    try:
        yield begin
    finally:
        for name in reversed(names):
            command("docker", "rm", "--force", "--volumes", name)


def inspect(name, template):
    return command("docker", "inspect", f"--format={template}", name).strip()


def galactica(scheduler, *words, given=""):
    """The command line in the scheduler's own container."""
    done = subprocess.run(
        ["docker", "exec", "--interactive", scheduler, "galactica", *words],
        input=given,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (words, done.stdout, done.stderr, logs(scheduler))
    return done.stdout


def logs(name):
    return command("docker", "logs", "--tail=30", name)


def ready_scheduler(run, images):
    name = run(*LOCKED, images["scheduler"])
    until(lambda: inspect(name, "{{.State.Health.Status}}") == "healthy", "its health check says healthy")
    return name


@pytest.mark.parametrize("part", ["scheduler", "agent"])
def test_the_images_run_as_a_user_without_power_and_bring_no_wheels(images, part):
    shell = ["docker", "run", "--rm", "--network=none", "--entrypoint=sh", images[part], "-c"]
    assert command(*shell, "id -u; ls -d /wheels 2>/dev/null || true") == "7400\n"


def test_the_scheduler_says_that_it_is_well_and_ends_when_it_is_told_to(run, images):
    scheduler = ready_scheduler(run, images)
    command("docker", "stop", "--time=30", scheduler)
    assert inspect(scheduler, "{{.State.ExitCode}}") == "0"


def test_a_scheduler_that_does_not_answer_is_unhealthy(run, images):
    quick = ["--health-interval=1s", "--health-start-period=0s", "--health-retries=2"]
    dead = run(*LOCKED, *quick, "--entrypoint=sleep", images["scheduler"], "1000")
    until(lambda: inspect(dead, "{{.State.Health.Status}}") == "unhealthy", "its health check says unhealthy")


def test_a_fleet_of_containers_runs_a_cell(run, images, engine, busybox_image):
    scheduler = ready_scheduler(run, images)
    token = json.loads(galactica(scheduler, "token", "create", "-o", "json"))["token"]
    address = inspect(scheduler, "{{.NetworkSettings.IPAddress}}")
    socket = engine.removeprefix("unix://")
    group = command("stat", "--dereference", "--format=%g", socket).strip()
    agent = run(
        *(*LOCKED, "--network=host", f"--volume={socket}:/var/run/docker.sock", f"--group-add={group}"),
        *(f"--env=GALACTICA_TOKEN={token}", images["agent"], f"--scheduler={address}:7400", "--id=host-1"),
    )
    manifest = {"kind": "service", "name": "web", "replicas": 1, "image": HELLO_1, "stop": {"grace": "1s"}}
    put = ["docker", "exec", "--interactive", scheduler, "sh", "-c", "cat > web.yaml"]
    subprocess.run(put, input=json.dumps(manifest | {"command": ["sleep", "1000"]}), text=True, check=True)
    galactica(scheduler, "apply", "web.yaml")
    try:
        galactica(scheduler, "wait", "service/web", "--ready", "--timeout", "30s")
    except AssertionError as error:
        raise AssertionError(logs(agent)) from error
    (cell,) = json.loads(galactica(scheduler, "cells", "-o", "json"))
    assert inspect(cell["runtime_id"], "{{.State.Running}}") == "true"
    galactica(scheduler, "delete", "service/web")
    until(lambda: json.loads(galactica(scheduler, "cells", "-o", "json")) == [], "the cell has gone")
