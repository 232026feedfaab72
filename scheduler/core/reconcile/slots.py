"""The one loop of order, watch, condemn and replace, for the cells of services and pools alike.

A ``Carrier`` answers what differs: agents carry containers, providers carry servers.
"""

from __future__ import annotations

from itertools import takewhile

from galactica.scheduler.core.budgets.services import (
    Allowed,
    Held,
    backoff_hold,
    next_backoff,
    young_death_hold,
)
from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.fleet import Cell, CellId, GroupState, Phase, Slot, Tally
from galactica.scheduler.core.model.keys import SlotKey
from galactica.scheduler.core.model.rules import NOT_ITS_OWN, SILENCE_RULES, HoldRule, Rule
from galactica.scheduler.core.model.spec import GroupKind
from galactica.scheduler.core.model.succession import predecessor_of, still_waits
from galactica.scheduler.core.model.verdict import Health, Verdict
from galactica.scheduler.core.placement import Unplaceable
from galactica.scheduler.core.reconcile.carriers import carrier_of
from galactica.scheduler.core.reconcile.draft import Draft
from galactica.scheduler.core.reconcile.servers import (
    held_by_regrowth,
    held_until_heard,
    show_cut_off,
)
from galactica.scheduler.core.unknown import in_slot, unknown_on
from galactica.scheduler.core.verdicts.blame import blame_spec
from galactica.scheduler.core.verdicts.due import Doom, Urgency, doom_of, next_doom_at, shell_keeps
from galactica.scheduler.core.verdicts.fence import lost_ones_ended_at
from galactica.scheduler.core.verdicts.proof import proven_at, served_seconds, was_heard


def look_slot(draft: Draft, key: SlotKey) -> None:
    before = _tally(draft, key)
    _lead(draft, key)
    after = _tally(draft, key)
    fewer = (after.replacing < before.replacing, after.surging < before.surging, after.extra < before.extra)
    if after.ready > before.ready or any(fewer):
        draft.freed.add(key.group)  # budgets look at these counts


def _tally(draft: Draft, key: SlotKey) -> Tally:
    state = draft.fleet.groups.get(key.group)
    return state.tally if state else Tally()


def _lead(draft: Draft, key: SlotKey) -> None:
    # The newest first: a candidate that is proven now ends the wait of the other.
    for cell in reversed(_slot(draft, key).living):
        _judge(draft, key, cell)
    _fill_and_deliver(draft, key)
    before = _cells(draft, key)
    for cell in before:
        _retire(draft, key, cell)
    if len(_cells(draft, key)) < len(before):
        # Its successor may have waited for just that. The room that it leaves is its successor's before anybody else's.
        _fill_and_deliver(draft, key)


def _fill_and_deliver(draft: Draft, key: SlotKey) -> None:
    _fill(draft, key)
    wanted = _slot(draft, key).wanted_cell
    if wanted is not None and wanted.phase is Phase.ORDERED:
        carrier_of(wanted).deliver(draft, key, wanted)


def _slot(draft: Draft, key: SlotKey) -> Slot:
    state = draft.fleet.groups.get(key.group)
    slot = state.slots.get(key.slot) if state else None
    return slot or Slot()


def _cells(draft: Draft, key: SlotKey) -> tuple[Cell, ...]:
    return _slot(draft, key).cells


# --- judging ------------------------------------------------------------------------------------------------------


def _judge(draft: Draft, key: SlotKey, cell: Cell) -> None:
    """Advance a living cell. Or condemn it: for its health, or because something else says that it must go."""
    state = draft.fleet.groups[key.group]
    carrier = carrier_of(cell)
    verdict = carrier.verdict(draft, state, cell)
    if verdict.health in (Health.DEAD, Health.SICK):
        _condemn_by_health(draft, key, state, cell, verdict)
        return
    doom = doom_of(draft.fleet, state, cell, draft.sight, draft.now, draft.policy)
    if doom is None:
        doom = _unneeded(draft, key, cell)
    if doom is not None:
        carry_out = _renew if _is_renewed(draft, key, state, cell, doom) else _carry_out
        if carry_out(draft, key, state, cell, verdict, doom):
            return
    draft.look(key, verdict.next_look_at)
    draft.look(key, next_doom_at(state, cell, draft.now))
    show_cut_off(draft, key, cell.id, verdict)
    carrier.advance(draft, key, state, cell)


