"""The agent's half of fencing: exclusive cells end when no scheduler is known to have heard this server for a lease."""

import math

import pytest

from galactica.agent.core.events import (
    Connected,
    Decommissioned,
    Disconnected,
    Echoed,
    Instructed,
    Ordered,
    Relisted,
    Retuned,
    Started,
    StartFailed,
    Stopped,
    Tick,
    Welcomed,
)
from galactica.agent.core.instructions import (
    AbandonStart,
    CloseSession,
    Instruction,
    RememberFence,
    SendReport,
    StartCell,
    StopCell,
)
from galactica.agent.core.model import CellReport, CellState, Death, Found, Running
from galactica.agent.core.step import State, next_look, step
from galactica.v1 import cell_pb2, link_pb2

PROCESS = cell_pb2.RUNTIME_KIND_PROCESS
CELL = "db/0.1"
BEAT, LEASE, GRACE = 1.0, 5.0, 2.5
BORN = 100.0


def order_of(cell_id: str = CELL, *, exclusive: bool = True) -> link_pb2.Order:
    stop = cell_pb2.Stop(signal="SIGINT", grace_ms=2_500)
    spec = cell_pb2.Spec(runtime=PROCESS, command=["serve"], stop=stop, exclusive=exclusive)
    return link_pb2.Order(cell_id=cell_id, digest="d1", spec=spec)


class Host:
    """An agent's state; ``hears``: whether the scheduler answers its reports, and with which one's time."""

    def __init__(self, state: State | None = None) -> None:
        self.state = state or State()
        self.now = BORN
        self.sequence = 0
        self.reports: list[SendReport] = []
        self.answers = True

    def take(self, event: object) -> list[Instruction]:
        self.state, instructions = step(self.state, event)  # type: ignore[arg-type]
        said: list[Instruction] = []
        for one in instructions:
            if isinstance(one, SendReport):
                self.reports.append(one)
                if one.wants_echo and self.answers:
                    said += self.take(Echoed(one.link, self.now, one.beat_at))
            else:
                said.append(one)
        return said

    def attach(self, link: int = 1, epoch: int = 1) -> list[Instruction]:
        self.sequence = 0
        self.take(Connected(link, self.now))
        return self.take(Welcomed(link, f"s{link}", epoch, BEAT, LEASE, self.now, self.now))

    def instruct(self, *verbs: object, epoch: int = 1) -> list[Instruction]:
        self.sequence += 1
        return self.take(Instructed(1, "s1", self.sequence, verbs, self.now, epoch))  # type: ignore[arg-type]

    def order(self, **changes: object) -> list[Instruction]:
        return self.instruct(Ordered(order_of(**changes), self.now))  # type: ignore[arg-type]

    def sleep(self, seconds: float) -> list[Instruction]:
        end = self.now + seconds
        said: list[Instruction] = []
        while (look := next_look(self.state)) <= end:
            self.now = max(self.now, look)
            said += self.take(Tick(self.now))
        self.now = end
        return said

    def told(self) -> list[CellReport]:
        cells = [cell for report in self.reports for cell in report.cells]
        self.reports.clear()
        return cells


def carrying(*, exclusive: bool = True) -> Host:
    host = Host()
    host.attach()
    host.order(exclusive=exclusive)
    host.take(Started(CELL, "pid 7", {}, host.now))
    host.sleep(10.0)
    host.told()
    return host


def stops(said: list[Instruction]) -> list[StopCell]:
    return [one for one in said if isinstance(one, StopCell)]


STOP = StopCell(CELL, PROCESS, "SIGINT", GRACE)


def test_a_cell_lives_on_for_as_long_as_reports_are_answered() -> None:
    host = carrying()
    assert stops(host.sleep(600.0)) == []


def test_it_is_ended_when_the_lease_has_passed_since_the_newest_report_that_was_answered() -> None:
    host = carrying()
    fence_at = host.state.fence_at
    assert host.now - BEAT + LEASE <= fence_at <= host.now + LEASE
    host.answers = False
    assert stops(host.sleep(fence_at - host.now - 0.01)) == []
    assert stops(host.sleep(0.02)) == [STOP]


