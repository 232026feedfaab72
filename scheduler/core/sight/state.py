"""What the scheduler observes right now: sessions, beats, reports, providers' lists.

It is never journaled. It is lost with the process, and rebuilt from what agents say when they attach. ``observe`` folds
one observation into it.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace
from rpds import HashTrieMap, HashTrieSet

from galactica.scheduler.core.model.commands import Verb
from galactica.scheduler.core.model.policy import Tempo
from galactica.scheduler.core.sight.observations import (
    CellReport,
    CellState,
    Place,
    ProviderServer,
    ServerFacts,
    Testimony,
)
from galactica.scheduler.core.sight.vitals import Ailment, Vitals

REPORTS_LIMIT = 10_000
"""So many cells are known of one server at most. No agent may show more at once, and one that shows other cells with
each report gets no more memory."""


class Told(Struct, frozen=True):
    """The newest command that was sent about a cell in this session."""

    verb: Verb
    at: float


class Rival(Struct, frozen=True):
    """A second machine with the identity of a server: from where it came, and when last."""

    address: str
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
    """Which of its vitals are bad, and since when."""
    facts: ServerFacts = ServerFacts()
    place: Place = Place()
    reports: HashTrieMap[str, CellReport] = HashTrieMap()
    """The newest report of each cell on it, orphans too."""
    told: HashTrieMap[str, Told] = HashTrieMap()
    """Cell id to the newest command about it. The empty id stands for the whole server."""
    recovered: HashTrieMap[str, float] = HashTrieMap()
    """Cell id to the time when its probe passed again after a failure."""
    well_until: HashTrieMap[str, float] = HashTrieMap()
    """Cell id to the time when it was last heard well. Only cells whose newest report shows less."""
    heard_since: float = 0.0
    """When the session was heard again after beats were missing. What its agent sent meanwhile is read then, and is
    old."""
    listened_for: HashTrieSet[str] = HashTrieSet()
    """Cells that wait for its next word, whatever that is."""
    is_doubtful: bool = False
    """A report is missing, or an entry of its inventory names no cell. The agent must report everything before its
    reports count as complete; until then, that it does not report a cell proves nothing."""
    is_leaving: bool = False
    """Its agent is ending its cells, and then itself."""
    machine: str = ""
    """The machine on which its agent runs; empty if that is unknown."""
    machine_since: float = 0.0
    """Since when only this machine has been heard as the server. Another one may still run what was ordered before."""
    elsewhere_heard_at: float = 0.0
    """When another machine was heard last as the server; 0: never since the scheduler started."""
    booted_at: float | None = None
    """When the machine booted; None: unknown."""
    wire_version: int = 0
    """Of the session; 0: unknown."""
    rival: Rival | None = None
    """A second machine that claims to be this server. It was turned away."""

    @property
    def is_open(self) -> bool:
        return self.closed_at is None

    @property
    def has_left(self) -> bool:
        """Whether its agent announced that it leaves, reported each cell gone, and then closed its stream."""
        all_gone = all(report.state is CellState.GONE for report in self.reports.values())
        return self.is_leaving and not self.is_open and not self.is_doubtful and all_gone


class Going(Struct, frozen=True):
    """A provider took the delete of a server: when first, and how often."""

    since: float
    times: int = 1


class ProviderSight(Struct, frozen=True):
    """What one provider says. ``servers``: cell id to the newest state of that server."""

    servers: HashTrieMap[str, ProviderServer] = HashTrieMap()
    refused: HashTrieMap[str, str] = HashTrieMap()
    """Orders that it refused for good, with the reason."""
    told: HashTrieMap[str, Told] = HashTrieMap()
    going: HashTrieMap[str, Going] = HashTrieMap()
    """Servers whose delete it took. They are there until its list says otherwise."""
    was_empty: bool = False
    """Whether its newest list was empty."""
    listed_at: float = 0.0
    """When its newest trusted list was asked for."""
    trouble: str = ""
    """Why it does not answer at the moment; empty if it does."""


class Sight(Struct, frozen=True):
    """``trusted_since``: silence before this time does not count, since the scheduler started or was itself stalled."""

    trusted_since: float = 0.0
    servers: HashTrieMap[str, ServerSight] = HashTrieMap()
    about: HashTrieMap[str, HashTrieMap[str, Testimony]] = HashTrieMap()
    """Server to what each of its neighbours says of it."""
    wills: HashTrieMap[str, float] = HashTrieMap()
    """Server to the time when its last will was read on the bus."""
    providers: HashTrieMap[str, ProviderSight] = HashTrieMap()
    calm_since: HashTrieMap[str, float] = HashTrieMap()
    """Pool to the end of its last storm. Silence before that does not count: the scheduler could not hear."""
    ailing: HashTrieMap[str, HashTrieSet[str]] = HashTrieMap()
    """Rule to the servers whose vitals are bad by it. If many share it, it may not be their fault."""
    well: HashTrieSet[str] = HashTrieSet()
    """Servers with an open stream and good vitals. A sick server can only go if there is another good one."""
    began_at: float = 0.0
    """When this scheduler started."""
    shells: HashTrieMap[str, int] = HashTrieMap()
    """Cell to how many shells operators have in it now."""

    def hears(self, server: str, now: float, tempo: Tempo) -> bool:
        """Whether its stream is open and none of its beats is missing."""
        seen = self.servers.get(server)
        return seen is not None and seen.is_open and not tempo.has_missed(seen.heard_at, now)

    def report_of(self, server: str, cell: str) -> CellReport | None:
        """The newest report of the cell by that server's agent. No agent can report on another server's cells."""
        seen = self.servers.get(server)
        return None if seen is None else seen.reports.get(cell)


def tell(sight: Sight, server: str, cell: str, verb: Verb, now: float) -> Sight:
    """Remember that a command was sent to the cell's agent, so that it is not sent again at once."""
    seen = sight.servers.get(server)
    if seen is None:
        return sight
    return with_server(sight, server, replace(seen, told=seen.told.insert(cell, Told(verb, now))))


