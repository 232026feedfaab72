"""What the scheduler sees right now: sessions, beats, reports. Never journaled, lost with the process, and
rebuilt from what agents say when they attach. ``observe`` folds one observation into a sight.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct
from msgspec.structs import replace
from rpds import HashTrieMap

from scheduler.model import Autopsy, Resources, RuntimeKind

SILENCE_WORTH_A_LOOK_SECONDS = 2.0
"""A report that ends a silence this long makes its server news again."""


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


class Told(Struct, frozen=True):
    """The newest command about a cell in this session."""

    verb: str
    at: float


class ServerSight(Struct, frozen=True):
    """One agent's session. ``closed_at`` None: its stream is open."""

    session: str
    attached_at: float
    heard_at: float
    sequence: int = 0
    closed_at: float | None = None
    vitals: Vitals | None = None
    facts: ServerFacts = ServerFacts()
    reports: HashTrieMap[str, CellReport] = HashTrieMap()
    """The newest report of each cell that it shows, orphans too."""
    told: HashTrieMap[str, Told] = HashTrieMap()
    """Cell id to the newest command about it; the empty id stands for the server as a whole."""
    is_doubtful: bool = False
    """Something that it sent is missing: it must report everything before its reports can be believed complete."""

    @property
    def is_open(self) -> bool:
        return self.closed_at is None


class Sight(Struct, frozen=True):
    """``trusted_since``: silence before this instant (start, a stall of the scheduler itself) counts for nothing."""

    trusted_since: float = 0.0
    servers: HashTrieMap[str, ServerSight] = HashTrieMap()

    def report_of(self, server: str, cell: str) -> CellReport | None:
        """What that server's agent said last of the cell. No agent is heard about another server's cells."""
        seen = self.servers.get(server)
        return None if seen is None else seen.reports.get(cell)


class Observed(Struct, frozen=True):
    """What an observation brought: the new sight, the cells to look at, and whether the server itself is news.

    ``everything``: the whole inventory came, so every cell of the server is news.
    """

    sight: Sight
    cells: tuple[str, ...] = ()
    server: bool = False
    everything: bool = False


def observe(sight: Sight, observation: Observation) -> Observed:
    """Fold one observation in. Stale sessions and repeated sequence numbers change nothing."""
    match observation:
        case Attached():
            return _attached(sight, observation)
        case Reported():
            return _reported(sight, observation)
        case Detached():
            return _detached(sight, observation)


def _attached(sight: Sight, attached: Attached) -> Observed:
    seen = ServerSight(
        session=attached.session,
        attached_at=attached.at,
        heard_at=attached.at,
        facts=attached.facts,
        reports=HashTrieMap((report.cell, report) for report in attached.inventory),
    )
    cells = tuple(report.cell for report in attached.inventory)
    return Observed(_with(sight, attached.server, seen), cells, server=True, everything=True)


def _reported(sight: Sight, reported: Reported) -> Observed:
    seen = sight.servers.get(reported.server)
    if (
        seen is None
        or seen.session != reported.session
        or not seen.is_open
        or reported.sequence <= seen.sequence
    ):
        return Observed(sight)
    gap = reported.sequence > seen.sequence + 1
    is_doubtful = not reported.complete and (gap or seen.is_doubtful)
    reports = HashTrieMap() if reported.complete else seen.reports
    for report in reported.cells:
        reports = reports.insert(report.cell, report)
    was_silent = reported.at - seen.heard_at > SILENCE_WORTH_A_LOOK_SECONDS
    seen = replace(
        seen,
        heard_at=reported.at,
        sequence=reported.sequence,
        vitals=reported.vitals or seen.vitals,
        reports=reports,
        is_doubtful=is_doubtful,
    )
    cells = tuple(report.cell for report in reported.cells)
    sight = _with(sight, reported.server, seen)
    return Observed(sight, cells, server=was_silent or gap, everything=reported.complete)


def _detached(sight: Sight, detached: Detached) -> Observed:
    seen = sight.servers.get(detached.server)
    if seen is None or seen.session != detached.session or not seen.is_open:
        return Observed(sight)
    return Observed(_with(sight, detached.server, replace(seen, closed_at=detached.at)), server=True)


def tell(sight: Sight, server: str, cell: str, verb: str, now: float) -> Sight:
    """Remember that the cell's agent was told something, so that it is not told again at once."""
    seen = sight.servers.get(server)
    if seen is None:
        return sight
    return _with(sight, server, replace(seen, told=seen.told.insert(cell, Told(verb, now))))


def doubt(sight: Sight, server: str) -> Sight:
    """What this server showed may be old; it has to report everything."""
    seen = sight.servers.get(server)
    return sight if seen is None else _with(sight, server, replace(seen, is_doubtful=True))


def forget(sight: Sight, server: str, cell: str) -> Sight:
    """Drop what was seen and told of a cell that is no more."""
    seen = sight.servers.get(server)
    if seen is None or (cell not in seen.reports and cell not in seen.told):
        return sight
    reports, told = seen.reports.discard(cell), seen.told.discard(cell)
    return _with(sight, server, replace(seen, reports=reports, told=told))


def _with(sight: Sight, server: str, seen: ServerSight) -> Sight:
    return replace(sight, servers=sight.servers.insert(server, seen))
