"""What the scheduler sees right now: sessions, beats, reports. Never journaled, lost with the process, and
rebuilt from what agents say when they attach. ``observe`` folds one observation into a sight.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct
from msgspec.structs import replace
from rpds import HashTrieMap, HashTrieSet

from galactica.scheduler.model import Autopsy, Resources, RuntimeKind
from galactica.scheduler.vitals import USUAL_LIMITS, Ailment, VitalLimits, Vitals, ailments

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
    touched: tuple[str, ...] = ()
    """How it differs from its spec."""


class Answer(StrEnum):
    """What a neighbour says of a server."""

    ANSWERS = "answers"
    REFUSED = "refused"
    SILENT = "silent"


class Testimony(Struct, frozen=True):
    """``since``: the scheduler's time from which on it has been so."""

    server: str
    answer: Answer
    since: float


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
    testimonies: tuple[Testimony, ...] = ()
    """What is new of those that it watches."""
    withdrawn: tuple[str, ...] = ()
    """Servers that it watches no more, or knows nothing of any more: what it said of them counts no longer."""
    is_leaving: bool = False


class Detached(Struct, frozen=True):
    """The session's stream ended."""

    server: str
    session: str
    at: float
    reason: str = ""


class ProviderState(StrEnum):
    """What a provider says of a server that it made."""

    PENDING = "pending"
    RUNNING = "running"
    GONE = "gone"


class ProviderServer(Struct, frozen=True):
    """A server as its provider sees it. ``cell``: the id under which it was ordered."""

    cell: str
    ref: str
    state: ProviderState
    reason: str = ""


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
    """A provider deleted the server, or has none of that id."""

    provider: str
    server: str
    at: float


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


ProviderNews = ServerMade | ServerNotMade | ServerUnmade | ProviderListed | ProviderSilent
Observation = Attached | Reported | Detached | WillRead | ProviderNews


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
    ailing: tuple[Ailment, ...] = ()
    """What is bad of its vitals, and since when."""
    facts: ServerFacts = ServerFacts()
    reports: HashTrieMap[str, CellReport] = HashTrieMap()
    """The newest report of each cell that it shows, orphans too."""
    told: HashTrieMap[str, Told] = HashTrieMap()
    """Cell id to the newest command about it; the empty id stands for the server as a whole."""
    is_doubtful: bool = False
    """Something that it sent is missing: it must report everything before its reports can be believed complete."""
    is_leaving: bool = False
    """It ends its cells and then itself."""

    @property
    def is_open(self) -> bool:
        return self.closed_at is None

    @property
    def has_left(self) -> bool:
        """It said that it leaves, and that each of its cells is gone, before it closed its stream."""
        all_gone = all(report.state is CellState.GONE for report in self.reports.values())
        return self.is_leaving and not self.is_open and all_gone


class ProviderSight(Struct, frozen=True):
    """What one provider says. ``servers``: cell id to the newest word about it."""

    servers: HashTrieMap[str, ProviderServer] = HashTrieMap()
    refused: HashTrieMap[str, str] = HashTrieMap()
    """Orders that it will not take, and why."""
    told: HashTrieMap[str, Told] = HashTrieMap()
    listed_at: float = 0.0
    """When its newest list that can be believed was asked for."""
    trouble: str = ""
    """Why it cannot be asked at the moment."""


class Sight(Struct, frozen=True):
    """``trusted_since``: silence before this instant (start, a stall of the scheduler itself) counts for nothing."""

    trusted_since: float = 0.0
    servers: HashTrieMap[str, ServerSight] = HashTrieMap()
    about: HashTrieMap[str, HashTrieMap[str, Testimony]] = HashTrieMap()
    """Server to what each neighbour that watches it says of it."""
    wills: HashTrieMap[str, float] = HashTrieMap()
    """Servers whose last will was read on the bus, and when."""
    providers: HashTrieMap[str, ProviderSight] = HashTrieMap()
    calm_since: HashTrieMap[str, float] = HashTrieMap()
    """Pool to the end of its last storm. What was silence before that was our own blindness."""
    ailing: HashTrieMap[str, HashTrieSet[str]] = HashTrieMap()
    """Rule on vitals to the servers that ail by it: how many share it decides whose fault it is."""
    well: HashTrieSet[str] = HashTrieSet()
    """Servers whose stream is open and that ail by nothing: whether there is one decides whether another can go."""

    def report_of(self, server: str, cell: str) -> CellReport | None:
        """What that server's agent said last of the cell. No agent is heard about another server's cells."""
        seen = self.servers.get(server)
        return None if seen is None else seen.reports.get(cell)


