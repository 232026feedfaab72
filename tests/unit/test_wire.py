"""What an agent may say, and what it may not."""

import math

import pytest

from galactica.scheduler.core.model.commands import Decommission, Order, Resync
from galactica.scheduler.core.model.policy import Tempo
from galactica.scheduler.core.model.spec import Resources, RuntimeKind
from galactica.scheduler.core.model.verdict import Autopsy
from galactica.scheduler.core.sight.observations import (
    Attached,
    CellReport,
    CellState,
    ProbeStatus,
    Reported,
    ServerFacts,
    Unread,
)
from galactica.scheduler.core.sight.vitals import Vitals
from galactica.scheduler.wire import cell as cell_wire
from galactica.scheduler.wire import link as wire
from galactica.scheduler.wire.cell import spec_to_proto
from galactica.v1 import cell_pb2, link_pb2
from tests.support.world import spec


def report(**fields):
    return link_pb2.Report(**{"session": "1-1", "sequence": 1, **fields})


def cell(**fields):
    return cell_pb2.CellReport(**{"cell_id": "web/0.1", "state": cell_pb2.CELL_STATE_RUNNING, **fields})


def told(*cells):
    heard = wire.reported(report(cells=cells), "a", 5.0)
    assert heard.skipped == ()
    return heard.said.cells


class TestWhatIsTaken:
    def test_empty_report_is_a_beat(self):
        assert wire.reported(report(), "a", 5.0) == wire.Heard(Reported("a", "1-1", 1, 5.0))

    def test_everything_that_an_agent_can_say_of_a_cell_arrives(self):
        message = cell(
            digest="d",
            state=cell_pb2.CELL_STATE_EXITED,
            runtime_id="42",
            endpoints={"http": "h:1", "admin": "h:2"},
            probe=cell_pb2.ProbeStatus(has_passed=True, consecutive_failures=2, last_error="no"),
            autopsy=cell_pb2.Autopsy(
                reason="exited with 3",
                exit_code=3,
                signal="",
                oom_killed=True,
                last_lines=["a"],
                lived_seconds=1.5,
            ),
            progress="pulling",
            doubt="no layer",
        )
        assert told(message) == (
            CellReport(
                "web/0.1",
                "d",
                CellState.EXITED,
                "42",
                {"admin": "h:2", "http": "h:1"},
                ProbeStatus(has_passed=True, consecutive_failures=2, last_error="no"),
                Autopsy("exited with 3", 3, "", oom_killed=True, last_lines=("a",), lived_seconds=1.5),
                "pulling",
                doubt="no layer",
            ),
        )

    @pytest.mark.parametrize("state", [one for one in cell_pb2.CellState.values() if one])
    def test_every_state_of_the_contract_is_known(self, state):
        (seen,) = told(cell(state=state))
        assert seen.state.name == cell_pb2.CellState.Name(state).removeprefix("CELL_STATE_")

    def test_exit_code_that_was_not_said_stays_unknown(self):
        (seen,) = told(cell(autopsy=cell_pb2.Autopsy(reason="gone")))
        assert seen.autopsy == Autopsy("gone")

    def test_vitals_go_there_and_back(self):
        vitals = Vitals(0.1, 0.2, 0.3, 4.0, 5.0, None, 6.0, -1.0, -250.0, "EROFS", 7)
        assert cell_wire.vitals_from_proto(cell_wire.vitals_to_proto(vitals)) == vitals

    def test_hello_tells_facts_and_inventory(self):
        hello = link_pb2.Hello(
            labels={"zone": "a", "disk": "ssd"},
            capacity=cell_pb2.Capacity(cpu_millis=4_000, memory_bytes=5, disk_bytes=6),
            runtimes=[cell_pb2.RUNTIME_KIND_PROCESS, cell_pb2.RUNTIME_KIND_DOCKER],
            agent_version="1.2",
            inventory=[cell()],
        )
        facts = ServerFacts(
            {"disk": "ssd", "zone": "a"},
            Resources(4_000, 5),
            6,
            (RuntimeKind.DOCKER, RuntimeKind.PROCESS),
            "1.2",
        )
        assert wire.attached(hello, "a", "1-1", 5.0) == wire.Heard(
            Attached("a", "1-1", 5.0, facts, (CellReport("web/0.1", "", CellState.RUNNING),))
        )

    def test_when_its_machine_booted_is_told_by_our_clock(self):
        assert wire.attached(link_pb2.Hello(beat_at=3.0), "a", "1-1", 5.0).said.booted_at == 2.0
        assert wire.attached(link_pb2.Hello(), "a", "1-1", 5.0).said.booted_at is None

    def test_facts_do_not_depend_on_the_order_in_which_they_were_said(self):
        kinds = [cell_pb2.RUNTIME_KIND_DOCKER, cell_pb2.RUNTIME_KIND_PROCESS]
        there, back = (
            wire.attached(link_pb2.Hello(runtimes=order, labels=labels), "a", "1-1", 5.0)
            for order, labels in ((kinds, {"x": "1", "y": "2"}), (kinds[::-1], {"y": "2", "x": "1"}))
        )
        assert there == back

    def test_texts_for_people_are_cut_and_cost_no_session(self):
        long = "x" * 5_000
        (seen,) = told(
            cell(
                progress=long,
                probe=cell_pb2.ProbeStatus(last_error=long),
                autopsy=cell_pb2.Autopsy(reason=long, last_lines=[long, *map(str, range(50))]),
            )
        )
        assert (len(seen.progress), len(seen.probe.last_error), len(seen.autopsy.reason)) == (1_000,) * 3
        assert seen.autopsy.last_lines == tuple(map(str, range(50)))


