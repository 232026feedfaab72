"""What proves a cell. READY is one sighting; a cell is proven when it stayed well for a while after it.

Nothing that serves goes for a cell that is not proven, and no further cell of a group goes for a revision that has yet
to prove itself.
"""

from __future__ import annotations

from galactica.scheduler.core.model.fleet import Cell, GroupState
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.sight.state import Sight


def proven_at(state: GroupState, cell: Cell, sight: Sight, policy: Policy) -> float | None:
    """From when on the cell is proven, if it stays well until then; None: it is not READY."""
    if cell.ready_at is None:
        return None
    if not policy.waits_for_proof:
        return cell.ready_at
    seen = sight.servers.get(cell.server)
    recovered_at = seen.recovered.get(cell.id) if seen else None
    return max(cell.ready_at, recovered_at or 0.0) + state.group.healthy_for_seconds
