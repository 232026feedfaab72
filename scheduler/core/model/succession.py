"""How the cells of one slot follow each other: which one still waits for its successor, and whom a new one replaces."""

from __future__ import annotations

from galactica.scheduler.core.model.fleet import Cell, CellId, Fleet, GroupState, Phase, Slot
from galactica.scheduler.core.model.rules import UNWANTED
from galactica.scheduler.core.model.verdict import Health


def still_waits(cell: Cell) -> bool:
    """Condemned while it served, not dead, and kept until its successor is proven."""
    return cell.phase is Phase.CONDEMNED and cell.condemned_health is not Health.DEAD and cell.was_ready


def is_there(cell: Cell) -> bool:
    """Condemned, and not known to be dead."""
    return cell.is_condemned and cell.condemned_health is not Health.DEAD


def predecessor_of(state: GroupState, number: int) -> str:
    """The id of the cell that had the slot before; empty if there was none. The cell itself may be gone by now."""
    slot = state.slots.get(number)
    generation = slot.next_generation if slot else state.first_generation
    if generation <= state.first_generation:  # this journal ordered none; one may have been adopted
        return slot.cells[-1].id if slot and slot.cells else ""
    return str(CellId(state.group.name, number, generation - 1))


def was_lost(fleet: Fleet, slot: Slot, cell_id: str) -> bool:
    """Whether the cell was lost, so that a new one replaces it. It was not if its slot was unwanted for a while."""
    known = (*slot.cells, *fleet.graves.values())
    before = next((cell for cell in known if cell.id == cell_id), None)
    return before is None or before.condemned_by not in UNWANTED