def wrong(fields, reason):
    return pytest.param(cell(cell_id="web/1.1", **fields), f"web/1.1: {reason}", id=reason)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        wrong({"state": 0}, "unknown state 0"),
        wrong({"state": 99}, "unknown state 99"),
        wrong({"digest": "x" * 201}, "digest: 201 characters is too long; the limit is 200"),
        wrong({"runtime_id": "x" * 201}, "runtime_id: 201 characters is too long; the limit is 200"),
        wrong(
            {"endpoints": {str(n): "h:1" for n in range(65)}}, "endpoints: 65 is too large; the limit is 64"
        ),
        wrong(
            {"endpoints": {"http": "x" * 257}},
            "endpoints[http]: 257 characters is too long; the limit is 256",
        ),
    ],
)
def test_a_wrong_entry_is_skipped_and_told_with_its_cell_and_the_others_are_taken(message, reason):
    unread = (Unread("web/1.1", f"the report on it is wrong: {reason}"),)
    cells = (CellReport("web/0.1", "", CellState.RUNNING),)
    heard = wire.reported(report(cells=[cell(), message], complete=True), "a", 5.0)
    assert heard == wire.Heard(Reported("a", "1-1", 1, 5.0, cells, complete=True, unread=unread), (reason,))
    hello = wire.attached(link_pb2.Hello(inventory=[cell(), message]), "a", "1-1", 5.0)
    assert (hello.said.inventory, hello.said.unread, hello.skipped) == (cells, unread, (reason,))


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf])
def test_a_wrong_number_about_a_death_is_told_and_leaves_the_death(seconds):
    dead = cell(
        state=cell_pb2.CELL_STATE_EXITED,
        autopsy=cell_pb2.Autopsy(reason="exited with 3", lived_seconds=seconds),
    )
    heard = wire.reported(report(cells=[dead]), "a", 5.0)
    assert heard.said.cells == (
        CellReport("web/0.1", "", CellState.EXITED, autopsy=Autopsy("exited with 3")),
    )
    assert heard.skipped == (
        f"web/0.1: autopsy.lived_seconds: invalid value {seconds:g}; the range is 0 to 1e+15",
    )


@pytest.mark.parametrize("cell_id", ["", "x" * 201])
def test_an_entry_that_names_no_cell_is_skipped_and_told(cell_id):
    heard = wire.reported(report(cells=[cell(cell_id=cell_id), cell()]), "a", 5.0)
    reason = f"cells: an id has {len(cell_id)} characters; it must have 1 to 200"
    assert heard.said.cells == (CellReport("web/0.1", "", CellState.RUNNING),)
    assert heard.said.unread == (Unread("", f"an entry of the report is wrong: {reason}"),)
    assert heard.skipped == (reason,)


