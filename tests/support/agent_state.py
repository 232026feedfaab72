"""The agent's pure half in a test's hands: one cell in each state, and what is reported of it."""

from galactica.agent.core import reporting
from galactica.agent.core.events import (
    Connected,
    Decommissioned,
    Died,
    Echoed,
    Event,
    Instructed,
    Ordered,
    ProbeFinished,
    Started,
    StartFailed,
    Tick,
    Verb,
    Welcomed,
)
from galactica.agent.core.instructions import Instruction, SendReport, StopCell
from galactica.agent.core.model import CellReport, CellState
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


RUNNING = CellReport(CELL, "d1", CellState.RUNNING, "pid 7", ENDPOINTS)

EXITED = CellReport(CELL, "d1", CellState.EXITED, "pid 7", ENDPOINTS, autopsy=AUTOPSY)

STOPPING = CellReport(CELL, "d1", CellState.STOPPING, "pid 7", ENDPOINTS)

ORDER = Ordered(order_of())

DECOMMISSION = Decommissioned(CELL)
