"""The command line as its users have it: the real program, over real mTLS, against a scheduler of plain answers."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest

from galactica.scheduler.manifest.loading import parse
from galactica.scheduler.security.ca import CertificateAuthority
from galactica.scheduler.security.identities import Role
from galactica.scheduler.settings.context import read_context, write_context
from galactica.scheduler.wire.operator import group_to_proto
from galactica.v1 import operator_pb2
from tests.support.operator_service import Refusal, Scheduler, a_small_fleet, context_of, operator_service

ROOT = Path(__file__).parents[2]
MANIFEST = "kind: service\nname: web\nreplicas: 6\ncommand: [serve]\n"
NOW = 1_800_000_000.25
NOW_TEXT = "2027-01-15T08:00:00.250000Z"
WEB = operator_pb2.GroupStatus(kind="service", name="web", wanted=3, ready=3, revision=2)


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


def environment(context: Path, **more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    paths = {"PYTHONPATH": str(ROOT)}
    return {**kept, **paths, "GALACTICA_CONTEXT": str(context), "TZ": "UTC", **more}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "galactica.scheduler.cli", *arguments]


def run(
    scheduler: Scheduler, *arguments: str, context: Path | None = None, stdin: str = "", **more: str
) -> subprocess.CompletedProcess[str]:
    """The program as a process. That it never shows a traceback is checked of every run."""
    done = subprocess.run(
        command(*arguments),
        env=environment(context or scheduler.context_file, **more),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr + done.stdout
    return done


def piped(scheduler: Scheduler, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(*arguments),
        env=environment(scheduler.context_file),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def read_json(done: subprocess.CompletedProcess[str]) -> object:
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def text_of(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


# --- what scripts rely on ---------------------------------------------------------------------------------------------


def test_cells_as_json_have_the_promised_shape(scheduler: Scheduler):
    cells = read_json(run(scheduler, "cells", "--all", "-o", "json"))
    assert cells == [
        {
            "id": "web/0.1", "group": "web", "slot": 0, "generation": 1, "kind": "container", "phase": "READY",
            "verdict": "healthy", "server": "north", "digest": "3f" * 32, "revision": 2,
            "ordered_at": text_of(NOW - 90), "ready_at": text_of(NOW - 89), "condemned_at": None,
            "replaces": None, "replaced_by": None, "endpoints": {"http": "127.0.0.1:20001"}, "runtime_id": "pid-71",
        },
        {
            "id": "web/1.1", "group": "web", "slot": 1, "generation": 1, "kind": "container",
            "phase": "DECOMMISSIONED", "verdict": "dead", "server": "north", "digest": "3f" * 32, "revision": 2,
            "ordered_at": text_of(NOW - 90), "ready_at": text_of(NOW - 89), "condemned_at": text_of(NOW - 4),
            "replaces": None, "replaced_by": "web/1.2", "endpoints": {}, "runtime_id": "pid-72",
        },
        {
            "id": "web/1.2", "group": "web", "slot": 1, "generation": 2, "kind": "container", "phase": "BOOTING",
            "verdict": "healthy", "server": "south", "digest": "3f" * 32, "revision": 2,
            "ordered_at": text_of(NOW - 4), "ready_at": None, "condemned_at": None, "replaces": "web/1.1",
            "replaced_by": None, "endpoints": {}, "runtime_id": None,
        },
    ]  # fmt: skip


def test_servers_as_json_have_the_promised_shape(scheduler: Scheduler):
    servers = read_json(run(scheduler, "servers", "-o", "json"))
    assert servers == [
        {
            "id": "north", "phase": "READY", "verdict": "healthy", "labels": {"zone": "a"}, "runtimes": ["process"],
            "capacity": {"cpu_millis": 2_000, "memory_bytes": 2**32, "disk_bytes": 2**36},
            "used": {"cpu_millis": 100, "memory_bytes": 2**26, "disk_bytes": 0}, "cells": ["web/0.1"],
            "agent_version": "0.1.0", "last_beat_at": text_of(NOW - 1),
            "vitals": {
                "cpu_fraction": 0.25, "memory_fraction": 0.5, "disk_fraction": 0.0, "load_1m": 0.75,
                "pressure_cpu": 1.5, "pressure_memory": None, "pressure_io": None, "engine_latency_ms": None,
                "clock_offset_ms": None, "disk_error": None, "kernel_errors": None,
            },
            "pool": None, "slot": None, "generation": None, "provider_ref": None, "evidence": [], "neighbours": [],
        },
        {
            "id": "south", "phase": "READY", "verdict": "suspect", "labels": {}, "runtimes": ["process", "docker"],
            "capacity": {"cpu_millis": 4_000, "memory_bytes": 2**33, "disk_bytes": 0}, "used": None,
            "cells": ["web/1.2"], "agent_version": None, "last_beat_at": None, "vitals": None,
            "pool": None, "slot": None, "generation": None, "provider_ref": None, "evidence": [], "neighbours": [],
        },
    ]  # fmt: skip


def test_status_as_json_has_the_promised_shape(scheduler: Scheduler):
    hold = {"group": "web", "rule": "backoff", "reason": "2 early deaths of this spec"}
    group = {
        "kind": "service",
        "name": "web",
        "wanted": 3,
        "ready": 1,
        "booting": 1,
        "sick": 0,
        "revision": 2,
    }
    assert read_json(run(scheduler, "status", "-o", "json")) == {
        "fleet": "demo",
        "healthy": False,
        "groups": [group],
        "held": [{**hold, "next_look_at": text_of(NOW + 30)}],
        "storms": [],
    }


def test_events_as_json_are_one_object_in_each_line_and_details_never_hide_common_fields(
    scheduler: Scheduler,
):
    lines = said(run(scheduler, "events", "-o", "json"))
    common = {"at": text_of(NOW - 4), "group": "web", "schema": 1}
    assert [json.loads(line) for line in lines] == [
        {**common, "position": 41, "type": "CellCondemned", "cell": "web/1.1", "server": "north",
         "cause": "report:north", "rule": "exited"},
        {**common, "position": 42, "type": "CellOrdered", "cell": "web/1.2", "server": "south",
         "cause": "event:41", "replaces": "web/1.1", "evidence": [{"at": "1970-01-01T00:00:01.500000Z"}]},
    ]  # fmt: skip


def test_a_death_certificate_as_json_has_the_promised_shape(scheduler: Scheduler):
    assert read_json(run(scheduler, "why", "web/1.1", "-o", "json")) == {
        "cell": "web/1.1",
        "evidence": [
            {"source": "agent north", "says": "killed by SIGKILL", "at": text_of(NOW - 4)},
            {"source": "probe", "says": "connection refused", "at": text_of(NOW - 5)},
        ],
        "verdict": "dead",
        "condemned_at": text_of(NOW - 4),
        "rule": "exited",
        "budget": "none: the cell is dead",
        "replaces": None,
        "replaced_by": "web/1.2",
        "autopsy": {
            "reason": "killed by SIGKILL",
            "exit_code": None,
            "signal": "SIGKILL",
            "oom_killed": False,
            "last_lines": ["serving", "bye \x1b[2J"],
            "lived_seconds": 85.5,
        },
    }


def test_times_are_rfc_3339_with_microseconds(scheduler: Scheduler):
    scheduler.answers.events[0].at = NOW
    (event, _) = said(run(scheduler, "events", "-o", "json"))
    assert json.loads(event)["at"] == NOW_TEXT


# --- what people read -------------------------------------------------------------------------------------------------


def test_status_says_in_one_line_what_is_missing_and_what_holds_it(scheduler: Scheduler):
    scheduler.answers.status.held[0].next_look_at = time.time() + 4.5 * 3_600 * 24
    assert said(run(scheduler, "status")) == [
        "fleet demo: NOT healthy - web has 1 of 3 ready; 1 held",
        "",
        "GROUP        REVISION  WANTED  READY  BOOTING  SICK",
        "service/web  2         3       1      1        0",
        "",
        "Held",
        "  web (1 cell): backoff: 2 early deaths of this spec; looks again in 4d 11h",
    ]


def test_status_of_a_healthy_fleet_says_so(scheduler: Scheduler):
    scheduler.answers.status = operator_pb2.GetStatusResponse(fleet="demo", healthy=True, groups=[WEB])
    assert said(run(scheduler, "status"))[0] == "fleet demo: healthy - 1 group, 3 cells ready"


def test_status_of_an_empty_fleet_says_what_to_do_next(scheduler: Scheduler):
    scheduler.answers.status = operator_pb2.GetStatusResponse(fleet="demo", healthy=True)
    assert said(run(scheduler, "status")) == [
        "fleet demo: healthy - no groups yet",
        "Create a service or a pool: galactica apply FILE",
    ]


def test_why_reads_like_a_certificate_and_cannot_steer_the_terminal(scheduler: Scheduler):
    lines = said(run(scheduler, "why", "web/1.1"))
    assert lines == [
        "web/1.1  DECOMMISSIONED on north",
        "  verdict        dead",
        "  reason         killed by SIGKILL",
        "  rule           exited",
        "  cause          report:north",
        "  budget         none: the cell is dead",
        "  spec           revision 2, digest 3f3f3f3f3f3f",
        "  ordered        2027-01-15 07:58:30.250",
        "  ready          2027-01-15 07:58:31.250",
        "  condemned      2027-01-15 07:59:56.250",
        "  decommissioned 2027-01-15 07:59:57.250",
        "  replaced by    web/1.2",
        "",
        "Evidence",
        "  2027-01-15 07:59:55.250  probe: connection refused",
        "  2027-01-15 07:59:56.250  agent north: killed by SIGKILL",
        "",
        "Autopsy",
        "  killed by SIGKILL, lived 1m 26s",
        "  last lines of its output:",
        "    | serving",
        "    | bye \N{REPLACEMENT CHARACTER}[2J",
        "",
        "Its replacement is held",
        lines[-1],
    ]
    assert lines[-1].startswith("  web (1 cell): backoff: 2 early deaths of this spec; next check in ")


def test_tables_in_a_pipe_are_plain_and_nothing_is_cut_off(scheduler: Scheduler):
    reason = "the probe said: " + "x" * 500
    scheduler.answers.cells[0].verdict, scheduler.answers.cells[0].reason = "sick", reason
    done = run(scheduler, "cells", "web", COLUMNS="40")
    assert said(done)[0].split() == [
        "CELL",
        "PHASE",
        "VERDICT",
        "SERVER",
        "REVISION",
        "AGE",
        "ENDPOINTS",
        "NOTE",
    ]
    assert reason in done.stdout
    assert "\x1b" not in done.stdout
    assert "web/1.1" not in done.stdout


def test_logs_come_byte_by_byte_as_they_were_written(scheduler: Scheduler):
    scheduler.answers.logs = [b"one\n\xff\x00", b"two\n"]
    done = subprocess.run(
        command("logs", "web/0.1", "-n", "7"),
        env=environment(scheduler.context_file),
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == b"one\n\xff\x00two\n"
    assert scheduler.answers.asked == [operator_pb2.ReadLogsRequest(cell_id="web/0.1", tail=7)]


def test_events_can_be_had_from_a_position_on(scheduler: Scheduler):
    (line,) = said(run(scheduler, "events", "--from", "42"))
    assert re.sub(r"\s+", " ", line.strip()) == (
        "42 07:59:56.250 CellOrdered web/1.2 on south replaces=web/1.1 (event:41)"
    )


def test_top_in_a_pipe_draws_once(scheduler: Scheduler):
    lines = said(run(scheduler, "top"))
    assert lines[0] == "fleet demo: NOT healthy - web has 1 of 3 ready; 1 held"
    assert any(line.startswith("south   READY  suspect") for line in lines)
    assert lines[-1].endswith("(event:41)")


# --- what changes the fleet -------------------------------------------------------------------------------------------


def test_apply_says_what_happened_and_what_to_do_next(scheduler: Scheduler, tmp_path: Path):
    file = tmp_path / "web.yaml"
    file.write_text(MANIFEST)
    scheduler.answers.changes = [operator_pb2.GroupChange(group="web", change="created", revision=1)]
    assert said(run(scheduler, "apply", str(file))) == [
        "web: created, revision 1, 6 cells ordered",
        "Wait until it is ready: galactica wait service/web --ready",
    ]
    (asked,) = scheduler.answers.asked
    assert asked == operator_pb2.ApplyGroupsRequest(groups=[group_to_proto(parse(MANIFEST, "")[0])])


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
        ("2 births, 1 death. This is a plan; nothing was changed. To apply it: galactica apply -"),
    ]


def test_a_plan_says_how_much_more_there_is_than_it_lists(scheduler: Scheduler):
    plan = operator_pb2.PlanGroupsResponse(more_births=30_000, more_deaths=1)
    plan.changes.add(group="web", change="created", revision=1)
    plan.births.add(cell_id="web/0.1", server="a")
    scheduler.answers.plan = plan
    assert said(run(scheduler, "plan", "-", stdin=MANIFEST))[1:] == [
        "  + web/0.1 on a",
        "  …     and 30,000 births and 1 death more that are not listed",
        "30,001 births, 1 death. This was a plan and changed nothing. Do it: galactica apply -",
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
            ("web/0.1: condemned; it goes when its replacement is ready. Details: galactica why web/0.1"),
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
    first, second, third = done.stderr.splitlines()
    assert first == "Error: service/web is not ready after 300ms: 1 of 3 ready, 1 booting, 0 sick"
    assert second.startswith("  web (1 cell): backoff: 2 early deaths of this spec; next check in ")
    assert third == "See its cells: galactica cells web"


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
    assert said(run(scheduler, "status", context=file))[0].startswith("fleet demo:")
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
        "address": scheduler.address,
    }


# --- exit codes and errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "rule", "text", "code", "said_of_it"),
    [
        ("FAILED_PRECONDITION", "condemned", "web/0.1 is condemned", 1, "web/0.1 is condemned"),
        ("NOT_FOUND", "missing", "no such cell: web/9.9", 1, "no such cell: web/9.9"),
        ("RESOURCE_EXHAUSTED", "inbox", "too many at once", 1, "too many at once"),
        ("UNAVAILABLE", "journal", "the disk is full", 1, "the disk is full"),
        ("INVALID_ARGUMENT", "", "'x' is no cell id", 2, "'x' is no cell id"),
        ("PERMISSION_DENIED", "role", "ada may not", 4, "ada may not"),
        ("UNAUTHENTICATED", "", "who are you?", 4, "who are you?"),
        ("INTERNAL", "", "boom", 1, "the call failed in the scheduler: boom"),
        ("UNIMPLEMENTED", "", "no call", 1, "the scheduler does not know this call: no call"),
    ],
)
def test_a_refusal_is_told_in_the_schedulers_words_and_by_exit_code(
    scheduler: Scheduler, status: str, rule: str, text: str, code: int, said_of_it: str
):
    scheduler.answers.refuse["CondemnCell"] = Refusal(grpc.StatusCode[status], text, rule)
    done = run(scheduler, "condemn", "web/0.1")
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.splitlines()[0] == f"Error: {said_of_it}"


def test_a_scheduler_that_is_not_there_is_told_with_its_address(scheduler: Scheduler):
    done = run(scheduler, "status", GALACTICA_SCHEDULER="127.0.0.1:1")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.splitlines() == [
        "Error: the scheduler at 127.0.0.1:1 is not reachable (Connection refused)",
        ("Is it running? Start one here: galactica up. Is it on another machine? Use --scheduler HOST:PORT"),
    ]


def test_the_option_goes_before_the_environment(scheduler: Scheduler):
    done = run(scheduler, "status", "--scheduler", scheduler.address, GALACTICA_SCHEDULER="127.0.0.1:1")
    assert done.returncode == 0


def test_without_a_context_file_the_next_step_is_told(scheduler: Scheduler, tmp_path: Path):
    done = run(scheduler, "status", context=tmp_path / "none.json")
    assert (done.returncode, done.stdout) == (3, "")
    assert "galactica up" in done.stderr


def test_an_expired_certificate_is_told_as_such(scheduler: Scheduler, tmp_path: Path):
    file = scheduler.context_for("old", Role.ADMIN, tmp_path / "old.json", ttl_seconds=-1.0)
    done = run(scheduler, "status", context=file)
    assert done.returncode == 4
    assert "does not accept the certificate of old of fleet demo: the certificate expired at" in done.stderr


def test_a_certificate_from_another_ca_opens_nothing(scheduler: Scheduler, tmp_path: Path):
    other = CertificateAuthority.open_or_create(tmp_path / "ca", "other")
    stranger = context_of(other, scheduler.address, "eve", Role.ADMIN, 3_600.0)
    ours = read_context(scheduler.context_file)
    write_context(tmp_path / "eve.json", replace(stranger, ca_pem=ours.ca_pem))
    done = run(scheduler, "status", context=tmp_path / "eve.json")
    assert (done.returncode, scheduler.answers.asked) == (4, [])
    assert "certificate in the context file is not from the fleet's CA" in done.stderr


def test_a_scheduler_of_another_fleet_is_not_believed(scheduler: Scheduler, tmp_path: Path):
    other = CertificateAuthority.open_or_create(tmp_path / "ca", "other")
    write_context(tmp_path / "eve.json", context_of(other, scheduler.address, "eve", Role.ADMIN, 3_600.0))
    done = run(scheduler, "status", context=tmp_path / "eve.json")
    assert (done.returncode, scheduler.answers.asked) == (4, [])
    assert "is not the scheduler of fleet demo" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["delete", "web"], "service/web"),
        (["delete", "cronjob/web"], "cronjob/web"),
        (["storms", "release"], "ID"),
        (["wait", "service/web"], "--ready"),
        (["wait", "service/web", "--ready", "--timeout", "30"], "30s"),
        (["events", "--from", "3", "-n", "2"], "use either --from or --number"),
        (["cells", "-o", "yaml"], "yaml"),
        (["status", "--scheduler", "nowhere"], "HOST:PORT"),
        (["operator", "create", "bob"], "--role"),
        (["nonsense"], "nonsense"),
    ],
)
def test_wrong_usage_is_2_and_says_what_to_write(scheduler: Scheduler, arguments: list[str], text: str):
    done = run(scheduler, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert text in done.stderr
    assert scheduler.answers.asked == []


@pytest.mark.parametrize("arguments", [[], ["status"], ["apply"], ["wait"], ["token"], ["token", "create"]])
def test_help_tells_the_exit_codes(scheduler: Scheduler, arguments: list[str]):
    done = run(scheduler, *arguments, "--help")
    assert done.returncode == 0
    text = re.sub(r"\s+", " ", done.stdout)
    for part in (
        "0 done",
        "1 refused or failed",
        "2 wrong usage",
        "3 scheduler not reachable",
        "4 not authorised",
    ):
        assert part in text


def test_a_reader_that_goes_away_ends_the_command_quietly(scheduler: Scheduler):
    first = scheduler.answers.events[0]
    scheduler.answers.events = [
        operator_pb2.Event(position=n, at=NOW, type=first.type) for n in range(1, 20_001)
    ]
    with piped(scheduler, "events", "-n", "20000") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().split()[0] == b"1"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 0


def test_ctrl_c_ends_following_quietly_with_130(scheduler: Scheduler):
    with piped(scheduler, "events", "-f") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr.read() == b""


# --- on a terminal ----------------------------------------------------------------------------------------------------


class Terminal:
    """The program with a terminal of 120 columns and 40 lines around it."""

    def __init__(self, scheduler: Scheduler, *arguments: str, **more: str) -> None:
        self._own, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self.process = subprocess.Popen(
            command(*arguments),
            env=environment(scheduler.context_file, TERM="xterm-256color", **more),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.shown = ""

    def read_until(self, text: str | None) -> None:
        """Until ``text`` was shown; None: until the program ended."""
        deadline = time.monotonic() + 30
        while text is None or text not in self.shown:
            ready, _, _ = select.select([self._own], [], [], deadline - time.monotonic())
            assert ready, f"{text!r} was not shown, but {self.shown[-2000:]!r}"
            try:
                data = os.read(self._own, 65_536)
            except OSError:  # Linux says EIO where the other end is closed
                data = b""
            if not data:
                assert text is None, f"{text!r} was not shown, but {self.shown[-2000:]!r}"
                return
            self.shown += data.decode()

    def press(self, key: str) -> None:
        os.write(self._own, key.encode())

    def end(self) -> int:
        self.read_until(None)
        return self.process.wait(30)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._own)


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


def test_a_terminal_gets_colours(scheduler: Scheduler, terminals: list[Terminal]):
    terminals.append(Terminal(scheduler, "status"))
    assert terminals[0].end() == 0
    assert "\x1b[1;31mNOT healthy\x1b[0m" in terminals[0].shown


def test_no_color_is_honoured_on_a_terminal(scheduler: Scheduler, terminals: list[Terminal]):
    terminals.append(Terminal(scheduler, "cells", NO_COLOR="1"))
    assert terminals[0].end() == 0
    assert "web/0.1" in terminals[0].shown
    assert re.search(r"\x1b\[[0-9;]*3[0-7]", terminals[0].shown) is None


@pytest.mark.parametrize("ending", ["q", "Ctrl-C"])
def test_top_draws_until_q_or_ctrl_c_and_leaves_the_terminal_as_it_was(
    scheduler: Scheduler, terminals: list[Terminal], ending: str
):
    terminals.append(Terminal(scheduler, "top"))
    top = terminals[0]
    top.read_until("q or Ctrl-C closes this view")
    scheduler.answers.status = operator_pb2.GetStatusResponse(fleet="demo", healthy=True, groups=[WEB])
    top.read_until("3 cells ready")
    if ending == "q":
        top.press("q")
    else:
        top.process.send_signal(signal.SIGINT)
    assert top.end() == 0
    assert top.shown.count("\x1b[?1049h") == top.shown.count("\x1b[?1049l") == 1
    assert "Traceback" not in top.shown


def test_top_goes_on_when_the_scheduler_does_not_answer(scheduler: Scheduler, terminals: list[Terminal]):
    terminals.append(Terminal(scheduler, "top"))
    top = terminals[0]
    top.read_until("NOT healthy")
    scheduler.answers.refuse["GetStatus"] = Refusal(grpc.StatusCode.UNAVAILABLE, "no such luck", "journal")
    top.read_until("no such luck - showing the last answer; trying again")
    scheduler.answers.refuse.clear()
    scheduler.answers.status = operator_pb2.GetStatusResponse(fleet="demo", healthy=True, groups=[WEB])
    top.read_until("3 cells ready")
    top.press("q")
    assert top.end() == 0
