"""The facts about a server: when it was last heard, what neighbours and provider say, how long silence is tolerated."""

from __future__ import annotations

from typing import NamedTuple

from galactica.scheduler.core.model.fleet import Fleet, Server
from galactica.scheduler.core.model.policy import Policy, Tempo
from galactica.scheduler.core.model.spec import Spec
from galactica.scheduler.core.model.verdict import Evidence
from galactica.scheduler.core.sight.observations import (
    Answer,
    ProviderServer,
    Testimony,
)
from galactica.scheduler.core.sight.state import Sight

TEMPO_WORTH_TELLING = 0.1
"""Agents with an open session are told of a beat or lease that changed by this fraction."""


class Terms(NamedTuple):
    """What a server's pool says about silence. Seconds."""

    tempo: Tempo
    lease_seconds: float
    cut_off_after_seconds: float


def terms_of(fleet: Fleet, server: Server, policy: Policy) -> Terms:
    tempo = policy.tempo(len(fleet.servers))
    state = fleet.groups.get(server.pool) if server.pool else None
    if state is None:
        return Terms(tempo, tempo.lease_seconds, policy.cut_off_after_seconds)
    return Terms(tempo, state.group.lease_seconds or tempo.lease_seconds, state.group.cut_off_after_seconds)


class Witnesses(NamedTuple):
    """What a server's neighbours say. Only neighbours count that the scheduler itself hears."""

    answers: int
    refused: int
    silent: int
    facts: tuple[Evidence, ...]
    silent_since: float
    """When the last of the neighbours without an answer stopped getting one; 0 if there is none."""
    said: tuple[Testimony, ...] = ()

    @property
    def total(self) -> int:
        return self.answers + self.refused + self.silent

    def mostly(self, answer: Answer) -> bool:
        said = {Answer.ANSWERS: self.answers, Answer.REFUSED: self.refused, Answer.SILENT: self.silent}
        return said[answer] * 2 > self.total


def last_heard_at(server: Server, sight: Sight) -> float:
    """The time from which its silence counts."""
    seen = sight.servers.get(server.id)
    return max(seen.heard_at if seen else server.joined_at, trusted_since_of(server, sight))


def trusted_since_of(server: Server, sight: Sight) -> float:
    """Silence before this time does not count: the scheduler itself could not hear."""
    return max(sight.trusted_since, sight.calm_since.get(server.pool) or 0.0)


def provider_of(spec: Spec) -> str:
    """Who makes servers of that spec; empty where it is a container's."""
    return spec.server.provider if spec.server else ""


def provider_server(sight: Sight, spec: Spec, cell_id: str) -> ProviderServer | None:
    """The word of the spec's provider on the server that is that cell."""
    provider = sight.providers.get(provider_of(spec))
    return provider.servers.get(cell_id) if provider else None


def made_by(fleet: Fleet, server: Server, sight: Sight) -> ProviderServer | None:
    """Its own provider's word on a pool's server."""
    spec = _pool_spec(fleet, server)
    return provider_server(sight, spec, server.id) if spec else None


def _pool_spec(fleet: Fleet, server: Server) -> Spec | None:
    state = fleet.groups.get(server.pool) if server.pool else None
    if state is None:
        return None
    cell = fleet.cell(server.id)
    return state.spec_for(cell) if cell else state.group.spec


def missing_at_of(fleet: Fleet, server: Server, sight: Sight) -> float | None:
    """When its provider was asked for the newest list, if that list does not contain it. None if it is listed, or if
    the list proves nothing: it is older than the server's joining, or it is empty."""
    spec = _pool_spec(fleet, server)
    provider = sight.providers.get(provider_of(spec)) if spec else None
    if provider is None or not len(provider.servers) or server.id in provider.servers:
        return None
    return provider.listed_at if provider.listed_at > server.joined_at else None


def witnesses_of(server: Server, sight: Sight, now: float, tempo: Tempo) -> Witnesses:
    """What the neighbours say that the scheduler hears. A last will on the bus counts as one more silent neighbour."""
    counts = dict.fromkeys(Answer, 0)
    facts = []
    said = []
    silent_since = 0.0
    for watcher, testimony in sorted((sight.about.get(server.id) or {}).items()):
        if not sight.hears(watcher, now, tempo):
            continue
        counts[testimony.answer] += 1
        facts.append(_fact(watcher, testimony))
        said.append(testimony)
        if testimony.answer is Answer.SILENT:
            silent_since = max(silent_since, testimony.since)
    will_at = sight.wills.get(server.id)
    seen = sight.servers.get(server.id)
    if will_at is not None and (seen is None or will_at >= seen.heard_at):
        counts[Answer.SILENT] += 1
        facts.append(Evidence("bus", "its last will was published", will_at))
    answers, refused, silent = (counts[one] for one in (Answer.ANSWERS, Answer.REFUSED, Answer.SILENT))
    return Witnesses(answers, refused, silent, tuple(facts), silent_since, tuple(said))


def _fact(watcher: str, testimony: Testimony) -> Evidence:
    words = {
        Answer.ANSWERS: "its agent answers",
        Answer.REFUSED: "its kernel answers, but its agent does not",
        Answer.SILENT: "no answer to pings",
    }
    says = words[testimony.answer]
    if testimony.after_refusal:
        says = f"{says}, which its kernel refused before"
    return Evidence(f"neighbour {watcher}", says, testimony.since)
