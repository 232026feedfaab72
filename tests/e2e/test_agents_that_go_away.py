"""An agent that is killed, ended, frozen or away for long: what becomes of its cells, and of everybody else's.

Each test has servers of its own beside the others, told apart by a label.
"""

from __future__ import annotations

import signal

import pytest

from tests.support.fleet import a_fleet
from tests.support.processes import is_alive, kill, pids

pytestmark = pytest.mark.xdist_group("e2e-agents")


@pytest.fixture(scope="module")
def fleet():
    with a_fleet() as fleet:
        yield fleet


def alive(cells):
    return [cell_id for cell_id, pid in pids(cells).items() if is_alive(pid)]


def start_servers(fleet, label, *names):
    fleet.start_agents(names, "--label", f"for={label}")


def apply(fleet, name, replicas, **spec):
    return fleet.apply(name, replicas, placement={"require": {"for": name}}, **spec)


def test_an_agent_that_is_killed_and_returns_within_its_lease_has_the_same_cells(fleet):
    start_servers(fleet, "quick", "quick1")
    before = apply(fleet, "quick", 3)
    position = fleet.position()
    fleet.kill_agent("quick1")
    fleet.until(lambda: fleet.server("quick1")["verdict"] == "suspect", "its silence is noticed")
    assert alive(before) == ["quick/0.1", "quick/1.1", "quick/2.1"]
    fleet.start_agent("quick1", "--label", "for=quick")
    after = fleet.until_ready("quick", 3)
    assert pids(after) == pids(before)
    assert alive(after) == list(pids(before))
    # and it watches them again
    kill(after[0])
    fleet.until_ready("quick", 3, without=("quick/0.1",))
    told = fleet.events("CellCondemned", "ServerCondemned", "ServerJoined", after=position)
    assert [(event["type"], event["cell"]) for event in told] == [("CellCondemned", "quick/0.1")]


def test_a_cell_that_dies_while_its_agent_is_away_is_replaced_when_it_returns_with_its_autopsy(fleet):
    start_servers(fleet, "unseen", "unseen1")
    before = apply(fleet, "unseen", 2)
    fleet.kill_agent("unseen1")
    kill(before[1])
    fleet.start_agent("unseen1", "--label", "for=unseen")
    after = fleet.until_ready("unseen", 2, without=("unseen/1.1",))
    assert pids(after)["unseen/0.1"] == pids(before)["unseen/0.1"]
    why = fleet.why("unseen/1.1")
    assert (why["rule"], why["autopsy"]["signal"]) == ("exited", "SIGKILL")


def test_cells_of_an_agent_that_is_away_for_longer_than_its_lease_are_replaced_elsewhere(fleet):
    start_servers(fleet, "lost", "lost1", "lost2")
    before = apply(fleet, "lost", 4)
    doomed = [cell for cell in before if cell["server"] == "lost1"]
    spared = [cell for cell in before if cell["server"] == "lost2"]
    position = fleet.position()
    fleet.kill_agent("lost1")
    after = fleet.until_ready("lost", 4, without=tuple(cell["id"] for cell in doomed))
    assert {cell["server"] for cell in after} == {"lost2"}
    assert {cell["id"]: pid for cell, pid in zip(after, pids(after).values(), strict=True)}.items() >= pids(
        spared
    ).items()
    (lost,) = fleet.events("ServerCondemned", after=position)
    assert (lost["server"], lost["rule"], lost["health"]) == ("lost1", "agent_gone", "dead")
    assert [fleet.why(cell["id"])["rule"] for cell in doomed] == ["server_lost", "server_lost"]
    assert fleet.why(doomed[0]["id"])["replaced_by"] == f"lost/{doomed[0]['slot']}.2"
    assert alive(doomed) == [cell["id"] for cell in doomed], "nobody was there to end them"

    fleet.start_agent("lost1", "--label", "for=lost")
    (joined,) = fleet.events("ServerJoined", after=position)
    assert (joined["server"], joined["generation"]) == ("lost1", 2)
    fleet.until(lambda: not alive(doomed), "what runs on it without being wanted is removed")
    assert pids(fleet.cells("lost")) == pids(after), "and nothing else"
    removed = fleet.events("OrphanRemoved", after=position)
    assert sorted((e["cell"], e["server"]) for e in removed) == [(cell["id"], "lost1") for cell in doomed]
    kill(after[0])  # the newcomer, which has none, is where the next one goes
    (successor,) = [c for c in fleet.until_ready("lost", 4, without=(after[0]["id"],)) if c not in after]
    assert successor["server"] == "lost1"


def test_an_agent_that_is_told_to_end_leaves_its_cells_and_takes_them_over_again(fleet):
    start_servers(fleet, "calm", "calm1")
    before = apply(fleet, "calm", 2)
    assert fleet.end_agent("calm1") == 0
    assert alive(before) == ["calm/0.1", "calm/1.1"]
    fleet.start_agent("calm1", "--label", "for=calm")
    assert pids(fleet.until_ready("calm", 2)) == pids(before)
    assert alive(before) == ["calm/0.1", "calm/1.1"]


