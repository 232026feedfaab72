"""One container that the engine cannot inspect: it is in doubt, and it costs nobody else anything."""

from __future__ import annotations

import contextlib

import pytest

from tests.support.docker_cells import client_of
from tests.support.fleet import a_fleet
from tests.support.spoiled_engine import Spoiling, spoiled_engine

SLEEP = ["sleep", "1000"]
SUSPECT, HEALTHY = ("suspect", True), ("healthy", False)


@pytest.fixture
def spoiled(engine):
    with spoiled_engine(engine) as spoiled:
        yield spoiled


@pytest.fixture
def fleet(spoiled):
    with a_fleet() as fleet:
        fleet.start_agent("earth", runtime="docker", DOCKER_HOST=spoiled.url)
        yield fleet


def is_running(engine, cell):
    with contextlib.closing(client_of(engine)) as client:
        rows = client.containers(filters={"id": cell["runtime_id"]})
        return bool(rows)


def verdict_of(fleet, cell):
    """And whether it is one because of a doubt."""
    why = fleet.why(cell["id"])
    return why["verdict"], any("its agent cannot tell how it is" in fact["says"] for fact in why["evidence"])


@pytest.mark.parametrize("how", Spoiling)
def test_an_agent_that_comes_back_attaches_with_all_other_cells_and_nobody_is_condemned(
    fleet, spoiled, engine, busybox_image, how
):
    cells = fleet.apply("web", 3, image=busybox_image, command=SLEEP)
    fleet.end_agent("earth")
    spoiled.spoil(cells[0]["runtime_id"], how)
    fleet.start_agent("earth", runtime="docker", DOCKER_HOST=spoiled.url)
    fleet.until(lambda: verdict_of(fleet, cells[0]) == SUSPECT, "it is in doubt", 60.0)
    assert [verdict_of(fleet, cell) for cell in cells[1:]] == [HEALTHY] * 2
    with contextlib.closing(client_of(engine)) as client:
        client.kill(cells[1]["runtime_id"])
    fleet.until_ready("web", 3, without=("web/1.1",))
    asked = len(spoiled.asked)
    fleet.until(lambda: len(spoiled.asked) > asked + 1, "it is looked at again", 60.0)
    assert verdict_of(fleet, cells[0]) == SUSPECT
    spoiled.mend()
    fleet.until(lambda: verdict_of(fleet, cells[0]) == HEALTHY, "it can be inspected", 60.0)
    condemned = fleet.events("CellCondemned", "ServerCondemned")
    assert [(event["type"], event["cell"]) for event in condemned] == [("CellCondemned", "web/1.1")]


@pytest.mark.parametrize(
    ("which", "how"),
    [("web", Spoiling.ERROR), ("db", Spoiling.GARBAGE), ("db", Spoiling.SILENCE)],
    ids=["another one", "itself", "itself, for ever"],
)
def test_the_watchdog_ends_exclusive_cells_though_one_cannot_be_inspected(
    fleet, spoiled, engine, busybox_image, which, how
):
    (web,) = fleet.apply("web", 1, image=busybox_image, command=SLEEP)
    (before,) = fleet.apply("db", 1, image=busybox_image, command=SLEEP, exclusive=True)
    spoiled.spoil({"web": web, "db": before}[which]["runtime_id"], how)
    fleet.start_agent("mars", runtime="docker", DOCKER_HOST=engine)
    fleet.kill_agent("earth")
    (after,) = fleet.until(
        lambda: [one for one in fleet.ready("db") if one["id"] != before["id"]], "the next one is ready", 90.0
    )
    assert after["server"] == "mars"
    assert not is_running(engine, before)
