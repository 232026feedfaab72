"""The agent's pure half: what each event does to a cell, and what the scheduler is told of it."""

from collections.abc import Iterable

import pytest

from galactica.agent.core import cells as life
from galactica.agent.core import reporting
from galactica.agent.core.draft import GONE_KEPT
from galactica.agent.core.events import (
    ClosingDown,
    Compared,
    Connected,
    Decommissioned,
    Died,
    Disconnected,
    Echoed,
    Event,
    Instructed,
    LogsAsked,
    LogsDeclined,
    Ordered,
    ProbeFinished,
    Progressed,
    Relisted,
    ResyncAsked,
    Retuned,
    StartDeferred,
    Started,
    StartFailed,
    StopFailed,
    Stopped,
    Tick,
    Verb,
    VitalsTaken,
    Welcomed,
)
from galactica.agent.core.instructions import (
    CloseSession,
    FetchLogs,
    Instruction,
    RefuseLogs,
    RememberEpoch,
    SendHello,
    SendReport,
    StartCell,
    StartProbing,
    StopCell,
    StopLogs,
    StopProbing,
)
from galactica.agent.core.model import CellReport, CellState, Death, Found, ProbeStatus, Running
from galactica.agent.core.step import State, next_look, step
from galactica.v1 import cell_pb2, link_pb2

PROCESS = cell_pb2.RUNTIME_KIND_PROCESS
CELL = "web/1.1"
ENDPOINTS = {"http": "127.0.0.1:8080"}
AUTOPSY = cell_pb2.Autopsy(reason="exited with 3", exit_code=3)
BEAT = 1.0
LEASE = 5.0


def order_of(cell_id: str = CELL, *, probed: bool = False) -> link_pb2.Order:
    health = cell_pb2.Health(tcp=cell_pb2.TcpProbe(port="http"), every_ms=1_000, sick_after=3)
    spec = cell_pb2.Spec(
        runtime=PROCESS,
        command=["serve"],
        health=health if probed else None,
        stop=cell_pb2.Stop(signal="SIGINT", grace_ms=2_500),
    )
    return link_pb2.Order(cell_id=cell_id, digest="d1", spec=spec)


STOP = StopCell(CELL, PROCESS, "SIGINT", 2.5)


class Agent:
    """A state that is stepped, with a clock that only the test moves."""

    def __init__(self, state: State | None = None) -> None:
        self.state = state or State()
        self.now = 100.0
        self.sequence = 0
        self.sent: list[SendReport] = []
        self.scheduler_echoes = True

    def take(self, event: Event) -> tuple[Instruction, ...]:
        """What follows, but for reports, which are kept in ``sent``."""
        self.state, instructions = step(self.state, event)
        reports = [one for one in instructions if isinstance(one, SendReport)]
        self.sent += reports
        for report in reports:
            if report.wants_echo and self.scheduler_echoes:
                self.take(Echoed(report.link, self.now, report.beat_at))
        return tuple(one for one in instructions if not isinstance(one, SendReport))

    def attach(self, link: int = 1, epoch: int = 1) -> tuple[Instruction, ...]:
        return (*self.take(Connected(link, self.now)), *self.welcome(link, epoch))

    def welcome(self, link: int = 1, epoch: int = 1) -> tuple[Instruction, ...]:
        self.sequence = 0
        return self.take(Welcomed(link, f"s{link}", epoch, BEAT, LEASE, self.now))

    def instruct(self, *verbs: Verb, link: int = 1) -> tuple[Instruction, ...]:
        self.sequence += 1
        return self.take(Instructed(link, f"s{link}", self.sequence, verbs, self.now, 1))

    def sleep(self, seconds: float) -> tuple[Instruction, ...]:
        """Let time pass as a driver would: with a Tick at each look that is due."""
        end = self.now + seconds
        instructions: tuple[Instruction, ...] = ()
        while (look := next_look(self.state)) <= end:
            self.now = max(self.now, look)
            instructions += self.take(Tick(self.now))
        self.now = end
        return instructions

    def settle(self) -> None:
        self.sleep(reporting.WINDOW_SECONDS)

    def told(self) -> list[CellReport]:
        """What the scheduler was told of cells since the last time."""
        self.settle()
        cells = [cell for report in self.sent for cell in report.cells]
        self.settle()
        self.sent.clear()
        return cells

    def probe(self, *errors: str) -> None:
        for error in errors:
            self.take(ProbeFinished(CELL, error, self.now))
            self.settle()


