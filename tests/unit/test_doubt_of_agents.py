"""The agent's pure half: a cell that its runtime cannot inspect is in doubt, which is told and harms nothing."""

import pytest

from galactica.agent.carrier import pause_until_next_list
from galactica.agent.core.events import (
    Connected,
    Decommissioned,
    Died,
    Ordered,
    Relisted,
    StartDeferred,
    Started,
    Stopped,
)
from galactica.agent.core.instructions import SendHello, StartCell, StopCell
from galactica.agent.core.model import CellReport, CellState, Death, Found, Running
from galactica.v1 import link_pb2
from tests.support.agent_state import (
    AUTOPSY,
    CELL,
    ENDPOINTS,
    EXITED,
    PROCESS,
    RUNNING,
    STOPPING,
    Agent,
    attached,
    dead,
    order_of,
    running,
    starting,
    stopping,
)

DOUBT = "layer does not exist"
FOUND = Found(order_of(), None, doubt=DOUBT, runtime_id="pid 7")
ALIVE = Found(order_of(), Running("pid 7", ENDPOINTS, 0.0))
CORPSE = Found(order_of(), None, AUTOPSY)
UNKNOWN = CellReport(CELL, "d1", CellState.STARTING, "pid 7", endpoints={}, doubt=DOUBT)
DOUBTFUL = CellReport(CELL, "d1", CellState.RUNNING, "pid 7", ENDPOINTS, doubt=DOUBT)


def list_again(agent: Agent, *found: Found, kind: int = PROCESS):
    agent.now += 1.0
    return agent.take(Relisted(kind, found, agent.now - 0.5, agent.now))


def found_in_doubt() -> Agent:
    agent = attached()
    list_again(agent, FOUND)
    agent.told()
    return agent


def in_doubt() -> Agent:
    agent = running()
    list_again(agent, FOUND)
    agent.told()
    return agent


def test_a_cell_in_doubt_is_told_in_a_state_that_says_nothing():
    agent = attached()
    assert list_again(agent, FOUND) == ()
    assert agent.told() == [UNKNOWN]


def test_a_hello_tells_of_cells_in_doubt_beside_the_others():
    agent = Agent()
    other = Found(order_of("web/2.1"), Running("pid 8", ENDPOINTS, 0.0))
    list_again(agent, FOUND, other)
    (hello,) = agent.take(Connected(1, agent.now))
    assert isinstance(hello, SendHello)
    assert hello.inventory == (UNKNOWN, CellReport("web/2.1", "d1", CellState.RUNNING, "pid 8", ENDPOINTS))


def test_a_known_cell_in_doubt_keeps_its_state():
    agent = running()
    assert list_again(agent, FOUND) == ()
    assert agent.told() == [DOUBTFUL]


def test_the_same_doubt_is_told_once():
    agent = in_doubt()
    list_again(agent, FOUND)
    assert agent.told() == []


@pytest.mark.parametrize("world", [dead, stopping, starting])
def test_a_doubt_changes_nothing_where_the_agent_knows_better(world):
    agent = world()
    list_again(agent, FOUND)
    assert agent.told() == []


@pytest.mark.parametrize("world", [found_in_doubt, in_doubt])
@pytest.mark.parametrize(
    ("seen", "told"), [(ALIVE, RUNNING), (CORPSE, EXITED)], ids=["it runs", "it has ended"]
)
def test_an_inspection_ends_the_doubt(world, seen, told):
    agent = world()
    list_again(agent, seen)
    (report,) = agent.told()
    assert (report.state, report.doubt, report.autopsy) == (told.state, "", told.autopsy)


@pytest.mark.parametrize("world", [found_in_doubt, in_doubt])
def test_a_cell_in_doubt_dies_like_any_other(world):
    agent = world()
    agent.take(Died(CELL, AUTOPSY, agent.now))
    (report,) = agent.told()
    assert (report.state, report.doubt, report.autopsy) == (CellState.EXITED, "", AUTOPSY)


@pytest.mark.parametrize("world", [found_in_doubt, in_doubt])
def test_a_cell_in_doubt_that_is_listed_no_more_has_vanished(world):
    agent = world()
    list_again(agent)
    (report,) = agent.told()
    assert (report.state, report.doubt) == (CellState.EXITED, "")
    assert isinstance(report.autopsy, Death)
    assert report.autopsy.lived_seconds < 3.0


def test_a_list_from_before_the_doubt_proves_nothing():
    agent = found_in_doubt()
    agent.take(Relisted(PROCESS, (), agent.now - 1.0, agent.now))
    assert agent.told() == []


@pytest.mark.parametrize("world", [found_in_doubt, in_doubt])
def test_a_cell_in_doubt_is_ended_by_its_id(world):
    agent = world()
    assert StopCell(CELL, PROCESS, "SIGINT", 2.5) in agent.instruct(Decommissioned(CELL))
    agent.settle()
    assert [(one.state, one.doubt) for one in agent.told()] == [(CellState.STOPPING, "")]
    agent.take(Stopped(CELL, agent.now))
    assert [one.state for one in agent.told()] == [CellState.GONE]


def test_a_cell_whose_order_is_damaged_is_ended_by_the_runtime_that_listed_it():
    agent = attached()
    list_again(agent, Found(link_pb2.Order(cell_id=CELL), None, doubt=DOUBT))
    (stop,) = agent.instruct(Decommissioned(CELL))
    assert isinstance(stop, StopCell)
    assert stop.kind == PROCESS


def test_an_exclusive_cell_in_doubt_is_fenced():
    order = order_of()
    order.spec.exclusive = True
    agent = Agent()
    stops = [one for one in list_again(agent, Found(order, None, doubt=DOUBT)) if isinstance(one, StopCell)]
    assert [one.cell_id for one in stops] == [CELL]


def test_a_cell_that_may_run_is_not_told_as_failed_however_long_it_takes():
    agent = starting()
    for _ in range(60):
        agent.take(StartDeferred(CELL, DOUBT, agent.now, may_run=True))
        assert StartCell(order_of()) in agent.sleep(5.0)
    reports = agent.told()
    assert {one.state for one in reports} == {CellState.STARTING}
    assert reports[-1].doubt == DOUBT
    agent.take(Started(CELL, "pid 7", ENDPOINTS, agent.now))
    assert agent.told() == [RUNNING]


def test_a_repeated_order_of_a_cell_in_doubt_starts_nothing():
    assert found_in_doubt().instruct(Ordered(order_of())) == ()


def test_a_fuller_order_replaces_what_a_list_in_doubt_knew():
    agent = attached()
    list_again(agent, Found(link_pb2.Order(cell_id=CELL), None, doubt=DOUBT))
    agent.told()
    list_again(agent, ALIVE)
    assert agent.told() == [RUNNING]


def test_a_stopping_cell_tells_no_doubt():
    agent = in_doubt()
    agent.instruct(Decommissioned(CELL))
    assert agent.told() == [STOPPING]


def test_lists_come_soon_after_a_new_doubt_and_then_with_growing_pauses():
    one, two = frozenset({"a/0.1"}), frozenset({"a/0.1", "b/0.1"})
    pauses = [pause_until_next_list(30.0, frozenset(), one)]
    for _ in range(6):
        pauses.append(pause_until_next_list(pauses[-1], one, one))
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert pause_until_next_list(30.0, one, two) == 1.0
    assert pause_until_next_list(4.0, one, frozenset()) == 30.0
