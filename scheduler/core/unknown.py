"""Cells that agents run and this journal never ordered: it is older than its fleet, or not the fleet's journal at all.

They are remembered under their slot until an operator decides: ``adopt`` takes them in, ``condemn --unknown`` removes
them. Until then the slot gets no other cell, and their ids are never given out.
"""

from __future__ import annotations

from msgspec.structs import replace
from rpds import HashTrieSet

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.fleet import CellId, Fleet, Phase, Slot, UnknownCell, parse_cell_id
from galactica.scheduler.core.tallies import put_group

GENERATIONS_BELIEVED = 500_000_000
"""No slot had so many cells. An id beyond that is shown, and no id is skipped for it: an agent that makes ids up uses
up half of those of a slot at most."""
LOST_WITH_A_JOURNAL = 1_000
"""So many generations of each slot are left out when this journal proves to be older than its fleet: it may have lost
orders of cells on servers that are not heard yet."""
EPOCHS_TOLD_APART = 100_000
"""An epoch above this one gives its cells no generations of its own: an agent that makes epochs up uses up no more."""
RANGES_KEPT = 32
"""How many ranges of skipped generations a slot remembers. The two oldest become one: what is between them counts as
never ordered too, and is left alone."""
UNKNOWN_KEPT = 10_000
"""How many slots with such cells are remembered. More are held too, as long as their agents report them."""

SHOWN_BY_ONE_SERVER = 1_000
"""So many of them are remembered of one server. One that shows more has an agent that makes ids up, or no part in this
fleet: what it shows beyond is left alone as well, and holds no slot."""


def slot_of(cell_id: str) -> str:
    """The slot that a cell id names; the whole text where it is no id."""
    return cell_id.rpartition(".")[0] or cell_id


def is_place(fleet: Fleet, server: str) -> bool:
    """Whether the server is one that may have cells of this fleet. A pool's server that is decommissioned goes with all
    that is on it."""
    known = fleet.servers.get(server)
    if known is None:
        return False
    was_drained = known.phase is Phase.DECOMMISSIONED and known.is_drained and not known.pool
    return was_drained or known.phase in (Phase.READY, Phase.CONDEMNED)


def is_unknown(fleet: Fleet, server: str, cell_id: str) -> bool:
    known = fleet.unknown.get(slot_of(cell_id))
    return known is not None and UnknownCell(cell_id, server) in known


def is_unwanted(fleet: Fleet, server: str, cell_id: str) -> bool:
    """Whether an operator condemned it, and it is not gone yet."""
    return UnknownCell(cell_id, server) in fleet.unwanted


def in_slot(fleet: Fleet, group: str, number: int) -> UnknownCell | None:
    """The newest such cell of a slot, rather one on which nobody decided yet. Not one of which the journal knows that
    it lives elsewhere."""
    known = fleet.unknown.get(f"{group}/{number}")
    cells = [one for one in known if fleet.cell(one.cell) is None] if known else []
    return max(
        cells, key=lambda one: (one not in fleet.unwanted, _generation_of(one.cell), one.server), default=None
    )


def _generation_of(cell_id: str) -> int:
    parsed = parse_cell_id(cell_id)
    return parsed.generation if parsed else 0


def found(fleet: Fleet, server: str, cell_id: str) -> Fleet:
    """Remember it. The next cells of its slot are of higher generations."""
    slot = slot_of(cell_id)
    known = (fleet.unknown.get(slot) or HashTrieSet()).insert(UnknownCell(cell_id, server))
    fleet = replace(fleet, unknown=fleet.unknown.insert(slot, known))
    parsed = parse_cell_id(cell_id)
    if parsed is None or parsed.generation > GENERATIONS_BELIEVED:
        return fleet
    return _without_generation(fleet, parsed)


def first_above(epoch: int) -> int:
    """The generations that a scheduler of this epoch gives out are above this one, if its journal is older than its
    fleet. One backup may come back several times: what was ordered after it came back before must not be ordered by the
    same ids again, and each time has an epoch of its own."""
    return LOST_WITH_A_JOURNAL * min(epoch, EPOCHS_TOLD_APART)


