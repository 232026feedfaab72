"""The values that the scheduler thinks with.

Everything here is frozen. ``Fleet`` is the fold of the journal's events (``transitions.apply``) and holds what
was *decided*; what is merely *observed* right now is in ``sight``. Maps are persistent (``rpds.HashTrieMap``),
so that a new fleet shares all but the changed path with the one before it.

Times are Unix seconds as floats on a clock that never goes back.
"""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum

import msgspec
from msgspec import Struct
from rpds import HashTrieMap, HashTrieSet

from galactica.scheduler.vitals import VitalLimits

NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
"""A group's or label-like name: RFC 1123's label, so that it can be a DNS name."""

SERVER_ID = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9._/]{0,126}[A-Za-z0-9])?")

_CELL_ID = re.compile(r"(?P<group>[a-z0-9][-a-z0-9]{0,62})/(?P<slot>\d{1,9})\.(?P<generation>\d{1,9})")

REVISIONS_KEPT = 100
"""How many specs of a group are remembered; a cell of an older one is outdated whatever it says."""

SILENCES_KEPT = 1_000
"""How many condemnations for silence of a pool the storm guard looks back at."""

SILENCE_RULES = frozenset(
    {"neighbours_silent", "agent_gone", "unlisted", "cut_off_too_long", "lease_expired"}
)
"""Verdicts that rest on hearing nothing: those that the scheduler's own blindness could bring about."""

DEATHS_KEPT = 16
"""How many deaths of a group, and of a server, diagnosis looks back at."""

GRAVES_KEPT = 2_000
"""How many decommissioned cells stay in memory (and in snapshots); the journal knows more."""


class GroupKind(StrEnum):
    SERVICE = "service"
    POOL = "pool"


class CellKind(StrEnum):
    CONTAINER = "container"
    SERVER = "server"


class RuntimeKind(StrEnum):
    PROCESS = "process"
    DOCKER = "docker"
    SERVER = "server"
    """The cell is a whole server; a provider makes it, no agent does."""


class Phase(StrEnum):
    """Recorded, and only ever advances (skips allowed)."""

    ORDERED = "ORDERED"
    BOOTING = "BOOTING"
    READY = "READY"
    CONDEMNED = "CONDEMNED"
    DRAINING = "DRAINING"
    DECOMMISSIONED = "DECOMMISSIONED"


PHASE_RANK = {phase: rank for rank, phase in enumerate(Phase)}


class Health(StrEnum):
    """What a verdict says. Derived from evidence at a moment, never recorded as a phase."""

    HEALTHY = "healthy"
    SUSPECT = "suspect"
    SICK = "sick"
    DEAD = "dead"


class Resources(Struct, frozen=True, omit_defaults=True):
    """Limits of a cell, or a server's size. 0 means none stated."""

    cpu_millis: int = 0
    memory_bytes: int = 0
    pids: int = 0


class HttpProbe(Struct, frozen=True, tag="http"):
    port: str
    path: str = "/"


class TcpProbe(Struct, frozen=True, tag="tcp"):
    port: str


class ExecProbe(Struct, frozen=True, tag="exec"):
    command: tuple[str, ...]


class GrpcProbe(Struct, frozen=True, tag="grpc"):
    port: str
    service: str = ""


Probe = HttpProbe | TcpProbe | ExecProbe | GrpcProbe


class HealthSpec(Struct, frozen=True):
    """How a cell is probed. ``probe`` None: a cell that runs is healthy."""

    probe: Probe | None = None
    every_seconds: float = 1.0
    timeout_seconds: float = 1.0
    sick_after: int = 3
    boot_within_seconds: float = 60.0


class Stop(Struct, frozen=True):
    signal: str = "SIGTERM"
    grace_seconds: float = 10.0


class Placement(Struct, frozen=True):
    """``spread``: "server" (fewest cells of the group first) or "none" (pack)."""

    spread: str = "server"
    require: dict[str, str] = {}


class ServerBody(Struct, frozen=True):
    """What a provider makes a server from. ``body_json``: one JSON object that only the provider understands."""

    provider: str
    body_json: str = "{}"
    labels: dict[str, str] = {}


class Spec(Struct, frozen=True):
    """The immutable description of a cell. Dictionaries are never changed once they are in here.

    ``server`` is there for runtime SERVER alone; of the other fields such a spec uses only ``health``'s boot_within."""

    runtime: RuntimeKind
    image: str = ""
    command: tuple[str, ...] = ()
    ports: dict[str, int] = {}
    env: dict[str, str] = {}
    resources: Resources = Resources()
    health: HealthSpec = HealthSpec()
    stop: Stop = Stop()
    writable: tuple[str, ...] = ()
    placement: Placement = Placement()
    server: ServerBody | None = None
    exclusive: bool = False
    """Never two cells of one slot alive at once: the next is ordered only on proof that the one before is gone."""


