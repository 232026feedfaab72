"""What the pure half tells the driver to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