def attached() -> Agent:
    agent = Agent()
    agent.attach()
    return agent


def running(*, probed: bool = False) -> Agent:
    agent = attached()
    agent.instruct(Ordered(order_of(probed=probed)))
    agent.take(Started(CELL, "pid 7", ENDPOINTS, agent.now))
    agent.told()
    return agent


def starting() -> Agent:
    agent = attached()
    agent.instruct(Ordered(order_of()))
    agent.told()
    return agent


def dead() -> Agent:
    agent = running()
    agent.take(Died(CELL, AUTOPSY, agent.now))
    agent.told()
    return agent


def failed() -> Agent:
    agent = starting()
    agent.take(StartFailed(CELL, "no such image", agent.now))
    agent.told()
    return agent


def stopping() -> Agent:
    agent = running()
    agent.instruct(Decommissioned(CELL))
    agent.told()
    return agent


def doomed_at_birth() -> Agent:
    agent = starting()
    agent.instruct(Decommissioned(CELL))
    agent.told()
    return agent


def buried() -> Agent:
    agent = stopping()
    agent.take(Stopped(CELL, agent.now))
    agent.told()
    return agent


STARTING = CellReport(CELL, "d1", CellState.STARTING, endpoints={})
RUNNING = CellReport(CELL, "d1", CellState.RUNNING, "pid 7", ENDPOINTS)
EXITED = CellReport(CELL, "d1", CellState.EXITED, "pid 7", ENDPOINTS, autopsy=AUTOPSY)
FAILED = CellReport(CELL, "d1", CellState.FAILED, endpoints={}, autopsy=Death("no such image"))
STOPPING = CellReport(CELL, "d1", CellState.STOPPING, "pid 7", ENDPOINTS)
STOPPING_UNBORN = CellReport(CELL, "d1", CellState.STOPPING, endpoints={})
GONE = CellReport(CELL, "d1", CellState.GONE)
GONE_UNKNOWN = CellReport(CELL, "", CellState.GONE)

ORDER = Ordered(order_of())
DECOMMISSION = Decommissioned(CELL)


@pytest.mark.parametrize(
    ("world", "verb", "instructions", "told"),
    [
        (attached, ORDER, (StartCell(order_of()),), [STARTING]),
        (starting, ORDER, (), [STARTING]),
        (running, ORDER, (), [RUNNING]),
        (dead, ORDER, (), [EXITED]),
        (failed, ORDER, (), [FAILED]),
        (stopping, ORDER, (), [STOPPING]),
        (doomed_at_birth, ORDER, (), [STOPPING_UNBORN]),
        (buried, ORDER, (), [GONE]),
        (attached, DECOMMISSION, (), [GONE_UNKNOWN]),
        (starting, DECOMMISSION, (), [STOPPING_UNBORN]),
        (running, DECOMMISSION, (STOP,), [STOPPING]),
        (
            dead,
            DECOMMISSION,
            (STOP,),
            [CellReport(CELL, "d1", CellState.STOPPING, "pid 7", ENDPOINTS, autopsy=AUTOPSY)],
        ),
        (
            failed,
            DECOMMISSION,
            (STOP,),
            [CellReport(CELL, "d1", CellState.STOPPING, endpoints={}, autopsy=Death("no such image"))],
        ),
        (stopping, DECOMMISSION, (), [STOPPING]),
        (doomed_at_birth, DECOMMISSION, (), [STOPPING_UNBORN]),
        (buried, DECOMMISSION, (), [GONE_UNKNOWN]),
    ],
)
def test_each_verb_does_at_most_one_thing_and_is_always_answered(world, verb, instructions, told) -> None:
    agent = world()
    assert agent.instruct(verb) == instructions
    assert agent.told() == told


