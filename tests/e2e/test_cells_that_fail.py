"""Cells that cannot live: each is visible to the operator with its reason, and none keeps the fleet from its work."""

from __future__ import annotations

import socket
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.fleet import HTTP_SERVER, a_fleet
from tests.support.processes import is_alive, kill

pytestmark = pytest.mark.xdist_group("e2e-failing")


@pytest.fixture(scope="module")
def fleet():
    with a_fleet("earth") as fleet:
        yield fleet


def order(fleet, name, replicas=1, **spec):
    """Apply what will never be ready."""
    fleet.done("apply", str(fleet.service(name, replicas, **spec)))


def first_death(fleet, name):
    """The death certificate of the group's first cell."""
    fleet.until(lambda: (c := fleet.cell(f"{name}/0.1")) and c["condemned_at"], f"{name}/0.1 is condemned")
    return fleet.run("why", f"{name}/0.1", "-o", "json").json


def seconds_until(moment):
    return datetime.fromisoformat(moment).timestamp() - time.time()


def test_a_cell_that_dies_at_birth_again_and_again_backs_off_and_the_hold_says_so(fleet):
    order(fleet, "stillborn", 2, command=["sh", "-c", "echo no luck; exit 3"])
    deaths = fleet.until(
        lambda: (d := [e for e in fleet.events("CellCondemned") if e["group"] == "stillborn"])[5:] and d,
        "it died some rounds long",
    )
    hold = fleet.until(lambda: fleet.held("stillborn").get("backoff"), "it is held back")
    assert 0 < seconds_until(hold["next_look_at"]) < 60
    assert hold["reason"].endswith("cells of revision 1 died early")
    assert "backoff: " in (shown := fleet.run("status").out)
    assert "cells of revision 1 died early; next check in" in shown
    why = fleet.run("why", "stillborn/0.1", "-o", "json").json
    assert (why["rule"], why["verdict"]) == ("exited", "dead")
    assert (why["autopsy"]["exit_code"], why["autopsy"]["last_lines"]) == (3, ["no luck"])
    times = [
        datetime.fromisoformat(e["at"]).timestamp() for e in deaths if e["cell"].startswith("stillborn/0.")
    ]
    waits = [after - before for before, after in pairwise(times)]
    assert all(later > earlier for earlier, later in pairwise(waits[1:])), waits
    waited = fleet.run("wait", "service/stillborn", "--ready", "--timeout", "10m")
    assert (waited.code, waited.out) == (1, "")
    assert "service/stillborn will not become ready: " in waited.err
    assert "exited: exited with 3" in waited.err
    assert "    | no luck" in waited.err
    for name in ("service/stillborn", "stillborn"):
        told = fleet.done("why", name)
        assert told.startswith("service/stillborn  NOT healthy  revision 1\n")
        assert "    | no luck" in told
    assert "Newest deaths" in fleet.done("cells", "stillborn")
    assert fleet.run("status").code == 1
    # A new spec ends it at once.
    fleet.done("apply", str(fleet.service("stillborn", 2)))
    fleet.until(lambda: len(fleet.ready("stillborn")) == 2, "the new spec lives", 2.0)
    assert "backoff" not in fleet.held("stillborn")


def test_others_are_born_while_one_backs_off(fleet):
    order(fleet, "hopeless", 3, command=["false"])
    fleet.until(lambda: fleet.held("hopeless").get("backoff"), "it is held back")
    assert [cell["id"] for cell in fleet.apply("hopeful", 2)] == ["hopeful/0.1", "hopeful/1.1"]

    def wait_in_vain():
        waited = fleet.run("wait", "service/hopeless", "--ready", "--timeout", "300ms")
        return waited.code == 1 and "backoff" in waited.err

    fleet.until(wait_in_vain, "between two rounds of births it names what holds them back")
    fleet.done("delete", "service/hopeless")
    fleet.until(lambda: not fleet.held("hopeless"), "what is deleted is held no more")


def test_a_command_that_is_not_there_is_named(fleet):
    order(fleet, "absent", command=["no-such-program", "--fast"])
    why = first_death(fleet, "absent")
    assert (why["rule"], why["verdict"]) == ("start_failed", "dead")
    assert "no-such-program" in why["autopsy"]["reason"]
    assert "not found" in why["autopsy"]["reason"]
    assert "no-such-program" in fleet.done("why", "absent/0.1")
    fleet.until(lambda: fleet.held("absent").get("backoff"), "it is held back like other early deaths")


def test_a_port_that_is_taken_is_named_with_its_holder(fleet):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        order(fleet, "taken", command=HTTP_SERVER, ports={"http": port})
        why = first_death(fleet, "taken")
        assert why["rule"] == "start_failed"
        assert f"port http: {port} on 127.0.0.1 is already used by" in why["autopsy"]["reason"]
    fleet.until(lambda: len(fleet.ready("taken")) == 1, "it is ready when the port is free")


