"""The fleet: everything that was decided, as immutable values.

``Fleet`` is the fold of the journal's events (``transitions.apply``). What is only *observed* at the moment is in
``sight``. Maps are persistent (``rpds.HashTrieMap``): a new fleet shares all but the changed path with the last one.
Times are Unix seconds as floats on a clock that never goes back.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Any

from msgspec import Struct
from rpds import HashTrieMap, HashTrieSet

from galactica.scheduler.core.model.rules import Rule
from galactica.scheduler.core.model.spec import Group, Resources, RuntimeKind, Spec
from galactica.scheduler.core.model.verdict import Health

SERVER_ID = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9._/]{0,126}[A-Za-z0-9])?")

_CELL_ID = re.compile(r"(?P<group>[a-z0-9][-a-z0-9]{0,62})/(?P<slot>\d{1,9})\.(?P<generation>\d{1,9})")

REVISIONS_KEPT = 100
"""How many specs of a group are remembered. A cell of an older one is always outdated."""

SILENCES_KEPT = 1_000
"""How many condemnations for silence the storm guard remembers for each pool."""

DEATHS_KEPT = 16
"""How many deaths are remembered for each group and each server, to compute blame."""

GRAVES_KEPT = 2_000
"""How many decommissioned cells stay in memory and in snapshots. The journal has more."""


class CellKind(StrEnum):
    CONTAINER = "container"
    SERVER = "server"


class Phase(StrEnum):
    """Recorded, and only ever advances (skips allowed)."""

    ORDERED = "ORDERED"
    BOOTING = "BOOTING"
    READY = "READY"
    CONDEMNED = "CONDEMNED"
    DRAINING = "DRAINING"
    DECOMMISSIONED = "DECOMMISSIONED"


PHASE_RANK = {phase: rank for rank, phase in enumerate(Phase)}


class CellId(Struct, frozen=True, order=True):
    """``group/slot.generation``; never reused."""

    group: str
    slot: int
    generation: int

    def __str__(self) -> str:
        return f"{self.group}/{self.slot}.{self.generation}"


def parse_cell_id(text: str) -> CellId | None:
    """The id that ``text`` spells; None if it is not an id. ``01`` is refused, since an id has exactly one spelling."""
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
    ports: tuple[int, ...] = ()
    """The ports of its server that are its own: numbers that the spec fixes, and that no other cell can have there."""
    dies_at: float | None = None
    """When it must go because somebody opened a shell in it; None if nobody did."""

    @property
    def is_condemned(self) -> bool:
        return PHASE_RANK[self.phase] >= PHASE_RANK[Phase.CONDEMNED]

    @property
    def was_ready(self) -> bool:
        return self.ready_at is not None


class Slot(Struct, frozen=True):
    """The n-th place of a group, with its cells that are not decommissioned, oldest first."""

    cells: tuple[Cell, ...] = ()
    next_generation: int = 1

    @property
    def living(self) -> tuple[Cell, ...]:
        """Its cells that are not condemned, at most two: the one that has the slot, and the candidate that is to take
        its place."""
        return tuple(cell for cell in self.cells if not cell.is_condemned)

    @property
    def wanted_cell(self) -> Cell | None:
        """The newest of them, if any: the one that stays."""
        for cell in reversed(self.cells):
            if not cell.is_condemned:
                return cell
        return None


class Tally(Struct, frozen=True):
    """Counts over a group's slots, kept current by ``transitions`` so that no rule has to count."""

    ready: int = 0
    """Slots with a cell in READY."""
    booting: int = 0
    """Slots with a cell in ORDERED or BOOTING, and none in READY."""
    condemned: int = 0
    """Cells in CONDEMNED or DRAINING."""
    manned: int = 0
    """Slots with a cell that is READY, or that is condemned, still runs and waits for a proven successor."""
    replacing: int = 0
    """Slots in which a cell is being replaced while it runs: it waits for a proven successor, or has a candidate beside
    it."""
    surging: int = 0
    """Those of them whose successor is ordered, and not proven yet: cells beyond what is wanted."""
    outdated: int = 0
    """Cells that are not condemned and whose digest is not the group's."""
    renewing: int = 0
    """Those of them that have a candidate of the group's digest beside them."""
    extra: int = 0
    """Cells beyond one for each slot, without those that are known to be dead."""


class Revision(Struct, frozen=True):
    number: int
    digest: str
    spec: Spec


class Death(Struct, frozen=True):
    """One death by health, kept to compute blame. ``group`` and ``digest`` name the spec."""

    group: str
    digest: str
    server: str
    rule: str
    at: float


