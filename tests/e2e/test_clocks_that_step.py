"""Wall clocks that were wrong at a start, or are set while everything runs: leases go on, and nobody is shut out."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fleet import Fleet
from tests.support.processes import kill, pids

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
FIFTY_YEARS_AGO = "-18250d"
"""As after a start without a battery."""

pytestmark = pytest.mark.xdist_group("e2e-clocks")


class Wall:
    """The wall clock of all that is started with ``environment``. It may be set at any moment."""

    def __init__(self, path: Path) -> None:
        assert FAKETIME is not None, "install faketime: apt-get install faketime"
        self._path = path
        self.set("+0s")
        self.environment = {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(path),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, offset: str) -> None:
        """The offset from the true time, such as ``-3600s`` or ``+40d``."""
        self._path.write_text(f"{offset}\n")


@pytest.fixture
def wall(tmp_path: Path) -> Wall:
    return Wall(tmp_path / "clock")


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    fleet = Fleet(Path(tempfile.mkdtemp(prefix="galactica-fleet-")))
    try:
        yield fleet
    finally:
        fleet.close()


def offsets(fleet: Fleet) -> list[float]:
    """How far the clock of each server is from the scheduler's, as the agents measure it. Seconds."""
    vitals = [server["vitals"] for server in fleet.servers()]
    return [
        abs(one["clock_offset_ms"]) / 1_000 for one in vitals if one and one["clock_offset_ms"] is not None
    ]


def test_a_scheduler_that_began_with_a_wrong_clock_has_the_right_one_when_it_is_set(
    fleet: Fleet, wall: Wall
) -> None:
    wall.set("-3600s")
    fleet.start_scheduler(**wall.environment)
    fleet.start_agents(["a"])
    fleet.until(lambda: any(3_500 < one < 3_700 for one in offsets(fleet)), "the hour is seen")
    wall.set("+0s")
    fleet.until(lambda: bool(offsets(fleet)) and max(offsets(fleet)) < 60, "the clocks agree")
    assert fleet.events("ServerCondemned") == []


def test_a_scheduler_that_once_began_weeks_ahead_shuts_nobody_out_later(fleet: Fleet, wall: Wall) -> None:
    wall.set("+40d")
    fleet.start_scheduler(**wall.environment)
    fleet.kill_scheduler()
    wall.set("+0s")
    fleet.start_scheduler(**wall.environment)
    fleet.start_agents(["a"], **wall.environment)
    cells = pids(fleet.apply("web", 2))
    fleet.kill_scheduler()
    wall.set("+2h")  # the agent's certificate has ended meanwhile
    fleet.start_scheduler(**wall.environment)
    fleet.until(lambda: fleet.is_attached("a"), "the agent is back")
    assert pids(fleet.until_ready("web", 2)) == cells


def test_durations_do_not_care_for_a_wall_clock_that_jumps(fleet: Fleet, wall: Wall) -> None:
    fleet.start_scheduler(**wall.environment)
    fleet.start_agents(["a", "b"], **wall.environment)
    fleet.apply("web", 2)
    for offset in ("+1d", "-1d", "+0s"):
        wall.set(offset)
        position = fleet.position()
        (victim, *_) = fleet.until_ready("web", 2)
        kill(victim)
        fleet.until(lambda at=position: len(fleet.events("CellReady", after=at)) == 1, "it is replaced")  # type: ignore[misc]
        assert fleet.events("ServerCondemned", after=position) == []


def test_agents_that_enrolled_while_the_schedulers_clock_was_weeks_ahead_get_in_later(
    fleet: Fleet, wall: Wall
) -> None:
    wall.set("+40d")
    fleet.start_scheduler(**wall.environment)
    fleet.start_agents(["a"])
    cells = pids(fleet.apply("web", 2))
    fleet.kill_scheduler()
    wall.set("+0s")
    fleet.start_scheduler(**wall.environment)
    fleet.until(lambda: fleet.is_attached("a"), "the agent is back")
    assert pids(fleet.until_ready("web", 2)) == cells
    assert any("39d" in note or "40d" in note for note in fleet.status()["notes"])
    (cell, *_) = fleet.cells("web")
    for command in (
        ["status"],
        ["events"],
        ["cells"],
        ["servers"],
        ["why", cell["id"]],
        ["why", "service/web"],
    ):
        shown = [line for line in fleet.done(*command).splitlines() if "times in the journal" not in line]
        assert not any("39d" in line or "40d" in line for line in shown), shown


def test_an_agent_outlasts_a_scheduler_that_begins_weeks_ahead(fleet: Fleet, wall: Wall) -> None:
    fleet.start_scheduler()
    fleet.start_agents(["a"])
    fleet.kill_scheduler()
    wall.set("+40d")
    fleet.start_scheduler(**wall.environment)
    fleet.until(lambda: "so one of the clocks is wrong" in fleet.log("a"), "the agent is turned away")
    wall.set("+0s")
    fleet.until(lambda: fleet.is_attached("a"), "the agent is back")


def test_a_first_start_with_a_clock_that_cannot_be_right_makes_nothing_that_lasts(
    fleet: Fleet, wall: Wall
) -> None:
    wall.set(FIFTY_YEARS_AGO)
    with pytest.raises(AssertionError, match="which cannot be right.*Set the clock, then start again"):
        fleet.start_scheduler(**wall.environment)
    assert not (fleet.data / "ca").exists()
    assert not fleet.context.exists()
    wall.set("+0s")
    fleet.start_scheduler(**wall.environment)
    fleet.start_agents(["a"])


def test_a_fleet_whose_scheduler_begins_with_a_clock_that_cannot_be_right_goes_on_with_what_it_has(
    fleet: Fleet, wall: Wall
) -> None:
    fleet.start_scheduler()
    fleet.start_agents(["a"])
    cells = pids(fleet.apply("web", 2))
    context = fleet.context.read_bytes()
    fleet.kill_scheduler()
    wall.set(FIFTY_YEARS_AGO)
    fleet.start_scheduler(**wall.environment)
    fleet.until(lambda: fleet.is_attached("a"), "the agent is back")
    assert fleet.context.read_bytes() == context
    refused = fleet.run(
        "operator", "create", "ann", "--role", "viewer", "--file", str(fleet.directory / "ann")
    )
    assert "cannot be right" in refused.err
    wall.set("+0s")
    assert pids(fleet.until_ready("web", 2)) == cells
