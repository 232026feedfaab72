"""Facts: what the journal holds. Each is past tense, and none is ever changed.

``Record`` is a fact with its place, time and cause. An event's ``tag`` is its name on disk; fields may be
added with a default, never renamed or removed, so that every schema ever written can be read. A program refuses records
of a newer schema than its own, since it would overlook what it does not know.
"""

from __future__ import annotations

from msgspec import Struct

from galactica.scheduler.core.model.fleet import (
    Backoff,
)
from galactica.scheduler.core.model.genome import Genome
from galactica.scheduler.core.model.spec import Group, Resources, RuntimeKind
from galactica.scheduler.core.model.verdict import Autopsy, Evidence, Health

SCHEMA_VERSION = 2
"""Above the last release's as soon as there are events or fields that it does not have. 1: release 0.1."""


class Event(Struct, frozen=True, omit_defaults=True, tag=True):
    """Base of the union below; carries no fields so that the union stays flat."""


class SchedulerStarted(Event, frozen=True):
    """``id`` names this start, by a number drawn at it."""

    epoch: int
    version: str
    id: str = ""


class GroupApplied(Event, frozen=True):
    """A group was created, or its spec or replicas changed. ``revision`` grows with each new digest."""

    group: Group
    digest: str
    revision: int


class GroupDeleted(Event, frozen=True):
    name: str


class CellOrdered(Event, frozen=True):
    cell: str
    digest: str
    revision: int
    server: str
    resources: Resources = Resources()
    replaces: str = ""


class CellBooting(Event, frozen=True):
    """The agent, or for a server its provider, took the order. ``runtime_id``: the provider's ref."""

    cell: str
    runtime_id: str = ""


class CellReady(Event, frozen=True):
    cell: str
    endpoints: dict[str, str] = {}
    runtime_id: str = ""


class CellCondemned(Event, frozen=True):
    """The decision that a cell must go, with all that it rests on. ``backoff``: where it died early."""

    cell: str
    health: Health
    rule: str
    reason: str
    evidence: tuple[Evidence, ...] = ()
    budget: str = ""
    autopsy: Autopsy | None = None
    backoff: Backoff | None = None


class CellDraining(Event, frozen=True):
    """From here on the agent may be told to end the cell. ``reason``: why it goes before its successor, if it does."""

    cell: str
    reason: str = ""


class CellDecommissioned(Event, frozen=True):
    """The cell is gone. ``proof``: how that is known ("agent", "server_lost", "provider", "fenced")."""

    cell: str
    proof: str
    autopsy: Autopsy | None = None


class EpochClaimed(Event, frozen=True):
    """Agents have obeyed a scheduler that this journal does not know: it is a backup. This scheduler goes above both.
    ``start`` names the start of that scheduler; empty if the agent does not say."""

    epoch: int
    server: str
    start: str = ""
    above: int = 0
    """The next generations of all slots are above this one too."""


class RegrowthBegan(Event, frozen=True):
    """All but the CA is lost: this scheduler asks its fleet what it wants."""


class ServerRecognised(Event, frozen=True):
    """A server that this journal does not know attached with a certificate of our CA, while the scheduler is being
    grown anew. That proves that it enrolled."""

    server: str


class GenomePlanted(Event, frozen=True):
    """What the fleet wants is known again, as of that epoch and position of the lost journal. ``server``: the one whose
    agent kept the genome; empty: an operator went on without one."""

    genome: Genome
    epoch: int
    genome_position: int
    server: str


class RegrowthEnded(Event, frozen=True):
    """From here on cells and servers are judged and ordered as ever."""

    reason: str


class UnknownCellFound(Event, frozen=True):
    """An agent runs a cell that this journal never ordered there. It is left alone until an operator decides."""

    cell: str
    server: str


class UnknownCellsTooMany(Event, frozen=True):
    """A server has shown so many of them that no more are remembered. It is told once, until an operator decides."""

    server: str
    limit: int


class UnknownCellCondemned(Event, frozen=True):
    """An operator decided that an unknown cell of an exclusive slot goes. The slot waits until its agent says that it
    is gone."""

    cell: str
    server: str
    reason: str


class CellAdopted(Event, frozen=True):
    """An operator, or a scheduler that is grown anew, took such a cell in, as it is. From here on it is a cell like any
    other that was ordered."""

    cell: str
    digest: str
    revision: int
    server: str
    resources: Resources = Resources()


