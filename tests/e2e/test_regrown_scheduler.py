"""All of the scheduler but its CA is lost, and the fleet runs on: a scheduler is grown anew from what agents keep."""

from __future__ import annotations

import pytest

from tests.support.fleet import a_fleet
from tests.support.processes import is_alive, kill, pids

pytestmark = pytest.mark.xdist_group("e2e-regrown")

AGENTS = ("earth", "mars", "venus")
CELLS = 30


@pytest.fixture
def fleet():
    with a_fleet(*AGENTS) as fleet:
        yield fleet


def is_spread(fleet):
    """Whether every agent keeps what the fleet wants now."""
    genome = fleet.status()["genome"]
    return genome is not None and genome["kept"] == genome["wanted"] == len(AGENTS)


def test_the_same_cells_serve_under_a_new_journal(fleet):
    before = fleet.apply("web", CELLS - 4) + fleet.apply("api", 3) + fleet.apply("db", 1)
    kill(before[0])
    fleet.until_ready("web", CELLS - 4, without=(before[0]["id"],))
    before = fleet.cells()
    fleet.until(lambda: is_spread(fleet), "all agents keep the genome")
    epoch = fleet.status()["genome"]["epoch"]

    fleet.lose_journal()
    fleet.start_scheduler(regrow=True)
    fleet.until(lambda: fleet.status()["healthy"], "the fleet is whole", 60.0)

    after = fleet.cells()
    assert {cell["id"]: cell["server"] for cell in after} == {cell["id"]: cell["server"] for cell in before}
    assert pids(after) == pids(before)
    assert all(map(is_alive, pids(after).values()))
    told = fleet.events("CellCondemned", "ServerCondemned", "OrphanRemoved", "CellOrdered", "LeakRemoved")
    assert told == []
    (planted,) = fleet.events("GenomePlanted")
    assert planted["epoch"] == epoch
    assert {one["server"] for one in fleet.events("ServerRecognised")} == set(AGENTS)

    fleet.done("apply", str(fleet.service("web", CELLS)))
    grown = fleet.until_ready("web", CELLS)
    new = {cell["id"] for cell in grown} - {cell["id"] for cell in before}
    victim = next(cell for cell in grown if cell["id"] not in new)
    kill(victim)
    replaced = fleet.until_ready("web", CELLS, without=(victim["id"],))
    new |= {cell["id"] for cell in replaced} - {cell["id"] for cell in before}
    used = {cell["id"] for cell in before} | {"web/0.1"}
    assert len(new) == 5
    assert not new & used
    (death,) = fleet.events("CellCondemned")
    assert (death["cell"], death["rule"]) == (victim["id"], "exited")