def _condemn_by_health(draft: Draft, key: SlotKey, state: GroupState, cell: Cell, verdict: Verdict) -> None:
    carrier = carrier_of(cell)
    if carrier.is_doubted(draft, key, cell, verdict):
        return
    budget = held_by_regrowth(draft) or carrier.may_condemn_ill(draft, state, cell, verdict.health)
    if isinstance(budget, Held):
        reason = f"{cell.id} must be replaced ({verdict.reason}): {budget.reason}"
        draft.hold(key, budget.rule, reason, budget.next_look_at)
        return
    report = draft.sight.report_of(cell.server, cell.id)
    autopsy = report.autopsy if report else None
    served = served_seconds(cell, draft.sight, autopsy, draft.now)
    young = served < max(draft.policy.early_seconds, state.group.healthy_for_seconds)
    early = young and cell.digest == state.digest and verdict.rule not in NOT_ITS_OWN
    draft.emit(
        e.CellCondemned(
            cell=cell.id,
            health=verdict.health,
            rule=verdict.rule,
            reason=verdict.reason,
            evidence=verdict.evidence,
            budget=budget.budget,
            autopsy=autopsy,
            backoff=next_backoff(state, cell.digest, draft.now, draft.policy) if early else None,
        )
    )
    carrier.condemned(draft, cell, verdict)


def _unneeded(draft: Draft, key: SlotKey, cell: Cell) -> Doom | None:
    """A candidate goes where the cell stays whose place it was to take."""
    elder = next(iter(_slot(draft, key).living), cell)
    state = draft.fleet.groups[key.group]
    if elder.id == cell.id or doom_of(draft.fleet, state, elder, draft.sight, draft.now, draft.policy):
        return None
    return Doom(Rule.UNNEEDED, f"{elder.id}, which it was to replace, stays", Urgency.UNWANTED)


def _is_renewed(draft: Draft, key: SlotKey, state: GroupState, cell: Cell, doom: Doom) -> bool:
    """Whether a cell that has its slot lives on, not condemned, until its successor is proven."""
    is_merely_due = doom.urgency is Urgency.LOW and cell.was_ready
    return is_merely_due and not _has_elder(draft, key, cell) and carrier_of(cell).may_run_beside(state)


def _renew(draft: Draft, key: SlotKey, state: GroupState, cell: Cell, verdict: Verdict, doom: Doom) -> bool:
    """Order a candidate beside the cell, and condemn the cell once the candidate is proven. Answers True if it is
    condemned. Otherwise notes what holds it back."""
    candidate = _slot(draft, key).living[-1]
    if candidate.id == cell.id:
        _order_candidate(draft, key, state, cell, doom)
        return False
    if candidate.digest != state.digest or not _is_proven(draft, key, state, candidate):
        return False
    held = held_by_regrowth(draft) or young_death_hold(state, draft.now, draft.policy)
    if held is not None:
        reason = f"{cell.id} must be replaced ({doom.reason}): {held.reason}"
        draft.hold(key, held.rule, reason, held.next_look_at)
        return False
    _condemn(draft, cell, verdict, doom, f"none: {candidate.id} is proven")
    return True


def _order_candidate(draft: Draft, key: SlotKey, state: GroupState, cell: Cell, doom: Doom) -> None:
    held = _held(draft, state, key.slot, _slot(draft, key)) or carrier_of(cell).may_renew(draft, state)
    if isinstance(held, Held):
        reason = f"{cell.id} must be replaced ({doom.reason}): {held.reason}"
        draft.hold(key, held.rule, reason, held.next_look_at)
        return
    place = carrier_of(cell).place(draft, state)
    if isinstance(place, Unplaceable):
        reason = f"{cell.id} must be replaced ({doom.reason}): {place.explain()}"
        draft.hold(key, HoldRule.NO_CAPACITY, reason)
        return
    _order(draft, key, state, place, doom.cause)


