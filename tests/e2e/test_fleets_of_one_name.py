"""Two fleets of one name on one engine: a second scheduler that begins on an empty data directory is another fleet."""

from __future__ import annotations

import contextlib

import pytest

from tests.support.docker_cells import client_of
from tests.support.fleet import Fleet, a_fleet

SLEEP = ["sleep", "1000"]
pytestmark = pytest.mark.docker


def containers_of(engine: str, name: str) -> dict[str, tuple[str, str]]:
    """Id of the container to cell and state, of all fleets of that name."""
    with contextlib.closing(client_of(engine)) as client:
        rows = client.containers(all=True, filters={"label": f"galactica.fleet={name}"})
        return {row["Id"]: (row["Labels"]["galactica.cell"], row["State"]) for row in rows}


def begin(fleet: Fleet, engine: str, image: str) -> dict[str, str]:
    """Two cells on a server of the same name as the other fleet's. Cell id to container."""
    fleet.start_agent("earth", runtime="docker", DOCKER_HOST=engine)
    cells = fleet.apply("web", 2, image=image, runtime="docker", command=SLEEP)
    return {cell["id"]: cell["runtime_id"] for cell in cells}


def test_neither_touches_the_others_containers_and_both_tell_of_them(engine, busybox_image):
    with a_fleet() as first:
        ours = begin(first, engine, busybox_image)
        with a_fleet(name=first.name) as second:
            assert second.id != first.id
            theirs = begin(second, engine, busybox_image)  # the same cell ids, on a server of the same id
            assert theirs.keys() == ours.keys()

            note = "2 cells of another fleet on server earth"
            for fleet in (first, second):
                fleet.until(
                    lambda told=fleet: told.status()["notes"] == [note], "the others' cells are told", 90.0
                )
                assert fleet.server("earth")["notes"] == [note]
                assert fleet.status()["healthy"]

            first.done("condemn", "web/0.1")
            first.until_ready("web", 2, without=("web/0.1",))
            second.done("delete", "service/web")
            second.until(lambda: not second.cells("web"), "the second fleet's cells are gone")

            there = containers_of(engine, first.name)
            assert sorted(there.values()) == [("web/0.2", "running"), ("web/1.1", "running")]
            assert ours["web/1.1"] in there
            assert not [event for one in (first, second) for event in one.events("OrphanRemoved")]
