"""Never two cells of one exclusive slot at once: real scheduler, agents and cells, and whatever may part them."""

from __future__ import annotations

import itertools
import signal
import sys
from collections import defaultdict

import pytest

from tests.support.fleet import a_fleet
from tests.support.gate import Gate
from tests.support.processes import is_alive

pytestmark = pytest.mark.xdist_group("e2e-exclusive")

AGENTS = ("earth", "mars", "venus")
TRACE = """
import os, time
with open(os.environ["LEDGER"], "a", buffering=1) as ledger:
    while True:
        ledger.write(f"{os.environ['CELL_ID']} {time.time()}\\n")
        time.sleep(0.05)
"""
"""A cell that writes down when it lives. A shell would spend half a processor on starting date and sleep."""


@pytest.fixture
def fleet():
    with a_fleet() as fleet:
        yield fleet


@pytest.fixture
def gates(fleet):
    """One for each agent, none of which has neighbours to testify: the lease alone decides."""
    host, port = fleet.address.split(":")
    gates = {name: Gate((host, int(port))) for name in AGENTS}
    token = fleet.token("--uses", str(len(AGENTS)))
    for name, gate in gates.items():
        way = ("--scheduler", f"127.0.0.1:{gate.port}")
        fleet.begin_agent(name, "--watch", "off", *way, GALACTICA_TOKEN=token)
    fleet.until(lambda: all(map(fleet.is_attached, AGENTS)), "all are attached")
    yield gates
    for gate in gates.values():
        gate.close()


def exclusive_cell(fleet):
    ledger = fleet.directory / "ledger"
    env = {"LEDGER": str(ledger)}
    command = [sys.executable, "-S", "-c", TRACE]
    (cell,) = fleet.apply("db", exclusive=True, command=command, env=env)
    return cell


def lives(fleet):
    """Cell id to when it was first and last seen alive, in the order of their births."""
    seen = defaultdict(list)
    for line in (fleet.directory / "ledger").read_text().splitlines():
        cell, at = line.split()
        seen[cell].append(float(at))
    return {cell: (min(times), max(times)) for cell, times in seen.items()}


def assert_one_after_the_other(fleet, *cells):
    spans = lives(fleet)
    assert tuple(spans) == cells
    for earlier, later in itertools.pairwise(cells):
        assert spans[earlier][1] < spans[later][0], spans


def successor_of(fleet, cell):
    """The next cell of the slot, once it is ready; the one before has to be dead by then."""
    (after,) = fleet.until(
        lambda: [one for one in fleet.ready("db") if one["id"] != cell["id"]], "the next cell is ready", 60.0
    )
    assert not is_alive(int(cell["runtime_id"]))
    assert after["server"] != cell["server"]
    return after


@pytest.mark.parametrize(
    "number", [signal.SIGSTOP, signal.SIGKILL], ids=["frozen while its cells run on", "killed"]
)
def test_where_the_agent_cannot_end_it_the_next_one_waits_until_the_watchdog_has(fleet, number):
    fleet.start_agents(AGENTS)
    before = exclusive_cell(fleet)
    fleet.agents[before["server"]].send_signal(number)
    hold = fleet.until(lambda: fleet.held("db").get("exclusive"), "the next cell is held", 60.0)
    assert before["id"] in hold["reason"]
    assert hold["next_look_at"] is not None
    after = successor_of(fleet, before)
    assert [event["proof"] for event in fleet.events("CellDecommissioned")] == ["fenced"]
    if number is signal.SIGSTOP:
        fleet.agents[before["server"]].send_signal(signal.SIGCONT)
    else:
        fleet.agents[before["server"]].wait()
        fleet.start_agents([before["server"]])
    fleet.until(lambda: fleet.is_attached(before["server"]), "its server is back")
    fleet.hear(before["server"])
    assert_one_after_the_other(fleet, before["id"], after["id"])


@pytest.mark.parametrize(
    "ways",
    [{}, {"down": False}, {"up": False}],
    ids=["both ways", "agent to scheduler", "scheduler to agent"],
)
def test_where_the_link_is_cut_the_agent_ends_it_and_only_then_comes_the_next(fleet, gates, ways):
    before = exclusive_cell(fleet)
    gates[before["server"]].cut(**ways)
    after = successor_of(fleet, before)
    gates[before["server"]].open()
    fleet.until(lambda: fleet.is_attached(before["server"]), "its server is back", 60.0)
    fleet.hear(before["server"])
    assert_one_after_the_other(fleet, before["id"], after["id"])


def test_a_scheduler_that_comes_back_in_time_finds_it_alive_and_one_that_comes_late_replaces_it(fleet):
    fleet.start_agents(AGENTS)
    first = exclusive_cell(fleet)
    fleet.kill_scheduler()
    fleet.start_scheduler()
    fleet.until_ready("db", 1)
    assert [cell["id"] for cell in fleet.ready("db")] == [first["id"]]
    fleet.kill_scheduler()
    fleet.until(lambda: not is_alive(int(first["runtime_id"])), "its agent ends it")
    fleet.start_scheduler()
    (second,) = fleet.until_ready("db", 1, without=(first["id"],))
    assert fleet.why(first["id"])["rule"] == "fenced"
    assert fleet.why(first["id"])["autopsy"]["reason"].startswith("fenced: no scheduler")
    assert_one_after_the_other(fleet, first["id"], second["id"])