@pytest.mark.parametrize(
    ("world", "event", "instructions", "told"),
    [
        (starting, Started(CELL, "pid 7", ENDPOINTS, 101.0), (), [RUNNING]),
        (starting, StartFailed(CELL, "no such image", 101.0), (), [FAILED]),
        (doomed_at_birth, Started(CELL, "pid 7", ENDPOINTS, 101.0), (STOP,), [STOPPING]),
        (doomed_at_birth, StartFailed(CELL, "no such image", 101.0), (STOP,), [STOPPING_UNBORN]),
        (doomed_at_birth, StartDeferred(CELL, "engine away", 101.0), (STOP,), [STOPPING_UNBORN]),
        (running, Died(CELL, AUTOPSY, 101.0), (), [EXITED]),
        (running, Started(CELL, "pid 8", {}, 101.0), (), []),
        (running, StartFailed(CELL, "late", 101.0), (), []),
        (running, Stopped(CELL, 101.0), (), []),
        (stopping, Died(CELL, AUTOPSY, 101.0), (), []),
        (stopping, Stopped(CELL, 101.0), (), [GONE]),
        (dead, Died(CELL, AUTOPSY, 101.0), (), []),
        (dead, ProbeFinished(CELL, "", 101.0), (), []),
        (buried, Died(CELL, AUTOPSY, 101.0), (), []),
        (buried, Started(CELL, "pid 7", {}, 101.0), (), []),
        (attached, StopFailed(CELL, "engine away", 101.0), (), []),
    ],
)
def test_what_the_runtime_says_moves_a_cell_forward_only(world, event, instructions, told) -> None:
    agent = world()
    assert agent.take(event) == instructions
    assert agent.told() == told


def test_cell_that_dies_before_its_start_returns_stays_dead() -> None:
    agent = starting()
    agent.take(Died(CELL, AUTOPSY, agent.now))
    assert [one.state for one in agent.told()] == [CellState.EXITED]
    assert agent.take(Started(CELL, "pid 7", ENDPOINTS, agent.now)) == ()
    assert agent.told() == [EXITED]


def test_dead_cell_whose_start_has_not_returned_is_removed_only_after_that() -> None:
    agent = starting()
    agent.take(Died(CELL, AUTOPSY, agent.now))
    assert agent.instruct(DECOMMISSION) == ()
    assert agent.take(Started(CELL, "pid 7", ENDPOINTS, agent.now)) == (STOP,)


def test_start_is_tried_again_with_growing_pauses_while_the_engine_is_away_and_then_fails() -> None:
    agent = starting()
    began, tries = agent.now, 0
    while agent.state.cells[CELL].state is CellState.STARTING:
        agent.take(StartDeferred(CELL, "engine away", agent.now))
        tries += agent.sleep(life.RETRY_LIMIT_SECONDS).count(StartCell(order_of()))
    assert 5 <= tries <= 10
    assert life.START_PATIENCE_SECONDS <= agent.now - began < life.START_PATIENCE_SECONDS + 10
    report = agent.told()[-1]
    assert report.state is CellState.FAILED
    assert report.autopsy is not None
    assert report.autopsy.reason.endswith(": engine away")


def test_cell_whose_start_waits_for_the_engine_is_stopped_at_once() -> None:
    agent = starting()
    agent.take(StartDeferred(CELL, "engine away", agent.now))
    assert agent.instruct(DECOMMISSION) == (STOP,)
    assert StartCell(order_of()) not in agent.sleep(60.0)


