"""What a user does with a fleet from morning to evening: the real scheduler, two real agents, the real command line."""

from __future__ import annotations

import json

import pytest

from tests.support.fleet import HTTP_SERVER, WAIT_SECONDS, a_fleet
from tests.support.processes import answer_of, is_alive, kill, pids

pytestmark = pytest.mark.xdist_group("e2e-living")

WEB = {
    "command": HTTP_SERVER,
    "ports": {"http": "auto"},
    "health": {
        "http": {"port": "http", "path": "/"},
        "every": "200ms",
        "timeout": "5s",
        "boot_within": "30s",
    },
}


@pytest.fixture(scope="module")
def fleet():
    with a_fleet("earth", "mars") as fleet:
        yield fleet


def spans(cells):
    return sorted(cell["server"] for cell in cells)


def test_an_applied_service_becomes_ready_on_all_servers_and_each_endpoint_answers(fleet):
    applied = fleet.run("apply", str(fleet.service("web", 4, **WEB)))
    assert (applied.code, applied.err) == (0, "")
    assert applied.out.splitlines()[0] == "web: created, revision 1, 4 cells wanted"
    waited = fleet.run("wait", "service/web", "--ready", "--timeout", "30s")
    assert waited.code == 0, waited
    cells = fleet.run("cells", "web", "-o", "json").json
    assert [(c["id"], c["phase"], c["verdict"]) for c in cells] == [
        (f"web/{slot}.1", "READY", "healthy") for slot in range(4)
    ]
    assert spans(cells) == ["earth", "earth", "mars", "mars"]
    assert [answer_of(cell["endpoints"]["http"])[0] for cell in cells] == [200] * 4
    assert len({cell["endpoints"]["http"] for cell in cells}) == 4


def test_applying_the_same_again_changes_nothing_and_says_so(fleet):
    before = fleet.apply("same", 2)
    position = fleet.position()
    again = fleet.run("apply", str(fleet.service("same", 2)))
    assert (again.code, again.out.splitlines()) == (
        0,
        [
            "same: unchanged, revision 1",
            "No changes: already up to date. Current state: galactica status",
        ],
    )
    assert fleet.events("GroupApplied", after=position) == []
    assert fleet.cells("same") == before


@pytest.mark.parametrize(
    ("name", "first", "then"),
    [
        ("grows", (1, {}), (3, {})),
        ("shrinks", (3, {}), (1, {})),
        ("changes", (2, {}), (2, {"env": {"COLOUR": "blue"}})),
    ],
)
def test_a_plan_is_what_then_happens_and_until_then_nothing_does(fleet, name, first, then):
    before = fleet.apply(name, first[0], **first[1])
    position = fleet.position()
    file = fleet.service(name, then[0], **then[1])
    plan = fleet.run("plan", str(file), "-o", "json").json
    assert fleet.cells(name) == before
    assert [event["group"] for event in fleet.events("GroupApplied", after=position)] == []
    fleet.done("apply", str(file))
    fleet.until_ready(name, then[0], without=tuple(death["cell"] for death in plan["deaths"]))
    events = [event for event in fleet.events(after=position) if event["group"] == name]
    births = [(e["cell"], e.get("replaces") or None) for e in events if e["type"] == "CellOrdered"]
    deaths = [(e["cell"], e["rule"]) for e in events if e["type"] == "CellCondemned"]
    # Servers are left out: a plan is made for a world in which everything succeeds at once, and how long the old
    # cells take to go decides where the later ones of the new fit best.
    assert births == [(birth["cell"], birth["replaces"]) for birth in plan["births"]]
    assert deaths == [(death["cell"], death["rule"]) for death in plan["deaths"]]
    assert births or deaths


def test_a_plan_for_something_new_names_its_cells_and_their_servers(fleet):
    file = fleet.service("new", 3)
    plan = fleet.run("plan", str(file), "-o", "json").json
    assert fleet.cells("new", everything=True) == []
    cells = fleet.apply("new", 3)
    assert sorted((b["cell"], b["server"]) for b in plan["births"]) == [(c["id"], c["server"]) for c in cells]
    assert (plan["deaths"], plan["held"]) == ([], [])


def test_a_killed_cell_is_replaced_and_its_certificate_has_the_autopsy(fleet):
    command = ["sh", "-c", "echo 'my last words'; exec sleep 1000"]
    before = fleet.apply("victim", 3, command=command)
    kill(before[1])
    after = fleet.until_ready("victim", 3, without=("victim/1.1",))
    assert [cell["id"] for cell in after] == ["victim/0.1", "victim/1.2", "victim/2.1"]
    assert pids([before[0], before[2]]) == pids([after[0], after[2]])
    why = fleet.run("why", "victim/1.1", "-o", "json").json
    assert (why["verdict"], why["rule"], why["replaced_by"]) == ("dead", "exited", "victim/1.2")
    autopsy = why["autopsy"]
    assert (autopsy["signal"], autopsy["exit_code"], autopsy["oom_killed"]) == ("SIGKILL", 137, False)
    assert autopsy["last_lines"] == ["my last words"]
    assert autopsy["lived_seconds"] > 0
    assert [fact["source"] for fact in why["evidence"]] == [f"agent {before[1]['server']}"]
    text = fleet.done("why", "victim/1.1")
    assert "killed by SIGKILL" in text
    assert "my last words" in text


