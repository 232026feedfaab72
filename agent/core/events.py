"""What goes into ``state.step`` (events: facts, past tense) and what comes out of it (instructions).

Plain frozen values. The contract's messages appear as payloads that are carried and read, never made, so that
nothing here needs protobuf at run time. ``now`` is seconds of ``clock``; ``beat_at`` is such a time too: when the
agent sent what the scheduler, by saying this, shows to have heard (0: nothing). ``link`` numbers the agent's
connections to the scheduler, so that what an old one still says can be told from what the newest one says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from galactica.agent.core.model import Found
    from galactica.v1 import cell_pb2, link_pb2
from galactica.agent.core.model import Death, Neighbour, Testimony

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