def test_stop_is_tried_for_as_long_as_it_takes_with_bounded_pauses() -> None:
    agent = stopping()
    pauses = []
    for _ in range(20):
        began = agent.now
        agent.take(StopFailed(CELL, "engine away", agent.now))
        while STOP not in agent.sleep(0.25):
            pass
        pauses.append(agent.now - began)
    assert pauses[0] <= 0.75
    assert pauses == sorted(pauses)
    assert pauses[-1] <= life.RETRY_LIMIT_SECONDS + 0.25


def test_agent_takes_no_more_cells_than_its_limit_and_says_so() -> None:
    agent = attached()
    agent.instruct(*(Ordered(order_of(f"web/{n}.1")) for n in range(life.CELLS_LIMIT)))
    agent.told()
    assert agent.instruct(Ordered(order_of("web/9999.1"))) == ()
    (refused,) = agent.told()
    assert (refused.cell_id, refused.state) == ("web/9999.1", CellState.FAILED)
    assert "web/9999.1" not in agent.state.cells


def test_memory_of_gone_cells_is_bounded() -> None:
    agent = attached()
    for n in range(GONE_KEPT + 10):
        cell_id = f"web/{n}.1"
        agent.instruct(Ordered(order_of(cell_id)))
        agent.take(Started(cell_id, "pid", {}, agent.now))
        agent.instruct(Decommissioned(cell_id))
        agent.take(Stopped(cell_id, agent.now))
    assert len(agent.state.gone) == GONE_KEPT
    assert agent.state.cells == {}
    assert agent.state.retries == {}


# Probes.


def test_probing_goes_on_from_running_until_death_or_stop() -> None:
    agent = attached()
    agent.instruct(Ordered(order_of(probed=True)))
    started = agent.take(Started(CELL, "pid 7", ENDPOINTS, agent.now))
    assert started == (StartProbing(order_of(probed=True), ENDPOINTS),)
    assert agent.take(Died(CELL, AUTOPSY, agent.now)) == (StopProbing(CELL),)
    agent = running(probed=True)
    assert agent.instruct(DECOMMISSION) == (StopProbing(CELL), STOP)


@pytest.mark.parametrize(
    ("outcomes", "told"),
    [
        ([""], [ProbeStatus(True)]),
        (["", "", ""], [ProbeStatus(True)]),
        (["refused"], [ProbeStatus(False, 1, "refused")]),
        (["refused", ""], [ProbeStatus(False, 1, "refused"), ProbeStatus(True)]),
        (["", "a", ""], [ProbeStatus(True), ProbeStatus(True, 1, "a"), ProbeStatus(True)]),
        (
            ["", "a", "b", "c", "d", "e"],
            [
                ProbeStatus(True),
                ProbeStatus(True, 1, "a"),
                ProbeStatus(True, 2, "b"),
                ProbeStatus(True, 3, "c"),
            ],
        ),
        (
            ["", "a", "b", "c", "d", ""],
            [
                ProbeStatus(True),
                ProbeStatus(True, 1, "a"),
                ProbeStatus(True, 2, "b"),
                ProbeStatus(True, 3, "c"),
                ProbeStatus(True),
            ],
        ),
    ],
)
def test_probe_outcomes_are_told_while_they_say_something_new(outcomes, told) -> None:
    agent = running(probed=True)
    agent.probe(*outcomes)
    assert [one.probe for one in agent.told()] == told


def test_quiet_probe_leaves_the_very_same_state() -> None:
    agent = running(probed=True)
    agent.probe("")
    before = agent.state
    assert step(before, ProbeFinished(CELL, "", agent.now)) == (before, ())
    assert step(before, ProbeFinished(CELL, "", agent.now))[0] is before


# Start and lists.


def found(cell_id: str = CELL, *, alive: bool = True, probed: bool = False) -> Found:
    if alive:
        return Found(order_of(cell_id, probed=probed), Running("pid 7", ENDPOINTS, 0.0))
    return Found(order_of(cell_id), None, AUTOPSY)


def listed(agent: Agent, cells: Iterable[Found], asked_before: float = 0.0) -> tuple[Instruction, ...]:
    return agent.take(Relisted(PROCESS, tuple(cells), agent.now - asked_before, agent.now))


