"""The agent's pure half: what each event does to a cell, and what the scheduler is told of it."""

import pytest

from galactica.agent.core import cells as life
from galactica.agent.core.draft import GONE_KEPT
from galactica.agent.core.events import (
    Decommissioned,
    Died,
    Ordered,
    ProbeFinished,
    Relisted,
    StartDeferred,
    Started,
    StartFailed,
    StopFailed,
    Stopped,
)
from galactica.agent.core.instructions import StartCell, StartProbing, StopProbing
from galactica.agent.core.model import CellReport, CellState, Death, Found, ProbeStatus, Running
from galactica.agent.core.step import step
from tests.support.agent_state import (
    AUTOPSY,
    CELL,
    DECOMMISSION,
    ENDPOINTS,
    EXITED,
    ORDER,
    PROCESS,
    RUNNING,
    STOP,
    STOPPING,
    Agent,
    attached,
    dead,
    doomed_at_birth,
    failed,
    order_of,
    running,
    starting,
    stopping,
)


def buried() -> Agent:
    agent = stopping()
    agent.take(Stopped(CELL, agent.now))
    agent.told()
    return agent


STARTING = CellReport(CELL, "d1", CellState.STARTING, endpoints={})

FAILED = CellReport(CELL, "d1", CellState.FAILED, endpoints={}, autopsy=Death("no such image"))

STOPPING_UNBORN = CellReport(CELL, "d1", CellState.STOPPING, endpoints={})

GONE = CellReport(CELL, "d1", CellState.GONE)

GONE_UNKNOWN = CellReport(CELL, "", CellState.GONE)


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


def test_cell_is_probed_at_its_own_address_too() -> None:
    own = {"http": "172.17.0.2:8080"}
    agent = attached()
    agent.instruct(Ordered(order_of(probed=True)))
    started = agent.take(Started(CELL, "pid 7", ENDPOINTS, agent.now, own))
    assert started == (StartProbing(order_of(probed=True), ENDPOINTS, own),)
    found = Found(order_of(probed=True), Running("pid 7", dict(ENDPOINTS), 0.0, own))
    again = Agent()
    adopted = again.take(Relisted(PROCESS, (found,), again.now, again.now))
    assert adopted == (StartProbing(order_of(probed=True), ENDPOINTS, own),)


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