class Observed(Struct, frozen=True):
    """What an observation brought: the new sight, and what is news by it.

    ``cells``: cells that the server ``server`` reports on; ``everything``: its whole inventory came, so that each of
    its cells is news. ``servers``: servers that are news themselves. ``made``: server cells that a provider spoke of.
    """

    sight: Sight
    server: str = ""
    cells: tuple[str, ...] = ()
    everything: bool = False
    servers: tuple[str, ...] = ()
    provider: str = ""
    made: tuple[str, ...] = ()


def observe(sight: Sight, observation: Observation, limits: VitalLimits = USUAL_LIMITS) -> Observed:
    """Fold one observation in. Stale sessions and repeated sequence numbers change nothing."""
    match observation:
        case Attached():
            return _attached(sight, observation)
        case Reported():
            return _reported(sight, observation, limits)
        case Detached():
            return _detached(sight, observation)
        case WillRead(server=server, at=at):
            return Observed(replace(sight, wills=sight.wills.insert(server, at)), servers=(server,))
        case ProviderListed():
            return _listed(sight, observation)
        case _:
            return _provider_said(sight, observation)


def _attached(sight: Sight, attached: Attached) -> Observed:
    seen = ServerSight(
        session=attached.session,
        attached_at=attached.at,
        heard_at=attached.at,
        facts=attached.facts,
        reports=HashTrieMap((report.cell, report) for report in attached.inventory),
    )
    cells = tuple(report.cell for report in attached.inventory)
    sight = replace(_with(sight, attached.server, seen), wills=sight.wills.discard(attached.server))
    return Observed(sight, attached.server, cells, everything=True, servers=(attached.server,))


def _reported(sight: Sight, reported: Reported, limits: VitalLimits) -> Observed:
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
    says_goodbye = reported.is_leaving and not seen.is_leaving
    ailing = seen.ailing
    if reported.vitals is not None:
        ailing = ailments(ailing, reported.vitals, limits, reported.at)
    is_news = (
        was_silent
        or gap
        or says_goodbye
        or ailing != seen.ailing
        or (reported.vitals is not None and not seen.vitals)
    )
    seen = replace(
        seen,
        heard_at=reported.at,
        sequence=reported.sequence,
        vitals=reported.vitals or seen.vitals,
        ailing=ailing,
        reports=reports,
        is_doubtful=is_doubtful,
        is_leaving=reported.is_leaving,
    )
    cells = tuple(report.cell for report in reported.cells)
    sight = _with(sight, reported.server, seen)
    sight = _testified(sight, reported)
    news = [reported.server] if is_news else []
    news += [testimony.server for testimony in reported.testimonies]
    news += reported.withdrawn
    return Observed(sight, reported.server, cells, everything=reported.complete, servers=tuple(news))


def _testified(sight: Sight, reported: Reported) -> Sight:
    """What the neighbour says of others now, without what it said before of those that it watches no more."""
    about = sight.about
    for server in reported.withdrawn:
        others = (about.get(server) or HashTrieMap()).discard(reported.server)
        about = about.insert(server, others) if others else about.discard(server)
    for testimony in reported.testimonies:
        others = about.get(testimony.server) or HashTrieMap()
        about = about.insert(testimony.server, others.insert(reported.server, testimony))
    return sight if about is sight.about else replace(sight, about=about)


def _detached(sight: Sight, detached: Detached) -> Observed:
    seen = sight.servers.get(detached.server)
    if seen is None or seen.session != detached.session or not seen.is_open:
        return Observed(sight)
    closed = _with(sight, detached.server, replace(seen, closed_at=detached.at))
    return Observed(closed, servers=(detached.server,))