class Silence(Struct, frozen=True):
    """A server that was condemned for its silence."""

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
    """If a deleted name is applied again, its generations go on above the old ones."""
    slots: HashTrieMap[int, Slot] = HashTrieMap()
    tally: Tally = Tally()
    backoff: Backoff = Backoff()
    per_server: HashTrieMap[str, int] = HashTrieMap()
    """Server to the number of the group's cells on it that are not decommissioned; without zeros."""
    deleted: bool = False
    deaths: tuple[Death, ...] = ()
    """The newest deaths of its cells by their health, oldest first; at most DEATHS_KEPT."""
    longest_lease_seconds: float = 0.0
    """Pools: the longest lease that it ever had. A cut-off agent goes by the last lease that it was told."""
    last_position: int = 0
    newest_ready_at: float = 0.0
    """When the newest cell of the current spec became READY; 0: none did."""
    replaced_at: tuple[float, ...] = ()
    """Pools with a rate limit: when the newest replacements were ordered, oldest first, as many as the limit counts."""

    @property
    def wanted_slots(self) -> int:
        return 0 if self.deleted else self.group.replicas

    def spec_of(self, digest: str) -> Spec | None:
        for revision in reversed(self.revisions):
            if revision.digest == digest:
                return revision.spec
        return None

    def spec_for(self, cell: Cell) -> Spec:
        """The cell's spec. If that is too old to be remembered, the newest spec stands in."""
        return self.spec_of(cell.digest) or self.group.spec


class Maintenance(Struct, frozen=True):
    """A server's agent ended in order and left its cells running: until ``until`` its absence is not held against the
    server. ``session``: the one that asked; another one ends the lease."""

    session: str
    since: float
    until: float


class Server(Struct, frozen=True):
    """A host whose agent enrolled. A lost server of no pool may join again, without cells, as its next generation."""

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
    """DEAD: its cells are dead with it. Otherwise it is drained: its cells are replaced first."""
    used: Resources = Resources()
    ports: HashTrieMap[int, int] = HashTrieMap()
    """Fixed port to the number of cells here that have it; without zeros."""
    cells: HashTrieSet[str] = HashTrieSet()
    """Ids of the cells that are not decommissioned and were placed here."""
    pool: str = ""
    """The pool that it is a cell of; empty if it joined by itself. A pool's server never joins twice."""
    deaths: tuple[Death, ...] = ()
    """The newest deaths on it by health, oldest first; at most DEATHS_KEPT."""
    last_position: int = 0
    maintenance: Maintenance | None = None
    """The lease that was recorded and not ended yet."""
    machine: str = ""
    """The one that it is; empty: whichever attaches."""

    @property
    def takes_cells(self) -> bool:
        return self.phase is Phase.READY

    @property
    def is_lost(self) -> bool:
        """Judged dead. Its cells are dead for the fleet, and orphans if they ever show up again."""
        return self.condemned_health is Health.DEAD

    @property
    def is_drained(self) -> bool:
        """Drained by an operator. It can return only if it enrols anew."""
        return self.condemned_by == Rule.OPERATOR


_FACTS = ("labels", "capacity", "disk_bytes", "runtimes", "agent_version")


def server_facts(source: Struct) -> dict[str, Any]:
    """What an agent says of its server, by field: the same fields in its greeting, in events and in ``Server``."""
    return {name: getattr(source, name) for name in _FACTS}


class Token(Struct, frozen=True):
    """A join token. Only the SHA-256 of its secret is kept."""

    id: str
    secret_sha256: str
    uses_left: int
    expires_at: float
    server: str = ""
    """The only server that may use it; empty: any."""


class Regrowth(Struct, frozen=True):
    """The scheduler lost all but its CA and is being grown anew from its fleet. ``is_planted`` False: it listens for a
    genome and orders nothing. True: it has one, and condemns nothing until all was heard. ``since``: of that stage."""

    since: float
    is_planted: bool = False


class Start(Struct, frozen=True):
    """A start of a scheduler, by the name that was drawn at it; empty if that is unknown. ``position``: where its epoch
    begins in the journal."""

    name: str
    position: int


class UnknownCell(Struct, frozen=True, order=True):
    """A cell that an agent shows and this journal never ordered there. Two servers may show one id: each counts for
    itself, and what one of them says proves nothing about the other."""

    cell: str
    server: str


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
    unknown: HashTrieMap[str, HashTrieSet[UnknownCell]] = HashTrieMap()
    """Slot ("web/0") to the cells of it that agents run and this journal never ordered."""
    unwanted: HashTrieSet[UnknownCell] = HashTrieSet()
    """Those of them that an operator condemned, and that are not gone yet."""
    shown: HashTrieMap[str, int] = HashTrieMap()
    """Server to the number of such cells that it has shown since it enrolled, those left out on which an operator
    decided. One that comes, goes and comes again counts each time."""
    skipped: HashTrieMap[str, tuple[tuple[int, int], ...]] = HashTrieMap()
    """Slot, or group for the slots that have none of their own, to the ranges of generations that were left out because
    an agent had them: the first of each, and the one after its last. This journal never gave them out."""
    least_generation: int = 1
    """The first generation of a slot of a group that this journal never knew."""
    starts: HashTrieMap[int, Start] = HashTrieMap()
    """The newest epochs to the scheduler's starts that had them."""
    strange_starts: tuple[str, ...] = ()
    """The newest starts that this journal does not know, and that agents have obeyed."""
    overtaken_at: float | None = None
    """When agents showed that this journal is older than its fleet; None if they never did."""
    regrowth: Regrowth | None = None
    """Set while the scheduler is being grown anew."""
    regrown_at: float | None = None
    """When that began; None: this journal was never lost. Whatever an earlier one ordered was ordered before."""
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
