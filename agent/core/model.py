"""The agent's values: cells and their reports, the session, neighbours, and the state that contains them."""

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
    """The whole state of the agent. Nobody changes its mappings in place."""

    cells: Mapping[str, Cell] = field(default_factory=dict)
    gone: Mapping[str, float] = field(default_factory=dict)
    """Cells that were stopped and removed, and when; the newest ``GONE_KEPT``."""
    retries: Mapping[str, float] = field(default_factory=dict)
    """When to try again to start or stop a cell after the engine did not answer."""
    epoch: int = 0
    """The highest scheduler epoch that was obeyed."""
    start: str = ""
    """Which start of a scheduler had it; empty if that is unknown."""
    position: int = 0
    """The newest position of its journal of which that scheduler told this run of the agent."""
    session: Session | None = None
    greeting: int | None = None
    """The link on which a Hello was sent that is not answered yet."""
    since_hello: Mapping[str, CellReport | None] = field(default_factory=dict)
    """Changes since that Hello; they go into the first report of its session."""
    vitals: cell_pb2.Vitals | None = None
    testimonies: Mapping[str, Testimony] = field(default_factory=dict)
    """The testimonies about neighbours; kept between sessions too."""
    is_closing: bool = False
    exclusive: frozenset[str] = frozenset()
    """Exclusive cells that may be alive, wholly or in part."""
    fence_at: float = -math.inf
    """Until when those may live: the lease, counted from the newest report that a scheduler has confirmed. Never goes
    back."""


class CellState(IntEnum):
    """State of a cell as the agent sees it, with the contract's numbers."""

    STARTING = 1
    RUNNING = 2
    EXITED = 3
    FAILED = 4
    STOPPING = 5
    GONE = 6


@dataclass(frozen=True, slots=True)
class ProbeStatus:
    """``consecutive_failures`` counts up to the spec's ``sick_after``: further failures change nothing."""

    has_passed: bool = False
    consecutive_failures: int = 0
    last_error: str = ""


@dataclass(frozen=True, slots=True)
class Death:
    """An autopsy by the agent itself, for a cell without an autopsy by its runtime."""

    reason: str
    lived_seconds: float = 0.0
    fenced: bool = False


@dataclass(frozen=True, slots=True)
class CellReport:
    """The whole state of one cell as the agent sees it now; never a difference."""

    cell_id: str
    digest: str
    state: CellState
    runtime_id: str = ""
    endpoints: Mapping[str, str] | None = None
    probe: ProbeStatus | None = None
    autopsy: cell_pb2.Autopsy | Death | None = None
    progress: str = ""
    touched: tuple[str, ...] = ()
    """Differences from its spec; empty: none."""
    doubt: str = ""
    """Why the agent cannot tell how the cell is; ``state`` is then the last one that it knew. Empty: no doubt."""


class Answer(IntEnum):
    """How a neighbour reacts to pings, with the contract's numbers."""

    ANSWERS = 1
    REFUSED = 2
    SILENT = 3


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another server that this one watches. ``address``: numeric, with the port. ``key``: only these two have it."""

    server_id: str
    address: str
    key: bytes


@dataclass(frozen=True, slots=True)
class Testimony:
    """How a neighbour reacts to this agent's pings, and since when (seconds of ``clock``). ``after_refusal``: it is
    silent, and before that its kernel refused pings."""

    server_id: str
    answer: Answer
    since: float
    after_refusal: bool = False


@dataclass(frozen=True, slots=True)
class TestimonyReport:
    """A testimony for the scheduler. It says for how long, not since when: no two clocks agree."""

    server_id: str
    answer: Answer
    for_seconds: float
    after_refusal: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell on this server, from its order until nothing of it is left."""

    order: link_pb2.Order
    id: str
    digest: str
    kind: int
    """Its runtime, by the contract's number."""
    sick_after: int
    """0: it has no probe."""
    state: CellState = CellState.STARTING
    start_in_flight: bool = False
    """The runtime is starting it."""
    runtime_id: str = ""
    endpoints: Mapping[str, str] = field(default_factory=dict)
    direct: Mapping[str, str] = field(default_factory=dict)
    """Its ports at its own address, for probes; empty: unknown."""
    running_since: float = 0.0
    probe: ProbeStatus | None = None
    autopsy: cell_pb2.Autopsy | Death | None = None
    progress: str = ""
    progress_at: float = float("-inf")
    tries: int = 0
    """Failed attempts in a row, because the engine did not answer."""
    tried_since: float = 0.0
    touched: tuple[str, ...] = ()
    """Differences from its spec."""
    is_fenced: bool = False
    """Ended because no scheduler heard this server. It stays listed as dead until a scheduler decommissions it."""
    doubt: str = ""
    """Why its newest inspection failed; empty: the runtime knows how it is."""
    doubted_at: float = math.inf
    """When the newest list said so; infinity: no doubt."""

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
    """The sequence of the newest batch of instructions that the agent has obeyed."""
    sent: int = 0
    """The sequence of the newest report."""
    unsent: Mapping[str, CellReport | None] = field(default_factory=dict)
    """Cells for the next report; None: in their state at the time of sending."""
    untold: Mapping[str, Testimony] = field(default_factory=dict)
    """Testimonies for the next report."""
    owes_everything: bool = False
    """The scheduler has asked for a resync; the next report answers it."""
    has_said_goodbye: bool = False
    vitals: cell_pb2.Vitals | None = None
    """The newest vitals that were sent."""
    vitals_at: float = float("-inf")


@dataclass(frozen=True, slots=True)
class Running:
    """A running cell. ``endpoints``: port name to "host:port". ``started_at``: Unix seconds.

    ``direct``: the same at the cell's own address, without a go-between that accepts connections in its place; empty if
    that is unknown or out of reach."""

    runtime_id: str
    endpoints: dict[str, str]
    started_at: float
    direct: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Found:
    """A cell in the runtime: running, or ended and not yet removed (then with its autopsy).

    ``doubt``: why the runtime cannot tell which; only the order and ``runtime_id`` are known then."""

    order: link_pb2.Order
    running: Running | None
    autopsy: cell_pb2.Autopsy | None = None
    doubt: str = ""
    runtime_id: str = ""
