"""An agent that a signal ends, as for a new package: its cells live on and stay as they are, for as long as its
maintenance lease."""

import pytest

from tests.support.fleet import a_fleet
from tests.support.processes import is_alive, pids

pytestmark = pytest.mark.xdist_group("e2e-maintenance")

BEYOND_A_LEASE = 12
"""So many beats, of one second each, take longer than a lease of five seconds."""


@pytest.fixture(scope="module")
def fleet():
    with a_fleet() as fleet:
        fleet.start_agents(["other"], "--label", "for=nobody")
        yield fleet


def start_servers(fleet, label, *names, maintenance="120"):
    fleet.start_agents(names, "--label", f"for={label}", "--maintenance", maintenance)


def apply(fleet, name, replicas, **spec):
    return fleet.apply(name, replicas, placement={"require": {"for": name}}, **spec)


def alive(cells):
    return [cell_id for cell_id, pid in pids(cells).items() if is_alive(pid)]


def condemned(fleet, after):
    return fleet.events("CellCondemned", "ServerCondemned", after=after)


def test_an_agent_that_is_away_in_order_for_longer_than_its_lease_finds_the_same_cells(fleet):
    start_servers(fleet, "calm", "calm1")
    before = apply(fleet, "calm", 2)
    position = fleet.position()
    assert fleet.end_agent("calm1") == 0
    assert "event=in maintenance seconds=120" in fleet.log("calm1")
    fleet.hear("other", beats=BEYOND_A_LEASE)

    server = fleet.server("calm1")
    assert (server["phase"], server["verdict"]) == ("READY", "suspect")
    assert server["maintenance_until"]
    assert [(one["server"], one["answer"]) for one in server["neighbours"]] == [("other", "refused")]
    assert fleet.run("status").code == 0
    for words in (("status",), ("servers",), ("why", "calm1")):
        assert "in maintenance until " in fleet.run(*words).out, words
    fleet.done("apply", str(fleet.service("calm", 3, placement={"require": {"for": "calm"}})))
    fleet.until(lambda: "no_capacity" in fleet.held("calm"), "no cell is placed on it")
    assert "in maintenance" in fleet.held("calm")["no_capacity"]["reason"]
    assert condemned(fleet, position) == []
    assert alive(before) == ["calm/0.1", "calm/1.1"]

    start_servers(fleet, "calm", "calm1")
    after = fleet.until_ready("calm", 3)
    assert pids(after).items() >= pids(before).items()
    assert condemned(fleet, position) == []
    (began, ended) = fleet.events("MaintenanceBegan", "MaintenanceEnded", after=position)
    assert (began["type"], began["server"], ended["server"]) == ("MaintenanceBegan", "calm1", "calm1")
    assert ended["reason"] == "its agent is back"


def test_the_next_scheduler_knows_of_it(fleet):
    start_servers(fleet, "next", "next1")
    before = apply(fleet, "next", 2)
    position = fleet.position()
    assert fleet.end_agent("next1") == 0
    fleet.kill_scheduler()
    fleet.start_scheduler()
    fleet.until(lambda: fleet.is_attached("other"), "the other agent is back")
    fleet.hear("other", beats=BEYOND_A_LEASE)
    assert fleet.server("next1")["maintenance_until"]
    start_servers(fleet, "next", "next1")
    assert pids(fleet.until_ready("next", 2)) == pids(before)
    assert condemned(fleet, position) == []


def test_when_its_time_has_run_out_its_cells_are_replaced_elsewhere(fleet):
    start_servers(fleet, "late", "late1", "late2", maintenance="10")
    before = apply(fleet, "late", 2)
    (doomed,) = [cell for cell in before if cell["server"] == "late1"]
    position = fleet.position()
    assert fleet.end_agent("late1") == 0
    after = fleet.until_ready("late", 2, without=(doomed["id"],))
    assert {cell["server"] for cell in after} == {"late2"}
    told = fleet.events("MaintenanceBegan", "MaintenanceEnded", "ServerCondemned", after=position)
    assert [event["type"] for event in told] == ["MaintenanceBegan", "MaintenanceEnded", "ServerCondemned"]
    assert told[1]["reason"] == "the time has run out"
    assert told[2]["rule"] == "agent_gone"


def test_its_exclusive_cell_ends_before_the_next_one_begins_elsewhere(fleet):
    start_servers(fleet, "only", "only1", "only2")
    (before,) = apply(fleet, "only", 1, exclusive=True)
    holder = before["server"]
    position = fleet.position()
    assert fleet.end_agent(holder) == 0
    (after,) = fleet.until_ready("only", 1, without=(before["id"],))
    assert alive([before]) == []
    assert after["server"] == {"only1": "only2", "only2": "only1"}[holder]
    assert [(e["type"], e["rule"]) for e in condemned(fleet, position)] == [("CellCondemned", "lease_over")]
    start_servers(fleet, "only", holder)
    assert pids(fleet.until_ready("only", 1)) == pids([after])
