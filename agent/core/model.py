"""The agent's values: cells and what is known of them, the session, neighbours, and the state that holds them all."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from galactica.v1 import cell_pb2
from collections.abc import Mapping
from enum import IntEnum

if TYPE_CHECKING:
    from galactica.v1 import cell_pb2, link_pb2

if TYPE_CHECKING:
    from galactica.v1 import cell_pb2, link_pb2
from galactica.v1 import cell_pb2, link_pb2


@dataclass(frozen=True, slots=True)
class State:
    """Everything the agent knows. The mappings are never changed once they are in here."""

    cells: Mapping[str, Cell] = field(default_factory=dict)
    gone: Mapping[str, float] = field(default_factory=dict)
    """Cells that were stopped and removed, and when; the newest ``GONE_KEPT``."""
    retries: Mapping[str, float] = field(default_factory=dict)
    """When to try again to start or stop a cell, where the engine did not answer."""
    epoch: int = 0
    """The highest scheduler epoch that was obeyed."""
    session: Session | None = None
    greeting: int | None = None
    """The link that was sent a Hello and has not answered yet."""
    since_hello: Mapping[str, CellReport | None] = field(default_factory=dict)
    """What changed since that Hello: its session's first report."""
    vitals: cell_pb2.Vitals | None = None
    testimonies: Mapping[str, Testimony] = field(default_factory=dict)
    """What is seen of the neighbours; kept without a session too."""
    is_closing: bool = False
    exclusive: frozenset[str] = frozenset()
    """Exclusive cells of which something may live."""
    fence_at: float = -math.inf
    """Until when those may live: the lease after the newest report that a scheduler is known to have heard. Never goes
    back: what was granted may have been counted on."""


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


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell on this server, from its order until nothing of it is left."""

    order: link_pb2.Order
    id: str
    digest: str
    kind: int
    """The runtime that carries it, by the contract's number."""
    sick_after: int
    """0: it has no probe."""
    state: CellState = CellState.STARTING
    start_in_flight: bool = False
    """The runtime was told to start it and has not answered."""
    runtime_id: str = ""
    endpoints: Mapping[str, str] = field(default_factory=dict)
    running_since: float = 0.0
    probe: ProbeStatus | None = None
    autopsy: cell_pb2.Autopsy | Death | None = None
    progress: str = ""
    progress_at: float = float("-inf")
    tries: int = 0
    """How often the engine did not answer, in a row."""
    tried_since: float = 0.0
    touched: tuple[str, ...] = ()
    """How it differs from its spec."""
    is_fenced: bool = False
    """It is ended because no scheduler is heard: it stays on the list, dead, until a scheduler has seen that."""

    @property
    def is_exclusive(self) -> bool:
        return self.order.spec.exclusive

    @property
    def is_probed(self) -> bool:
        return self.sick_after > 0


@dataclass(frozen=True, slots=True)
class Session:
    """The session in force."""

    link: int
    id: str
    beat_seconds: float
    lease_seconds: float
    heard_at: float
    sent_at: float
    taken: int = 0
    """The highest sequence of instructions that was obeyed."""
    sent: int = 0
    """The sequence of the newest report."""
    unsent: Mapping[str, CellReport | None] = field(default_factory=dict)
    """What waits for the next report; None: the cell as it is by then."""
    untold: Mapping[str, Testimony] = field(default_factory=dict)
    """What neighbours' testimonies wait for the next report."""
    owes_everything: bool = False
    """A resync was asked for and not answered yet."""
    has_said_goodbye: bool = False
    vitals: cell_pb2.Vitals | None = None
    """The vitals that were sent last."""
    vitals_at: float = float("-inf")


@dataclass(frozen=True, slots=True)
class Running:
    """A cell that was started. ``endpoints``: port name to "host:port". ``started_at``: Unix seconds."""

    runtime_id: str
    endpoints: dict[str, str]
    started_at: float


@dataclass(frozen=True, slots=True)
class Found:
    """A cell that the runtime has: running, or ended and not yet removed (then with its autopsy)."""

    order: link_pb2.Order
    running: Running | None
    autopsy: cell_pb2.Autopsy | None = None
