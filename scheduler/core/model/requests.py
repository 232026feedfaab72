"""What operators (and enrolment) ask of the core, and what it answers.

A request is admitted or refused as a whole (``core``). An answer is given only when the events behind it are
durable; a refusal names the rule that refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from msgspec import Struct

from galactica.scheduler.core.model.genome import Genome, GenomeMark
from galactica.scheduler.core.model.keys import Key
from galactica.scheduler.core.model.spec import Group


class ApplyGroups(Struct, frozen=True):
    groups: tuple[Group, ...]


class DeleteGroup(Struct, frozen=True):
    name: str


class CondemnCell(Struct, frozen=True):
    cell: str
    reason: str = ""


class OpenShell(Struct, frozen=True):
    """A person wants a look inside: allowed, and the cell is a touched one from then on."""

    cell: str


class DrainServer(Struct, frozen=True):
    server: str


class CreateToken(Struct, frozen=True):
    """``token`` is its public id; the secret itself never comes here. ``expires_at``: Unix seconds."""

    token: str
    secret_sha256: str
    uses: int
    expires_at: float
    server: str = ""


class ReleaseStorm(Struct, frozen=True):
    """``storm``: its id, as status shows it."""

    storm: str


class Enrol(Struct, frozen=True):
    """A server asks for its first certificate and shows a token's secret (hashed by the caller)."""

    token: str
    secret_sha256: str
    server: str


class EnrolOperator(Struct, frozen=True):
    operator: str
    role: str
    expires_at: float


class AdoptCells(Struct, frozen=True):
    """Take in cells that the journal never ordered. ``cells`` empty: all of them. ``server``: only those that it
    shows."""

    cells: tuple[str, ...] = ()
    server: str = ""


class CondemnUnknown(Struct, frozen=True):
    """Remove cells that the journal never ordered. ``cells`` empty: all of them. ``server``: only those that it
    shows."""

    cells: tuple[str, ...] = ()
    server: str = ""


class Obeyed(Struct, frozen=True):
    """The newest scheduler that an agent has obeyed, and how far its journal went. ``start`` empty, ``position`` 0: its
    agent does not say."""

    epoch: int
    start: str = ""
    position: int = 0


class ClaimEpoch(Struct, frozen=True):
    """A server's agent has obeyed a scheduler that this journal does not know, or not as far."""

    obeyed: Obeyed
    server: str


class BeginMaintenance(Struct, frozen=True):
    """A server's agent ends in order, leaves its cells running and asks for a maintenance lease."""

    server: str
    session: str
    seconds: float


class RecogniseServer(Struct, frozen=True):
    """A server that this journal does not know shows a certificate of our CA."""

    server: str


class PlantGenome(Struct, frozen=True):
    """The newest genome that was heard and that our CA sealed. ``server``: who kept it."""

    genome: Genome
    mark: GenomeMark = GenomeMark()
    server: str = ""


class EndRegrowth(Struct, frozen=True):
    """An operator's word: what was not heard by now counts as silent."""


class RecordRefusal(Struct, frozen=True):
    """An adapter turned a caller away."""

    caller: str
    role: str
    call: str


Request = (
    ApplyGroups
    | DeleteGroup
    | CondemnCell
    | OpenShell
    | DrainServer
    | CreateToken
    | ReleaseStorm
    | Enrol
    | EnrolOperator
    | RecordRefusal
    | AdoptCells
    | CondemnUnknown
    | ClaimEpoch
    | BeginMaintenance
    | RecogniseServer
    | PlantGenome
    | EndRegrowth
)


class GroupChange(Struct, frozen=True):
    """What an apply means for one group. ``change``: "created", "changed" or "unchanged"."""

    group: str
    change: str
    revision: int
    digest: str
    differences: tuple[str, ...] = ()


class AskerKind(StrEnum):
    OPERATOR = "operator"
    SERVER = "server"
    SCHEDULER = "scheduler"
    """The scheduler itself."""
    START = "start"
    """The scheduler itself, while it starts."""
    UNKNOWN = "unknown"
    """Somebody without a certificate that says who it is."""


class Asker(Struct, frozen=True):
    """Who asks. Its text, such as "operator:ann" or "start", is the cause of what follows in the journal."""

    kind: AskerKind
    name: str = ""

    @classmethod
    def operator(cls, name: str) -> Asker:
        return cls(AskerKind.OPERATOR, name)

    @classmethod
    def server(cls, server: str) -> Asker:
        return cls(AskerKind.SERVER, server)

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else self.kind.value


class Accepted(Struct, frozen=True):
    """Done and durable up to ``position``. ``cells``: how many cells it concerns, where that has a meaning."""

    position: int
    cells: int = 0
    changes: tuple[GroupChange, ...] = ()
    notes: tuple[str, ...] = ()
    """What was not done, and why, where the rest was."""


class Admitted(Struct, frozen=True):
    """What a request led to. ``dirty``: what is to be looked at because of it, each with its cause."""

    accepted: Accepted
    dirty: Mapping[Key, str] = {}


class Refused(Exception):
    """Not done. ``rule`` is a short name, ``missing`` tells that the thing asked about does not exist."""

    def __init__(self, rule: str, message: str, *, missing: bool = False) -> None:
        super().__init__(message)
        self.rule = rule
        self.missing = missing


class JournalRefuses(Refused):
    """The journal takes nothing at the moment (disk full); try again later."""

    def __init__(self, message: str) -> None:
        super().__init__("journal", message)
