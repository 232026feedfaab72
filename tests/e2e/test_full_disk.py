"""No space under the journal: nothing is decided, which is said; reads go on, and so does all when there is space."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.support.fleet import a_fleet
from tests.support.processes import kill, pids

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("e2e-scheduler")]

DISK_BYTES = 4 * 2**20


class Disk:
    """A small file system."""

    def __init__(self, path):
        self.path = path
        self._ballast = path / "ballast"

    def fill(self):
        with self._ballast.open("ab", buffering=0) as file:
            for size in (65_536, 4_096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"\0" * size)

    def empty(self):
        self._ballast.unlink()


@pytest.fixture
def disk():
    if os.geteuid():
        pytest.skip("only root can mount a small file system; run the tests as root")
    path = Path(tempfile.mkdtemp(prefix="galactica-disk-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "galactica-test", path], check=True)
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "-l", path], check=True)
        path.rmdir()


@pytest.fixture
def fleet(disk):
    with a_fleet("earth", data=disk.path / "data") as fleet:
        yield fleet


def fill(disk, fleet):
    """Fill it until the scheduler notices: what its log still has room for may be taken before."""
    disk.fill()
    for number in range(50):
        if fleet.run("apply", str(fleet.service(f"filler{number}", 0))).code:
            return
        disk.fill()
    raise AssertionError("the journal never gets full")


def check_that_orders_are_refused_and_reads_go_on(fleet, before):
    refused = fleet.run("apply", str(fleet.service("new", 1)))
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.startswith("Error: no space left for the journal")
    assert str(fleet.data / "journal.db") in refused.err
    assert fleet.run("condemn", before[0]["id"]).code == 1
    assert [cell["id"] for cell in fleet.run("cells", "web", "-o", "json").json] == [c["id"] for c in before]
    status = fleet.run("status", "-o", "json").json
    assert (status["healthy"], status["held"][0]["rule"]) == (False, "journal")
    assert "no space" in status["held"][0]["reason"]
    assert "no space" in fleet.run("status").out
    assert fleet.run("events", "-n", "3", "-o", "json").out.count("\n") == 3
    assert fleet.run("why", before[0]["id"], "-o", "json").json["verdict"] == "healthy"
    assert [server["id"] for server in fleet.run("servers", "-o", "json").json] == ["earth"]
    assert fleet.done("logs", before[0]["id"]) == ""
    assert fleet.run("plan", str(fleet.service("new", 1)), "-o", "json").json["births"] != []


def test_full_disk_refuses_orders_serves_reads_and_deaths_are_answered_when_there_is_space(fleet, disk):
    before = fleet.apply("web", 2)
    fill(disk, fleet)
    check_that_orders_are_refused_and_reads_go_on(fleet, before)
    kill(before[0])
    dead = fleet.until(lambda: (c := fleet.cell("web/0.1"))["verdict"] == "dead" and c, "its death is seen")
    assert dead["phase"] == "READY", "what is not on disk is not decided"
    assert [cell["id"] for cell in fleet.cells("web")] == ["web/0.1", "web/1.1"]
    disk.empty()
    after = fleet.until_ready("web", 2, without=("web/0.1",))
    assert [cell["id"] for cell in after] == ["web/0.2", "web/1.1"]
    assert fleet.why("web/0.1")["autopsy"]["signal"] == "SIGKILL"
    assert fleet.held(None) == {}
    assert [cell["id"] for cell in fleet.apply("new", 1)] == ["new/0.1"]
    positions = [event["position"] for event in fleet.events()]
    assert positions == list(range(1, len(positions) + 1))


def test_scheduler_that_starts_on_a_full_disk_serves_reads_and_goes_on_when_there_is_space(fleet, disk):
    before = fleet.apply("web", 2)
    fill(disk, fleet)
    fleet.kill_scheduler()
    disk.fill()
    fleet.start_scheduler()
    fleet.until(lambda: fleet.is_attached("earth"), "its agent is back")
    fill(disk, fleet)
    check_that_orders_are_refused_and_reads_go_on(fleet, before)
    disk.empty()
    fleet.until(lambda: fleet.status()["healthy"], "it notices by itself that there is space")
    assert [cell["id"] for cell in fleet.apply("new", 1)] == ["new/0.1"]
    assert pids(fleet.cells("web")) == pids(before)
    epochs = [event["epoch"] for event in fleet.events("SchedulerStarted")]
    assert epochs == sorted(set(epochs))
