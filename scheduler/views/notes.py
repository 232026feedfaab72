"""What an operator should know of servers and providers and what is no verdict: one sentence each. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from galactica.scheduler.core.model.fleet import Maintenance
from galactica.scheduler.core.ports import View
from galactica.scheduler.core.sight.observations import ProviderState
from galactica.scheduler.core.sight.state import ProviderSight, ServerSight
from galactica.scheduler.core.verdicts.maintenance import maintenance_of
from galactica.scheduler.units import format_duration
from galactica.scheduler.wire.versions import WIRE_VERSION, is_behind

RIVAL_TOLD_SECONDS = 120.0
"""How long a second machine is told after its last attempt. Its agent tries again within a minute."""


CLOCK_TOLD_SECONDS = 60.0
"""By so much the scheduler's time has to differ from the wall clock to be told."""


DELETES_NAMED = 3
"""So many servers that a provider deletes are named."""


def clock_notes(view: View, wall: float | None) -> Iterator[str]:
    """Whether the scheduler's time, which begins with its wall clock and never jumps, is another one by now."""
    off = 0.0 if wall is None else view.now - wall
    if abs(off) >= CLOCK_TOLD_SECONDS:
        where = f"{format_duration(abs(off))} {'ahead of' if off > 0 else 'behind'}"
        yield (
            f"times in the journal are {where} the scheduler's wall clock, which was set since a scheduler started; "
            "ages, waits and leases are right"
        )


def notes(view: View) -> Iterator[str]:
    """Those of all servers, by server. While a fleet is upgraded many agents are behind: one note for all of them."""
    behind = []
    for server in sorted(view.fleet.servers.keys() | view.sight.servers.keys()):
        lease = lease_of(view, server)
        if lease is not None:
            yield f"server {server} is {maintenance_words(lease)}"
        seen = view.sight.servers.get(server)
        if seen is not None:
            yield from _seen_notes(view, server, seen)
            behind += [server] * _is_behind(seen)
    if len(behind) == 1:
        yield f"the agent of server {behind[0]} is behind this scheduler: install a newer one there"
    elif behind:
        yield (
            f"{len(behind)} agents are behind this scheduler, such as that of server {behind[0]}: install newer ones; "
            "galactica servers names them"
        )


def deleting_notes(view: View) -> Iterator[str]:
    """One for each provider that has yet to end servers whose delete it took: the oldest first, a few by name."""
    for name, provider in sorted(view.sight.providers.items()):
        since = deletes_under_way(provider)
        if not since:
            continue
        oldest = sorted(since, key=lambda cell: (since[cell], cell))
        named = ", ".join(oldest[:DELETES_NAMED])
        more = f" and {len(oldest) - DELETES_NAMED} more" if len(oldest) > DELETES_NAMED else ""
        servers = "1 server" if len(oldest) == 1 else f"{len(oldest)} servers"
        first = "" if len(oldest) == 1 else "the first one "
        age = format_duration(max(0.0, view.now - since[oldest[0]]))
        yield f"provider {name} is deleting {servers}: {named}{more}; {first}asked {age} ago"


def deletes_under_way(provider: ProviderSight) -> dict[str, float]:
    """The servers whose delete the provider took and that are not gone by its word, and since when."""
    words = provider.servers
    return {
        cell: going.since
        for cell, going in provider.going.items()
        if (word := words.get(cell)) is None or word.state is not ProviderState.GONE
    }


def notes_of(view: View, server: str) -> Iterator[str]:
    seen = view.sight.servers.get(server)
    if seen is None:
        return
    yield from _seen_notes(view, server, seen)
    if _is_behind(seen):
        yield (
            f"its agent is behind: it uses wire version {seen.wire_version}, and this scheduler {WIRE_VERSION}; "
            "install a newer agent"
        )


def _is_behind(seen: ServerSight) -> bool:
    return seen.is_open and is_behind(seen.wire_version)


def _seen_notes(view: View, server: str, seen: ServerSight) -> Iterator[str]:
    if seen.rival is not None and view.now - seen.rival.at < RIVAL_TOLD_SECONDS:
        yield (
            f"a second live machine claims the identity of server {server}, from {seen.rival.address}; it gets no "
            "session: enrol it under an id of its own"
        )
    if seen.is_open and seen.place.trouble:
        yield f"neighbours cannot watch server {server}: {seen.place.trouble}"
    if seen.is_open and seen.vitals is not None and (count := seen.vitals.foreign_cells):
        yield f"{count} {'cell' if count == 1 else 'cells'} of another fleet on server {server}"


def lease_of(view: View, server_id: str) -> Maintenance | None:
    """The maintenance lease of the server that holds now."""
    server = view.fleet.servers.get(server_id)
    return maintenance_of(server, view.sight, view.now) if server else None


def maintenance_words(lease: Maintenance) -> str:
    until = datetime.fromtimestamp(lease.until, UTC).strftime("%H:%M:%S UTC")
    return f"in maintenance until {until}: its agent ended in order, and its cells live on"