def tell_provider(sight: Sight, provider: str, cell: str, verb: Verb, now: float) -> Sight:
    """Remember that a command was sent to a provider."""
    known = sight.providers.get(provider) or ProviderSight()
    known = replace(known, told=known.told.insert(cell, Told(verb, now)))
    return replace(sight, providers=sight.providers.insert(provider, known))


def forget_server(sight: Sight, provider: str, cell: str) -> Sight:
    """Drop what a provider said of a server cell that is gone, and what the provider was told about it."""
    known = sight.providers.get(provider)
    if known is None:
        return sight
    known = replace(
        known,
        servers=known.servers.discard(cell),
        refused=known.refused.discard(cell),
        told=known.told.discard(cell),
        going=known.going.discard(cell),
    )
    return replace(sight, providers=sight.providers.insert(provider, known), about=sight.about.discard(cell))


def forget_place(sight: Sight, server: str) -> Sight:
    """Drop everything observed of a server that is gone for good, and all testimonies by it and about it."""
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


def listen(sight: Sight, server: str, cell: str) -> Sight:
    """The server's next word is news of that cell."""
    seen = sight.servers.get(server)
    if seen is None:
        return sight
    return with_server(sight, server, replace(seen, listened_for=seen.listened_for.insert(cell)))


def doubt(sight: Sight, server: str) -> Sight:
    """This server's reports may be outdated, so its agent has to report everything."""
    seen = sight.servers.get(server)
    return sight if seen is None else with_server(sight, server, replace(seen, is_doubtful=True))


def forget(sight: Sight, server: str, cell: str) -> Sight:
    """Drop the report of a cell that is gone, and the command about it."""
    seen = sight.servers.get(server)
    if seen is None or (cell not in seen.reports and cell not in seen.told):
        return sight
    seen = replace(
        seen,
        reports=seen.reports.discard(cell),
        told=seen.told.discard(cell),
        recovered=seen.recovered.discard(cell),
        well_until=seen.well_until.discard(cell),
    )
    return with_server(sight, server, seen)


def with_server(sight: Sight, server: str, seen: ServerSight) -> Sight:
    before = sight.servers.get(server)
    was_ailing = before.ailing if before else ()
    is_well = seen.is_open and not seen.ailing
    well = sight.well
    if is_well is not (server in well):
        well = well.insert(server) if is_well else well.discard(server)
    sight = replace(sight, servers=sight.servers.insert(server, seen), well=well)
    return sight if seen.ailing is was_ailing else _recounted(sight, server, was_ailing, seen.ailing)


def _recounted(sight: Sight, server: str, before: tuple[Ailment, ...], after: tuple[Ailment, ...]) -> Sight:
    """Keep the index of servers with bad vitals, by rule."""
    was, now = {one.rule for one in before}, {one.rule for one in after}
    ailing = sight.ailing
    for rule in sorted(was ^ now):
        servers = ailing.get(rule) or HashTrieSet()
        servers = servers.insert(server) if rule in now else servers.discard(server)
        ailing = ailing.insert(rule, servers) if servers else ailing.discard(rule)
    return sight if ailing is sight.ailing else replace(sight, ailing=ailing)