class OrphanRemoved(Event, frozen=True):
    """An agent showed a cell that nobody ordered or that is decommissioned; it was told to remove it."""

    cell: str
    server: str
    reason: str
    is_gone: bool = False
    """Nobody removed it: its agent has it no longer."""


class ServerEnrolled(Event, frozen=True):
    """A certificate was handed out for this server. Ends a drain: what enrols anew is a new server."""

    server: str
    token: str


class ServerJoined(Event, frozen=True):
    server: str
    generation: int
    labels: dict[str, str] = {}
    capacity: Resources = Resources()
    disk_bytes: int = 0
    runtimes: tuple[RuntimeKind, ...] = ()
    agent_version: str = ""
    machine: str = ""
    """On which its agent runs; empty if that is unknown."""


class MachineRecognised(Event, frozen=True):
    """From here on this machine is the server, and what another one says of its cells proves nothing at first. Empty:
    its agent does not name its machine."""

    server: str
    machine: str


class ServerChanged(Event, frozen=True):
    """An agent came back with other facts about its server (a new version, a label, more memory)."""

    server: str
    labels: dict[str, str] = {}
    capacity: Resources = Resources()
    disk_bytes: int = 0
    runtimes: tuple[RuntimeKind, ...] = ()
    agent_version: str = ""


class ServerCondemned(Event, frozen=True):
    """``health`` DEAD: its cells are dead with it. Else they are replaced first (drain)."""

    server: str
    health: Health
    rule: str
    reason: str
    evidence: tuple[Evidence, ...] = ()


class MaintenanceBegan(Event, frozen=True):
    """The server's agent ended in order, and its cells live on: until ``until`` its absence is not held against the
    server. ``session``: the one that asked for it."""

    server: str
    session: str
    until: float


class MaintenanceEnded(Event, frozen=True):
    """From here on the usual rules judge the server. ``reason``: its agent is back, or the time has run out."""

    server: str
    reason: str


class ServerDecommissioned(Event, frozen=True):
    server: str


class TokenCreated(Event, frozen=True):
    token: str
    secret_sha256: str
    uses: int
    expires_at: float
    server: str = ""


class LeakRemoved(Event, frozen=True):
    """A provider showed a server that nobody ordered or that is decommissioned; it was told to delete it."""

    cell: str
    provider: str
    ref: str


class StormReleased(Event, frozen=True):
    """An operator says that the silence there is in this pool ("" for joined servers) is real: until then it may
    condemn. Not what falls silent later."""

    pool: str
    until: float


class ShellOpened(Event, frozen=True):
    """An operator opens a shell in the cell, which touches it. ``dies_at``: when it is to go, in Unix seconds."""

    cell: str
    operator: str
    dies_at: float


class OperatorEnrolled(Event, frozen=True):
    """A certificate was handed out to an operator."""

    operator: str
    role: str
    expires_at: float


class CallRefused(Event, frozen=True):
    """Somebody asked for what they may not have. Recorded at a bounded rate."""

    caller: str
    role: str
    call: str


class JournalResumed(Event, frozen=True):
    """The journal takes records again. It refused some from ``since`` on, for ``reason``; what was asked then was not
    done. Written only where there was nothing else to write: it is how the end of the trouble is noticed."""

    since: float
    reason: str


AnyEvent = (
    SchedulerStarted
    | GroupApplied
    | GroupDeleted
    | CellOrdered
    | CellBooting
    | CellReady
    | CellCondemned
    | CellDraining
    | CellDecommissioned
    | EpochClaimed
    | RegrowthBegan
    | ServerRecognised
    | GenomePlanted
    | RegrowthEnded
    | UnknownCellFound
    | UnknownCellsTooMany
    | CellAdopted
    | UnknownCellCondemned
    | OrphanRemoved
    | ServerEnrolled
    | ServerJoined
    | MachineRecognised
    | ServerChanged
    | ServerCondemned
    | MaintenanceBegan
    | MaintenanceEnded
    | ServerDecommissioned
    | TokenCreated
    | LeakRemoved
    | StormReleased
    | ShellOpened
    | OperatorEnrolled
    | CallRefused
    | JournalResumed
)


class Record(Struct, frozen=True):
    """One line of the journal. ``cause``: "operator:NAME", "report:SERVER", "event:POSITION", "look" or "start"."""

    position: int
    at: float
    cause: str
    event: AnyEvent
    schema: int = SCHEMA_VERSION


class IllegalTransition(Exception):
    """An event that cannot follow from the fleet as it is."""
