"""Folds one observation into the sight, and tells which keys it concerns."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct
from msgspec.structs import replace
from rpds import HashTrieMap, HashTrieSet

from galactica.scheduler.core.model.policy import MISSED_BEATS, USUAL_LIMITS, VitalLimits
from galactica.scheduler.core.sight.observations import (
    Attached,
    CellReport,
    CellState,
    Detached,
    Moved,
    Observation,
    ProviderListed,
    ProviderServer,
    ProviderSilent,
    ProviderState,
    Reported,
    Rivalled,
    ServerMade,
    ServerNotMade,
    ServerUnmade,
    ShellBegun,
    ShellEnded,
    Unread,
    WillRead,
)
from galactica.scheduler.core.sight.state import (
    REPORTS_LIMIT,
    Going,
    ProviderSight,
    Rival,
    ServerSight,
    Sight,
    with_server,
)
from galactica.scheduler.core.sight.vitals import ailments

SILENCE_WORTH_A_LOOK_SECONDS = 2.0
"""A report that ends a silence this long makes its server news again."""

LISTED_TOLD = 3
"""So many of the entries about one server are told."""

USUAL_MISSED_SECONDS = MISSED_BEATS * 1.0
"""Of a fleet so small that its agents beat once a second."""


class Observed(Struct, frozen=True):
    """What an observation brought: the new sight, and what is news by it.

    ``cells``: cells that the server ``server`` reports on; ``everything``: its whole inventory came, so that each of
    its cells is news. ``awaited``: cells that waited for its word. ``servers``: servers that are news themselves.
    ``made``: server cells that a provider spoke of.
    """

    sight: Sight
    server: str = ""
    cells: tuple[str, ...] = ()
    everything: bool = False
    awaited: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()
    provider: str = ""
    made: tuple[str, ...] = ()


def observe(
    sight: Sight,
    observation: Observation,
    limits: VitalLimits = USUAL_LIMITS,
    missed_seconds: float = USUAL_MISSED_SECONDS,
) -> Observed:
    """Fold one observation in. Stale sessions and repeated sequence numbers change nothing. ``missed_seconds``: after a
    longer silence beats are missing."""
    match observation:
        case Attached():
            return _attached(sight, observation)
        case Reported():
            return _reported(sight, observation, limits, missed_seconds)
        case Moved():
            return Observed(_moved(sight, observation))
        case Detached():
            return _detached(sight, observation)
        case Rivalled():
            return Observed(_rivalled(sight, observation))
        case WillRead(server=server, at=at):
            return Observed(replace(sight, wills=sight.wills.insert(server, at)), servers=(server,))
        case ShellBegun(server=server, cell=cell):
            return Observed(_with_shells(sight, cell, 1), server, (cell,))
        case ShellEnded(server=server, cell=cell):
            return Observed(_with_shells(sight, cell, -1), server, (cell,))
        case ProviderListed():
            return _listed(sight, observation)
        case _:
            return _provider_said(sight, observation)


def _with_shells(sight: Sight, cell: str, by: int) -> Sight:
    count = (sight.shells.get(cell) or 0) + by
    shells = sight.shells.insert(cell, count) if count > 0 else sight.shells.discard(cell)
    return replace(sight, shells=shells)


def _attached(sight: Sight, attached: Attached) -> Observed:
    before = sight.servers.get(attached.server)
    is_same = before is not None and before.machine == attached.machine != ""
    elsewhere_heard_at = 0.0
    if before is not None:
        is_elsewhere = not is_same and before.session != attached.session
        elsewhere_heard_at = before.heard_at if is_elsewhere else before.elsewhere_heard_at
    known = before.reports if before is not None and before.machine == attached.machine else HashTrieMap()
    reports = _unread(HashTrieMap(), known, attached.unread, is_inventory=True)
    cells = _spoken_of(attached)
    for report in attached.inventory:
        reports = reports.insert(report.cell, report)
    seen = ServerSight(
        machine=attached.machine,
        machine_since=before.machine_since if before is not None and is_same else attached.at,
        elsewhere_heard_at=elsewhere_heard_at,
        booted_at=attached.booted_at,
        session=attached.session,
        attached_at=attached.at,
        heard_at=attached.at,
        facts=attached.facts,
        place=attached.place,
        wire_version=attached.wire_version,
        reports=reports,
        well_until=_well_until(before, reports, (*before.reports, *cells))
        if before and is_same
        else HashTrieMap(),
        is_doubtful=_names_no_cell(attached.unread),
    )
    sight = replace(with_server(sight, attached.server, seen), wills=sight.wills.discard(attached.server))
    return Observed(
        sight,
        attached.server,
        cells,
        everything=True,
        awaited=tuple(sorted(before.listened_for)) if before else (),
        servers=(attached.server,),
    )


def _reported(sight: Sight, reported: Reported, limits: VitalLimits, missed_seconds: float) -> Observed:
    seen = sight.servers.get(reported.server)
    if (
        seen is None
        or seen.session != reported.session
        or not seen.is_open
        or reported.sequence <= seen.sequence
    ):
        return Observed(sight)
    gap = reported.sequence > seen.sequence + 1
    is_doubtful = _names_no_cell(reported.unread) or (not reported.complete and (gap or seen.is_doubtful))
    reports = HashTrieMap() if reported.complete else seen.reports
    reports = _unread(reports, seen.reports, reported.unread, is_inventory=reported.complete)
    recovered = seen.recovered
    for report in reported.cells:
        if len(reports) >= REPORTS_LIMIT and report.cell not in reports:
            continue
        before = seen.reports.get(report.cell)
        if before is not None and before.is_failing and not report.is_failing:
            recovered = recovered.insert(report.cell, reported.at)
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
    cells, awaited = _spoken_of(reported), tuple(sorted(seen.listened_for))
    seen = replace(
        seen,
        heard_at=reported.at,
        sequence=reported.sequence,
        vitals=reported.vitals or seen.vitals,
        ailing=ailing,
        reports=reports,
        recovered=recovered,
        well_until=_well_until(seen, reports, (*seen.reports, *cells) if reported.complete else cells),
        heard_since=reported.at if reported.at - seen.heard_at > missed_seconds else seen.heard_since,
        is_doubtful=is_doubtful,
        is_leaving=reported.is_leaving,
        listened_for=HashTrieSet(),
    )
    sight = with_server(sight, reported.server, seen)
    sight = _testified(sight, reported)
    news = [reported.server] if is_news else []
    news += [testimony.server for testimony in reported.testimonies]
    news += reported.withdrawn
    return Observed(sight, reported.server, cells, reported.complete, awaited, tuple(news))


def _well_until(
    before: ServerSight, reports: HashTrieMap[str, CellReport], cells: Iterable[str]
) -> HashTrieMap[str, float]:
    """Note of these cells when they were last heard well, where they no longer are: at the last word before this
    one."""
    well_until = before.well_until
    for cell in cells:
        was, now = before.reports.get(cell), reports.get(cell)
        if now is not None and now.shows_well:
            well_until = well_until.discard(cell)
        elif was is not None and was.shows_well and len(well_until) < REPORTS_LIMIT:
            well_until = well_until.insert(cell, before.heard_at)
    return well_until


def _unread(
    reports: HashTrieMap[str, CellReport],
    known: HashTrieMap[str, CellReport],
    unread: tuple[Unread, ...],
    *,
    is_inventory: bool,
) -> HashTrieMap[str, CellReport]:
    """``reports``, and what the entries are about that cannot be read: it stays as it is ``known``, in doubt. An entry
    of an inventory that names no cell may be about any of them."""
    for entry in unread:
        if entry.cell:
            before = known.get(entry.cell) or CellReport(entry.cell, "", CellState.STARTING)
            reports = reports.insert(entry.cell, replace(before, doubt=entry.reason))
        elif is_inventory:
            for cell, before in known.items():
                reports = reports.insert(cell, replace(before, doubt=entry.reason))
    return reports


def _names_no_cell(unread: tuple[Unread, ...]) -> bool:
    return any(not entry.cell for entry in unread)


def _spoken_of(said: Attached | Reported) -> tuple[str, ...]:
    readable = said.inventory if isinstance(said, Attached) else said.cells
    return (*(one.cell for one in readable), *(one.cell for one in said.unread if one.cell))


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


def _moved(sight: Sight, moved: Moved) -> Sight:
    seen = sight.servers.get(moved.server)
    if seen is None or seen.session != moved.session:
        return sight
    return with_server(sight, moved.server, replace(seen, place=moved.place))


def _detached(sight: Sight, detached: Detached) -> Observed:
    seen = sight.servers.get(detached.server)
    if seen is None or seen.session != detached.session or not seen.is_open:
        return Observed(sight)
    closed = with_server(sight, detached.server, replace(seen, closed_at=detached.at))
    return Observed(closed, servers=(detached.server,))


def _rivalled(sight: Sight, rivalled: Rivalled) -> Sight:
    """It is only told: no verdict depends on what a second machine claims."""
    seen = sight.servers.get(rivalled.server)
    if seen is None:
        return sight
    return with_server(sight, rivalled.server, replace(seen, rival=Rival(rivalled.address, rivalled.at)))


def _listed(sight: Sight, listed: ProviderListed) -> Observed:
    """A list replaces what is known. A server whose delete was taken before the list was asked for, and that is not on
    it, is gone. What an entry that cannot be read speaks of stays as it is known."""
    before = sight.providers.get(listed.provider) or ProviderSight()
    entries = _one_of_each(listed.servers)
    unreadable = [server for server in entries if server.state is ProviderState.UNREADABLE]
    readable = [server for server in entries if server.state is not ProviderState.UNREADABLE]
    # One that names no server may be about any of them: then no absence proves anything.
    is_whole = all(server.cell for server in unreadable)
    servers = HashTrieMap((server.cell, server) for server in readable)
    for server in unreadable:
        if server.cell and server.cell not in servers:
            unclear = replace(server, state=ProviderState.PENDING)
            servers = servers.insert(server.cell, before.servers.get(server.cell) or unclear)
    if not is_whole or (not listed.servers and before.listed_at):
        # An empty answer never reads as "all are gone".
        servers = HashTrieMap({**dict(before.servers.items()), **dict(servers.items())})
    for cell, going in before.going.items():
        if is_whole and _left_list(before, listed, cell, going.since):
            gone = ProviderServer(cell, "", ProviderState.GONE, "deleted", is_doubtful=not listed.servers)
            servers = servers.insert(cell, gone)
    now = replace(
        before,
        servers=servers,
        listed_at=listed.asked_at if is_whole else before.listed_at,
        was_empty=not listed.servers,
        trouble=f"an entry of its list cannot be read: {unreadable[0].reason}" if unreadable else "",
    )
    changed = [c for c, one in servers.items() if before.servers.get(c) != one]
    missing = [c for c in before.servers if c not in servers]
    sight = replace(sight, providers=sight.providers.insert(listed.provider, now))
    return Observed(sight, provider=listed.provider, made=(*changed, *missing))


def _one_of_each(listed: tuple[ProviderServer, ...]) -> list[ProviderServer]:
    """One entry for each cell. Entries that contradict each other cannot be read: none of them proves anything. A cell
    is gone where all that is listed of it is gone."""
    of_cells: dict[str, list[ProviderServer]] = {}
    for server in listed:
        of_cells.setdefault(server.cell, []).append(server)
    entries = of_cells.pop("", [])
    for cell, about in of_cells.items():
        if all(one == about[0] or one.state is about[0].state is ProviderState.GONE for one in about):
            entries.append(about[0])
            continue
        says = ", ".join(
            sorted({f"{one.state.value} ({one.ref or one.reason})" for one in about})[:LISTED_TOLD]
        )
        reason = f"{cell} is in the list {len(about)} times: {says}"
        entries.append(ProviderServer(cell, "", ProviderState.UNREADABLE, reason))
    return entries


def _left_list(before: ProviderSight, listed: ProviderListed, cell: str, taken_at: float) -> bool:
    """Whether the list proves that the server is gone. One empty list proves nothing."""
    if listed.servers:
        return listed.asked_at >= taken_at and all(server.cell != cell for server in listed.servers)
    return before.was_empty and before.listed_at >= taken_at


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
        case ServerUnmade(server=cell, is_gone=True):
            gone = ProviderServer(cell, "", ProviderState.GONE, "deleted")
            known = replace(known, servers=known.servers.insert(cell, gone), trouble="")
            made = (cell,)
        case ServerUnmade(server=cell, at=at):
            before = known.going.get(cell)
            going = Going(at) if before is None else Going(before.since, before.times + 1)
            known = replace(known, going=known.going.insert(cell, going), trouble="")
            made = (cell,)
        case ProviderSilent(reason=reason):
            known = replace(known, trouble=reason)
    sight = replace(sight, providers=sight.providers.insert(said.provider, known))
    return Observed(sight, provider=said.provider, made=made)
