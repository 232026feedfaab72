"""What proves a cell. READY is one sighting; a cell is proven when it was *heard* to be well for a while after it.

Nothing that serves goes for a cell that is not proven, and no further cell of a group goes for a revision that has yet
to prove itself. Time that passes while nobody listens, or while its server is silent, proves nothing: the cell may have
died meanwhile. What was sent before such a gap is read after it and is old by then, so it proves nothing either.
"""

from __future__ import annotations

from galactica.scheduler.core.model.fleet import Cell, GroupState
from galactica.scheduler.core.model.policy import Policy, Tempo
from galactica.scheduler.core.model.verdict import Autopsy
from galactica.scheduler.core.sight.state import ServerSight, Sight


def proven_at(state: GroupState, cell: Cell, sight: Sight, policy: Policy, tempo: Tempo) -> float | None:
    """From when on the cell is proven, if its server is heard then (``was_heard``) and it stayed well until then. None:
    it is not READY."""
    if cell.ready_at is None:
        return None
    if not policy.waits_for_proof:
        return cell.ready_at
    seen = _server_of(cell, sight)
    recovered_at = (seen.recovered.get(cell.id) if seen else None) or 0.0
    began_at = max(cell.ready_at, recovered_at, sight.trusted_since)
    proven = began_at + state.group.healthy_for_seconds
    if seen is None or not seen.heard_since:
        return proven
    # All that was sent during the silence is read soon after it. One more beat is due by then, which is new.
    return max(proven, seen.heard_since + min(tempo.missed_seconds, state.group.healthy_for_seconds))


def was_heard(cell: Cell, sight: Sight, since: float, policy: Policy) -> bool:
    """Whether the cell's server was heard at that time or later."""
    if not policy.waits_for_proof:
        return True
    seen = _server_of(cell, sight)
    return seen is not None and seen.heard_at >= since


def served_seconds(cell: Cell, sight: Sight, autopsy: Autopsy | None, now: float) -> float:
    """For how long the cell served before it died or fell ill, by what is known best. A death may be read long after it
    happened, so the time of reading is only the last resort."""
    if cell.ready_at is None:
        return 0.0
    longest = now - cell.ready_at
    if autopsy is not None and autopsy.lived_seconds > 0.0:
        # It counts from the start. Where the scheduler may have read the death late, its boot has to be left out.
        was_deaf = sight.trusted_since > cell.ready_at
        boot_seconds = cell.ready_at - cell.ordered_at if was_deaf else 0.0
        return max(0.0, min(longest, autopsy.lived_seconds - boot_seconds))
    seen = _server_of(cell, sight)
    if seen is None:
        return longest
    well_until = seen.well_until.get(cell.id) if cell.server else seen.heard_at
    return longest if well_until is None else max(0.0, min(longest, well_until - cell.ready_at))


def server_that_speaks_for(cell: Cell) -> str:
    """The server that carries the cell, or that is the cell."""
    return cell.server or cell.id


def _server_of(cell: Cell, sight: Sight) -> ServerSight | None:
    return sight.servers.get(server_that_speaks_for(cell))
