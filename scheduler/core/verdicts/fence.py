"""When an exclusive cell has ended although nobody can say so: its agent, or the watchdog beside it, has ended it.

An agent ends such cells when the lease has passed since it sent the newest message that we are known to have heard
(``agent.fence``). What we heard last was sent before we heard it, so here the same time is counted from a later start,
and everything that may make it longer there is added.
"""

from __future__ import annotations

from galactica.scheduler.core.model.fleet import Fleet, Server
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.spec import Spec
from galactica.scheduler.core.sight.state import Sight
from galactica.scheduler.core.verdicts.evidence import TEMPO_WORTH_TELLING, terms_of

CLOCK_RATE = 0.002
"""No two clocks tick alike. Ten times what NTP lets a clock drift, and its slewing on top (RFC 5905: 500 ppm)."""
LEASE_BEATS_LEAST = 2.0
"""Agents take no lease that is shorter."""


def ended_at(fleet: Fleet, server: Server, spec: Spec, sight: Sight, policy: Policy) -> float:
    """From when on a cell of that spec on that server has ended, if nothing is heard of it until then.

    A scheduler that starts anew does not know what was heard before it: for it all was heard until its start."""
    terms = terms_of(fleet, server, policy)
    beat_seconds = terms.tempo.beat_seconds
    pool = fleet.groups.get(server.pool) if server.pool else None
    longest = pool.longest_lease_seconds if pool else 0.0
    # It may have been told a lease that was as long as any, and a little more than what we count with.
    lease = max(LEASE_BEATS_LEAST * beat_seconds, terms.lease_seconds, longest) * (1 + TEMPO_WORTH_TELLING)
    seen = sight.servers.get(server.id)
    heard_at = max(seen.heard_at if seen else 0.0, sight.trusted_since)
    patience = (lease + spec.stop.grace_seconds) * (1 + CLOCK_RATE)
    return heard_at + patience + beat_seconds + policy.fence_margin_seconds
