"""When an exclusive cell on a lost server has surely ended: its agent, or the agent's watchdog, has ended it by then.

The agent ends such a cell one lease after it sent the newest message that the scheduler has acknowledged (the agent's
``core.fence``). The scheduler heard that message later than it was sent. So it counts the same time from a later start,
and adds everything that may make the agent's time longer.
"""

from __future__ import annotations

from galactica.scheduler.core.model.fleet import Cell, Fleet, GroupState, Server
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.spec import Spec
from galactica.scheduler.core.sight.observations import CellState
from galactica.scheduler.core.sight.state import ServerSight, Sight
from galactica.scheduler.core.verdicts.evidence import TEMPO_WORTH_TELLING, terms_of
from galactica.scheduler.core.verdicts.machines import is_known

CLOCK_RATE = 0.002
"""How much two clocks may differ in speed. NTP tolerates a drift of 500 ppm (RFC 5905); this is four times as much."""
LEASE_BEATS_LEAST = 2.0
"""Agents accept no shorter lease."""


def lost_ones_ended_at(fleet: Fleet, state: GroupState, policy: Policy) -> float | None:
    """When the group's exclusive cells that a lost journal ordered, or a newer one than this, and that no agent shows,
    have ended for sure. None if there was no such journal.

    Their agents heard a scheduler last before this one began to be grown anew, or went above the newer one. That every
    server was heard since proves nothing: one may be a copy, and the machine that has the cell was turned away."""
    begins = [at for at in (fleet.regrown_at, fleet.overtaken_at) if at is not None]
    if not begins:
        return None
    tempo = policy.tempo(len(fleet.servers))
    lease = max(longest_lease_seconds(fleet, policy), LEASE_BEATS_LEAST * tempo.beat_seconds)
    grace = max(one.spec.stop.grace_seconds for one in state.revisions)
    patience = (lease * (1 + TEMPO_WORTH_TELLING) + grace) * (1 + CLOCK_RATE)
    return max(begins) + patience + tempo.beat_seconds + policy.fence_margin_seconds


def longest_lease_seconds(fleet: Fleet, policy: Policy) -> float:
    """Of all servers, as far as it is known."""
    leases = (state.longest_lease_seconds for state in fleet.groups.values())
    return max(policy.tempo(len(fleet.servers)).lease_seconds, max(leases, default=0.0))


def ended_at(
    fleet: Fleet, server: Server, spec: Spec, sight: Sight, policy: Policy, cell_id: str | None = None
) -> float:
    """When a cell of that spec on that server has ended for sure, if the server stays silent until then. ``cell_id``:
    one that the server's own machine has; another machine that is heard since, and does not show it, keeps it from
    nothing.

    A scheduler that has just started does not know when the server was last heard. It assumes its own start."""
    seen = sight.servers.get(server.id)
    heard_at = 0.0
    if seen is not None:
        heard_at = seen.heard_at
        if cell_id is not None and not is_known(server, seen) and not _shows(seen, cell_id):
            heard_at = seen.machine_since
    return _ended_after(max(heard_at, sight.trusted_since), fleet, server, spec, policy)


def _shows(seen: ServerSight, cell_id: str) -> bool:
    report = seen.reports.get(cell_id)
    return report is not None and report.state is not CellState.GONE


def ended_elsewhere_at(
    fleet: Fleet, server: Server, cell: Cell, spec: Spec, sight: Sight, policy: Policy
) -> float:
    """When an exclusive cell has ended for sure on any other machine that was this server before: one with a copied
    identity, or the same one before its boot. What the machine says that is heard now proves nothing about them.

    In the past if the cell was ordered when only this machine was heard."""
    seen = sight.servers.get(server.id)
    if seen is None or cell.ordered_at >= seen.machine_since:
        return 0.0
    return _ended_after(seen.machine_since, fleet, server, spec, policy)


def _ended_after(heard_at: float, fleet: Fleet, server: Server, spec: Spec, policy: Policy) -> float:
    terms = terms_of(fleet, server, policy)
    beat_seconds = terms.tempo.beat_seconds
    pool = fleet.groups.get(server.pool) if server.pool else None
    longest = pool.longest_lease_seconds if pool else 0.0
    # The agent may go by the longest lease that the pool ever had, and by a lease slightly above the current one.
    lease = max(LEASE_BEATS_LEAST * beat_seconds, terms.lease_seconds, longest) * (1 + TEMPO_WORTH_TELLING)
    patience = (lease + spec.stop.grace_seconds) * (1 + CLOCK_RATE)
    return heard_at + patience + beat_seconds + policy.fence_margin_seconds
