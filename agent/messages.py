"""What goes into ``state.step`` (events: facts, past tense) and what comes out of it (instructions).

Plain frozen values. The contract's messages appear as payloads that are carried and read, never made, so that
nothing here needs protobuf at run time. ``now`` is seconds of ``clock``; ``beat_at`` is such a time too: when the
agent sent what the scheduler, by saying this, shows to have heard (0: nothing). ``link`` numbers the agent's
connections to the scheduler, so that what an old one still says can be told from what the newest one says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from galactica.agent.runtimes import Found
    from galactica.v1 import cell_pb2, link_pb2


class CellState(IntEnum):
    """What the agent sees of a cell, with the contract's numbers."""

    STARTING = 1
    RUNNING = 2
    EXITED = 3
    FAILED = 4
    STOPPING = 5
    GONE = 6


@dataclass(frozen=True, slots=True)
class ProbeStatus:
    """``consecutive_failures`` stays at the spec's ``sick_after`` once it is there: more say nothing new."""

    has_passed: bool = False
    consecutive_failures: int = 0
    last_error: str = ""


@dataclass(frozen=True, slots=True)
class Death:
    """An autopsy that the agent itself writes, where there is no runtime's one."""

    reason: str
    lived_seconds: float = 0.0
    fenced: bool = False


@dataclass(frozen=True, slots=True)
class CellReport:
    """One cell as the agent sees it now; whole, never a difference."""

    cell_id: str
    digest: str
    state: CellState
    runtime_id: str = ""
    endpoints: Mapping[str, str] | None = None
    probe: ProbeStatus | None = None
    autopsy: cell_pb2.Autopsy | Death | None = None
    progress: str = ""
    touched: tuple[str, ...] = ()
    """How it differs from its spec; empty where it does not."""


class Answer(IntEnum):
    """What a neighbour says when it is pinged, with the contract's numbers."""

    ANSWERS = 1
    REFUSED = 2
    SILENT = 3


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another server that this one watches. ``address``: numeric, with the port. ``key``: theirs alone."""

    server_id: str
    address: str
    key: bytes


@dataclass(frozen=True, slots=True)
class Testimony:
    """What this agent sees of a neighbour, and since when (monotonic seconds)."""

    server_id: str
    answer: Answer
    since: float


@dataclass(frozen=True, slots=True)
class TestimonyReport:
    """The same as it is told: no two clocks agree, so for how long it has been so."""

    server_id: str
    answer: Answer
    for_seconds: float


# What the scheduler asks for, inside a batch.


@dataclass(frozen=True, slots=True)
class Ordered:
    """``beat_at``: the newest report that the scheduler had heard when it said this."""

    order: link_pb2.Order
    beat_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Decommissioned:
    cell_id: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ResyncAsked:
    pass


@dataclass(frozen=True, slots=True)
class LogsAsked:
    stream: int
    cell_id: str
    tail: int
    follow: bool


@dataclass(frozen=True, slots=True)
class LogsDeclined:
    stream: int


Verb = Ordered | Decommissioned | ResyncAsked | LogsAsked | LogsDeclined


# Events.


@dataclass(frozen=True, slots=True)
class Relisted:
    """Everything that one runtime has, at the agent's start and from time to time.

    ``asked_at``: when the list was asked for. What began or ended after that is not judged by it."""

    kind: int
    found: tuple[Found, ...]
    asked_at: float
    now: float


@dataclass(frozen=True, slots=True)
class Connected:
    """A stream to the scheduler is open and awaits the Hello."""

    link: int
    now: float


@dataclass(frozen=True, slots=True)
class Welcomed:
    link: int
    session: str
    epoch: int
    beat_seconds: float
    lease_seconds: float
    now: float
    beat_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Retuned:
    """The scheduler changed the tempo."""

    link: int
    beat_seconds: float
    lease_seconds: float
    now: float


@dataclass(frozen=True, slots=True)
class Echoed:
    """The scheduler answered a report that asked for it."""

    link: int
    now: float
    beat_at: float = 0.0


@dataclass(frozen=True, slots=True)
class NeighboursGiven:
    """The scheduler says whom to watch from now on, and the keys of those who watch this server."""

    link: int
    neighbours: tuple[Neighbour, ...]
    accepted_keys: tuple[bytes, ...]
    now: float


@dataclass(frozen=True, slots=True)
class Testified:
    """What can be said of the neighbours now: everything, whether it is new or not."""

    testimonies: tuple[Testimony, ...]
    now: float


@dataclass(frozen=True, slots=True)
class Disconnected:
    link: int
    now: float


@dataclass(frozen=True, slots=True)
class Instructed:
    link: int
    session: str
    sequence: int
    verbs: tuple[Verb, ...]
    now: float
    epoch: int


@dataclass(frozen=True, slots=True)
class Progressed:
    """A start takes its time; ``text`` is for people."""

    cell_id: str
    text: str
    now: float


@dataclass(frozen=True, slots=True)
class Started:
    cell_id: str
    runtime_id: str
    endpoints: Mapping[str, str]
    now: float


@dataclass(frozen=True, slots=True)
class StartFailed:
    """The runtime cannot start this cell."""

    cell_id: str
    reason: str
    now: float


@dataclass(frozen=True, slots=True)
class StartDeferred:
    """The engine did not answer; this says nothing about the cell."""

    cell_id: str
    reason: str
    now: float


@dataclass(frozen=True, slots=True)
class Died:
    """The cell ended by itself. Its corpse exists until it is stopped (and so removed)."""

    cell_id: str
    autopsy: cell_pb2.Autopsy | Death
    now: float


@dataclass(frozen=True, slots=True)
class Stopped:
    """Nothing of the cell is left."""

    cell_id: str
    now: float


@dataclass(frozen=True, slots=True)
class StopFailed:
    cell_id: str
    reason: str
    now: float


@dataclass(frozen=True, slots=True)
class ProbeFinished:
    """``error`` is empty after a success."""

    cell_id: str
    error: str
    now: float


@dataclass(frozen=True, slots=True)
class Compared:
    """A running cell was compared with its spec; ``touched`` is empty where it does not differ."""

    cell_id: str
    touched: tuple[str, ...]
    now: float


@dataclass(frozen=True, slots=True)
class VitalsTaken:
    vitals: cell_pb2.Vitals
    now: float


@dataclass(frozen=True, slots=True)
class ClosingDown:
    """The agent ends and its cells with it: no order is taken any more."""

    now: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: at or after what ``state.next_look`` said."""

    now: float