def test_agent_that_starts_takes_its_cells_over_and_says_hello_with_them() -> None:
    agent = Agent()
    started = listed(agent, [found(probed=True), found("web/2.1", alive=False)])
    assert started == (StartProbing(order_of(probed=True), ENDPOINTS),)
    dead_one = CellReport("web/2.1", "d1", CellState.EXITED, endpoints={}, autopsy=AUTOPSY)
    assert agent.take(Connected(1, agent.now)) == (SendHello(1, (RUNNING, dead_one), 0, agent.now),)


def test_list_shows_a_death_that_no_event_told_of() -> None:
    agent = running()
    agent.sleep(1.0)
    listed(agent, [found(alive=False)])
    assert [one for one in agent.told() if one.autopsy] == [EXITED]


def test_cell_that_something_else_removed_is_dead() -> None:
    agent = running()
    agent.sleep(1.0)
    listed(agent, [])
    (report,) = agent.told()
    assert (report.state, report.autopsy.reason) == (
        CellState.EXITED,
        "the cell vanished: the agent did not remove it",
    )


def test_list_says_nothing_of_another_runtimes_cells() -> None:
    agent = running()
    agent.sleep(1.0)
    agent.take(Relisted(cell_pb2.RUNTIME_KIND_DOCKER, (), agent.now, agent.now))
    assert agent.state.cells[CELL].state is CellState.RUNNING


def test_list_that_was_asked_for_before_a_start_or_a_stop_does_not_judge_it() -> None:
    agent = running()
    listed(agent, [], asked_before=1.0)
    assert agent.state.cells[CELL].state is CellState.RUNNING
    agent.instruct(DECOMMISSION)
    agent.take(Stopped(CELL, agent.now))
    listed(agent, [found()], asked_before=1.0)
    assert agent.state.cells == {}


def test_list_does_not_disturb_a_cell_that_is_on_its_way() -> None:
    for world in (starting, stopping, doomed_at_birth, dead, failed):
        agent = world()
        agent.sleep(0.5)
        before = agent.state.cells
        for cells in ([], [found()], [found(alive=False)]):
            listed(agent, cells)
            assert agent.state.cells == before


# The link.


def test_stale_batches_are_dropped() -> None:
    agent = attached()
    agent.take(Instructed(1, "s1", 5, (), agent.now, 1))
    for stale in (
        Instructed(1, "s1", 5, (ORDER,), agent.now, 1),
        Instructed(1, "s1", 4, (ORDER,), agent.now, 1),
        Instructed(1, "s0", 6, (ORDER,), agent.now, 1),
        Instructed(2, "s1", 6, (ORDER,), agent.now, 1),
    ):
        assert agent.take(stale) == ()
        assert agent.told() == []


def test_gap_in_the_batches_is_harmless() -> None:
    agent = attached()
    assert agent.take(Instructed(1, "s1", 9, (ORDER,), agent.now, 1)) == (StartCell(order_of()),)


def test_scheduler_of_an_older_epoch_is_not_obeyed() -> None:
    agent = attached()
    agent.take(Disconnected(1, agent.now))
    assert agent.attach(2, epoch=7)[1:] == (RememberEpoch(7),)
    agent.take(Disconnected(2, agent.now))
    hello, refusal = agent.attach(3, epoch=6)
    assert hello == SendHello(3, (), 7, agent.now)
    assert isinstance(refusal, CloseSession)
    assert agent.instruct(ORDER, link=3) == ()


def test_broken_session_stops_nothing_and_the_next_hello_tells_all() -> None:
    agent = running()
    assert agent.take(Disconnected(1, agent.now)) == ()
    agent.take(Died(CELL, AUTOPSY, agent.now))
    assert agent.sent == []
    assert agent.take(Connected(2, agent.now)) == (SendHello(2, (EXITED,), 1, agent.now),)