def overtaken(fleet: Fleet, above: int) -> Fleet:
    """Leave out the generations that a newer journal may have given out, of all groups, whether this one knows them or
    not. None of the next ones is ``above`` or below it."""

    def next_after(unused: int) -> int:
        return max(unused + LOST_WITH_A_JOURNAL, above + 1)

    for name, known in fleet.groups.items():
        for number, slot in known.slots.items():
            newest = next_after(slot.next_generation) - 1
            fleet = _without_generation(fleet, CellId(name, number, newest))
        first, after = known.first_generation, next_after(known.first_generation)
        fleet = _skip(fleet, name, (*(fleet.skipped.get(name) or ()), (first, after)))
        state = replace(fleet.groups[name], first_generation=after)
        fleet = replace(fleet, groups=fleet.groups.insert(name, state))
    for name, unused in fleet.generations.items():
        fleet = _without_generation(fleet, CellId(name, 0, next_after(unused) - 1))
    return replace(fleet, least_generation=next_after(fleet.least_generation))


def with_least_generation(fleet: Fleet, least: int) -> Fleet:
    """Leave out the generations below it, of all groups that are not there. A lost journal gave them out."""
    for name, unused in fleet.generations.items():
        if unused < least:
            fleet = _without_generation(fleet, CellId(name, 0, least - 1))
    return replace(fleet, least_generation=max(least, fleet.least_generation))


def first_generation(fleet: Fleet, group: str) -> tuple[Fleet, int]:
    """Of a group that is applied. What it leaves out is remembered."""
    unused = fleet.generations.get(group)
    if unused is None and fleet.least_generation > 1:
        fleet = _skip(fleet, group, ((1, fleet.least_generation),))
    return fleet, unused or fleet.least_generation


def _without_generation(fleet: Fleet, taken: CellId) -> Fleet:
    state = fleet.groups.get(taken.group)
    unused = taken.generation + 1
    if state is None:
        before = fleet.generations.get(taken.group) or fleet.least_generation
        if unused <= before:
            return fleet
        if taken.group not in fleet.generations:
            before = 1
        fleet = replace(fleet, generations=fleet.generations.insert(taken.group, unused))
        slots = [name for name in fleet.skipped if name.startswith(f"{taken.group}/")]
        for name in (taken.group, *slots):
            fleet = _skip(fleet, name, (*(fleet.skipped.get(name) or ()), (before, unused)))
        return fleet
    slot = state.slots.get(taken.slot) or Slot(next_generation=state.first_generation)
    if unused <= slot.next_generation:
        return fleet
    ranges = (*_ranges(fleet, taken), (slot.next_generation, unused))
    fleet = _skip(fleet, f"{taken.group}/{taken.slot}", ranges)
    slot = replace(slot, next_generation=unused)
    return put_group(fleet, replace(state, slots=state.slots.insert(taken.slot, slot)))


# --- which ids this journal gave out --------------------------------------------------------------------------------


def was_skipped(fleet: Fleet, cell: CellId) -> bool:
    """Whether the id was left out because an agent had it, or one above it. Then this journal never gave it out,
    although the next one is above it."""
    return any(first <= cell.generation < after for first, after in _ranges(fleet, cell))


def _ranges(fleet: Fleet, cell: CellId) -> tuple[tuple[int, int], ...]:
    """Those of the slot; where it has none of its own, those of its group."""
    own = fleet.skipped.get(f"{cell.group}/{cell.slot}")
    return (fleet.skipped.get(cell.group) or ()) if own is None else own


def _skip(fleet: Fleet, name: str, ranges: tuple[tuple[int, int], ...]) -> Fleet:
    if len(ranges) > RANGES_KEPT:
        ranges = ((ranges[0][0], ranges[1][1]), *ranges[2:])
    return replace(fleet, skipped=fleet.skipped.insert(name, ranges))


def left_out(fleet: Fleet, group: str, unused: int) -> Fleet:
    """All generations below ``unused`` were given out by a journal that is lost, and this one orders none of them."""
    if unused <= 1:
        return fleet
    skipped = fleet.skipped
    for slot in [one for one in skipped if one.startswith(f"{group}/")]:
        skipped = skipped.discard(slot)
    return replace(fleet, skipped=skipped.insert(group, ((1, unused),)))


