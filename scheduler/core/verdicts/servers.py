"""Verdicts on servers: death by evidence, not by time-out.

Silence alone is weak evidence: the cause may be the server, its agent, the network, or this scheduler. The words of
neighbours, provider and bus make it strong. The first matching rule wins. The death certificate shows all the facts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from msgspec.structs import replace

from galactica.scheduler.core.model.fleet import Fleet, Phase, Server
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.rules import Rule
from galactica.scheduler.core.model.verdict import Evidence, Health, Verdict
from galactica.scheduler.core.sight.observations import Answer, ProviderServer, ProviderState
from galactica.scheduler.core.sight.state import Sight
from galactica.scheduler.core.verdicts.blame import blame_server
from galactica.scheduler.core.verdicts.evidence import (
    Terms,
    Witnesses,
    last_heard_at,
    made_by,
    missing_at_of,
    terms_of,
    trusted_since_of,
    witnesses_of,
)
from galactica.scheduler.core.verdicts.machines import is_known
from galactica.scheduler.core.verdicts.maintenance import goodbye_fact, maintenance_of, silence_of
from galactica.scheduler.core.verdicts.vitals import vitals_verdict

STALL_SECONDS = 1.95
"""An agent may stall for two seconds (swapped out, frozen, on a busy host) and be alive. So neighbours must have had no
answer for this long. The scheduler must have heard nothing for one beat longer, since nobody knows how long before
the stall the last beat was sent. A little less than two seconds, so that a real death is known within three."""


class _Case:
    """What the rules on one server may look at. A fact is worked out when the first rule asks for it."""

    def __init__(self, fleet: Fleet, server: Server, sight: Sight, now: float, policy: Policy) -> None:
        self.fleet = fleet
        self.server = server
        self.sight = sight
        self.now = now
        self.policy = policy
        self.seen = sight.servers.get(server.id)
        self.heard_at = last_heard_at(server, sight)
        self.terms = terms_of(fleet, server, policy)

    @cached_property
    def made(self) -> ProviderServer | None:
        return made_by(self.fleet, self.server, self.sight)

    @cached_property
    def missing_at(self) -> float | None:
        """When its provider's newest list was asked for, where that list leaves it out."""
        return missing_at_of(self.fleet, self.server, self.sight)

    @cached_property
    def witnesses(self) -> Witnesses:
        return witnesses_of(self.server, self.sight, self.now, self.terms.tempo)

    @property
    def silence_seconds(self) -> float:
        return self.now - self.heard_at

    @property
    def is_silent(self) -> bool:
        """More than one late beat is missing, and more than a moment has passed since a closed stream."""
        return self.terms.tempo.is_silent(self.heard_at, self.now)

    @property
    def grace_until(self) -> float:
        """Every server gets one full lease from the moment when the scheduler starts to listen."""
        return trusted_since_of(self.server, self.sight) + self.terms.lease_seconds

    @property
    def stalled_until(self) -> float:
        """Until then a single stall could explain the whole silence."""
        spoke_until = self.heard_at + self.terms.tempo.beat_seconds
        return max(spoke_until, self.witnesses.silent_since) + STALL_SECONDS

    def facts(self) -> tuple[Evidence, ...]:
        last = Evidence(f"agent {self.server.id}", "last heard", self.heard_at)
        if self.seen is None:
            link = Evidence("scheduler", "it has not connected since this scheduler started", self.now)
        elif self.seen.closed_at is not None:
            link = Evidence("link", "its stream was closed", self.seen.closed_at)
        else:
            link = Evidence("link", "its stream is open but silent", self.now)
        return (last, link, *self.witnesses.facts)


def server_verdict(fleet: Fleet, server: Server, sight: Sight, now: float, policy: Policy) -> Verdict:
    """What the evidence says of a server."""
    case = _Case(fleet, server, sight, now, policy)
    for rule in SERVER_RULES:
        verdict = rule(case)
        if verdict is not None:
            return verdict
    next_look_at = case.heard_at + _first_look(case.terms)
    return Verdict(Health.HEALTHY, Rule.BEATING, "it sends heartbeats", next_look_at=next_look_at)


def _first_look(terms: Terms) -> float:
    """The earliest moment at which silence from now on would matter."""
    return min(terms.lease_seconds, terms.tempo.silent_seconds + 0.01)


# --- the rules, in order -------------------------------------------------------------------------------------------