def digest_of(spec: Spec) -> str:
    """SHA-256 (hex) over the canonical form: JSON, every field, keys sorted."""
    return hashlib.sha256(msgspec.json.encode(spec, order="deterministic")).hexdigest()


class Replace(Struct, frozen=True):
    """How fast a pool may change: extra servers at once, missing ones at once, and at most ``count`` replacements
    in each window (0: no limit)."""

    surge: int = 1
    unavailable: int = 0
    count: int = 0
    window_seconds: float = 3600.0


class Group(Struct, frozen=True):
    """A wanted set of identical cells. What is not in ``spec`` may change without replacing a cell."""

    kind: GroupKind
    name: str
    replicas: int
    spec: Spec
    max_age_seconds: float = 0.0
    """Cells older than this (give or take a tenth) are replaced although they are well; 0: never."""
    replace: Replace = Replace()
    lease_seconds: float = 0.0
    """Pools: how long a server's silence is tolerated; 0: as long as the fleet's tempo says."""
    cut_off_after_seconds: float = 300.0
    """Pools: how long a server that only neighbours can reach keeps its cells."""
    replace_touched: bool = True
    """A cell that differs from its spec is replaced; else it is only reported."""


class Evidence(Struct, frozen=True):
    """One observed fact: who says it, what, and when it was so."""

    source: str
    says: str
    at: float


class Autopsy(Struct, frozen=True, omit_defaults=True):
    """How a cell died. ``lived_seconds`` counts from its start."""

    reason: str
    exit_code: int | None = None
    signal: str = ""
    oom_killed: bool = False
    last_lines: tuple[str, ...] = ()
    lived_seconds: float = 0.0
    fenced: bool = False
    """Its agent ended it because no scheduler was known to hear the server."""


class Verdict(Struct, frozen=True):
    """A judgement: the name of the rule that matched, what it rests on, and when to look again (None: on news)."""

    health: Health
    rule: str
    reason: str
    evidence: tuple[Evidence, ...] = ()
    next_look_at: float | None = None


class CellId(Struct, frozen=True, order=True):
    """``group/slot.generation``; never reused."""

    group: str
    slot: int
    generation: int

    def __str__(self) -> str:
        return f"{self.group}/{self.slot}.{self.generation}"


def parse_cell_id(text: str) -> CellId | None:
    """The id that ``text`` spells, None where it spells none. ``01`` is no number here: an id has one spelling."""
    match = _CELL_ID.fullmatch(text)
    if match is None:
        return None
    parsed = CellId(match["group"], int(match["slot"]), int(match["generation"]))
    return parsed if str(parsed) == text else None


class Cell(Struct, frozen=True):
    """One disposable unit and its recorded life."""

    id: str
    group: str
    slot: int
    generation: int
    phase: Phase
    digest: str
    revision: int
    server: str
    ordered_at: float
    resources: Resources = Resources()
    kind: CellKind = CellKind.CONTAINER
    ready_at: float | None = None
    condemned_at: float | None = None
    decommissioned_at: float | None = None
    condemned_by: str = ""
    """The rule that condemned it; empty while it is not condemned."""
    condemned_health: Health | None = None
    replaces: str = ""
    replaced_by: str = ""
    endpoints: dict[str, str] = {}
    runtime_id: str = ""
    """What its runtime calls it; for a server its provider's ref."""
    last_position: int = 0
    """Journal position of the newest event about it: the cause of what follows from it."""
    dies_at: float | None = None
    """Somebody opened a shell in it: when it must go, as a touched one."""

    @property
    def is_condemned(self) -> bool:
        return PHASE_RANK[self.phase] >= PHASE_RANK[Phase.CONDEMNED]

    @property
    def was_ready(self) -> bool:
        return self.ready_at is not None


class Slot(Struct, frozen=True):
    """The n-th place of a group: its cells that are not decommissioned, oldest first."""

    cells: tuple[Cell, ...] = ()
    next_generation: int = 1

    @property
    def wanted_cell(self) -> Cell | None:
        """The one cell of the slot that is not condemned, if any."""
        for cell in reversed(self.cells):
            if not cell.is_condemned:
                return cell
        return None


