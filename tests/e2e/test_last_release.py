"""The last release and this tree in one fleet: agents of one with the scheduler of the other, and an upgrade of both.

The last release is the commit that ``deploy/release/last.toml`` names.
"""

import contextlib
import os
import subprocess

import pytest

from galactica.scheduler.core.model.events import SCHEMA_VERSION
from galactica.scheduler.wire.versions import OLDEST_WIRE_VERSION, WIRE_VERSION
from tests.support.fleet import a_fleet
from tests.support.last_release import last_release
from tests.support.processes import OURS, is_alive, kill, pids

pytestmark = pytest.mark.xdist_group("e2e-last-release")

SERVERS = ["earth", "moon"]


@pytest.fixture(scope="module")
def last(tmp_path_factory):
    return last_release(tmp_path_factory.mktemp("last-release"))


@pytest.fixture(scope="module", params=["old agents", "old scheduler"])
def schedulers(request, last):
    """The programs that the scheduler is of."""
    return last if request.param == "old scheduler" else OURS


@pytest.fixture(scope="module")
def fleet(schedulers, last):
    with a_fleet(programs=schedulers) as fleet:
        fleet.programs = OURS if schedulers is last else last
        fleet.start_agents(SERVERS)
        yield fleet


def condemned(fleet, after):
    return fleet.events("CellCondemned", "ServerCondemned", after=after)


@contextlib.contextmanager
def of(fleet, programs):
    """What is begun meanwhile is of these programs."""
    before, fleet.programs = fleet.programs, programs
    yield
    fleet.programs = before


def start_scheduler(fleet, programs):
    with of(fleet, programs):
        fleet.start_scheduler()
    for name in SERVERS:
        fleet.until(lambda name=name: fleet.is_attached(name), f"{name} is back")


def alive(cells):
    return [cell_id for cell_id, pid in pids(cells).items() if is_alive(pid)]


def test_cells_come_up_and_one_that_is_killed_is_replaced(fleet):
    before = fleet.apply("web", 3)
    assert {cell["server"] for cell in before} == set(SERVERS)
    position = fleet.position()
    kill(before[0])
    after = fleet.until_ready("web", 3, without=(before[0]["id"],))
    assert pids(after).items() >= pids(before[1:]).items()
    assert [event["cell"] for event in condemned(fleet, position)] == [before[0]["id"]]


def test_an_agent_that_ends_in_order_and_returns_finds_the_same_cells(fleet):
    before = fleet.apply("calm", 4)
    position = fleet.position()
    assert fleet.end_agent("earth") == 0
    assert len(alive(before)) == 4
    fleet.start_agents(["earth"])
    fleet.hear("earth")
    assert pids(fleet.until_ready("calm", 4)) == pids(before)
    assert condemned(fleet, position) == []


def test_a_scheduler_that_ends_and_returns_finds_the_same_cells(fleet, schedulers):
    before = fleet.apply("steady", 4)
    position = fleet.position()
    fleet.kill_scheduler()
    start_scheduler(fleet, schedulers)
    fleet.hear("earth")
    fleet.hear("moon")
    assert pids(fleet.until_ready("steady", 4)) == pids(before)
    assert condemned(fleet, position) == []


def test_of_an_exclusive_slot_no_two_cells_live_when_an_agent_dies(fleet):
    (before,) = fleet.apply("only", 1, exclusive=True)
    holder = before["server"]
    fleet.kill_agent(holder)
    (after,) = fleet.until_ready("only", 1, without=(before["id"],))
    assert alive([before]) == []
    assert after["server"] != holder
    fleet.start_agents([holder])
    assert pids(fleet.until_ready("only", 1)) == pids([after])


@pytest.mark.parametrize("schedulers", ["old agents"], indirect=True)
def test_servers_says_who_is_behind(fleet):
    with of(fleet, OURS):
        fleet.start_agents(["ours"])
    rows = {name: fleet.server(name) for name in (*SERVERS, "ours")}
    assert rows["ours"]["wire_version"] == WIRE_VERSION
    theirs = rows["earth"]["wire_version"]
    assert theirs in {OLDEST_WIRE_VERSION, WIRE_VERSION}
    is_behind = theirs < WIRE_VERSION
    assert {name: row["is_behind"] for name, row in rows.items()} == {
        "earth": is_behind,
        "moon": is_behind,
        "ours": False,
    }
    said = fleet.run("servers").out
    assert said.count("its agent is behind: ") == 2 * is_behind
    assert fleet.run("status").out.count("2 agents are behind this scheduler") == is_behind


def schema_of(programs):
    """The schema of the journals that they write."""
    module = (
        "galactica.scheduler.core.model.events"
        if "galactica.scheduler.cli" in programs.cli
        else "scheduler.events"
    )
    environment = {**os.environ, **programs.environment}
    words = [programs.cli[0], "-c", f"from {module} import SCHEMA_VERSION; print(SCHEMA_VERSION)"]
    return int(subprocess.check_output(words, env=environment, cwd=programs.tree))


def test_an_upgrade_of_scheduler_and_agents_leaves_every_cell_as_it_is_and_a_newer_schema_has_no_way_back(
    last,
):
    with a_fleet(*SERVERS, programs=last) as fleet:
        before = fleet.apply("web", 4)
        position = fleet.position()
        fleet.kill_scheduler()
        start_scheduler(fleet, OURS)
        fleet.programs = OURS
        for name in SERVERS:
            assert fleet.end_agent(name) == 0
            fleet.start_agents([name])
        fleet.hear("earth")
        fleet.hear("moon")
        assert pids(fleet.until_ready("web", 4)) == pids(before)
        assert condemned(fleet, position) == []
        kill(before[0])
        after = fleet.until_ready("web", 4, without=(before[0]["id"],))
        assert pids(after).items() >= pids(before[1:]).items()
        assert not any(fleet.server(name)["is_behind"] for name in SERVERS)

        fleet.kill_scheduler()
        if schema_of(last) == SCHEMA_VERSION:
            start_scheduler(fleet, last)
            assert pids(fleet.until_ready("web", 4)) == pids(after)
            return
        with of(fleet, last):
            words = ["scheduler", "--data", str(fleet.data), "--fleet", fleet.name, "--listen", fleet.address]
            older = fleet.spawn("older", [*last.cli, *words])
        assert older.wait(30.0) != 0
        assert "a newer galactica wrote" in fleet.log("older")