def _condemned(case: _Case) -> Verdict | None:
    server = case.server
    if server.condemned_health is None or not (server.is_lost or server.phase is Phase.DECOMMISSIONED):
        return None
    fact = Evidence("scheduler", f"condemned by rule {server.condemned_by}", server.condemned_at or case.now)
    return Verdict(server.condemned_health, server.condemned_by, f"condemned: {server.condemned_by}", (fact,))


def _enrolled(case: _Case) -> Verdict | None:
    if case.server.phase is not Phase.ORDERED:
        return None
    return Verdict(Health.HEALTHY, Rule.ENROLLED, "enrolled; its agent has not attached yet")


def _provider_gone(case: _Case) -> Verdict | None:
    """The provider is believed at once if nothing contradicts it. A server that still sends heartbeats is never treated
    as gone, whatever its provider says."""
    made = case.made
    if made is None or made.state is not ProviderState.GONE:
        return None
    reason = f"its provider reports that it is gone{': ' + made.reason if made.reason else ''}"
    facts = (Evidence("provider", reason, case.now), *case.facts())
    if case.seen is not None and case.seen.is_open and not case.is_silent:
        until = case.heard_at + _first_look(case.terms)
        return Verdict(
            Health.SUSPECT,
            Rule.PROVIDER_CONTRADICTED,
            f"{reason}, but it still sends heartbeats",
            facts,
            until,
        )
    return Verdict(Health.DEAD, Rule.PROVIDER_GONE, reason, facts)


def _left(case: _Case) -> Verdict | None:
    """This is not silence: the agent announced it. That of another machine announces nothing for this one."""
    if case.seen is None or not case.seen.has_left or not is_known(case.server, case.seen):
        return None
    return Verdict(Health.DEAD, Rule.LEFT, "its agent ended its cells and left, as announced", case.facts())


def _leaving(case: _Case) -> Verdict | None:
    if case.seen is None or not case.seen.is_leaving:
        return None
    return Verdict(Health.SUSPECT, Rule.LEAVING, "its agent is ending its cells and will leave", case.facts())


def _maintenance(case: _Case) -> Verdict | None:
    """Its agent ended in order, so that no silence of the agent counts. The host may die all the same."""
    lease = maintenance_of(case.server, case.sight, case.now)
    if lease is None:
        return None
    facts = (goodbye_fact(case.server.id, lease), *case.witnesses.facts)
    silence = silence_of(case.witnesses, case.missing_at, lease.since)
    if not silence.is_death:
        reason = "in maintenance: its agent ended in order, and its cells live on"
        return Verdict(Health.SUSPECT, Rule.MAINTENANCE, reason, facts, lease.until)
    reason = (
        f"its host fell silent in maintenance: of {silence.of} witnesses that its kernel had answered, "
        f"{silence.silent} get no answer of any kind any more"
    )
    until = max(silence.since + STALL_SECONDS, case.grace_until)
    if case.now < until:
        reason = f"{reason}; it may only be stalled, so the verdict waits a moment"
        return Verdict(Health.SUSPECT, Rule.FALLING_SILENT, reason, facts, until)
    if case.missing_at is not None:
        facts = (Evidence("provider", "its list does not contain it", case.missing_at), *facts)
    return Verdict(Health.DEAD, Rule.NEIGHBOURS_SILENT, reason, facts)


def _neighbours_silent(case: _Case) -> Verdict | None:
    if not case.is_silent or not case.witnesses.mostly(Answer.SILENT):
        return None
    until = case.grace_until
    if case.now < until:
        reason = "the scheduler has only just started to listen: every server gets one full lease"
        return Verdict(Health.SUSPECT, Rule.GRACE, reason, case.facts(), next_look_at=until)
    reason = (
        f"no heartbeat for {case.silence_seconds:.1f} s, and {case.witnesses.silent} of "
        f"{case.witnesses.total} witnesses get no answer either"
    )
    until = case.stalled_until
    if case.now < until:
        reason = f"{reason}; it may only be stalled, so the verdict waits a moment"
        return Verdict(Health.SUSPECT, Rule.FALLING_SILENT, reason, case.facts(), next_look_at=until)
    return Verdict(Health.DEAD, Rule.NEIGHBOURS_SILENT, reason, case.facts())


def _blamed(case: _Case) -> Verdict | None:
    """It sends heartbeats, but its cells die."""
    blame = blame_server(case.server, case.fleet, case.now, case.policy.blame_window_seconds)
    if blame is None:
        return None
    return Verdict(Health.SICK, Rule.BLAMED, blame.reason, blame.evidence)


