"""What holds for every fleet and every step between two, said without the product's own counting."""

from __future__ import annotations

import math
from collections import Counter

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.events import Record
from galactica.scheduler.core.model.fleet import (
    PHASE_RANK,
    Cell,
    Fleet,
    GroupState,
    Phase,
    Tally,
    parse_cell_id,
)
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.spec import Resources
from galactica.scheduler.core.model.verdict import Health

BOOTING = (Phase.ORDERED, Phase.BOOTING)


def cells_of(fleet: Fleet) -> list[Cell]:
    return [cell for state in fleet.groups.values() for cell in cells_in(state)]


def cells_in(state: GroupState) -> list[Cell]:
    return [cell for slot in state.slots.values() for cell in slot.cells]


def waits(cell: Cell) -> bool:
    return (
        cell.phase is Phase.CONDEMNED
        and cell.condemned_health is not Health.DEAD
        and cell.ready_at is not None
    )


def recount(state: GroupState) -> Tally:
    cells = cells_in(state)
    waiting = {cell.slot for cell in cells if waits(cell)}
    living = [cell for cell in cells if cell.phase in (*BOOTING, Phase.READY)]
    ready = {cell.slot for cell in living if cell.phase is Phase.READY}
    lived_in = Counter(cell.slot for cell in living)
    with_candidate = {slot for slot, count in lived_in.items() if count > 1}
    newest = {cell.slot: cell for cell in living}  # oldest first
    old = [cell for cell in living if cell.digest != state.digest]
    return Tally(
        ready=len(ready),
        booting=len(lived_in.keys() - ready),
        condemned=len(cells) - len(living),
        manned=len(ready | waiting),
        replacing=len(waiting | with_candidate),
        surging=len((waiting & lived_in.keys()) | with_candidate),
        outdated=len(old),
        renewing=sum(newest[cell.slot].digest == state.digest for cell in old),
        extra=extra(state),
    )


def extra(state: GroupState) -> int:
    """Cells that exist, as far as anybody knows, beyond one for each slot in which there is any."""
    there = Counter(
        cell.slot
        for cell in cells_in(state)
        if not (
            PHASE_RANK[cell.phase] >= PHASE_RANK[Phase.CONDEMNED] and cell.condemned_health is Health.DEAD
        )
    )
    return sum(count - 1 for count in there.values())


def check_fleet(fleet: Fleet) -> None:
    """Whatever happened: a slot has one cell, or two while the newer one has yet to prove itself, and every count is
    what a recount gives."""
    for state in fleet.groups.values():
        assert state.tally == recount(state)
        assert dict(state.per_server.items()) == Counter(cell.server for cell in cells_in(state))
        for number, slot in state.slots.items():
            living = [cell for cell in slot.cells if cell.phase in (*BOOTING, Phase.READY)]
            assert len(living) <= 1 or [cell.phase is Phase.READY for cell in living] in (
                [True, True],
                [True, False],
            )
            assert [cell.generation for cell in slot.cells] == sorted(
                {cell.generation for cell in slot.cells}
            )
            assert all(cell.slot == number and cell.generation < slot.next_generation for cell in slot.cells)
    for server in fleet.servers.values():
        on_it = [cell for cell in cells_of(fleet) if cell.server == server.id]
        assert set(server.cells) == {cell.id for cell in on_it}
        assert server.used == Resources(
            sum(cell.resources.cpu_millis for cell in on_it),
            sum(cell.resources.memory_bytes for cell in on_it),
            sum(cell.resources.pids for cell in on_it),
        )
        size = server.capacity
        assert not size.memory_bytes or server.used.memory_bytes <= size.memory_bytes


def check_step(before: Fleet, record: Record, after: Fleet, policy: Policy) -> None:
    """One more record: lives go forward, and whoever is condemned or ordered is so within its budget."""
    was = {cell.id: cell for cell in cells_of(before)}
    now = {cell.id: cell for cell in [*cells_of(after), *after.graves.values()]}
    for cell_id, cell in was.items():
        assert PHASE_RANK[now[cell_id].phase] >= PHASE_RANK[cell.phase], f"{cell_id} goes back by {record}"
        assert now[cell_id].digest == cell.digest
    match record.event:
        case e.CellOrdered():
            _check_order(before, record.event, after, policy)
        case e.CellCondemned():
            _check_condemnation(before, record.event, policy)
        case e.ServerJoined(server=server):
            assert before.servers[server].phase is Phase.ORDERED or not before.servers[server].is_drained


def _check_order(before: Fleet, event: e.CellOrdered, after: Fleet, policy: Policy) -> None:
    parsed = parse_cell_id(event.cell)
    assert parsed is not None
    state = before.groups[parsed.group]
    assert parsed.slot < state.wanted_slots
    assert event.digest == state.digest
    assert before.servers[event.server].phase is Phase.READY
    assert before.burials == after.burials
    slot = state.slots.get(parsed.slot)
    if slot is not None and slot.living:  # it is a candidate
        assert event.replaces == slot.living[0].id
    else:
        first = parsed.generation == state.first_generation
        assert event.replaces == ("" if first else f"{parsed.group}/{parsed.slot}.{parsed.generation - 1}")
    surging = after.groups[parsed.group].tally.surging
    assert surging <= max(_surge(state, policy), state.tally.surging)


def _check_condemnation(before: Fleet, event: e.CellCondemned, policy: Policy) -> None:
    cell = before.cell(event.cell)
    assert cell is not None
    assert event.rule
    assert event.reason
    assert event.budget
    state = before.groups[cell.group]
    if cell.ready_at is None:
        return
    if event.rule == "outdated":
        assert state.tally.replacing <= policy.outdated_surge
        assert state.tally.manned >= state.wanted_slots
    if event.rule == "server_drained":
        assert state.tally.replacing < _surge(state, policy)


def _surge(state: GroupState, policy: Policy) -> int:
    return max(1, math.ceil(state.group.replicas * policy.sick_surge_fraction))
