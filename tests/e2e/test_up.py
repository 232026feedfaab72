"""``galactica up``: a whole fleet in one terminal, ended by Ctrl-C and taken up again."""

from __future__ import annotations

import signal
import socket
import tempfile
from pathlib import Path

import psutil
import pytest

from tests.support.fleet import WAIT_SECONDS, Fleet
from tests.support.processes import below, cli_command, is_alive, kill, pids


@pytest.fixture
def fleet():
    """Nothing of it is running yet."""
    fleet = Fleet(Path(tempfile.mkdtemp(prefix="galactica-e2e-")), name="galactica")
    try:
        yield fleet
    finally:
        fleet.close()


def up(fleet, *words):
    """Returns when its own server is there."""
    command = [*cli_command(), "up", "--data", str(fleet.directory / "up"), "--listen", fleet.address]
    fleet.scheduler = fleet.spawn("up", [*command, "--runtime", "process", *words], anew=True)
    fleet.until(fleet.answers, "it answers")
    fleet.until(lambda: is_whole(fleet), "its agent is attached")


def is_whole(fleet):
    return [(server["phase"], server["verdict"]) for server in fleet.servers()] == [("READY", "healthy")]


def agent_of(fleet):
    (agent,) = [p for p in psutil.Process(fleet.scheduler.pid).children() if "galactica.agent" in p.cmdline()]
    return agent


def ctrl_c(fleet):
    """Its exit code. Nothing of its own is left."""
    agent = agent_of(fleet)
    fleet.scheduler.send_signal(signal.SIGINT)
    code = fleet.scheduler.wait(WAIT_SECONDS)
    assert not is_alive(agent.pid)
    return code


def test_ctrl_c_ends_both_and_leaves_the_cells_which_the_next_up_takes_over(fleet):
    up(fleet, "--label", "zone=a")
    (server,) = fleet.servers()
    assert (server["labels"], server["runtimes"]) == ({"zone": "a"}, ["process"])
    before = fleet.apply("web", 2, placement={"require": {"zone": "a"}})
    assert ctrl_c(fleet) == 0
    assert all(map(is_alive, pids(before).values()))
    unreachable = fleet.run("status")
    assert (unreachable.code, "galactica up" in unreachable.err) == (3, True)

    up(fleet, "--label", "zone=a")
    after = fleet.until_ready("web", 2)
    assert pids(after) == pids(before)
    kill(after[0])
    fleet.until_ready("web", 2, without=("web/0.1",))
    assert [event["cell"] for event in fleet.events("CellCondemned")] == ["web/0.1"]


def test_up_that_is_killed_takes_its_agent_along_and_leaves_the_cells(fleet):
    up(fleet)
    before = fleet.apply("web", 2)
    agent = agent_of(fleet)
    fleet.kill_scheduler()
    fleet.until(lambda: not is_alive(agent.pid), "its agent ends")
    assert all(map(is_alive, pids(before).values()))
    up(fleet)
    assert pids(fleet.until_ready("web", 2)) == pids(before)


def test_an_agent_that_dies_under_up_is_followed_by_another_with_the_same_cells(fleet):
    up(fleet)
    before = fleet.apply("web", 2)
    first = agent_of(fleet)
    first.kill()
    fleet.until(lambda: not is_alive(first.pid), "it is dead")
    fleet.until(lambda: not is_whole(fleet), "that is noticed")
    fleet.until(lambda: is_whole(fleet), "another is attached")
    assert agent_of(fleet).pid != first.pid
    assert pids(fleet.until_ready("web", 2)) == pids(before)
    assert fleet.events("CellCondemned", "ServerCondemned") == []


def test_stop_cells_ends_them_too(fleet):
    up(fleet, "--stop-cells")
    before = fleet.apply("web", 2)
    assert ctrl_c(fleet) == 0
    assert [pid for pid in pids(before).values() if is_alive(pid)] == []
    assert fleet.left_running() == []


def test_a_port_that_is_in_use_is_told_and_nothing_is_begun(fleet):
    host, _, port = fleet.address.partition(":")
    with socket.create_server((host, int(port))):
        refused = fleet.run("up", "--data", str(fleet.directory / "up"), "--listen", fleet.address)
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.splitlines()[-2] == f"Error: cannot listen on {fleet.address}: it is in use"
    assert "--listen HOST:PORT" in refused.err.splitlines()[-1]
    assert not fleet.context.exists()
    assert fleet.left_running() == []


def test_the_docker_runtime_without_an_engine_is_told_in_the_terminal_and_can_be_ended(fleet):
    """It waits for the engine, as after a boot; what is ordered meanwhile is held and says so."""
    nowhere = f"unix://{fleet.directory}/no-engine"
    command = [*cli_command(), "up", "--data", str(fleet.directory / "up"), "--listen", fleet.address]
    fleet.scheduler = fleet.spawn("up", [*command, "--runtime", "docker"], anew=True, DOCKER_HOST=nowhere)
    says = f"the Docker engine at {nowhere} does not answer"
    fleet.until(lambda: says in fleet.log("up", 100_000), "the terminal says so")
    fleet.done("apply", str(fleet.service("web", 1, image="hello:1")))
    # Before that the scheduler waits for a lease to hear the server, which has enrolled.
    held = fleet.until(lambda: fleet.held("web").get("no_capacity"), "the cell is held")
    assert "no server can take it: 1 server" in held["reason"]
    assert "Traceback" not in fleet.log("up", 100_000)
    assert ctrl_c(fleet) == 0
    assert fleet.left_running() == []


def test_the_private_keys_that_up_makes_are_for_its_owner_alone(fleet):
    up(fleet)
    keys = [path for path in below(fleet.directory) if path.is_file() and b"PRIVATE KEY" in _head(path)]
    assert {path.name for path in keys} >= {"context.json"}
    assert len(keys) >= 3, "the CA's, the agent's, the operator's"
    assert {oct(path.stat().st_mode & 0o777) for path in keys} == {"0o600"}


def _head(path):
    return path.read_bytes()[:8_192]