def _cut_off(case: _Case) -> Verdict | None:
    if not case.is_silent or not case.witnesses.mostly(Answer.ANSWERS):
        return None
    until = case.heard_at + case.terms.cut_off_after_seconds
    count = f"{case.witnesses.answers} of {case.witnesses.total} neighbours reach it"
    if case.now >= until:
        reason = f"no heartbeat for {case.silence_seconds:.0f} s, although {count}"
        return Verdict(Health.DEAD, Rule.CUT_OFF_TOO_LONG, reason, case.facts())
    reason = f"no heartbeat, but {count}: the server is cut off and keeps its cells"
    return Verdict(Health.SUSPECT, Rule.CUT_OFF, reason, case.facts(), next_look_at=until)


def _agent_gone(case: _Case) -> Verdict | None:
    if not case.witnesses.mostly(Answer.REFUSED):
        return None
    until = case.heard_at + case.terms.lease_seconds
    count = f"{case.witnesses.refused} of {case.witnesses.total} neighbours reach its kernel"
    if case.now >= until:
        reason = (
            f"its agent has been gone for longer than its lease of {case.terms.lease_seconds:g} s; {count}"
        )
        return Verdict(Health.DEAD, Rule.AGENT_GONE, reason, case.facts())
    if not case.is_silent and case.seen is not None and case.seen.is_open:
        return None
    reason = f"its agent is gone, but the host is alive ({count}); it keeps its cells until the lease ends"
    return Verdict(Health.SUSPECT, Rule.AGENT_AWAY, reason, case.facts(), next_look_at=until)


def _unlisted(case: _Case) -> Verdict | None:
    """A list without the server is not proof, since lists may be late or incomplete. A list and silence together
    are."""
    if case.missing_at is None or not case.is_silent:
        return None
    reason = f"its provider no longer lists it, and no heartbeat came for {case.silence_seconds:.1f} s"
    until = max(case.grace_until, case.stalled_until)
    if case.now < until:
        reason = f"{reason}; it may only be stalled, so the verdict waits a moment"
        return Verdict(Health.SUSPECT, Rule.FALLING_SILENT, reason, case.facts(), next_look_at=until)
    fact = Evidence("provider", "its list does not contain it", case.missing_at)
    return Verdict(Health.DEAD, Rule.UNLISTED, reason, (fact, *case.facts()))


def _lease_expired(case: _Case) -> Verdict | None:
    """If no neighbour can report, or the neighbours disagree, the lease alone decides."""
    if case.silence_seconds < case.terms.lease_seconds:
        return None
    why = "no neighbour can report on it" if not case.witnesses.total else "its neighbours disagree"
    reason = (
        f"no heartbeat for {case.silence_seconds:.1f} s, longer than its lease of "
        f"{case.terms.lease_seconds:g} s; {why}; the lease alone decides"
    )
    return Verdict(Health.DEAD, Rule.LEASE_EXPIRED, reason, case.facts())


def _stream_closed(case: _Case) -> Verdict | None:
    if case.seen is not None and case.seen.is_open:
        return None
    reason = "its stream is closed; it keeps its cells until the lease ends"
    return Verdict(Health.SUSPECT, Rule.STREAM_CLOSED, reason, case.facts(), next_look_at=_next(case))


def _beats_missed(case: _Case) -> Verdict | None:
    if not case.is_silent:
        return None
    reason = f"no heartbeat for {case.silence_seconds:.1f} s; it keeps its cells until the lease ends"
    return Verdict(Health.SUSPECT, Rule.BEATS_MISSED, reason, case.facts(), next_look_at=_next(case))


def _ailing(case: _Case) -> Verdict | None:
    """It sends heartbeats, and its vitals are bad."""
    verdict = vitals_verdict(case.fleet, case.server, case.sight, case.now, case.policy.vitals)
    if verdict is None or verdict.health is Health.SICK:
        return verdict
    silent_at = case.heard_at + _first_look(case.terms)  # a server with bad vitals can fall silent too
    return replace(verdict, next_look_at=min(silent_at, verdict.next_look_at or silent_at))


def _next(case: _Case) -> float:
    """A neighbour's report is news and needs no planned look. But a neighbour may itself fall silent, which only the
    passing of time shows."""
    lease_end = case.heard_at + case.terms.lease_seconds
    return min(lease_end, case.now + case.terms.tempo.beat_seconds)


SERVER_RULES: tuple[Callable[[_Case], Verdict | None], ...] = (
    _condemned,
    _enrolled,
    _provider_gone,
    _left,
    _maintenance,
    _neighbours_silent,
    _cut_off,
    _agent_gone,
    _unlisted,
    _lease_expired,
    _blamed,
    _stream_closed,
    _beats_missed,
    _leaving,
    _ailing,
)
