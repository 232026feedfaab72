"""Which cells of a service get its traffic at this moment. A cell may live without serving.

A slot may hold the cell of the old revision and the candidate of the new one, both alive; at most one of them serves.
The candidate does as soon as it is READY and for as long as it is well, since only a cell that serves can prove itself.
Otherwise the other one serves on, without an order or a wait in between.
"""

from __future__ import annotations

from collections.abc import Iterator

from galactica.scheduler.core.model.fleet import Cell, Fleet, GroupState, Phase, Slot
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.succession import still_waits
from galactica.scheduler.core.model.verdict import Health
from galactica.scheduler.core.sight.state import Sight
from galactica.scheduler.core.verdicts.cells import cell_verdict


def serving(fleet: Fleet, state: GroupState, sight: Sight, now: float, policy: Policy) -> Iterator[Cell]:
    """The cells of a service that serve, at most one for each slot. Of a slot that is not wanted any more none does."""
    for number, slot in state.slots.items():
        cell = serving_cell(fleet, state, slot, sight, now, policy) if number < state.wanted_slots else None
        if cell is not None:
            yield cell


def serving_cell(
    fleet: Fleet, state: GroupState, slot: Slot, sight: Sight, now: float, policy: Policy
) -> Cell | None:
    """The one that serves in a wanted slot; None if there is none.

    A cell that is condemned although it is well, as on a server that is drained, serves while nothing else can."""
    ready = [cell for cell in slot.living if cell.phase is Phase.READY]
    for cell in reversed(ready[1:]):
        server = fleet.servers.get(cell.server)
        verdict = cell_verdict(cell, state.spec_for(cell), server, sight, now, policy)
        if verdict.health is Health.HEALTHY:
            return cell
    if ready:
        return ready[0]
    return next((cell for cell in slot.cells if still_waits(cell) and _is_well(cell)), None)


def _is_well(condemned: Cell) -> bool:
    return condemned.condemned_health is not Health.SICK