def test_others_are_not_ended() -> None:
    host = carrying(exclusive=False)
    host.answers = False
    assert stops(host.sleep(600.0)) == []


def test_an_answer_counts_from_when_its_report_was_sent_and_not_from_when_it_came() -> None:
    host = carrying()
    host.answers = False
    fence_at = host.state.fence_at
    host.sleep(4.0)
    late = host.now - 3.5
    host.take(Echoed(1, host.now, late))
    assert host.state.fence_at == max(fence_at, late + LEASE)


@pytest.mark.parametrize("words", ["retuned", "decommissioned", "echo without a time"])
def test_what_merely_arrives_from_the_scheduler_grants_nothing(words: str) -> None:
    """It may be deaf to us: then it counts our silence."""
    host = carrying()
    host.answers = False
    said: list[Instruction] = []
    for _ in range(20):
        said += host.sleep(0.5)
        if words == "retuned":
            said += host.take(Retuned(1, BEAT, LEASE, host.now))
        elif words == "decommissioned":
            said += host.instruct(Decommissioned("web/7.1"))
        else:
            said += host.take(Echoed(1, host.now))
    assert host.state.session is not None
    assert stops(said) == [STOP]


def test_a_session_that_ends_changes_nothing_of_the_lease() -> None:
    host = carrying()
    fence_at = host.state.fence_at
    host.take(Disconnected(1, host.now))
    assert next_look(host.state) == fence_at
    assert stops(host.sleep(fence_at - host.now)) == [STOP]


def test_a_welcome_says_that_the_hello_was_heard() -> None:
    host = carrying()
    host.take(Disconnected(1, host.now))
    host.sleep(3.0)
    host.take(Connected(2, host.now))
    said_at = host.now
    host.sleep(1.0)
    host.take(Welcomed(2, "s2", 1, BEAT, LEASE, host.now, said_at))
    assert host.state.fence_at == said_at + LEASE


def test_a_shorter_lease_takes_nothing_back_that_was_granted() -> None:
    host = carrying()
    fence_at = host.state.fence_at
    host.take(Retuned(1, BEAT, 2.0, host.now))
    assert host.state.fence_at == fence_at


def test_a_host_that_slept_past_lease_and_grace_kills_at_the_first_event() -> None:
    host = carrying()
    host.now += 3_600.0
    assert stops(host.take(Tick(host.now))) == [StopCell(CELL, PROCESS, "SIGKILL", 0.0)]


def test_the_grace_counts_from_the_end_of_the_lease() -> None:
    host = carrying()
    host.now = host.state.fence_at + 1.0
    (stop,) = stops(host.take(Tick(host.now)))
    assert (stop.signal, stop.grace_seconds) == ("SIGINT", pytest.approx(GRACE - 1.0))


@pytest.mark.parametrize(
    ("late", "expected"), [(1.0, ("SIGINT", pytest.approx(GRACE - 1.0))), (60.0, ("SIGKILL", 0.0))]
)
def test_the_grace_counts_from_there_also_where_the_scheduler_has_it_ended(
    late: float, expected: object
) -> None:
    """The order to end it may be the first that a host reads that slept for long."""
    host = carrying()
    host.now = host.state.fence_at + late
    (stop,) = stops(host.instruct(Decommissioned(CELL, "")))
    assert (stop.signal, stop.grace_seconds) == expected


def test_a_fenced_cell_stays_on_the_list_as_dead_until_a_scheduler_has_it_removed() -> None:
    host = carrying()
    host.take(Disconnected(1, host.now))
    host.sleep(LEASE)
    host.take(Stopped(CELL, host.now))
    host.sleep(60.0)
    host.attach()
    cell = host.state.cells[CELL]
    assert cell.state is CellState.EXITED
    assert isinstance(cell.autopsy, Death)
    assert cell.autopsy.reason.startswith("fenced: no scheduler")
    assert stops(host.instruct(Decommissioned(CELL))) == [STOP]
    host.take(Stopped(CELL, host.now))
    host.sleep(1.0)
    assert host.told()[-1] == CellReport(CELL, "d1", CellState.GONE)
    assert CELL not in host.state.cells


