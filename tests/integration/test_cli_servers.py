"""What the command line says of pools, their servers, their makers and storms: the real program, over real mTLS."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from galactica.scheduler.manifest.loading import parse
from galactica.scheduler.security.identities import Role
from galactica.scheduler.wire.operator import group_to_proto
from galactica.v1 import operator_pb2
from tests.integration.test_cli import NOW, read_json, run, said, text_of
from tests.support.operator_service import Refusal, Scheduler, a_pool_in_a_storm, operator_service

POOL = "kind: pool\nname: rack\nsize: 3\nprovider: local\nserver: {b: 1, a: [2]}\n"
STORM = "rack-1799999990"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scheduler]:
    with operator_service(tmp_path_factory.mktemp("scheduler")) as scheduler:
        yield scheduler


@pytest.fixture
def scheduler(running: Scheduler) -> Scheduler:
    ended = running.answers.ended
    running.answers.__dict__.update(a_pool_in_a_storm(NOW).__dict__)
    running.answers.ended = ended
    ended.clear()
    return running


# --- what scripts rely on ---------------------------------------------------------------------------------------------


def test_servers_as_json_tell_pool_evidence_and_neighbours(scheduler: Scheduler) -> None:
    (server,) = read_json(run(scheduler, "servers", "-o", "json"))  # type: ignore[misc]
    grown = {key: server[key] for key in list(server)[11:]}
    assert grown == {
        "pool": "rack",
        "slot": 0,
        "generation": 3,
        "provider_ref": "i-0abc",
        "evidence": [
            {"source": "agent rack/0.3", "says": "last heard", "at": text_of(NOW - 10)},
            {"source": "neighbour rack/1.1", "says": "nothing comes back \x1b[2J", "at": text_of(NOW - 9)},
        ],
        "neighbours": [
            {"server": "rack/1.1", "answer": "silent"},
            {"server": "rack/2.1", "answer": "answers"},
            {"server": "north", "answer": "silent"},
        ],
        "notes": [],
        "maintenance_until": None,
        "watch_address": None,
        "wire_version": None,
        "is_behind": False,
    }


SHAPE_OF_STORM = {
    "id": STORM,
    "pool": "rack",
    "silent": 2,
    "of": 3,
    "since": text_of(NOW - 10),
    "expires_at": text_of(NOW + 890),
    "reason": "2 of 3 of pool rack fell silent within 60 s",
}


def test_status_as_json_has_the_storms(scheduler: Scheduler) -> None:
    status = read_json(run(scheduler, "status", "-o", "json"), 1)
    assert isinstance(status, dict)
    assert status["storms"] == [SHAPE_OF_STORM]


def test_storms_as_json_have_the_same_shape(scheduler: Scheduler) -> None:
    assert read_json(run(scheduler, "storms", "-o", "json")) == [SHAPE_OF_STORM]


def test_pools_as_json_are_those_groups_of_the_status_with_their_provider(scheduler: Scheduler) -> None:
    assert read_json(run(scheduler, "pools", "-o", "json")) == [
        {
            "kind": "pool", "name": "rack", "wanted": 3, "ready": 3, "booting": 0, "sick": 0, "revision": 1,
            "provider": "cloud", "storm": STORM,
        }
    ]  # fmt: skip


def test_providers_as_json_have_the_promised_shape(scheduler: Scheduler) -> None:
    assert read_json(run(scheduler, "providers", "-o", "json")) == [
        {
            "name": "cloud",
            "servers": 3,
            "deleting": 1,
            "trouble": "no answer within 30 s",
            "listed_at": text_of(NOW - 40),
        },
        {"name": "local", "servers": 0, "deleting": 0, "trouble": None, "listed_at": None},
    ]


# --- what people read -------------------------------------------------------------------------------------------------


def test_servers_that_are_not_well_are_told_with_their_evidence(scheduler: Scheduler) -> None:
    heading, row, *below = said(run(scheduler, "servers"))
    assert heading.split() == [
        "SERVER", "PHASE", "VERDICT", "CELLS", "CPU", "MEMORY", "RUNTIMES", "LABELS", "BEAT", "AGENT", "NEIGHBOURS",
        "NOTE",
    ]  # fmt: skip
    assert below == [
        "",
        "rack/0.3: suspect, no heartbeat for 10.0 s",
        "  2027-01-15 07:59:50.250  agent rack/0.3: last heard",
        "  2027-01-15 07:59:51.250  neighbour rack/1.1: nothing comes back \N{REPLACEMENT CHARACTER}[2J",
    ]
    assert row.endswith("  2 silent, 1 answering  no heartbeat for 10.0 s")


def test_pools_are_a_table(scheduler: Scheduler) -> None:
    assert [row.split() for row in said(run(scheduler, "pools"))] == [
        ["POOL", "PROVIDER", "REVISION", "SIZE", "READY", "BOOTING", "SICK", "STORM"],
        ["pool/rack", "cloud", "1", "3", "3", "0", "0", STORM],
    ]


def test_providers_are_a_table_with_what_troubles_them(scheduler: Scheduler) -> None:
    heading, cloud, local = said(run(scheduler, "providers"))
    assert heading.split() == ["PROVIDER", "SERVERS", "DELETING", "LISTED", "TROUBLE"]
    assert cloud.startswith("cloud")
    assert cloud.endswith("no answer within 30 s")
    assert local.split() == ["local", "0", "0", "never"]


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("pools", "No pools. Write a manifest (kind: pool) and apply it: galactica apply FILE"),
        ("storms", "No storms."),
        ("providers", "No provider has answered yet. Each pool names its provider: galactica pools"),
        (
            "servers",
            "No servers. To let one join: galactica token create. To order servers: apply a pool",
        ),
    ],
)
def test_where_there_is_nothing_the_next_step_is_told(scheduler: Scheduler, command: str, line: str) -> None:
    scheduler.answers.status = operator_pb2.GetStatusResponse(fleet="demo", healthy=True)
    scheduler.answers.providers, scheduler.answers.servers = [], []
    assert said(run(scheduler, command)) == [line]


def test_a_storm_is_told_with_the_command_that_releases_it(scheduler: Scheduler) -> None:
    scheduler.answers.status.storms[0].expires_at = time.time() + 3_630
    told = [
        f"{STORM}: 2 of 3 servers silent since 2027-01-15 07:59:50.250, held for 1h more",
        "  2 of 3 of pool rack fell silent within 60 s",
        f"  If these servers are really gone: galactica storms release {STORM}",
    ]
    assert said(run(scheduler, "storms")) == told
    status = said(run(scheduler, "status"), 1)
    assert status[0] == "fleet demo: NOT healthy - storm in rack: 2 of 3 servers silent"
    assert status[-4:] == ["", *told]


@pytest.mark.parametrize(
    ("counts", "trouble"),
    [
        ({"wanted": 0, "ready": 0, "sick": 2}, "rack: 2 still going"),
        ({"wanted": 3, "ready": 4, "booting": 1}, "rack: 1 still going, 1 booting"),
        ({"wanted": 3, "ready": 2, "booting": 1}, "rack has 2 of 3 ready"),
    ],
)
def test_status_says_of_a_full_group_what_is_there_besides(
    scheduler: Scheduler, counts: dict[str, int], trouble: str
) -> None:
    group = operator_pb2.GroupStatus(kind="pool", name="rack", revision=1, **counts)
    scheduler.answers.status = operator_pb2.GetStatusResponse(fleet="demo", groups=[group])
    assert said(run(scheduler, "status"), 1)[0] == f"fleet demo: NOT healthy - {trouble}"


def test_status_counts_the_groups_that_it_leaves_out(scheduler: Scheduler) -> None:
    groups = [operator_pb2.GroupStatus(kind="pool", name=name, wanted=1) for name in "abcd"]
    scheduler.answers.status = operator_pb2.GetStatusResponse(fleet="demo", groups=groups)
    assert said(run(scheduler, "status"), 1)[0].endswith("c has 0 of 1 ready; 1 more group")


def test_times_in_events_are_told_as_times(scheduler: Scheduler) -> None:
    details = '{"token": "5e03", "expires_at": 1800000600.0, "not_before": 0.0}'
    scheduler.answers.events = [
        operator_pb2.Event(position=7, at=NOW, type="TokenCreated", details_json=details)
    ]
    told = "  token=5e03  expires_at=2027-01-15 08:10:00  not_before=0.0"
    assert said(run(scheduler, "events"))[0].endswith(told)


def test_a_storm_is_released_by_an_admin(scheduler: Scheduler) -> None:
    assert said(run(scheduler, "storms", "release", STORM)) == [
        (f"{STORM}: released; 3 silent servers will be judged by the evidence. Watch: galactica servers")
    ]
    assert scheduler.answers.asked == [operator_pb2.ReleaseStormRequest(storm_id=STORM)]


def test_a_deployer_may_look_at_storms_and_not_release_them(scheduler: Scheduler, tmp_path: Path) -> None:
    joe = scheduler.context_for("joe", Role.DEPLOYER, tmp_path / "joe.json")
    assert run(scheduler, "storms", context=joe).returncode == 0
    assert run(scheduler, "storms", "release", STORM, context=joe).returncode == 4


@pytest.mark.parametrize(
    ("arguments", "asked", "lines"),
    [
        (
            ["adopt", "--all"],
            operator_pb2.AdoptCellsRequest(),
            ["2 cells adopted.", "not web/5.9: web wants 3 cells"],
        ),
        (
            ["adopt", "web/0.7", "web/1.9"],
            operator_pb2.AdoptCellsRequest(cell_ids=["web/0.7", "web/1.9"]),
            ["2 cells adopted.", "not web/5.9: web wants 3 cells"],
        ),
        (
            ["condemn", "--unknown"],
            operator_pb2.CondemnUnknownRequest(),
            ["3 unknown cells condemned. Watch: galactica status"],
        ),
        (
            ["condemn", "--unknown", "web/0.7"],
            operator_pb2.CondemnUnknownRequest(cell_ids=["web/0.7"]),
            ["3 unknown cells condemned. Watch: galactica status"],
        ),
        (
            ["adopt", "web/0.7", "--on", "node-2"],
            operator_pb2.AdoptCellsRequest(cell_ids=["web/0.7"], server_id="node-2"),
            ["2 cells adopted.", "not web/5.9: web wants 3 cells"],
        ),
        (
            ["condemn", "--unknown", "web/0.7", "--on", "node-2"],
            operator_pb2.CondemnUnknownRequest(cell_ids=["web/0.7"], server_id="node-2"),
            ["3 unknown cells condemned. Watch: galactica status"],
        ),
    ],
)
def test_unknown_cells_are_adopted_or_condemned(scheduler: Scheduler, arguments, asked, lines) -> None:
    assert said(run(scheduler, *arguments)) == lines
    assert scheduler.answers.asked == [asked]


def test_a_server_is_named_for_unknown_cells_only(scheduler: Scheduler) -> None:
    assert run(scheduler, "condemn", "web/0.7", "--on", "node-2").returncode == 2
    assert scheduler.answers.asked == []


@pytest.mark.parametrize(
    ("option", "step"),
    [
        ("--take", operator_pb2.REGROW_STEP_TAKE),
        ("--without-genome", operator_pb2.REGROW_STEP_WITHOUT_GENOME),
        ("--settle", operator_pb2.REGROW_STEP_SETTLE),
    ],
)
def test_an_operator_says_how_a_regrowth_goes_on(scheduler: Scheduler, option, step) -> None:
    assert said(run(scheduler, "regrow", option)) == [
        "the genome of epoch 3, position 90 is planted. Watch: galactica status"
    ]
    assert scheduler.answers.asked == [operator_pb2.RegrowRequest(step=step)]


@pytest.mark.parametrize("arguments", [["regrow"], ["regrow", "--take", "--settle"]])
def test_a_regrowth_is_told_one_step_at_a_time(scheduler: Scheduler, arguments) -> None:
    assert run(scheduler, *arguments).returncode == 2
    assert scheduler.answers.asked == []


@pytest.mark.parametrize("arguments", [["adopt"], ["adopt", "--all", "web/0.7"], ["condemn"]])
def test_nothing_is_adopted_or_condemned_that_was_not_named(scheduler: Scheduler, arguments) -> None:
    assert run(scheduler, *arguments).returncode == 2
    assert scheduler.answers.asked == []


# --- ordering and letting go ------------------------------------------------------------------------------------------


def test_a_pool_is_applied_like_anything_else(scheduler: Scheduler) -> None:
    scheduler.answers.changes = [operator_pb2.GroupChange(group="rack", change="created", revision=1)]
    assert said(run(scheduler, "apply", "-", stdin=POOL)) == [
        "rack: created, revision 1, 3 servers wanted",
        "Wait until it is ready: galactica wait pool/rack --ready",
    ]
    (group,) = parse(POOL, "-")
    assert scheduler.answers.asked == [operator_pb2.ApplyGroupsRequest(groups=[group_to_proto(group)])]


@pytest.mark.parametrize(
    ("arguments", "asked", "line"),
    [
        (
            ["delete", "pool/rack"],
            operator_pb2.DeleteGroupRequest(group="rack", kind=operator_pb2.GROUP_KIND_POOL),
            "rack: deleted, 6 servers to go. Watch: galactica cells rack",
        ),
        (
            ["condemn", "rack/0.3"],
            operator_pb2.CondemnCellRequest(cell_id="rack/0.3"),
            ("rack/0.3: condemned; it goes when its replacement is proven. Details: galactica why rack/0.3"),
        ),
    ],
)
def test_letting_servers_go_says_what_comes_next(scheduler: Scheduler, arguments, asked, line) -> None:
    assert said(run(scheduler, *arguments)) == [line]
    assert scheduler.answers.asked == [asked]


def test_condemning_a_server_that_joined_by_itself_is_refused_in_the_schedulers_words(
    scheduler: Scheduler,
) -> None:
    words = (
        "north is a server that joined on its own, not a cell of a pool; remove it with: "
        "galactica drain north"
    )
    scheduler.answers.refuse["CondemnCell"] = Refusal(grpc.StatusCode.FAILED_PRECONDITION, words, "is_server")
    done = run(scheduler, "condemn", "north")
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, f"Error: {words}")


def test_wait_for_a_pool_asks_for_a_pool(scheduler: Scheduler) -> None:
    (line,) = said(run(scheduler, "wait", "pool/rack", "--ready"))
    assert line.startswith("rack: 3 servers ready, revision 1 (after ")
    assert scheduler.answers.asked == [
        operator_pb2.WaitReadyRequest(group="rack", kind=operator_pb2.GROUP_KIND_POOL)
    ]


def test_wait_for_a_pool_that_takes_too_long_names_it_as_a_pool(scheduler: Scheduler) -> None:
    scheduler.answers.is_ready = False
    done = run(scheduler, "wait", "pool/rack", "--ready", "--timeout", "300ms")
    assert done.stderr.splitlines()[0] == (
        "Error: pool/rack is not ready after 300ms: 3 of 3 ready, 0 booting, 0 sick"
    )


def test_the_cells_of_a_pool_can_be_asked_for_by_kind_and_name(scheduler: Scheduler) -> None:
    (cell,) = read_json(run(scheduler, "cells", "pool/rack", "-o", "json"))  # type: ignore[misc]
    assert (cell["id"], cell["kind"], cell["server"]) == ("rack/0.3", "server", None)


def test_top_shows_a_pool_in_a_storm(scheduler: Scheduler) -> None:
    done = run(scheduler, "top")
    assert said(done)[0] == "fleet demo: NOT healthy - storm in rack: 2 of 3 servers silent"
    assert "pool/rack" in done.stdout