class Tally(Struct, frozen=True):
    """Counts over a group's slots, kept current by ``transitions`` so that no rule has to count."""

    ready: int = 0
    """Cells in READY."""
    booting: int = 0
    """Cells in ORDERED or BOOTING."""
    condemned: int = 0
    """Cells in CONDEMNED or DRAINING."""
    replacing: int = 0
    """Slots whose condemned cell still runs and waits for a READY successor."""
    surging: int = 0
    """Those of them whose successor is ORDERED or BOOTING: cells beyond what is wanted."""
    outdated: int = 0
    """Cells that are not condemned and whose digest is not the group's."""
    extra: int = 0
    """Cells beyond what is wanted: those that are condemned and not dead, where another is in their slot."""


class Revision(Struct, frozen=True):
    number: int
    digest: str
    spec: Spec


class Death(Struct, frozen=True):
    """One death by health, as diagnosis remembers it. ``group``/``digest`` name the spec."""

    group: str
    digest: str
    server: str
    rule: str
    at: float


class Silence(Struct, frozen=True):
    """A server that was condemned because nothing was heard of it."""

    server: str
    at: float


class Backoff(Struct, frozen=True):
    """Repeated early deaths of one digest. ``level`` grows with each round of them; ``not_before``: hold until then."""

    digest: str = ""
    early_deaths: int = 0
    level: int = 0
    last_at: float = 0.0
    not_before: float = 0.0


class GroupState(Struct, frozen=True):
    """A group, its history of specs and its slots. A deleted group stays until its last cell is gone."""

    group: Group
    digest: str
    revision: int
    revisions: tuple[Revision, ...]
    first_generation: int = 1
    """Generations of a name that was deleted and applied again go on above the old ones."""
    slots: HashTrieMap[int, Slot] = HashTrieMap()
    tally: Tally = Tally()
    backoff: Backoff = Backoff()
    per_server: HashTrieMap[str, int] = HashTrieMap()
    """How many cells of the group that are not decommissioned each server has; zeros are left out."""
    deleted: bool = False
    deaths: tuple[Death, ...] = ()
    """The newest deaths of its cells by their health, oldest first; at most DEATHS_KEPT."""
    longest_lease_seconds: float = 0.0
    """Pools: the longest that it ever had. An agent that is cut off goes by what it was told last."""
    last_position: int = 0
    replaced_at: tuple[float, ...] = ()
    """Pools that limit their replacements in time: when the newest were ordered, oldest first; as many as count."""

    @property
    def wanted_slots(self) -> int:
        return 0 if self.deleted else self.group.replicas

    def spec_of(self, digest: str) -> Spec | None:
        for revision in reversed(self.revisions):
            if revision.digest == digest:
                return revision.spec
        return None

    def spec_for(self, cell: Cell) -> Spec:
        """The cell's spec; one that is too old to be remembered is judged by the newest."""
        return self.spec_of(cell.digest) or self.group.spec


class Server(Struct, frozen=True):
    """A host whose agent enrolled. A self-joined one that was lost may join again, empty, as its next generation."""

    id: str
    generation: int
    phase: Phase
    labels: dict[str, str] = {}
    capacity: Resources = Resources()
    disk_bytes: int = 0
    runtimes: tuple[RuntimeKind, ...] = ()
    agent_version: str = ""
    joined_at: float = 0.0
    condemned_at: float | None = None
    condemned_by: str = ""
    condemned_health: Health | None = None
    """DEAD: its cells are dead with it. Else it is drained: they are replaced first."""
    used: Resources = Resources()
    cells: HashTrieSet[str] = HashTrieSet()
    """Ids of the cells that are not decommissioned and were placed here."""
    pool: str = ""
    """The pool that it is a cell of; empty where it joined by itself. A pool's server never joins twice."""
    deaths: tuple[Death, ...] = ()
    """The newest deaths on it by health, oldest first; at most DEATHS_KEPT."""
    last_position: int = 0

    @property
    def takes_cells(self) -> bool:
        return self.phase is Phase.READY

    @property
    def is_lost(self) -> bool:
        """Judged dead; what ran here is dead for the fleet, and an orphan should it ever show up again."""
        return self.condemned_health is Health.DEAD

    @property
    def is_drained(self) -> bool:
        """Drained by an operator: it may come back only by enrolling anew."""
        return self.condemned_by == "operator"


class Token(Struct, frozen=True):
    """A join token. Only the SHA-256 of its secret is kept."""

    id: str
    secret_sha256: str
    uses_left: int
    expires_at: float
    server: str = ""
    """The only server that may use it; empty: any."""