def owned(fleet: Fleet, cell_id: str) -> Fleet:
    """An operator decided on the cell. From here on it counts as one that this journal ordered."""
    cell = parse_cell_id(cell_id)
    if cell is None or not was_skipped(fleet, cell):
        return fleet
    ranges = [part for one in _ranges(fleet, cell) for part in _without(one, cell.generation)]
    return _skip(fleet, f"{cell.group}/{cell.slot}", tuple(ranges))


def _without(one: tuple[int, int], generation: int) -> list[tuple[int, int]]:
    first, after = one
    if not first <= generation < after:
        return [one]
    parts = [(first, generation), (generation + 1, after)]
    return [(low, high) for low, high in parts if low < high]


def forgotten(fleet: Fleet, server: str, cell_id: str) -> Fleet:
    """It is taken in, removed or gone, on that server."""
    slot, one = slot_of(cell_id), UnknownCell(cell_id, server)
    known = fleet.unknown.get(slot)
    if known is None or one not in known:
        return fleet
    known = known.discard(one)
    fleet = replace(fleet, unwanted=fleet.unwanted.discard(one))
    return replace(fleet, unknown=fleet.unknown.insert(slot, known) if known else fleet.unknown.discard(slot))


def forgotten_on(fleet: Fleet, server: str) -> Fleet:
    """All that were on a server that is gone."""
    for cell in unknown_on(fleet, server):
        fleet = forgotten(fleet, server, cell)
    return enrolled(fleet, server)


def decided(fleet: Fleet, server: str, cell_id: str) -> Fleet:
    """An operator took it in, or removed it."""
    if not is_unknown(fleet, server, cell_id):
        return fleet
    left = min(fleet.shown.get(server) or 1, SHOWN_BY_ONE_SERVER) - 1
    shown = fleet.shown.insert(server, left) if left else fleet.shown.discard(server)
    return forgotten(replace(fleet, shown=shown), server, cell_id)


def shows_too_many(fleet: Fleet, server: str) -> bool:
    """Whether no more of its cells are remembered. Then nothing on it counts as decommissioned either: ids that were
    never remembered cannot be told from those that this journal gave out."""
    return (fleet.shown.get(server) or 0) >= SHOWN_BY_ONE_SERVER


def is_told_too_many(fleet: Fleet, server: str) -> bool:
    return (fleet.shown.get(server) or 0) > SHOWN_BY_ONE_SERVER


def enrolled(fleet: Fleet, server: str) -> Fleet:
    """What enrols anew begins anew."""
    return replace(fleet, shown=fleet.shown.discard(server))


def cell_found(fleet: Fleet, _: e.Record, event: e.UnknownCellFound) -> Fleet:
    count = (fleet.shown.get(event.server) or 0) + 1
    fleet = replace(fleet, shown=fleet.shown.insert(event.server, count))
    return found(fleet, event.server, event.cell)


def too_many(fleet: Fleet, _: e.Record, event: e.UnknownCellsTooMany) -> Fleet:
    return replace(fleet, shown=fleet.shown.insert(event.server, event.limit + 1))


def cell_condemned(fleet: Fleet, _: e.Record, event: e.UnknownCellCondemned) -> Fleet:
    return replace(fleet, unwanted=fleet.unwanted.insert(UnknownCell(event.cell, event.server)))


def orphan_removed(fleet: Fleet, _: e.Record, event: e.OrphanRemoved) -> Fleet:
    if event.is_gone and not is_unwanted(fleet, event.server, event.cell):
        return forgotten(fleet, event.server, event.cell)
    fleet = decided(fleet, event.server, event.cell)
    return fleet if event.is_gone else owned(fleet, event.cell)


def lost_with(fleet: Fleet, server: str) -> Fleet:
    """All that were on a server that was judged dead, but those of exclusive slots: nothing proves that they ended."""
    for cell in unknown_on(fleet, server):
        parsed = parse_cell_id(cell)
        state = fleet.groups.get(parsed.group) if parsed else None
        if state is None or not state.group.spec.exclusive:
            fleet = forgotten(fleet, server, cell)
    return fleet


def unknown_on(fleet: Fleet, server: str) -> list[str]:
    return [one.cell for known in fleet.unknown.values() for one in known if one.server == server]