def _carry_out(
    draft: Draft, key: SlotKey, state: GroupState, cell: Cell, verdict: Verdict, doom: Doom
) -> bool:
    """Answers True if the cell was condemned. Otherwise notes what holds it back."""
    allowed = held_by_regrowth(draft) or _may_carry_out(draft, state, cell, doom)
    if isinstance(allowed, Held):
        reason = f"{cell.id} must be replaced ({doom.reason}): {allowed.reason}"
        draft.hold(key, allowed.rule, reason, allowed.next_look_at)
        return False
    if doom.urgency is not Urgency.UNWANTED and cell.was_ready:
        place = carrier_of(cell).place(draft, state)
        if isinstance(place, Unplaceable):
            draft.hold(
                key, HoldRule.NO_CAPACITY, f"{cell.id} must be replaced ({doom.reason}): {place.explain()}"
            )
            return False
    _condemn(draft, cell, verdict, doom, allowed.budget)
    return True


def _condemn(draft: Draft, cell: Cell, verdict: Verdict, doom: Doom, budget: str) -> None:
    draft.emit(
        e.CellCondemned(
            cell=cell.id,
            health=verdict.health,
            rule=doom.rule,
            reason=doom.reason,
            evidence=(*doom.evidence, *verdict.evidence),
            budget=budget,
        ),
        doom.cause,
    )


def _may_carry_out(draft: Draft, state: GroupState, cell: Cell, doom: Doom) -> Allowed | Held:
    if doom.urgency is Urgency.UNWANTED:
        return Allowed("none: it is not wanted")
    if not cell.was_ready:
        return Allowed("none: it never served")
    if _has_elder(draft, SlotKey(cell.group, cell.slot), cell):
        return Allowed("none: its predecessor still serves")
    carrier = carrier_of(cell)
    if doom.urgency is Urgency.HIGH:
        return carrier.may_condemn_touched(draft, state)
    return carrier.may_condemn_due(draft, state)


# --- ordering -----------------------------------------------------------------------------------------------------


def _fill(draft: Draft, key: SlotKey) -> None:
    """Order a cell if the slot is wanted and has no cell that stays."""
    state = draft.fleet.groups.get(key.group)
    if state is None or key.slot >= state.wanted_slots:
        return
    slot = _slot(draft, key)
    if slot.wanted_cell is not None:
        return
    held = _held(draft, state, key.slot, slot)
    if held is not None:
        draft.hold(key, held.rule, held.reason, held.next_look_at)
        return
    place = carrier_of(state.group).place(draft, state)
    if isinstance(place, Unplaceable):
        draft.hold(key, HoldRule.NO_CAPACITY, place.explain())
        return
    _order(draft, key, state, place)


def _held(draft: Draft, state: GroupState, number: int, slot: Slot) -> Held | None:
    """The first brake that holds the order."""
    regrowing = held_by_regrowth(draft)
    if regrowing is not None:
        return regrowing
    if state.group.kind is GroupKind.SERVICE:
        listening = held_until_heard(draft, state.group.spec)
        if listening is not None:
            return listening
    unknown = in_slot(draft.fleet, state.group.name, number)
    if unknown is not None:
        way_out = "may be the cell of this slot: adopt it, or condemn it as unknown"
        if unknown in draft.fleet.unwanted:
            way_out = "was condemned and has not ended yet"
        return Held(HoldRule.UNKNOWN_CELL, f"server {unknown.server} runs {unknown.cell}, which {way_out}")
    if state.group.spec.exclusive:
        at = lost_ones_ended_at(draft.fleet, state, draft.policy)
        if at is not None and draft.now < at:
            reason = "a lost journal may have ordered a cell of this slot that no agent shows, and two must never run"
            return Held(HoldRule.EXCLUSIVE, f"{reason} at once; by then its agent has ended it", at)
    if state.group.spec.exclusive and slot.cells:
        return carrier_of(state.group).held_by_rival(draft, state, slot.cells[-1])
    held = backoff_hold(state, draft.now)
    if held is not None:
        blame = blame_spec(state.deaths, state.digest, draft.now, draft.policy.blame_window_seconds)
        return held if blame is None else Held(HoldRule.SPEC_BLAMED, blame.reason, held.next_look_at)
    allowed = carrier_of(state.group).may_order(draft, state, number, slot)
    return allowed if isinstance(allowed, Held) else None