Event = (
    Relisted
    | Connected
    | Welcomed
    | Retuned
    | Echoed
    | NeighboursGiven
    | Testified
    | Disconnected
    | Instructed
    | Progressed
    | Started
    | StartFailed
    | StartDeferred
    | Died
    | Stopped
    | StopFailed
    | ProbeFinished
    | Compared
    | VitalsTaken
    | ClosingDown
    | Tick
)


# Instructions.


@dataclass(frozen=True, slots=True)
class StartCell:
    """Answered by Started, StartFailed or StartDeferred."""

    order: link_pb2.Order


@dataclass(frozen=True, slots=True)
class AbandonStart:
    """The start must not go on, wherever it is. Answered by StartFailed, where it did not end before."""

    cell_id: str


@dataclass(frozen=True, slots=True)
class StopCell:
    """Answered by Stopped or StopFailed."""

    cell_id: str
    kind: int
    signal: str
    grace_seconds: float


@dataclass(frozen=True, slots=True)
class StartProbing:
    """Answered by ProbeFinished, again and again."""

    order: link_pb2.Order
    endpoints: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class StopProbing:
    cell_id: str


@dataclass(frozen=True, slots=True)
class SendHello:
    link: int
    inventory: tuple[CellReport, ...]
    epoch: int
    beat_at: float = 0.0


@dataclass(frozen=True, slots=True)
class SendReport:
    """A beat where ``cells`` is empty and it is not complete. ``wants_echo``: it is to carry its time."""

    link: int
    session: str
    sequence: int
    cells: tuple[CellReport, ...] = ()
    vitals: cell_pb2.Vitals | None = None
    complete: bool = False
    wants_echo: bool = False
    testimonies: tuple[TestimonyReport, ...] = ()
    leaving: bool = False
    beat_at: float = 0.0


@dataclass(frozen=True, slots=True)
class WatchNeighbours:
    """Answered by Testified, again and again, also while there is no session."""

    neighbours: tuple[Neighbour, ...]
    accepted_keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class FetchLogs:
    link: int
    stream: int
    cell_id: str
    kind: int
    tail: int
    follow: bool


@dataclass(frozen=True, slots=True)
class RefuseLogs:
    """There is no such cell here."""

    link: int
    stream: int
    reason: str


@dataclass(frozen=True, slots=True)
class StopLogs:
    link: int
    stream: int


@dataclass(frozen=True, slots=True)
class CloseSession:
    link: int
    reason: str


@dataclass(frozen=True, slots=True)
class RememberEpoch:
    """Keep the highest epoch that was obeyed where the agent's next life finds it."""

    epoch: int


@dataclass(frozen=True, slots=True)
class RememberFence:
    """Keep until when exclusive cells may live where the watchdog and the agent's next life find it. None: there are
    no such cells."""

    fence_at: float | None


Instruction = (
    StartCell
    | AbandonStart
    | StopCell
    | StartProbing
    | StopProbing
    | SendHello
    | SendReport
    | WatchNeighbours
    | FetchLogs
    | RefuseLogs
    | StopLogs
    | CloseSession
    | RememberEpoch
    | RememberFence
)
