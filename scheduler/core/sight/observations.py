"""What comes in from agents, providers and the bus, as values."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from galactica.scheduler.core.model.spec import Resources, RuntimeKind
from galactica.scheduler.core.model.verdict import Autopsy
from galactica.scheduler.core.sight.vitals import Vitals


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
    touched: tuple[str, ...] = ()
    """How it differs from its spec."""
    doubt: str = ""
    """Why its agent cannot tell how it is, or why the report on it cannot be read. ``state`` proves nothing then."""

    @property
    def is_failing(self) -> bool:
        """Whether it shows less than a cell that is well."""
        return bool(self.doubt) or (self.probe is not None and self.probe.consecutive_failures > 0)

    @property
    def shows_well(self) -> bool:
        return self.state is CellState.RUNNING and not self.is_failing


class Unread(Struct, frozen=True):
    """An entry of an agent's report that cannot be read. ``cell``: which it is about; empty: it names none, and may be
    about any of them."""

    cell: str
    reason: str


class Answer(StrEnum):
    """What a neighbour says of a server."""

    ANSWERS = "answers"
    REFUSED = "refused"
    SILENT = "silent"


class Testimony(Struct, frozen=True):
    """``since``: the scheduler's time from which on it has been so. ``after_refusal``: it is silent, and its kernel
    refused pings before."""

    server: str
    answer: Answer
    since: float
    after_refusal: bool = False


class ServerFacts(Struct, frozen=True):
    """What an agent says of its server when it attaches."""

    labels: dict[str, str] = {}
    capacity: Resources = Resources()
    disk_bytes: int = 0
    runtimes: tuple[RuntimeKind, ...] = ()
    agent_version: str = ""


class Place(Struct, frozen=True):
    """Where neighbours reach an agent; empty: nowhere. ``trouble``: why, if the agent wants to be reached."""

    address: str = ""
    trouble: str = ""


class Attached(Struct, frozen=True):
    """A session began. ``inventory`` and ``unread`` are everything that the agent has. ``machine`` names its machine;
    empty if it does not say."""

    server: str
    session: str
    at: float
    facts: ServerFacts
    inventory: tuple[CellReport, ...] = ()
    machine: str = ""
    place: Place = Place()
    unread: tuple[Unread, ...] = ()
    wire_version: int = 0
    """Of the session; 0: unknown."""
    booted_at: float | None = None
    """When its machine booted, by the scheduler's clock; None: unknown."""


class Reported(Struct, frozen=True):
    """A report or beat. ``complete``: ``cells`` and ``unread`` are the whole inventory."""

    server: str
    session: str
    sequence: int
    at: float
    cells: tuple[CellReport, ...] = ()
    vitals: Vitals | None = None
    complete: bool = False
    testimonies: tuple[Testimony, ...] = ()
    """What is new of those that it watches."""
    withdrawn: tuple[str, ...] = ()
    """Servers that it watches no more, or knows nothing of any more: what it said of them counts no longer."""
    is_leaving: bool = False
    unread: tuple[Unread, ...] = ()


class Moved(Struct, frozen=True):
    """Neighbours reach the agent somewhere else from now on."""

    server: str
    session: str
    place: Place


class Detached(Struct, frozen=True):
    """The session's stream ended."""

    server: str
    session: str
    at: float
    reason: str = ""


class Rivalled(Struct, frozen=True):
    """A second machine said that it is this server, while the session of the first lives. ``address``: from where."""

    server: str
    address: str
    at: float


class ProviderState(StrEnum):
    """What a provider says of a server that it made."""

    PENDING = "pending"
    RUNNING = "running"
    GONE = "gone"
    UNREADABLE = "unreadable"
    """It is on the list, but its entry cannot be read: neither there nor gone by this list."""


class ProviderServer(Struct, frozen=True):
    """A server as its provider sees it. ``cell``: the id under which it was ordered; empty only where an entry cannot
    be read."""

    cell: str
    ref: str
    state: ProviderState
    reason: str = ""
    is_doubtful: bool = False
    """GONE, but only because two lists in a row were empty. A provider that lost its memory looks the same."""


class ServerMade(Struct, frozen=True):
    """A provider took an order; ``ref`` is its name for the server."""

    provider: str
    server: str
    ref: str
    at: float


class ServerNotMade(Struct, frozen=True):
    """A provider refused an order for good; what may go well later is tried again by the provider's adapter."""

    provider: str
    server: str
    reason: str
    at: float


class ServerUnmade(Struct, frozen=True):
    """A provider took the delete of a server. That is no proof: only its list says when the server is gone, unless
    ``is_gone``, which a provider says that waited for the end itself."""

    provider: str
    server: str
    at: float
    is_gone: bool = False


class ProviderListed(Struct, frozen=True):
    """Everything that a provider has of this fleet, as of ``asked_at``."""

    provider: str
    servers: tuple[ProviderServer, ...]
    asked_at: float
    at: float


class ProviderSilent(Struct, frozen=True):
    """A provider does not answer, or answers what cannot be believed. Says nothing about its servers."""

    provider: str
    reason: str
    at: float


class WillRead(Struct, frozen=True):
    """The message bus published a server's last will: its agent's connection there broke."""

    server: str
    at: float


class ShellBegun(Struct, frozen=True):
    """An operator has a shell in a cell from now on. How many there are is seen, not recorded: none outlives the
    scheduler that passes it on."""

    server: str
    cell: str


class ShellEnded(Struct, frozen=True):
    """One of these shells is over."""

    server: str
    cell: str


ProviderNews = ServerMade | ServerNotMade | ServerUnmade | ProviderListed | ProviderSilent
Observation = (
    Attached | Reported | Moved | Detached | Rivalled | WillRead | ShellBegun | ShellEnded | ProviderNews
)