def test_an_agent_that_is_to_stop_cells_has_ended_them_when_it_ends_and_they_are_replaced_elsewhere(fleet):
    fleet.start_agents(["sweeper1"], "--label", "for=sweeper", "--stop-cells")
    fleet.start_agents(["sweeper2"], "--label", "for=sweeper")
    before = apply(fleet, "sweeper", 2)
    (gone,) = [cell for cell in before if cell["server"] == "sweeper1"]
    position = fleet.position()
    assert fleet.end_agent("sweeper1") == 0
    assert alive(before) == [cell["id"] for cell in before if cell is not gone]
    after = fleet.until_ready("sweeper", 2, without=(gone["id"],))
    assert {cell["server"] for cell in after} == {"sweeper2"}
    assert fleet.why(gone["id"])["rule"] == "vanished", "it said that the cell is gone before it went itself"
    (left,) = fleet.until(
        lambda: fleet.events("ServerCondemned", after=position), "it is let go without a lease"
    )
    assert (left["server"], left["rule"]) == ("sweeper1", "left")


def test_a_frozen_agent_slows_nobody_else_and_goes_on_when_it_wakes_within_its_lease(fleet):
    start_servers(fleet, "nap", "nap1")
    start_servers(fleet, "awake", "awake1", "awake2")
    before = apply(fleet, "nap", 2)
    position = fleet.position()
    fleet.agents["nap1"].send_signal(signal.SIGSTOP)
    try:
        cells = apply(fleet, "awake", 4)
        kill(cells[0])
        fleet.until_ready("awake", 4, without=(cells[0]["id"],))
    finally:
        fleet.agents["nap1"].send_signal(signal.SIGCONT)
    fleet.until(lambda: fleet.is_attached("nap1"), "it is heard again")
    assert pids(fleet.cells("nap")) == pids(before)
    kill(before[0])
    fleet.until_ready("nap", 2, without=("nap/0.1",))
    told = fleet.events("ServerCondemned", "ServerJoined", after=position)
    assert [event for event in told if event["server"] == "nap1"] == []


def test_an_agent_that_wakes_after_its_lease_is_a_new_server_without_cells(fleet):
    start_servers(fleet, "sleep", "sleep1", "sleep2")
    before = apply(fleet, "sleep", 2)
    (doomed,) = [cell for cell in before if cell["server"] == "sleep1"]
    position = fleet.position()
    fleet.agents["sleep1"].send_signal(signal.SIGSTOP)
    try:
        after = fleet.until_ready("sleep", 2, without=(doomed["id"],))
        (lost,) = fleet.events("ServerCondemned", after=position)
        assert lost["server"] == "sleep1"
        assert lost["rule"] in {"neighbours_silent", "lease_expired"}, (
            "as its neighbours could keep up or not"
        )
        assert {cell["server"] for cell in after} == {"sleep2"}
        assert alive([doomed]) == [doomed["id"]]
    finally:
        fleet.agents["sleep1"].send_signal(signal.SIGCONT)
    fleet.until(lambda: fleet.is_attached("sleep1"), "it joins again")
    (joined,) = fleet.events("ServerJoined", after=position)
    assert (joined["server"], joined["generation"]) == ("sleep1", 2)
    fleet.until(lambda: not alive([doomed]), "its cell, which was replaced, is removed")
    assert pids(fleet.cells("sleep")) == pids(after)


def test_a_drained_server_gives_its_cells_away_one_after_the_other_and_then_goes(fleet):
    start_servers(fleet, "drain", "drain1", "drain2")
    before = apply(fleet, "drain", 4)
    position = fleet.position()
    said = fleet.done("drain", "drain1")
    assert said.startswith("drain1: draining, 2 cells to replace on other servers first")
    moved = tuple(cell["id"] for cell in before if cell["server"] == "drain1")
    after = fleet.until_ready("drain", 4, without=moved)
    assert {cell["server"] for cell in after} == {"drain2"}
    fleet.until(lambda: fleet.events("ServerDecommissioned", after=position), "it is let go")
    kinds = [(e["type"], e["cell"]) for e in fleet.events("CellReady", "CellDraining", after=position)]
    for cell in moved:
        successor = fleet.why(cell)["replaced_by"]
        assert kinds.index(("CellReady", successor)) < kinds.index(("CellDraining", cell))
    # Its agent may come back, for orphans that nobody else could remove; the server gets no cells.
    fleet.end_agent("drain1")
    fleet.begin_agent("drain1")
    fleet.until(lambda: "event=attached" in fleet.log("drain1").rpartition("event=started")[2], "it attaches")
    phases = {server["id"]: server["phase"] for server in fleet.servers()}
    assert phases["drain1"] == "DECOMMISSIONED"
