"""The events: facts in the past tense, the input of ``core.step``.

Plain frozen values. Some carry messages of the contract; they are only read here, so this module does not need
protobuf at run time. ``now`` is seconds of ``clock``. ``beat_at`` is such a time too: when the agent sent the newest
report that the scheduler confirms with this message (0: none). ``link`` numbers the agent's connections to the
scheduler, so that late messages of an old connection can be told apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from galactica.agent.core.model import Found
    from galactica.v1 import cell_pb2, link_pb2
from galactica.agent.core.model import Death, Neighbour, Testimony

# The scheduler's instructions, inside a batch.


@dataclass(frozen=True, slots=True)
class Ordered:
    """``beat_at``: when the newest report was sent that the scheduler had received when it sent this order."""

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
    """All cells of one runtime, listed at the agent's start and regularly after that.

    ``asked_at``: when the list was requested. It says nothing about cells that started or ended after that."""

    kind: int
    found: tuple[Found, ...]
    asked_at: float
    now: float


@dataclass(frozen=True, slots=True)
class Connected:
    """A stream to the scheduler is open; the Hello comes next."""

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
    start: str = ""
    """Names the scheduler's start."""
    position: int = 0
    """Of the newest record in its journal."""


@dataclass(frozen=True, slots=True)
class Retuned:
    """The scheduler changed the tempo."""

    link: int
    beat_seconds: float
    lease_seconds: float
    now: float


@dataclass(frozen=True, slots=True)
class Echoed:
    """The scheduler answered a report that asked for an echo."""

    link: int
    now: float
    beat_at: float = 0.0
    position: int = 0


@dataclass(frozen=True, slots=True)
class NeighboursGiven:
    """The scheduler named the servers to watch from now on, and the keys of those that watch this server."""

    link: int
    neighbours: tuple[Neighbour, ...]
    accepted_keys: tuple[bytes, ...]
    now: float


@dataclass(frozen=True, slots=True)
class Testified:
    """All current testimonies about the neighbours, new or not."""

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
    """A start is still under way; ``text`` is for people."""

    cell_id: str
    text: str
    now: float


@dataclass(frozen=True, slots=True)
class Started:
    cell_id: str
    runtime_id: str
    endpoints: Mapping[str, str]
    now: float
    direct: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StartFailed:
    """The runtime could not start this cell."""

    cell_id: str
    reason: str
    now: float


@dataclass(frozen=True, slots=True)
class StartDeferred:
    """The engine did not answer, or the agent itself lacks something for it (``is_starved``). This says nothing about
    the cell. ``may_run``: the cell exists, and may run."""

    cell_id: str
    reason: str
    now: float
    may_run: bool = False
    is_starved: bool = False


@dataclass(frozen=True, slots=True)
class Died:
    """The cell ended by itself. Its remains exist until it is stopped, which removes them."""

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
    """A running cell was compared with its spec. ``touched`` lists the differences; empty: none."""

    cell_id: str
    touched: tuple[str, ...]
    now: float


@dataclass(frozen=True, slots=True)
class VitalsTaken:
    vitals: cell_pb2.Vitals
    now: float


@dataclass(frozen=True, slots=True)
class ClosingDown:
    """The agent ends and ends its cells too. It ignores further orders."""

    now: float


@dataclass(frozen=True, slots=True)
class Tick:
    """The time that ``step.next_look`` returned has come."""

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
