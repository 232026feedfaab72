"""All of the scheduler but its CA is lost, and the fleet runs on: a scheduler is grown anew from what agents keep."""

from __future__ import annotations

import pytest

from tests.support.fleet import a_fleet
from tests.support.processes import answer_of, is_alive, kill, pids

pytestmark = pytest.mark.xdist_group("e2e-regrown")

AGENTS = ("earth", "mars", "venus")
CELLS = 30


@pytest.fixture
def fleet():
    with a_fleet(*AGENTS) as fleet:
        yield fleet


def is_spread(fleet):
    """Whether every agent keeps what the fleet wants now: what changed in the last second may not be sealed yet."""
    fleet.hear("earth", 3)
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


def test_a_server_that_is_gone_is_given_up_only_on_an_operators_word(fleet):
    before = fleet.apply("web", 6)
    fleet.until(lambda: is_spread(fleet), "all agents keep the genome")
    fleet.kill_agent("venus")
    fleet.lose_journal()
    fleet.start_scheduler(regrow=True)
    fleet.until(lambda: fleet.events("GenomePlanted"), "the genome is planted")
    heard = [cell for cell in before if cell["server"] != "venus"]
    fleet.until_ready("web", len(heard))
    for _ in range(2):
        fleet.hear("earth", 4)  # longer than a lease
        assert "not heard: venus" in fleet.held(None)["regrowing"]["reason"]
    assert fleet.events("CellCondemned", "ServerCondemned", "CellOrdered") == []

    assert "judged and ordered again" in fleet.done("regrow", "--settle")

    after = fleet.until_ready("web", 6)
    assert {cell["server"] for cell in after} == {"earth", "mars"}
    assert pids(after).items() >= pids(heard).items()
    assert [event["server"] for event in fleet.events("ServerCondemned")] == ["venus"]
    fleet.start_agents(["venus"])
    fleet.until(lambda: "unknown_cell" in fleet.held(None), "what venus still runs is shown")
    assert all(map(is_alive, pids(before).values())), "and left alone"


def test_without_any_genome_it_waits_and_an_operator_goes_on_with_the_manifests(fleet):
    before = fleet.apply("web", 6)
    fleet.until(lambda: is_spread(fleet), "all agents keep the genome")
    for name in AGENTS:
        (genome,) = (fleet.directory / name).glob("genome-*")
        fleet.kill_agent(name)
        genome.unlink()
    fleet.lose_journal()
    fleet.start_scheduler(regrow=True)
    fleet.start_agents(AGENTS)
    status = fleet.status()
    assert "no agent that is attached keeps a genome" in status["notes"]
    assert (status["healthy"], set(fleet.held(None))) == (False, {"regrowing", "unknown_cell"})
    refused = fleet.run("apply", str(fleet.service("web", 6)))
    assert (refused.code, "does not know yet what the fleet wants" in refused.err) == (1, True)

    fleet.done("regrow", "--without-genome")
    fleet.done("apply", str(fleet.service("web", 6)))
    fleet.done("adopt", "--all")

    assert pids(fleet.until_ready("web", 6)) == pids(before)
    assert fleet.events("CellCondemned", "CellOrdered") == []


def test_it_is_refused_where_a_journal_knows_what_the_fleet_wants_and_where_there_is_no_ca(fleet, tmp_path):
    fleet.apply("web", 1)
    fleet.kill_scheduler()
    words = ["scheduler", "--fleet", fleet.name, "--listen", "127.0.0.1:0", "--regrow", "--data"]
    with_journal = fleet.run(*words, str(fleet.data))
    assert with_journal.code == 1
    assert "--regrow is for a lost journal" in with_journal.err
    assert "has 1 groups and 3 servers" in with_journal.err
    without_ca = fleet.run(*words, str(tmp_path / "nothing"))
    assert without_ca.code == 1
    assert "--regrow needs the fleet's CA" in without_ca.err
    assert not (tmp_path / "nothing").exists()
    fleet.start_scheduler()
    fleet.until_ready("web", 1)


def test_the_same_containers_serve_under_a_new_journal(engine, busybox_image):
    with a_fleet() as fleet:
        fleet.start_agents(AGENTS, runtime="docker", DOCKER_HOST=engine)
        web = {"image": busybox_image, "ports": {"http": 8080}, "health": {"tcp": {"port": "http"}}}
        fleet.done("apply", str(fleet.service("web", CELLS, **web)))
        before = fleet.until(lambda: whole(fleet), f"{CELLS} containers are ready", 100.0)
        fleet.until(lambda: is_spread(fleet), "all agents keep the genome")

        fleet.lose_journal()
        fleet.start_scheduler(regrow=True)
        fleet.until(lambda: fleet.status()["healthy"], "the fleet is whole", 60.0)

        after = fleet.cells("web")
        assert where(after) == where(before)
        assert {answer_of(cell["endpoints"]["http"])[0] for cell in after} == {200}
        assert fleet.events("CellCondemned", "OrphanRemoved", "CellOrdered") == []
        victim = after[0]["id"]
        fleet.done("condemn", victim)
        fleet.until_ready("web", CELLS, without=(victim,))


def whole(fleet):
    ready = fleet.ready("web")
    return ready if len(ready) == CELLS else []


def where(cells):
    """Cell id to its container and the address at which it answers."""
    return {cell["id"]: (cell["runtime_id"], cell["endpoints"]) for cell in cells}
