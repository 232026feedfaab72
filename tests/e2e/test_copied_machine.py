"""A machine whose disk was copied with its agent's data directory: two agents with one identity."""

from __future__ import annotations

import shutil
import signal

from tests.support.fleet import a_fleet
from tests.support.processes import is_alive, pids


def begin_copy(fleet):
    """Under the name of its data directory here; it says that it is host1."""
    ignored = shutil.ignore_patterns("agent.lock", "cells", "fence")
    shutil.copytree(fleet.directory / "host1", fleet.directory / "copy", ignore=ignored)
    words = [*fleet.agent_words("host1", "copy"), "--runtime", "process"]
    fleet.agents["copy"] = fleet.spawn("copy", words)


def test_copy_that_follows_a_machine_that_froze_gets_no_exclusive_cell_before_the_first_has_ended():
    with a_fleet("host1") as fleet:
        (before,) = fleet.apply("db", 1, exclusive=True)
        (pid,) = pids([before]).values()
        fleet.agents["host1"].send_signal(signal.SIGSTOP)
        begin_copy(fleet)
        fleet.until(lambda: "event=attached" in fleet.log("copy"), "the copy is attached")
        assert is_alive(pid)
        reason = "db/0.1 may still run, and two must never run at once: another machine was host1"
        fleet.until(
            lambda: fleet.held("db").get("exclusive", {}).get("reason", "").startswith(reason),
            "what it waits for",
        )
        fleet.until_ready("db", 1, without=("db/0.1",))
        assert not is_alive(pid)
        fleet.kill_agent("host1")


def test_a_copy_that_is_first_after_a_restart_of_the_scheduler_ends_no_cell_and_yields_to_the_first_machine():
    with a_fleet("host1") as fleet:
        before = fleet.apply("web", 2)
        position = fleet.position()
        fleet.agents["host1"].send_signal(signal.SIGSTOP)
        fleet.kill_scheduler()
        fleet.start_scheduler()
        begin_copy(fleet)
        fleet.until(lambda: "event=attached" in fleet.log("copy"), "the copy is attached")
        fleet.agents["host1"].send_signal(signal.SIGCONT)
        fleet.until(lambda: "another live machine" in fleet.log("copy"), "the copy is turned away")
        fleet.hear("host1", 3)
        assert pids(fleet.until_ready("web", 2)) == pids(before)
        assert all(map(is_alive, pids(before).values()))
        assert fleet.events("CellCondemned", "ServerCondemned", "MachineRecognised", after=position) == []


def test_the_first_machine_keeps_its_session_and_its_cells_and_the_copy_is_told_and_may_follow_it():
    with a_fleet("host1") as fleet:
        before = fleet.apply("web", 2)
        position = fleet.position()
        begin_copy(fleet)
        (note,) = fleet.until(lambda: fleet.server("host1")["notes"], "the second machine is told")
        assert note.startswith(
            "a second live machine claims the identity of server host1, from ipv4:127.0.0.1:"
        )
        assert note in fleet.status()["notes"]
        fleet.until(lambda: fleet.log("copy").count("another live machine") >= 3, "it tries again")
        fleet.hear("host1", 3)
        assert fleet.status()["healthy"]
        assert pids(fleet.until_ready("web", 2)) == pids(before)
        assert all(map(is_alive, pids(before).values()))
        assert fleet.events(after=position) == []
        assert "replaced this one" not in fleet.log("host1")

        # The first one ends in order: then nobody claims its place, and the copy is the server.
        assert fleet.end_agent("host1") == 0
        fleet.until(lambda: "event=attached" in fleet.log("copy"), "the copy is attached", 90.0)
