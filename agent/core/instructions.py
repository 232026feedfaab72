"""The instructions: what the pure half tells the driver to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from galactica.v1 import cell_pb2, link_pb2
from galactica.agent.core.model import CellReport, Neighbour, TestimonyReport

# Instructions.


@dataclass(frozen=True, slots=True)
class StartCell:
    """Answered by Started, StartFailed or StartDeferred."""

    order: link_pb2.Order


@dataclass(frozen=True, slots=True)
class AbandonStart:
    """End a start that is under way. Answered by StartFailed, unless the start has ended before."""

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
    direct: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StopProbing:
    cell_id: str


@dataclass(frozen=True, slots=True)
class SendHello:
    link: int
    inventory: tuple[CellReport, ...]
    epoch: int
    beat_at: float = 0.0
    start: str = ""
    position: int = 0


@dataclass(frozen=True, slots=True)
class SendReport:
    """A beat if ``cells`` is empty and it is not complete. ``wants_echo``: it carries the wall clock's time, which
    asks for an echo."""

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
    """No such cell on this server."""

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
    """Store the highest epoch that the agent has obeyed, and which start of a scheduler had it, for the agent's next
    start."""

    epoch: int
    start: str = ""


@dataclass(frozen=True, slots=True)
class RememberFence:
    """Store until when exclusive cells may live, for the watchdog and the agent's next start. None: there are no
    exclusive cells."""

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
