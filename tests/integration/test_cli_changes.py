"""The command line's verbs: what it asks of the scheduler and what it says of the answer."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from galactica.scheduler.cli.waiting import Progress
from galactica.scheduler.manifest.loading import parse
from galactica.scheduler.settings.context import read_context
from galactica.scheduler.wire.operator import group_to_proto
from galactica.v1 import operator_pb2
from tests.support.command_line import NOW, WEB, command, environment, read_json, run, said
from tests.support.operator_service import Scheduler, a_small_fleet, operator_service

DEATH = [
    "  2027-01-15 07:59:56  web/1.1 on north, revision 2: exited: killed by SIGKILL",
    "    | serving",
    "    | bye \N{REPLACEMENT CHARACTER}[2J",
]
MANIFEST = "kind: service\nname: web\nreplicas: 6\ncommand: [serve]\n"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scheduler]:
    with operator_service(tmp_path_factory.mktemp("scheduler")) as scheduler:
        yield scheduler


@pytest.fixture
def scheduler(running: Scheduler) -> Scheduler:
    """One that has a small fleet and remembers nothing of the tests before."""
    ended = running.answers.ended
    running.answers.__dict__.update(a_small_fleet(NOW).__dict__)
    running.answers.ended = ended
    ended.clear()
    return running


# --- what changes the fleet -------------------------------------------------------------------------------------------


def test_apply_says_what_happened_and_what_to_do_next(scheduler: Scheduler, tmp_path: Path):
    file = tmp_path / "web.yaml"
    file.write_text(MANIFEST)
    scheduler.answers.changes = [operator_pb2.GroupChange(group="web", change="created", revision=1)]
    assert said(run(scheduler, "apply", str(file))) == [
        "web: created, revision 1, 6 cells wanted",
        "Wait until it is ready: galactica wait service/web --ready",
    ]
    (asked,) = scheduler.answers.asked
    assert asked == operator_pb2.ApplyGroupsRequest(groups=[group_to_proto(parse(MANIFEST, "")[0])])


def test_apply_says_what_is_held_right_after(scheduler: Scheduler):
    scheduler.answers.changes = [operator_pb2.GroupChange(group="web", change="created", revision=1)]
    scheduler.answers.held_after_apply = [
        operator_pb2.Hold(group="web", rule="no_capacity", reason="no server has docker", slots=6)
    ]
    assert said(run(scheduler, "apply", "-", stdin=MANIFEST))[:2] == [
        "web: created, revision 1, 6 cells wanted",
        "held web (6 cells): no_capacity: no server has docker; next check when something changes",
    ]


def run_on_a_full_disk(scheduler: Scheduler, *words: str) -> subprocess.CompletedProcess[str]:
    """The command, whose standard output takes nothing."""
    with Path("/dev/full").open("wb") as full:
        return subprocess.run(
            command(*words),
            env=environment(scheduler.context_file),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )


def test_what_was_done_stays_done_where_nobody_can_be_told(scheduler: Scheduler):
    done = run_on_a_full_disk(scheduler, "condemn", "web/0.1")
    assert done.stderr == "Warning: cannot write the output: No space left on device\n"
    assert done.returncode == 0


def test_a_list_that_cannot_be_written_is_a_failure(scheduler: Scheduler):
    done = run_on_a_full_disk(scheduler, "cells")
    assert done.stderr == "Error: cannot write the output: No space left on device\n"
    assert done.returncode == 1


def test_applying_what_is_so_already_says_unchanged(scheduler: Scheduler):
    scheduler.answers.changes = [operator_pb2.GroupChange(group="web", change="unchanged", revision=1)]
    assert said(run(scheduler, "apply", "-", stdin=MANIFEST)) == [
        "web: unchanged, revision 1",
        "No changes: already up to date. Current state: galactica status",
    ]


def test_apply_of_a_wrong_manifest_tells_every_mistake_and_asks_the_scheduler_nothing(scheduler: Scheduler):
    done = run(scheduler, "apply", "-", stdin="kind: service\nname: web\ncommand: [x]\nreplcas: 6\nstop: 5\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "<stdin>:4:1: replcas: unknown key; did you mean 'replicas'?",
        "<stdin>:5:7: stop: must be a mapping, not '5'",
        "Error: 2 mistakes; nothing was sent to the scheduler",
    ]
    assert scheduler.answers.asked == []


def test_plan_shows_births_beside_the_deaths_they_replace(scheduler: Scheduler):
    change = operator_pb2.GroupChange(
        group="web", change="changed", revision=2, differences=["replicas 1 -> 2", "image a:1 -> a:2"]
    )
    scheduler.answers.plan = operator_pb2.PlanGroupsResponse(
        changes=[change],
        births=[
            operator_pb2.Birth(cell_id="web/1.1", server="south"),
            operator_pb2.Birth(cell_id="web/0.2", server="south", replaces="web/0.1"),
        ],
        deaths=[operator_pb2.Death(cell_id="web/0.1", server="north", rule="outdated")],
    )
    assert said(run(scheduler, "plan", "-", stdin=MANIFEST)) == [
        "web: would be changed, revision 2 (replicas 1 -> 2, image a:1 -> a:2)",
        "  + web/1.1 on south",
        "  - web/0.1 on north  outdated",
        "  + web/0.2 on south  replaces web/0.1",
        "2 births, 1 death. This is a plan; nothing was changed. To apply it: galactica apply -",
    ]


def test_a_plan_says_how_much_more_there_is_than_it_lists(scheduler: Scheduler):
    plan = operator_pb2.PlanGroupsResponse(more_births=30_000, more_deaths=1)
    plan.changes.add(group="web", change="created", revision=1)
    plan.births.add(cell_id="web/0.1", server="a")
    scheduler.answers.plan.CopyFrom(plan)
    assert said(run(scheduler, "plan", "-", stdin=MANIFEST))[1:] == [
        "  + web/0.1 on a",
        "  …     and 30,000 births and 1 death more that are not listed",
        "30,001 births, 1 death. This is a plan; nothing was changed. To apply it: galactica apply -",
    ]


def test_a_plan_that_changes_nothing_says_so(scheduler: Scheduler):
    scheduler.answers.plan.changes.add(group="web", change="unchanged", revision=1)
    lines = said(run(scheduler, "plan", "-", stdin=MANIFEST))
    assert lines == ["web: unchanged, revision 1", "Applying this changes nothing."]


@pytest.mark.parametrize(
    ("arguments", "asked", "line"),
    [
        (
            ["delete", "service/web"],
            operator_pb2.DeleteGroupRequest(group="web", kind=operator_pb2.GROUP_KIND_SERVICE),
            "web: deleted, 6 cells to go. Watch: galactica cells web",
        ),
        (
            ["condemn", "web/0.1", "--reason", "looks odd"],
            operator_pb2.CondemnCellRequest(cell_id="web/0.1", reason="looks odd"),
            "web/0.1: condemned; it goes when its replacement is proven. Details: galactica why web/0.1",
        ),
        (
            ["drain", "north"],
            operator_pb2.DrainServerRequest(server_id="north"),
            "north: draining, 1 cell to replace on other servers first. Watch: galactica servers",
        ),
    ],
)
def test_letting_something_go_says_what_comes_next(scheduler: Scheduler, arguments, asked, line):
    assert said(run(scheduler, *arguments)) == [line]
    assert scheduler.answers.asked == [asked]


def test_wait_ends_when_the_service_is_ready(scheduler: Scheduler):
    scheduler.answers.status = operator_pb2.GetStatusResponse(fleet="demo", groups=[WEB])
    (line,) = said(run(scheduler, "wait", "service/web", "--ready", "--timeout", "30s"))
    assert line.startswith("web: 3 cells ready, revision 2 (after ")


def test_wait_that_takes_too_long_fails_with_what_holds_the_service(scheduler: Scheduler):
    scheduler.answers.is_ready = False
    done = run(scheduler, "wait", "service/web", "--ready", "--timeout", "300ms")
    assert (done.returncode, done.stdout) == (1, "")
    first, second, *death, last = done.stderr.splitlines()
    assert first == "Error: service/web is not ready after 300ms: 1 of 3 ready, 1 booting, 0 sick"
    assert second.startswith("  web (1 cell): backoff: 2 early deaths of this spec; next check in ")
    assert death == DEATH
    assert last == "More about it: galactica why service/web"


def test_wait_shows_how_far_it_is_and_fails_as_soon_as_the_spec_is_to_blame(scheduler: Scheduler):
    scheduler.answers.is_ready = False
    scheduler.answers.blamed = "4 cells of revision 2 died early"
    done = run(scheduler, "wait", "service/web", "--ready", "--timeout", "10m")
    assert (done.returncode, done.stdout) == (1, "")
    progress, first, held, *death, last = done.stderr.splitlines()
    assert progress == "web: 1 of 3 ready, 1 booting, 0 sick; held: backoff"
    assert first == "Error: service/web will not become ready: 4 cells of revision 2 died early"
    assert held.startswith("  web (1 cell): backoff: ")
    assert death == DEATH
    assert last == "More about it: galactica why service/web"


def test_progress_that_cannot_be_written_over_comes_at_growing_distances_where_it_changes(capsys):
    progress = Progress()
    for second in range(100):
        progress.say(f"{second} of 100 ready", float(second))
        progress.say(f"{second} of 100 ready", float(second))
    said_at = [int(line.split()[0]) for line in capsys.readouterr().err.splitlines()]
    assert said_at == [0, 1, 3, 7, 15, 31, 61, 91]


# --- who may ----------------------------------------------------------------------------------------------------------


def test_a_token_comes_with_the_command_that_uses_it(scheduler: Scheduler):
    lines = said(run(scheduler, "token", "create", "--uses", "3", "--ttl", "2h"))
    assert lines == [
        "A join token for 3 servers, valid until 2096-10-02 07:06:40. It is shown only once.",
        "Run on each new server:",
        "  GALACTICA_TOKEN=gal_secret galactica-agent --scheduler 10.0.0.1:7400",
    ]
    assert scheduler.answers.asked == [operator_pb2.CreateTokenRequest(uses=3, ttl_seconds=7_200)]


def test_a_new_operator_gets_a_context_file_that_works_and_whose_key_never_left(
    scheduler: Scheduler, tmp_path: Path
):
    file = tmp_path / "bob.json"
    lines = said(run(scheduler, "operator", "create", "bob", "--role", "viewer", "--file", str(file)))
    assert lines[0].startswith("bob: viewer of fleet demo until ")
    (asked,) = scheduler.answers.asked
    context = read_context(file)
    assert (context.operator, context.role, context.fleet) == ("bob", "viewer", "demo")
    assert "PRIVATE KEY" in context.key_pem
    assert b"PRIVATE KEY" not in asked.SerializeToString()
    assert said(run(scheduler, "status", context=file), 1)[0].startswith("fleet demo:")
    assert run(scheduler, "drain", "north", context=file).returncode == 4


def test_a_new_operators_file_takes_no_other_files_place(scheduler: Scheduler, tmp_path: Path):
    file = tmp_path / "bob.json"
    file.write_text("precious")
    done = run(scheduler, "operator", "create", "bob", "--role", "viewer", "--file", str(file))
    assert (done.returncode, file.read_text(), scheduler.answers.asked) == (1, "precious", [])


def test_context_show_never_shows_the_key(scheduler: Scheduler):
    done = run(scheduler, "context", "show", "-o", "json")
    shown = read_json(done)
    assert isinstance(shown, dict)
    assert {name: shown[name] for name in ("scheduler", "fleet", "operator", "role")} == {
        "scheduler": scheduler.address,
        "fleet": "demo",
        "operator": "ada",
        "role": "admin",
    }
    assert "KEY" not in done.stdout


def test_version_tells_of_the_scheduler_too(scheduler: Scheduler):
    shown = read_json(run(scheduler, "version", "-o", "json"))
    assert isinstance(shown, dict)
    assert shown["scheduler"] == {
        "version": "9.9.9",
        "wire_version": 1,
        "fleet": "demo",
        "fleet_id": None,
        "address": scheduler.address,
    }