def test_a_probe_that_hangs_makes_a_cell_sick_which_is_replaced_and_says_why(fleet):
    """The cell accepts connections and never answers, once it was told so."""
    switch = fleet.directory / "hang"
    server = (
        "import http.server, os, time\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        f"        if os.path.exists({str(switch)!r} + os.environ['CELL_ID'].replace('/', '-')): time.sleep(1000)\n"
        "        self.send_response(200); self.end_headers()\n"
        "http.server.ThreadingHTTPServer(('127.0.0.1', int(os.environ['PORT_HTTP'])), H).serve_forever()\n"
    )
    health = {"http": {"port": "http", "path": "/"}, "every": "200ms", "timeout": "500ms", "sick_after": 2}
    before = fleet.apply(
        "hangs",
        2,
        command=["python3", "-c", server],
        ports={"http": "auto"},
        health=health | {"boot_within": "30s"},
    )
    Path(f"{switch}hangs-0.1").touch()
    after = fleet.until_ready("hangs", 2, without=("hangs/0.1",))
    assert [cell["id"] for cell in after] == ["hangs/0.2", "hangs/1.1"]
    why = fleet.run("why", "hangs/0.1", "-o", "json").json
    assert (why["rule"], why["verdict"], why["replaced_by"]) == ("probe_failed", "sick", "hangs/0.2")
    assert "2 times in a row" in why["evidence"][0]["says"]
    assert "no answer within" in why["evidence"][0]["says"] or "500" in why["evidence"][0]["says"]
    assert not is_alive(int(before[0]["runtime_id"]))
    kinds = [(e["type"], e["cell"]) for e in fleet.events("CellReady", "CellDraining")]
    assert kinds.index(("CellReady", "hangs/0.2")) < kinds.index(("CellDraining", "hangs/0.1"))


def test_a_cell_that_is_never_ready_is_given_up_after_its_time_with_its_probes_last_words(fleet):
    health = {"tcp": {"port": "http"}, "every": "200ms", "boot_within": "1s"}
    order(fleet, "mute", ports={"http": "auto"}, health=health)
    why = first_death(fleet, "mute")
    assert (why["rule"], why["verdict"]) == ("boot_timeout", "sick")
    assert why["evidence"][0]["says"].startswith("not ready within 1 s of its order: ")
    assert "refused" in why["evidence"][0]["says"].lower()
    fleet.until(lambda: fleet.held("mute").get("backoff"), "it backs off like other early deaths")


def test_a_cell_that_ignores_its_stop_signal_is_ended_after_its_grace_and_nobody_waits_for_it(fleet):
    deaf = ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"]
    (cell,) = fleet.apply("deaf", command=deaf, stop={"grace": "2s"})
    fleet.done("delete", "service/deaf")
    assert fleet.cell("deaf/0.1")["phase"] == "DRAINING"
    assert is_alive(int(cell["runtime_id"]))
    assert len(fleet.apply("meanwhile", 2)) == 2
    fleet.until(lambda: not fleet.cells("deaf"), "it is gone")
    assert not is_alive(int(cell["runtime_id"]))


def serving(fleet, name):
    return [cell["id"] for cell in fleet.cells(name) if cell["serving"]]


def test_a_change_that_is_taken_back_in_time_costs_no_cell_and_while_it_is_tried_one_of_two_serves(fleet):
    before = [cell["id"] for cell in fleet.apply("undone", 2, rollout={"healthy_for": "5m"})]
    order(fleet, "undone", 2, rollout={"healthy_for": "5m"}, command=["sleep", "301"])
    fleet.until(lambda: "undone/0.2" in serving(fleet, "undone"), "the candidate serves")
    assert serving(fleet, "undone") == ["undone/0.2", "undone/1.1"]
    assert {cell["id"]: cell["phase"] for cell in fleet.cells("undone")} == dict.fromkeys(
        ["undone/0.1", "undone/0.2", "undone/1.1"], "READY"
    )
    order(fleet, "undone", 2, rollout={"healthy_for": "5m"})
    fleet.until(lambda: [cell["id"] for cell in fleet.cells("undone")] == before, "the candidate is gone")
    assert serving(fleet, "undone") == before
    assert [event["cell"] for event in fleet.events("CellCondemned") if event["group"] == "undone"] == [
        "undone/0.2"
    ]


def test_a_candidate_that_dies_serves_no_more_and_costs_nothing_of_what_it_was_to_replace(fleet):
    fleet.apply("tried", rollout={"healthy_for": "5m"})
    order(fleet, "tried", rollout={"healthy_for": "5m"}, command=["sleep", "301"])
    fleet.until(lambda: serving(fleet, "tried") == ["tried/0.2"], "the candidate serves")
    kill(fleet.cell("tried/0.2"))
    fleet.until(lambda: "tried/0.2" not in serving(fleet, "tried"), "it serves no more")
    assert fleet.cell("tried/0.1")["phase"] == "READY"
    assert len(serving(fleet, "tried")) == 1