def _order(draft: Draft, key: SlotKey, state: GroupState, server: str, cause: str = "") -> None:
    slot = state.slots.get(key.slot) or Slot(next_generation=state.first_generation)
    cell_id = str(CellId(key.group, key.slot, slot.next_generation))
    replaces = slot.living[0].id if slot.living else predecessor_of(state, key.slot)
    before = draft.fleet.cell(replaces)
    cause = cause or f"event:{before.last_position if before else state.last_position}"
    resources = state.group.spec.resources
    draft.emit(e.CellOrdered(cell_id, state.digest, state.revision, server, resources, replaces), cause)


# --- ending -------------------------------------------------------------------------------------------------------


def _retire(draft: Draft, key: SlotKey, cell: Cell) -> None:
    """Lead a condemned cell to its end: wait for its successor, end it, record that it is gone."""
    if not cell.is_condemned:
        return
    carrier = carrier_of(cell)
    proof = carrier.out_of_reach(draft, key, cell)
    if proof:
        _decommissioned(draft, cell, proof)
        return
    if cell.phase is Phase.CONDEMNED:
        cell = _drain(draft, key, cell)
    if cell.phase is not Phase.DRAINING or _stays_for_shell(draft, key, cell):
        return
    proof = carrier.end(draft, key, cell)
    if proof:
        _decommissioned(draft, cell, proof)


def _drain(draft: Draft, key: SlotKey, cell: Cell) -> Cell:
    """The cell, DRAINING if it may go."""
    reason = ""
    if not _may_go(draft, key, cell):
        reason = carrier_of(cell).goes_first(draft, key, draft.fleet.groups[key.group], cell)
        if not reason:
            return cell
    draft.emit(e.CellDraining(cell.id, reason), f"event:{cell.last_position}")
    return next(c for c in _cells(draft, key) if c.id == cell.id)


def _may_go(draft: Draft, key: SlotKey, cell: Cell) -> bool:
    """A cell that still serves goes when its successor is proven. Any other cell goes at once."""
    state = draft.fleet.groups[key.group]
    if key.slot >= state.wanted_slots or not still_waits(cell):
        return True
    if state.group.spec.exclusive:
        return not _stays_for_shell(draft, key, cell)  # there can be no successor beside it
    if _has_elder(draft, key, cell):
        return True
    current = _slot(draft, key).wanted_cell
    if current is not None and _is_proven(draft, key, state, current):
        return True
    verdict = carrier_of(cell).verdict(draft, state, cell)
    return verdict.health is Health.DEAD and verdict.rule not in SILENCE_RULES


def _stays_for_shell(draft: Draft, key: SlotKey, cell: Cell) -> bool:
    if key.slot >= draft.fleet.groups[key.group].wanted_slots or not shell_keeps(
        cell, draft.sight, draft.now
    ):
        return False
    draft.look(key, cell.dies_at)
    return True


def _has_elder(draft: Draft, key: SlotKey, cell: Cell) -> bool:
    """Whether a cell that came to the slot before this one still serves in its place: then this one was never proven.
    One that was adopted later may have the lower number."""
    elders = takewhile(lambda one: one.id != cell.id, _cells(draft, key))
    return any(elder.phase is Phase.READY or still_waits(elder) for elder in elders)


def _is_proven(draft: Draft, key: SlotKey, state: GroupState, cell: Cell) -> bool:
    tempo = draft.policy.tempo(len(draft.fleet.servers))
    at = proven_at(state, cell, draft.sight, draft.policy, tempo)
    if at is None:
        return False
    if draft.now < at:
        draft.look(key, at)
        return False
    if not was_heard(cell, draft.sight, at, draft.policy):
        draft.listen(cell)
        return False
    return carrier_of(cell).is_well(draft, state, cell)


def _decommissioned(draft: Draft, cell: Cell, proof: str) -> None:
    report = draft.sight.report_of(cell.server, cell.id)
    autopsy = report.autopsy if report else None
    carrier = carrier_of(cell)
    provider = carrier.provider_of(draft, cell)
    unknown = unknown_on(draft.fleet, cell.id)
    draft.emit(e.CellDecommissioned(cell.id, proof, autopsy))
    for other in unknown:
        draft.look_at_slot_of(other)
    carrier.forget(draft, cell, provider, proof)