@pytest.mark.parametrize(
    ("vitals", "reason"),
    [
        ({"cpu_fraction": -0.1}, "vitals.cpu_fraction: invalid value -0.1; the range is 0 to 1e+15"),
        ({"load_1m": math.inf}, "vitals.load_1m: invalid value inf; the range is 0 to 1e+15"),
        ({"pressure_io": math.nan}, "vitals.pressure_io: invalid value nan; the range is 0 to 1e+15"),
        (
            {"clock_offset_ms": -1e300},
            "vitals.clock_offset_ms: invalid value -1e+300; the range is -1e+15 to 1e+15",
        ),
    ],
)
def test_wrong_vitals_do_not_count_and_are_told(vitals, reason):
    heard = wire.reported(report(cells=[cell()], vitals=cell_pb2.Vitals(**vitals)), "a", 5.0)
    cells = (CellReport("web/0.1", "", CellState.RUNNING),)
    assert heard == wire.Heard(Reported("a", "1-1", 1, 5.0, cells), (reason,))


WRONG_REPORTS = [
    (report(sequence=0), "report: invalid sequence 0; the first one is 1"),
    (report(cells=[cell()] * 10_001), "cells: 10001 is too large; the limit is 10000"),
]


@pytest.mark.parametrize(("message", "reason"), WRONG_REPORTS, ids=[reason for _, reason in WRONG_REPORTS])
def test_report_that_cannot_be_is_refused_with_its_reason(message, reason):
    with pytest.raises(cell_wire.WireError) as wrong:
        wire.reported(message, "a", 5.0)
    assert str(wrong.value) == reason


def test_a_runtime_that_this_scheduler_does_not_know_is_left_out_and_told():
    heard = wire.attached(link_pb2.Hello(runtimes=[7, cell_pb2.RUNTIME_KIND_DOCKER]), "a", "1-1", 5.0)
    assert heard.said.facts.runtimes == (RuntimeKind.DOCKER,)
    assert heard.skipped == ("hello.runtimes: unknown runtime 7",)


WRONG_HELLOS = [
    ({"labels": {str(n): "" for n in range(65)}}, "hello.labels: 65 is too large; the limit is 64"),
    ({"labels": {"zone": "x" * 257}}, "hello.labels[zone]: 257 characters is too long; the limit is 256"),
    ({"runtimes": [1] * 17}, "hello.runtimes: 17 is too large; the limit is 16"),
    ({"agent_version": "x" * 257}, "hello.agent_version: 257 characters is too long; the limit is 256"),
    (
        {"capacity": {"memory_bytes": 2**63}},
        f"hello.capacity.memory_bytes: {2**63} is too large; the limit is {2**63 - 1}",
    ),
]


@pytest.mark.parametrize(("fields", "reason"), WRONG_HELLOS, ids=[reason for _, reason in WRONG_HELLOS])
def test_hello_that_cannot_be_is_refused_with_its_reason(fields, reason):
    with pytest.raises(cell_wire.WireError) as wrong:
        wire.attached(link_pb2.Hello(**fields), "a", "1-1", 5.0)
    assert str(wrong.value) == reason


class TestWhatIsSent:
    def test_commands_become_instructions(self):
        wanted = spec()
        order, decommission, resync = map(
            wire.instruction,
            (Order("a", "web/0.1", "d", wanted), Decommission("a", "web/0.1", "old"), Resync("a")),
        )
        assert order.order == link_pb2.Order(cell_id="web/0.1", digest="d", spec=spec_to_proto(wanted))
        assert decommission.decommission == link_pb2.Decommission(cell_id="web/0.1", reason="old")
        assert resync.WhichOneof("verb") == "resync"

    def test_tempo_is_told_in_milliseconds(self):
        assert wire.tempo_to_proto(Tempo(1.25, 6.25)) == link_pb2.Tempo(beat_ms=1_250, lease_ms=6_250)

    def test_autopsy_goes_there_as_it_came(self):
        message = cell_pb2.Autopsy(
            reason="exited with 3", exit_code=3, last_lines=["a"], lived_seconds=1.5, fenced=True
        )
        (seen,) = told(cell(autopsy=message))
        assert cell_wire.autopsy_to_proto(seen.autopsy) == message

    def test_no_verb_but_the_two_and_their_helpers_can_be_sent(self):
        verbs = {field.name for field in link_pb2.Instruction.DESCRIPTOR.oneofs_by_name["verb"].fields}
        assert verbs == {"order", "decommission", "resync", "fetch_logs", "stop_logs"}