def test_a_condemned_cell_goes_only_after_its_replacement_is_ready(fleet):
    (before,) = fleet.apply("doomed")
    position = fleet.position()
    fleet.done("condemn", "doomed/0.1", "--reason", "I do not like it")
    (after,) = fleet.until_ready("doomed", 1, without=("doomed/0.1",))
    assert (after["id"], after["replaces"]) == ("doomed/0.2", "doomed/0.1")
    told = [(e["type"], e["cell"]) for e in fleet.events(after=position) if e["group"] == "doomed"]
    assert [one for one in told if one[0] != "CellBooting"] == [
        ("CellCondemned", "doomed/0.1"),
        ("CellOrdered", "doomed/0.2"),
        ("CellReady", "doomed/0.2"),
        ("CellDraining", "doomed/0.1"),
        ("CellDecommissioned", "doomed/0.1"),
    ]
    assert not is_alive(int(before["runtime_id"]))
    assert "condemned by admin: I do not like it" in fleet.done("why", "doomed/0.1")
    again = fleet.run("condemn", "doomed/0.1")
    assert (again.code, again.out) == (1, "")


def test_logs_of_a_cell_are_what_it_wrote(fleet):
    fleet.apply("writer", command=["sh", "-c", "echo one; echo two >&2; exec sleep 1000"])
    assert fleet.done("logs", "writer/0.1") == "one\ntwo\n"
    assert fleet.done("logs", "writer/0.1", "-n", "1") == "two\n"
    missing = fleet.run("logs", "writer/7.1")
    assert (missing.code, missing.out) == (1, "")
    assert "writer/7.1" in missing.err


def test_a_deleted_service_is_gone_with_all_of_its_processes(fleet):
    cells = fleet.apply("brief", 3)
    fleet.done("delete", "service/brief")
    fleet.until(lambda: not fleet.cells("brief"), "brief is gone")
    assert [pid for pid in pids(cells).values() if is_alive(pid)] == []
    assert all(group["name"] != "brief" for group in fleet.status()["groups"])
    assert {c["phase"] for c in fleet.cells("brief", everything=True)} == {"DECOMMISSIONED"}
    again = fleet.run("delete", "service/brief")
    assert (again.code, "brief" in again.err) == (1, True)


def test_ids_are_not_used_again_when_a_name_comes_back(fleet):
    fleet.apply("phoenix", 1)
    fleet.done("delete", "service/phoenix")
    fleet.until(lambda: not fleet.cells("phoenix"), "phoenix is gone")
    assert [cell["id"] for cell in fleet.apply("phoenix", 1)] == ["phoenix/0.2"]


def test_what_fits_on_no_server_is_held_with_the_reason_and_wait_tells_it(fleet):
    file = fleet.service("nowhere", 2, placement={"require": {"zone": "z"}})
    fleet.done("apply", str(file))
    waited = fleet.run("wait", "service/nowhere", "--ready", "--timeout", "500ms")
    assert waited.code == 1
    hold = fleet.held("nowhere")["no_capacity"]
    assert "zone" in hold["reason"]
    assert hold["reason"] in waited.err
    fleet.done("delete", "service/nowhere")
    fleet.until(lambda: not fleet.held("nowhere"), "nothing is held any more")


GOOD = "kind: service\nname: typo\nruntime: process\ncommand: [sleep, '1000']\n"


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        (GOOD + "replicas: [1\n", "6:1", ""),
        (GOOD + "replicsa: 2\n", "5:1", "did you mean 'replicas'?"),
        (GOOD + "replicas: 2\nreplicas: 3\n", "6:1", "replicas"),
        (GOOD + "ports: {http: auto}\nports: {http: 80}\n", "6:1", "ports"),
        (GOOD + f"env: {{A: {'x' * 70_000}}}\n", "5:", "65,536"),
        (GOOD + "replicas: 100001\n", "5:", "100,000"),
        (GOOD + "# " + "x" * 2**21 + "\n", "", "MiB"),
        (GOOD + "---\nkind: service\nname: typo2\n", "6:1", "command"),
    ],
    ids=[
        "malformed",
        "misspelt",
        "duplicate",
        "duplicate map",
        "long",
        "many",
        "oversized",
        "second document",
    ],
)
def test_a_manifest_with_a_mistake_is_refused_at_its_place_and_nothing_is_changed(fleet, text, place, says):
    file = fleet.directory / "typo.yaml"
    file.write_text(text)
    position = fleet.position()
    for verb in ("apply", "plan"):
        refused = fleet.run(verb, str(file))
        assert (refused.code, refused.out) == (2, "")
        first = refused.err.splitlines()[0]
        assert first.startswith(f"{file}:{place}"), first
        assert says in refused.err
        assert len(refused.err) < 2_000
    assert fleet.events("GroupApplied", after=position) == []
    assert fleet.cells("typo", everything=True) == []


def test_one_wrong_file_among_right_ones_keeps_all_of_them_out(fleet):
    right, wrong = fleet.service("right"), fleet.directory / "wrong.yaml"
    wrong.write_text("kind: service\n")
    assert fleet.run("apply", str(right), str(wrong)).code == 2
    assert fleet.cells("right", everything=True) == []


def test_reading_is_quick_to_pipe_and_every_reading_command_speaks_json(fleet):
    for words in (["cells"], ["servers"], ["status"], ["plan", str(fleet.service("same", 2))]):
        json.loads(fleet.done(*words, "-o", "json"))
    lines = fleet.done("events", "-n", "5", "-o", "json").splitlines()
    assert [json.loads(line)["position"] for line in lines] == sorted(
        json.loads(x)["position"] for x in lines
    )
    assert len(lines) == 5


def test_the_fleet_is_healthy_in_the_end(fleet):
    """Runs last in this file: nothing that the others did left anything behind."""
    status = fleet.until(lambda: (s := fleet.status())["healthy"] and s, "healthy", WAIT_SECONDS)
    assert status["held"] == []
