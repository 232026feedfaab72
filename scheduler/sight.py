"""What the scheduler sees right now: sessions, beats, reports. Never journaled, lost with the process, and
rebuilt from what agents say when they attach. ``observe`` folds one observation into a sight.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct
from rpds import HashTrieMap, HashTrieSet

from scheduler.model import Autopsy, Resources, RuntimeKind


class CellState(StrEnum):
    """What an agent sees of a cell; the contract's enum."""

    STARTING = "starting"
    RUNNING = "running"
    EXITED = "exited"
    FAILED = "failed"
    STOPPING = "stopping"
    GONE = "gone"


class ProbeStatus(Struct, frozen=True):
    has_passed: bool = False
    consecutive_failures: int = 0
    last_error: str = ""


class CellReport(Struct, frozen=True):
    """One cell as its agent sees it; whole, never a difference."""

    cell: str
    digest: str
    state: CellState
    runtime_id: str = ""
    endpoints: dict[str, str] = {}
    probe: ProbeStatus | None = None
    autopsy: Autopsy | None = None
    progress: str = ""


class Vitals(Struct, frozen=True):
    """Fractions are 0..1, pressures PSI's "some avg10" in percent; None where it cannot be known."""

    cpu_fraction: float = 0.0
    memory_fraction: float = 0.0
    disk_fraction: float = 0.0
    load_1m: float = 0.0
    pressure_cpu: float | None = None
    pressure_memory: float | None = None
    pressure_io: float | None = None
    engine_latency_ms: float | None = None
    clock_offset_ms: float | None = None


class ServerFacts(Struct, frozen=True):
    """What an agent says of its server when it attaches."""

    labels: dict[str, str] = {}
    capacity: Resources = Resources()
    disk_bytes: int = 0
    runtimes: tuple[RuntimeKind, ...] = ()
    agent_version: str = ""


class Attached(Struct, frozen=True):
    """A session began. ``inventory`` is everything that the agent has."""

    server: str
    session: str
    at: float
    facts: ServerFacts
    inventory: tuple[CellReport, ...] = ()


class Reported(Struct, frozen=True):
    """A report or beat. ``complete``: ``cells`` is the whole inventory."""

    server: str
    session: str
    sequence: int
    at: float
    cells: tuple[CellReport, ...] = ()
    vitals: Vitals | None = None
    complete: bool = False


class Detached(Struct, frozen=True):
    """The session's stream ended."""

    server: str
    session: str
    at: float
    reason: str = ""


Observation = Attached | Reported | Detached


class ServerSight(Struct, frozen=True):
    """One agent's session. ``closed_at`` None: its stream is open."""

    session: str
    attached_at: float
    heard_at: float
    sequence: int = 0
    closed_at: float | None = None
    vitals: Vitals | None = None
    facts: ServerFacts = ServerFacts()


class Sight(Struct, frozen=True):
    """``trusted_since``: silence before this instant (start, a stall of the scheduler itself) counts for nothing."""

    trusted_since: float = 0.0
    servers: HashTrieMap[str, ServerSight] = HashTrieMap()
    cells: HashTrieMap[str, CellReport] = HashTrieMap()
    """The newest report of each cell that exists somewhere, orphans too."""
    cells_of: HashTrieMap[str, HashTrieSet[str]] = HashTrieMap()
    """Server id to the ids of the cells that it reports."""