class Fleet(Struct, frozen=True):
    """All that was decided: the fold of the journal up to ``position``."""

    position: int = 0
    at: float = 0.0
    epoch: int = 0
    groups: HashTrieMap[str, GroupState] = HashTrieMap()
    servers: HashTrieMap[str, Server] = HashTrieMap()
    tokens: HashTrieMap[str, Token] = HashTrieMap()
    generations: HashTrieMap[str, int] = HashTrieMap()
    """First unused generation of the names of deleted groups."""
    graves: HashTrieMap[int, Cell] = HashTrieMap()
    """The newest decommissioned cells: number of the burial modulo GRAVES_KEPT to cell."""
    burials: int = 0
    silences: HashTrieMap[str, tuple[Silence, ...]] = HashTrieMap()
    """Pool ("" for servers that joined by themselves) to the newest condemnations for silence in it."""
    released: HashTrieMap[str, float] = HashTrieMap()
    """Pools whose storm an operator released, and until when that counts (Unix seconds)."""

    def cell(self, cell_id: str) -> Cell | None:
        """The cell of that id, if it exists and is not decommissioned."""
        parsed = parse_cell_id(cell_id)
        if parsed is None:
            return None
        state = self.groups.get(parsed.group)
        slot = state.slots.get(parsed.slot) if state else None
        if slot is None:
            return None
        for cell in slot.cells:
            if cell.generation == parsed.generation:
                return cell
        return None


class SlotKey(Struct, frozen=True, order=True):
    """The unit of work of a container group."""

    group: str
    slot: int


class ServerKey(Struct, frozen=True, order=True):
    """The unit of work of a server."""

    server: str


class OrphanKey(Struct, frozen=True, order=True):
    """A cell that a server shows and that should not be there."""

    server: str
    cell: str


class LeakKey(Struct, frozen=True, order=True):
    """A server that a provider has and that should not be there."""

    provider: str
    cell: str


Key = SlotKey | ServerKey | OrphanKey | LeakKey


class Hold(Struct, frozen=True):
    """Something that would be done but for a rule. ``next_look_at`` None: when news comes."""

    key: Key
    rule: str
    reason: str
    next_look_at: float | None = None


class Storm(Struct, frozen=True):
    """More silence in a pool ("" stands for the servers that joined by themselves) than the guard believes."""

    id: str
    pool: str
    silent: int
    of: int
    since: float
    expires_at: float
    reason: str


class Tempo(Struct, frozen=True):
    """How often agents beat, and how long their silence is tolerated."""

    beat_seconds: float
    lease_seconds: float


class Policy(Struct, frozen=True):
    """The numbers behind the rules. One value for the whole fleet."""

    beat_seconds: float = 1.0
    lease_seconds: float = 5.0
    stall_seconds: float = 2.0
    """A scheduler that did not look for so long was itself stalled and trusts no silence from before."""
    servers_per_beat_second: int = 1_000
    """The beat stretches so that no more than about this many beats come in each second."""
    early_seconds: float = 5.0
    """A cell that dies before it was READY for so long died early."""
    backoff_first_seconds: float = 1.0
    backoff_limit_seconds: float = 60.0
    backoff_reset_seconds: float = 600.0
    resend_seconds: float = 3.0
    """An order or decommission that an attached agent does not show is sent again after so long."""
    shell_seconds: float = 900.0
    """How long a cell lives on after somebody opened a shell in it."""
    relook_seconds: float = 60.0
    """What is held until news comes is looked at again after so long all the same."""
    provider_resend_seconds: float = 60.0
    """The same for providers, which take longer."""
    storm_fraction: float = 0.2
    """More than this share of a pool silent within the window (but never fewer than one) is a storm."""
    storm_window_seconds: float = 60.0
    storm_hold_seconds: float = 900.0
    """How long a storm is held where nobody releases it."""
    cut_off_after_seconds: float = 300.0
    """For servers of no pool: how long one that only neighbours can reach keeps its cells."""
    fence_margin_seconds: float = 5.0
    """What an exclusive cell gets beyond its lease and grace before it counts as ended: a stall of ours that we do not
    notice (stall_seconds), then the second in which the watchdog looks and the one in which a kill takes effect."""
    blame_window_seconds: float = 60.0
    vitals: VitalLimits = VitalLimits()
    drain_margin_seconds: float = 30.0
    """A server that goes waits so much longer than their grace for cells that do not end; then it goes with them."""
    sick_surge_fraction: float = 0.25
    """Share of a group's replicas (at least 1) that may be replaced at once while the old cell still runs."""
    outdated_surge: int = 1
    """How many cells of a group are replaced at once because they are outdated or on a draining server."""

    def tempo(self, servers: int) -> Tempo:
        """Beat and lease for a fleet of that many servers."""
        beat = max(self.beat_seconds, servers / self.servers_per_beat_second)
        return Tempo(beat, beat * self.lease_seconds / self.beat_seconds)
