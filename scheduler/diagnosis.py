"""Blame is computed. Cells of one spec are identical, and cells of one server share its fate:

deaths that share a spec across servers blame the spec; deaths of different specs on one server blame the server;
silence that many servers share blames the scheduler's own sight (``storm``).
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from scheduler.model import Death, Evidence

SPEC_DEATHS = 3
SPEC_SERVERS = 2
"""So many deaths of one spec, on so many servers, and it is not the servers."""

SERVER_DEATHS = 3
SERVER_SPECS = 2
"""So many deaths on one server, of so many specs, and it is not the specs."""

SUSPECT_DEATHS = 2
"""So many deaths on one server, and it gets no new cells while others may take them."""


class Blame(Struct, frozen=True):
    """``evidence``: the table that it rests on."""

    reason: str
    evidence: tuple[Evidence, ...]


def blame_spec(deaths: Sequence[Death], digest: str, now: float, window_seconds: float) -> Blame | None:
    """Whether the spec itself is to blame for the deaths of its cells."""
    recent = [d for d in deaths if d.digest == digest and now - d.at <= window_seconds]
    servers = {death.server for death in recent}
    if len(recent) < SPEC_DEATHS or len(servers) < SPEC_SERVERS:
        return None
    where = f"{len(servers)} servers within {window_seconds:g} s"
    reason = f"{len(recent)} of its cells died on {where}: the spec is to blame"
    return Blame(reason, tuple(map(_fact, recent)))


def blame_server(deaths: Sequence[Death], now: float, window_seconds: float) -> Blame | None:
    """Whether the server is to blame for the deaths on it."""
    recent = [d for d in deaths if now - d.at <= window_seconds]
    groups = {death.group for death in recent}
    if len(recent) < SERVER_DEATHS or len(groups) < SERVER_SPECS:
        return None
    who = f"{len(recent)} cells of {len(groups)} groups"
    reason = f"{who} died on it within {window_seconds:g} s: the server is to blame"
    return Blame(reason, tuple(map(_fact, recent)))


def is_suspect(deaths: Sequence[Death], now: float, window_seconds: float) -> bool:
    """Whether a server had deaths enough to spare it new cells for a while."""
    return sum(now - death.at <= window_seconds for death in deaths) >= SUSPECT_DEATHS


def _fact(death: Death) -> Evidence:
    return Evidence(f"server {death.server}", f"a cell of {death.group} died by rule {death.rule}", death.at)