def test_a_start_that_is_under_way_when_the_lease_ends_is_abandoned_and_what_it_made_is_removed() -> None:
    host = Host()
    host.attach()
    assert StartCell(order_of()) in host.order()
    host.answers = False
    said = host.sleep(LEASE)
    assert AbandonStart(CELL) in said
    assert stops(said) == []
    assert stops(host.take(StartFailed(CELL, "abandoned", host.now))) == [STOP]
    host.take(Stopped(CELL, host.now))
    assert host.state.cells[CELL].state is CellState.EXITED


def test_a_start_is_abandoned_too_when_the_cell_is_decommissioned() -> None:
    """Else it could come to life long after the lease, behind a slow pull."""
    host = Host()
    host.attach()
    host.order()
    assert AbandonStart(CELL) in host.instruct(Decommissioned(CELL))


@pytest.mark.parametrize(
    ("age", "is_taken"), [(0.0, True), (LEASE - 0.1, True), (LEASE, False), (math.inf, False)]
)
def test_an_order_that_was_longer_on_its_way_than_the_lease_is_void(age: float, is_taken: bool) -> None:
    host = Host()
    host.attach()
    for _ in range(10):
        host.sleep(1.0)
        host.take(Retuned(1, BEAT, LEASE, host.now))
    heard = 0.0 if age == math.inf else host.now - age
    said = host.instruct(Ordered(order_of(), heard))
    assert (StartCell(order_of()) in said) is is_taken


def test_instructions_of_an_older_epoch_are_refused_whatever_session_brings_them() -> None:
    host = Host()
    host.attach(epoch=7)
    said = host.instruct(Ordered(order_of(), host.now), epoch=6)
    assert said == [CloseSession(1, "outdated instructions: their epoch is 6, the agent has obeyed epoch 7")]
    assert host.state.cells == {}
    assert host.state.session is None


@pytest.mark.parametrize(("kept", "ends_after"), [(-math.inf, 0.0), (BORN - 1.0, 0.0), (BORN + 3.0, 3.0)])
def test_an_agent_that_takes_cells_over_goes_on_with_the_lease_that_was_kept(
    kept: float, ends_after: float
) -> None:
    host = Host(State(fence_at=kept))
    found = (
        Found(order_of(), Running("pid 7", {}, 0.0), None),
        Found(order_of("web/0.1", exclusive=False), Running("pid 8", {}, 0.0), None),
    )
    said = host.take(Relisted(PROCESS, found, BORN, BORN))
    assert bool(stops(said)) is (ends_after == 0.0)
    if ends_after:
        assert stops(host.sleep(ends_after - 0.01)) == []
        said = host.sleep(0.02)
    assert [stop.cell_id for stop in stops(said)] == [CELL]


def test_the_lease_is_kept_for_the_watchdog_for_as_long_as_something_may_live() -> None:
    host = Host()
    host.attach()
    assert RememberFence(BORN + LEASE) == host.order()[0]
    host.take(Started(CELL, "pid 7", {}, host.now))
    kept = [one for one in host.sleep(10.0) if isinstance(one, RememberFence)]
    assert [one.fence_at for one in kept] == sorted({one.fence_at for one in kept})
    assert kept[-1].fence_at == host.state.fence_at
    host.instruct(Decommissioned(CELL))
    assert RememberFence(None) in host.take(Stopped(CELL, host.now))


def test_agents_without_such_cells_keep_nothing_and_ask_for_no_answers() -> None:
    host = carrying(exclusive=False)
    host.answers = False
    said = host.sleep(2.0)
    assert not [one for one in said if isinstance(one, RememberFence)]
    assert not any(report.wants_echo for report in host.reports)


def test_agents_with_such_cells_have_each_beat_answered() -> None:
    host = carrying()
    host.sleep(5.0)
    assert len(host.reports) >= 5
    assert all(report.wants_echo for report in host.reports)
