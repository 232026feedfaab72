"""``make demo``, with short times: it tells the truth by its exit code, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import pytest

from tests.support.forked import run_command_line
from tests.support.processes import ROOT, naming

pytestmark = pytest.mark.xdist_group("e2e-demo")

SECONDS = 60.0


@pytest.fixture
def play(tmp_path):
    """Begin the demo with these words. Whatever it began is below ``tmp_path`` and is ended."""
    begun = []

    def begin(*words):
        command = [
            sys.executable,
            "deploy/demo.py",
            "--murders",
            "2",
            "--every",
            "0.5",
            "--calm",
            "1",
            *words,
        ]
        demo = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(tmp_path), "COLUMNS": "120"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        begun.append(demo)
        return demo

    yield begin
    for demo in begun:
        demo.kill()
        demo.wait()
        demo.stdout.close()
    for process in left_running(tmp_path):
        process.kill()


def left_running(directory):
    """The demo itself has the directory in TMPDIR; what it begins lives below it."""
    return naming(f"{directory}/galactica-demo-")


def told_by(demo):
    return demo.communicate(timeout=SECONDS)[0]


def test_a_whole_server_dies_and_a_new_one_and_its_cells_are_there_again(play, tmp_path):
    demo = play("--runtime", "process")
    told = told_by(demo)
    assert demo.returncode == 0, told
    victim, successor = "rack/1.1", "rack/1.2"
    killed = re.search(rf"kill -9 of the whole server {victim}: its agent and its (\d) cells", told)
    assert killed, told
    assert f"a new server has replaced the dead one: {successor}" in told
    assert f"{victim} was condemned as dead by the rule provider_gone" in told
    times = dict(
        re.findall(r"│ ([a-z ]+?) +│ [^│]+ │ +([\d,]+) │", told.partition("killed with its cells")[2])
    )
    assert list(times) == [
        "condemned",
        "a new server ordered",
        "first replacement cell ordered",
        "all its cells replaced and ready",
        "the new server ready",
    ], told
    assert f"{2 + int(killed[1])} cells and 1 server died; 9 cells on 3 servers are ready" in told
    assert left_running(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_containers_die_with_their_server_too(play, tmp_path, engine, busybox_image):
    demo = play("--runtime", "docker", "--patience", "40")
    told = told_by(demo)
    assert demo.returncode == 0, told
    assert "9 cells on 3 servers are ready" in told
    assert left_running(tmp_path) == []


def test_a_fleet_that_does_not_heal_is_a_failure_and_is_told(play, tmp_path):
    """Somebody takes the service away in the middle: nine cells are never ready again."""
    demo = play("--runtime", "process", "--patience", "15", "--calm", "6")
    context = wait_for(lambda: next(tmp_path.glob("galactica-demo-*/context.json"), None))
    environment = {**os.environ, "GALACTICA_CONTEXT": str(context)}
    wait_for(lambda: asked(environment, "delete", "service/web"))  # it is refused until there is one
    told = told_by(demo)
    assert demo.returncode == 1, told
    assert "the demo failed: timeout: waited 15 s for " in told, told
    assert "the fleet replaced all its dead" not in told
    assert left_running(tmp_path) == []


def asked(environment, *words):
    done = run_command_line(words, environment)
    return done.stdout if done.returncode == 0 else ""


def wait_for(look):
    deadline = time.monotonic() + SECONDS
    while not (value := look()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value
