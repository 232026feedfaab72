"""The law on traffic: each slot that has a cell to serve has exactly one that does."""

from __future__ import annotations

from galactica.scheduler.core.model.fleet import Cell, GroupState, Phase
from galactica.scheduler.core.model.spec import GroupKind
from galactica.scheduler.core.model.verdict import Health
from galactica.scheduler.core.ports import View
from galactica.scheduler.core.serving import serving
from tests.sim.laws import LawBroken


def serve_one_by_one(view: View) -> None:
    for name, state in view.fleet.groups.items():
        if state.group.kind is GroupKind.SERVICE:
            cells = list(serving(view.fleet, state, view.sight, view.now, view.policy))
            broken = what_is_broken(state, cells)
            if broken:
                raise LawBroken(f"{name} at {view.now}: {broken}")


def what_is_broken(state: GroupState, cells: list[Cell]) -> str:
    """By these cells of the group serving, and no others; empty if nothing is."""
    slots = [cell.slot for cell in cells]
    if len(set(slots)) < len(slots):
        return f"two serve in one slot: {[cell.id for cell in cells]}"
    ready = {
        number: [cell.id for cell in slot.cells if cell.phase is Phase.READY]
        for number, slot in state.slots.items()
        if number < state.wanted_slots
    }
    idle = [number for number, there in ready.items() if there and number not in slots]
    if idle:
        return f"nobody serves in slots {idle}"
    for cell in cells:
        if cell.phase is Phase.READY:
            continue
        is_well = cell.phase is Phase.CONDEMNED and cell.condemned_health not in (Health.SICK, Health.DEAD)
        if ready[cell.slot] or not is_well or cell.ready_at is None:
            return f"{cell.id} serves, which is {cell.phase}"
    return ""