def test_what_changes_between_hello_and_welcome_is_the_first_report() -> None:
    agent = running()
    agent.take(Disconnected(1, agent.now))
    agent.take(Connected(2, agent.now))
    agent.take(Died(CELL, AUTOPSY, agent.now))
    agent.welcome(2)
    assert agent.sent == [SendReport(2, "s2", 1, (EXITED,), beat_at=agent.now)]


def test_new_session_takes_over_from_one_that_is_still_open() -> None:
    agent = running()
    agent.take(Connected(2, agent.now))
    agent.take(Died(CELL, AUTOPSY, agent.now))
    assert [(one.link, one.cells) for one in agent.sent] == [(1, (EXITED,))]
    agent.welcome(2)
    agent.take(Disconnected(1, agent.now))
    assert agent.instruct(DECOMMISSION, link=2) == (STOP,)
    assert {one.link for one in agent.sent[1:]} == {2}


def test_change_is_told_at_once_and_what_follows_within_the_window_together() -> None:
    agent = attached()
    agent.sleep(0.5)
    for n in range(5):
        agent.take(Instructed(1, "s1", n + 1, (Ordered(order_of(f"web/{n}.1")),), agent.now, 1))
    assert [len(one.cells) for one in agent.sent] == [1]
    assert next_look(agent.state) == pytest.approx(agent.now + reporting.WINDOW_SECONDS)
    agent.settle()
    assert [len(one.cells) for one in agent.sent] == [1, 4]
    assert [one.sequence for one in agent.sent] == [1, 2]


def test_beat_goes_out_only_where_nothing_else_was_said() -> None:
    agent = attached()
    agent.sleep(0.9)
    agent.instruct(ORDER)
    agent.sleep(0.9)
    assert [len(one.cells) for one in agent.sent] == [1]
    agent.sleep(0.2)
    assert [one.cells for one in agent.sent][1:] == [()]
    agent.take(Retuned(1, 0.1, LEASE, agent.now))
    agent.sent.clear()
    agent.sleep(1.05)
    assert 9 <= len(agent.sent) <= 11


def test_resync_is_answered_with_everything_and_the_last_word_on_the_gone() -> None:
    agent = running()
    agent.instruct(Ordered(order_of("web/2.1")), ResyncAsked(), Decommissioned("web/3.1"))
    (report,) = agent.sent
    assert report.complete
    assert report.cells == (
        RUNNING,
        CellReport("web/2.1", "d1", CellState.STARTING, endpoints={}),
        CellReport("web/3.1", "", CellState.GONE),
    )
    agent.sent.clear()
    agent.sleep(BEAT)
    assert [(one.complete, one.cells) for one in agent.sent] == [(False, ())]


def test_silent_scheduler_is_asked_for_an_echo_and_given_up_after_the_lease() -> None:
    agent = attached()
    agent.scheduler_echoes = False
    assert agent.sleep(LEASE - 0.1) == ()
    assert [one.wants_echo for one in agent.sent] == [False, False, True, True]
    (closed,) = agent.sleep(0.1)
    assert isinstance(closed, CloseSession)
    assert agent.state.session is None


def test_echo_keeps_the_session() -> None:
    assert attached().sleep(10 * LEASE) == ()


