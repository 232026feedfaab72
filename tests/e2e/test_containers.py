"""Cells as containers of a real engine, ordered by a real scheduler through a real agent."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest

from tests.support.docker_cells import answer_of, client_of, own_engine
from tests.support.engine import HELLO_2
from tests.support.fleet import a_fleet

SLEEP = ["sleep", "1000"]
WEB = {
    "ports": {"http": 8080},
    "health": {
        "http": {"port": "http", "path": "/"},
        "every": "200ms",
        "timeout": "5s",
        "boot_within": "30s",
    },
}


@contextlib.contextmanager
def a_fleet_on(engine):
    with a_fleet() as fleet:
        fleet.start_agent("earth", runtime="docker", DOCKER_HOST=engine)
        yield fleet


@pytest.fixture(scope="module")
def fleet(engine):
    with a_fleet_on(engine) as fleet:
        yield fleet


def containers_of(engine, fleet):
    """Cell id to the container's id of all that there are, ended ones too."""
    with contextlib.closing(client_of(engine)) as client:
        rows = client.containers(all=True, filters={"label": f"galactica.fleet={fleet.name}"})
        return {row["Labels"]["galactica.cell"]: row["Id"] for row in rows}


def started_at(engine, cells):
    with contextlib.closing(client_of(engine)) as client:
        return {
            cell["id"]: client.inspect_container(cell["runtime_id"])["State"]["StartedAt"] for cell in cells
        }


def end_container(engine, cell):
    with contextlib.closing(client_of(engine)) as client:
        client.kill(cell["runtime_id"], signal.SIGKILL)


def test_containers_answer_die_are_replaced_roll_to_another_image_and_go(fleet, engine, busybox_image):
    cells = fleet.apply("web", 2, image=busybox_image, **WEB)
    assert [answer_of(cell["endpoints"]["http"]) for cell in cells] == ["hello 1\n"] * 2
    end_container(engine, cells[0])
    cells = fleet.until_ready("web", 2, without=("web/0.1",))
    autopsy = fleet.why("web/0.1")["autopsy"]
    assert (autopsy["exit_code"], autopsy["signal"]) == (137, "SIGKILL")
    fleet.done("apply", str(fleet.service("web", 2, image=HELLO_2, **WEB)))
    cells = fleet.until_ready("web", 2, without=tuple(cell["id"] for cell in cells))
    assert [answer_of(cell["endpoints"]["http"]) for cell in cells] == ["hello 2\n"] * 2
    fleet.until(
        lambda: set(containers_of(engine, fleet)) == {cell["id"] for cell in cells}, "no corpse stays"
    )
    fleet.done("delete", "service/web")
    fleet.until(lambda: not fleet.cells("web") and not containers_of(engine, fleet), "all of it is gone")


def test_an_image_that_nobody_has_is_named_in_the_certificate(fleet):
    fleet.done("apply", str(fleet.service("ghost", 1, image="127.0.0.1:1/no-such-image:7")))
    fleet.until(lambda: (c := fleet.cell("ghost/0.1")) and c["condemned_at"], "its start has failed")
    why = fleet.run("why", "ghost/0.1", "-o", "json").json
    assert (why["rule"], why["verdict"]) == ("start_failed", "dead")
    assert "127.0.0.1:1/no-such-image:7" in why["autopsy"]["reason"]
    fleet.until(lambda: fleet.held("ghost").get("backoff"), "it is held back like other early deaths")
    fleet.done("delete", "service/ghost")
    fleet.until(lambda: not fleet.held("ghost"), "nothing is held any more")


def test_a_command_that_an_image_does_not_have_is_named_in_the_certificate(fleet, busybox_image):
    fleet.done("apply", str(fleet.service("absent", 1, image=busybox_image, command=["no-such-program"])))
    fleet.until(lambda: (c := fleet.cell("absent/0.1")) and c["condemned_at"], "its start has failed")
    why = fleet.why("absent/0.1")
    assert why["rule"] == "start_failed"
    assert "no-such-program" in why["autopsy"]["reason"]
    fleet.done("delete", "service/absent")


def test_containers_outlive_an_agent_that_is_killed_and_returns(fleet, engine, busybox_image):
    before = fleet.apply("sleeper", 2, image=busybox_image, command=SLEEP)
    since = started_at(engine, before)
    fleet.kill_agent("earth")
    fleet.start_agent("earth", runtime="docker", DOCKER_HOST=engine)
    after = fleet.until_ready("sleeper", 2)
    assert started_at(engine, after) == since
    end_container(engine, after[0])
    fleet.until_ready("sleeper", 2, without=("sleeper/0.1",))


@pytest.mark.root
def test_containers_outlive_an_engine_that_is_killed_and_deaths_meanwhile_are_answered(engine, busybox_image):
    with own_engine(engine, busybox_image, "--live-restore") as own, a_fleet_on(own.url) as fleet:
        before = fleet.apply("sleeper", 3, image=busybox_image, command=SLEEP)
        since = started_at(own.url, before)
        with contextlib.closing(client_of(own.url)) as client:
            main = client.inspect_container(before[0]["runtime_id"])["State"]["Pid"]
        own.kill()
        os.kill(main, signal.SIGKILL)
        fleet.until(
            lambda: (fleet.server("earth")["vitals"] or {}).get("engine_latency_ms", 0) < 0, "it is noticed"
        )
        assert fleet.server("earth")["verdict"] == "suspect", (
            "its agent is heard, and says that its engine is not"
        )
        assert (
            fleet.run("apply", str(fleet.service("later", 1, image=busybox_image, command=SLEEP))).code == 0
        )
        own.start()
        after = fleet.until_ready("sleeper", 3, without=("sleeper/0.1",))
        assert [cell["id"] for cell in after] == ["sleeper/0.2", "sleeper/1.1", "sleeper/2.1"]
        spared = [cell for cell in after if cell["id"] != "sleeper/0.2"]
        assert started_at(own.url, spared).items() <= since.items()
        fleet.until_ready("later", 1)
        told = fleet.events("CellCondemned", "ServerCondemned")
        assert [(event["type"], event["cell"]) for event in told] == [("CellCondemned", "sleeper/0.1")]