def _listed(sight: Sight, listed: ProviderListed) -> Observed:
    """A list replaces what is known, but for servers that it spoke about after the list was asked for."""
    before = sight.providers.get(listed.provider) or ProviderSight()
    servers = HashTrieMap((server.cell, server) for server in listed.servers)
    for cell, known in before.servers.items():
        if cell not in servers and before.listed_at and not listed.servers:
            servers = servers.insert(cell, known)  # an empty answer never reads as "all are gone"
    now = replace(before, servers=servers, listed_at=listed.asked_at, trouble="")
    changed = [c for c, one in servers.items() if before.servers.get(c) != one]
    missing = [c for c in before.servers if c not in servers]
    sight = replace(sight, providers=sight.providers.insert(listed.provider, now))
    return Observed(sight, provider=listed.provider, made=(*changed, *missing))


def _provider_said(
    sight: Sight, said: ServerMade | ServerNotMade | ServerUnmade | ProviderSilent
) -> Observed:
    known = sight.providers.get(said.provider) or ProviderSight()
    made: tuple[str, ...] = ()
    match said:
        case ServerMade(server=cell, ref=ref):
            server = ProviderServer(cell, ref, ProviderState.RUNNING)
            known = replace(known, servers=known.servers.insert(cell, server), trouble="")
            made = (cell,)
        case ServerNotMade(server=cell, reason=reason):
            known = replace(known, refused=known.refused.insert(cell, reason), trouble="")
            made = (cell,)
        case ServerUnmade(server=cell):
            gone = ProviderServer(cell, "", ProviderState.GONE, "deleted")
            known = replace(known, servers=known.servers.insert(cell, gone), trouble="")
            made = (cell,)
        case ProviderSilent(reason=reason):
            known = replace(known, trouble=reason)
    sight = replace(sight, providers=sight.providers.insert(said.provider, known))
    return Observed(sight, provider=said.provider, made=made)


def tell(sight: Sight, server: str, cell: str, verb: str, now: float) -> Sight:
    """Remember that the cell's agent was told something, so that it is not told again at once."""
    seen = sight.servers.get(server)
    if seen is None:
        return sight
    return _with(sight, server, replace(seen, told=seen.told.insert(cell, Told(verb, now))))


def tell_provider(sight: Sight, provider: str, cell: str, verb: str, now: float) -> Sight:
    """The same for a provider."""
    known = sight.providers.get(provider) or ProviderSight()
    known = replace(known, told=known.told.insert(cell, Told(verb, now)))
    return replace(sight, providers=sight.providers.insert(provider, known))


def forget_server(sight: Sight, provider: str, cell: str) -> Sight:
    """Drop what was seen and told of a server cell that is no more."""
    known = sight.providers.get(provider)
    if known is None:
        return sight
    known = replace(
        known,
        servers=known.servers.discard(cell),
        refused=known.refused.discard(cell),
        told=known.told.discard(cell),
    )
    return replace(sight, providers=sight.providers.insert(provider, known), about=sight.about.discard(cell))


def forget_place(sight: Sight, server: str) -> Sight:
    """Drop whatever was seen of a server that is gone for good, and what it said and others said of it."""
    seen = sight.servers.get(server)
    if seen is not None:
        sight = _recounted(sight, server, seen.ailing, ())
        sight = replace(sight, servers=sight.servers.discard(server), well=sight.well.discard(server))
    about = sight.about.discard(server)
    for watched, said in sight.about.items():
        if watched != server and server in said:
            others = said.discard(server)
            about = about.insert(watched, others) if others else about.discard(watched)
    return replace(sight, about=about, wills=sight.wills.discard(server))


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
    before = sight.servers.get(server)
    was_ailing = before.ailing if before else ()
    is_well = seen.is_open and not seen.ailing
    well = sight.well
    if is_well is not (server in well):
        well = well.insert(server) if is_well else well.discard(server)
    sight = replace(sight, servers=sight.servers.insert(server, seen), well=well)
    return sight if seen.ailing is was_ailing else _recounted(sight, server, was_ailing, seen.ailing)


def _recounted(sight: Sight, server: str, before: tuple[Ailment, ...], after: tuple[Ailment, ...]) -> Sight:
    """Keep count of who ails by what."""
    was, now = {one.rule for one in before}, {one.rule for one in after}
    ailing = sight.ailing
    for rule in sorted(was ^ now):
        servers = ailing.get(rule) or HashTrieSet()
        servers = servers.insert(server) if rule in now else servers.discard(server)
        ailing = ailing.insert(rule, servers) if servers else ailing.discard(rule)
    return sight if ailing is sight.ailing else replace(sight, ailing=ailing)
