"""What the command line prints, for scripts and for people, against a scheduler that a test plays."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import grpc
import pytest

from galactica.v1 import operator_pb2
from tests.support.command_line import NOW, WEB, command, environment, read_json, run, said
from tests.support.operator_service import Refusal, Scheduler, a_small_fleet, operator_service

NOW_TEXT = "2027-01-15T08:00:00.250000Z"


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
            "serving": True,
        },
        {
            "id": "web/1.1", "group": "web", "slot": 1, "generation": 1, "kind": "container",
            "phase": "DECOMMISSIONED", "verdict": "dead", "server": "north", "digest": "3f" * 32, "revision": 2,
            "ordered_at": text_of(NOW - 90), "ready_at": text_of(NOW - 89), "condemned_at": text_of(NOW - 4),
            "replaces": None, "replaced_by": "web/1.2", "endpoints": {}, "runtime_id": "pid-72",
            "serving": False,
        },
        {
            "id": "web/1.2", "group": "web", "slot": 1, "generation": 2, "kind": "container", "phase": "BOOTING",
            "verdict": "healthy", "server": "south", "digest": "3f" * 32, "revision": 2,
            "ordered_at": text_of(NOW - 4), "ready_at": None, "condemned_at": None, "replaces": "web/1.1",
            "replaced_by": None, "endpoints": {}, "runtime_id": None, "serving": False,
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
                "clock_offset_ms": None, "disk_error": None, "kernel_errors": None, "foreign_cells": 0,
                "agent_lacks": "", "unread": [],
            },
            "pool": None, "slot": None, "generation": None, "provider_ref": None,
            "evidence": [], "neighbours": [], "notes": [], "maintenance_until": None, "watch_address": None,
            "wire_version": None, "is_behind": False,
        },
        {
            "id": "south", "phase": "READY", "verdict": "suspect", "labels": {}, "runtimes": ["process", "docker"],
            "capacity": {"cpu_millis": 4_000, "memory_bytes": 2**33, "disk_bytes": 0}, "used": None,
            "cells": ["web/1.2"], "agent_version": None, "last_beat_at": None, "vitals": None,
            "pool": None, "slot": None, "generation": None, "provider_ref": None,
            "evidence": [], "neighbours": [], "notes": [], "maintenance_until": None, "watch_address": None,
            "wire_version": None, "is_behind": False,
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
    assert read_json(run(scheduler, "status", "-o", "json"), 1) == {
        "fleet": "demo",
        "healthy": False,
        "groups": [group],
        "held": [{**hold, "next_look_at": text_of(NOW + 30)}],
        "storms": [],
        "notes": [],
        "genome": None,
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
    scheduler.answers.status.held[0].next_look_at = time.time() + 3_600.5
    *lines, held = said(run(scheduler, "status"), 1)
    assert lines == [
        "fleet demo: NOT healthy - web has 1 of 3 ready; 1 held",
        "",
        "GROUP        REVISION  WANTED  READY  BOOTING  SICK",
        "service/web  2         3       1      1        0",
        "",
        "Held",
    ]
    assert re.fullmatch(
        r"  web \(1 cell\): backoff: 2 early deaths of this spec; next check in (1h|5\dm( \d+s)?)", held
    )


def test_status_of_a_healthy_fleet_says_so(scheduler: Scheduler):
    scheduler.answers.status = operator_pb2.GetStatusResponse(fleet="demo", healthy=True, groups=[WEB])
    assert said(run(scheduler, "status"))[0] == "fleet demo: healthy - 1 group, 3 cells ready"


def test_status_of_an_empty_fleet_says_what_to_do_next(scheduler: Scheduler):
    scheduler.answers.status = operator_pb2.GetStatusResponse(fleet="demo", healthy=True)
    assert said(run(scheduler, "status")) == [
        "fleet demo: healthy - no groups yet",
        "Create a service or a pool: galactica apply FILE",
    ]


@pytest.mark.parametrize("words", ["service/web", "web"])
def test_why_answers_for_a_group(scheduler: Scheduler, words: str):
    refusal = Refusal(grpc.StatusCode.INVALID_ARGUMENT, "no such cell or server: 'web'", "wrong")
    scheduler.answers.refuse["GetCertificate"] = refusal
    scheduler.answers.status.held[0].next_look_at = 1.0
    scheduler.answers.blamed = "2 early deaths"
    assert said(run(scheduler, "why", words)) == [
        "service/web  NOT healthy  revision 2",
        "  1 of 3 ready, 1 booting, 0 sick",
        "  the spec is to blame: 2 early deaths",
        "",
        "Held",
        "  web (1 cell): backoff: 2 early deaths of this spec; next check now",
        "",
        "Newest deaths",
        "  2027-01-15 07:59:56  web/1.1 on north, revision 2: exited: killed by SIGKILL",
        "    | serving",
        "    | bye \N{REPLACEMENT CHARACTER}[2J",
        "  More of one: galactica why web/1.1",
    ]
    answer = read_json(run(scheduler, "why", words, "-o", "json"))
    assert isinstance(answer, dict)
    assert (answer["healthy"], answer["blamed"]) == (False, "2 early deaths")
    assert [death["cell"] for death in answer["deaths"]] == ["web/1.1"]


def test_why_of_nothing_says_how_to_write_it(scheduler: Scheduler):
    refusal = Refusal(grpc.StatusCode.INVALID_ARGUMENT, "no such cell or server: 'nope'", "wrong")
    scheduler.answers.refuse["GetCertificate"] = refusal
    done = run(scheduler, "why", "nope")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: no such cell or server: 'nope'")
    done = run(scheduler, "why", "service/nope")
    assert (done.returncode, done.stderr) == (1, "Error: no such group: nope\n")


def test_cells_of_a_group_that_is_not_well_are_followed_by_its_newest_deaths(scheduler: Scheduler):
    lines = said(run(scheduler, "cells", "web"))
    assert lines[-4:] == [
        "",
        "Newest deaths",
        "CELL     VERDICT  SERVER  REVISION  DIED                 RULE    REASON",
        "web/1.1  dead     north   2         2027-01-15 07:59:56  exited  killed by SIGKILL",
    ]
    scheduler.answers.status.healthy = True
    assert "Newest deaths" not in said(run(scheduler, "cells", "web"))


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
    assert "web/1.1" not in done.stdout.partition("Newest deaths")[0]


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