def test_vitals_ride_along_when_due_or_markedly_different() -> None:
    agent = attached()
    calm, busy = cell_pb2.Vitals(cpu_fraction=0.1), cell_pb2.Vitals(cpu_fraction=0.9)
    same = cell_pb2.Vitals(cpu_fraction=0.12)
    agent.take(VitalsTaken(calm, agent.now))
    assert [one.vitals for one in agent.sent] == [calm]
    agent.take(VitalsTaken(same, agent.now))
    agent.sleep(3 * BEAT)
    assert [one.vitals for one in agent.sent[1:]] == [None] * 3
    agent.settle()
    agent.take(VitalsTaken(busy, agent.now))
    assert agent.sent[-1].vitals == busy


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"engine_latency_ms": 3.0}, {"engine_latency_ms": -1.0}),
        ({"engine_latency_ms": -1.0}, {"engine_latency_ms": 3.0}),
        ({"disk_error": ""}, {"disk_error": "EROFS"}),
        ({"disk_error": "EROFS"}, {"disk_error": ""}),
        ({"clock_offset_ms": 10.0}, {"clock_offset_ms": -6_000.0}),
        ({"kernel_errors": 0}, {"kernel_errors": 12}),
        ({"disk_fraction": 0.8}, {"disk_fraction": 0.99}),
        ({"pressure_memory": 0.0}, {"pressure_memory": 70.0}),
    ],
)
def test_what_makes_a_server_ill_or_well_is_told_at_once(before, after) -> None:
    agent = attached()
    agent.take(VitalsTaken(cell_pb2.Vitals(**before), agent.now))
    agent.sleep(BEAT)
    agent.settle()
    agent.sent.clear()
    agent.take(VitalsTaken(cell_pb2.Vitals(**after), agent.now))
    assert [one.vitals for one in agent.sent] == [cell_pb2.Vitals(**after)]


def test_progress_of_a_start_is_told_at_most_once_a_second() -> None:
    agent = starting()
    for n in range(30):
        agent.take(Progressed(CELL, f"pulling, {n} %", agent.now))
        agent.now += 0.1
    assert len(agent.told()) == 3


def test_logs_are_fetched_for_cells_that_are_here_only() -> None:
    agent = running()
    assert agent.instruct(LogsAsked(9, CELL, 10, True)) == (FetchLogs(1, 9, CELL, PROCESS, 10, True),)
    assert agent.instruct(LogsDeclined(9)) == (StopLogs(1, 9),)
    assert agent.instruct(LogsAsked(10, "db/1.1", 10, False)) == (
        RefuseLogs(1, 10, "no cell db/1.1 on this server"),
    )


def test_agent_that_closes_down_ends_its_cells_and_takes_no_order() -> None:
    agent = running()
    assert agent.take(ClosingDown(agent.now)) == (STOP,)
    assert agent.instruct(Ordered(order_of("web/2.1"))) == ()
    assert agent.told() == [STOPPING]


def test_an_agent_that_leaves_says_so_at_once_and_in_every_session_until_it_is_gone() -> None:
    agent = attached()
    agent.settle()
    agent.sent.clear()
    agent.take(ClosingDown(agent.now))
    assert [report.leaving for report in agent.sent] == [True]
    agent.take(Disconnected(1, agent.now))
    agent.attach(2)
    assert [(report.link, report.leaving) for report in agent.sent] == [(1, True), (2, True)]


def test_orphan_whose_order_names_no_stop_gets_the_usual_one() -> None:
    agent = attached()
    bare = link_pb2.Order(cell_id=CELL, spec=cell_pb2.Spec(runtime=PROCESS))
    listed(agent, [Found(bare, Running("pid 7", {}, 0.0))])
    assert agent.instruct(DECOMMISSION) == (StopCell(CELL, PROCESS, "SIGTERM", 10.0),)


def test_what_hands_did_to_a_cell_is_told_once_and_with_every_whole_report() -> None:
    agent = running()
    agent.sleep(1.0)
    agent.sent.clear()
    touched = ("somebody ran sh in it (docker exec)",)
    agent.take(Compared(CELL, (), agent.now))
    agent.take(Compared(CELL, touched, agent.now))
    agent.take(Compared(CELL, touched, agent.now))
    assert [report.cells[0].touched for report in agent.sent] == [touched]
    agent.take(Disconnected(1, agent.now))
    (hello,) = agent.take(Connected(2, agent.now))
    assert isinstance(hello, SendHello)
    assert hello.inventory[0].touched == touched


def test_comparison_of_a_cell_that_does_not_run_says_nothing() -> None:
    for agent in (stopping(), dead(), attached()):
        agent.sent.clear()
        agent.take(Compared(CELL, ("touched",), agent.now))
        assert agent.sent == []
