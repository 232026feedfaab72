"""The one loop of order, watch, condemn, replace: for the cells of services and of pools alike.

Only who carries a cell differs (``carriers``): an agent carries containers, a provider carries servers.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from galactica.scheduler.core.budgets.pools import (
    goes_first,
    may_condemn_due_server,
    may_condemn_server,
    may_go_first,
    may_order_another,
    may_order_beside,
)
from galactica.scheduler.core.budgets.services import (
    Allowed,
    Held,
    backoff_hold,
    may_condemn_drained,
    may_condemn_outdated,
    may_surge,
    next_backoff,
)
from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.fleet import (
    Cell,
    CellId,
    CellKind,
    GroupState,
    Phase,
    Slot,
    Tally,
    still_waits,
    was_lost,
)
from galactica.scheduler.core.model.keys import ServerKey, SlotKey
from galactica.scheduler.core.model.spec import GroupKind
from galactica.scheduler.core.model.verdict import NOT_ITS_OWN, SILENCE_RULES, Evidence, Health, Verdict
from galactica.scheduler.core.placement import Unplaceable
from galactica.scheduler.core.reconcile.carriers import Carrier, carrier_of
from galactica.scheduler.core.reconcile.containers import fenced_at
from galactica.scheduler.core.reconcile.draft import Draft
from galactica.scheduler.core.reconcile.servers import (
    bury_server,
    condemn_server,
    doubted_in,
    held_by_storm,
    show_cut_off,
)
from galactica.scheduler.core.verdicts.blame import blame_spec
from galactica.scheduler.core.verdicts.due import due_of


def look_slot(draft: Draft, key: SlotKey) -> None:
    before = _tally(draft, key)
    _lead(draft, key)
    after = _tally(draft, key)
    fewer = (after.replacing < before.replacing, after.surging < before.surging, after.extra < before.extra)
    if after.ready > before.ready or any(fewer):
        draft.freed.add(key.group)  # that is what budgets look at


def _tally(draft: Draft, key: SlotKey) -> Tally:
    state = draft.fleet.groups.get(key.group)
    return state.tally if state else Tally()


def _lead(draft: Draft, key: SlotKey) -> None:
    for cell in _cells(draft, key):
        if not cell.is_condemned:
            _judge(draft, key, cell)
    _fill(draft, key)
    wanted = _slot(draft, key).wanted_cell
    if wanted is not None and wanted.phase is Phase.ORDERED:
        carrier_of(wanted).deliver(draft, key, wanted)
    for cell in _cells(draft, key):
        _retire(draft, key, cell)


def _slot(draft: Draft, key: SlotKey) -> Slot:
    state = draft.fleet.groups.get(key.group)
    slot = state.slots.get(key.slot) if state else None
    return slot or Slot()


def _cells(draft: Draft, key: SlotKey) -> tuple[Cell, ...]:
    return _slot(draft, key).cells


# --- judging ------------------------------------------------------------------------------------------------------


def _judge(draft: Draft, key: SlotKey, cell: Cell) -> None:
    """Advance a living cell, or condemn it: by its health, or because it is not wanted any more."""
    state = draft.fleet.groups[key.group]
    carrier = carrier_of(cell)
    verdict = carrier.verdict(draft, state, cell)
    server = draft.fleet.servers.get(cell.id) if cell.kind is CellKind.SERVER else None
    if server is not None and key.slot >= state.wanted_slots and doubted_in(draft, server, verdict):
        verdict = replace(verdict, health=Health.SUSPECT)  # not wanted: it goes, as one that may be alive
    if verdict.health in (Health.DEAD, Health.SICK):
        _condemn_by_health(draft, key, state, cell, verdict)
        return
    doom = _doom(draft, key, state, cell)
    if doom is not None and _carry_out(draft, key, state, cell, verdict, doom):
        return
    draft.look(key, verdict.next_look_at)
    show_cut_off(draft, key, cell.id, verdict)
    carrier.advance(draft, key, state, cell)


def _condemn_by_health(draft: Draft, key: SlotKey, state: GroupState, cell: Cell, verdict: Verdict) -> None:
    server = draft.fleet.servers.get(cell.id) if cell.kind is CellKind.SERVER else None
    if server is not None and held_by_storm(draft, key, server, verdict):
        return
    budget = _budget_of(draft, key, state, cell, verdict.health)
    if isinstance(budget, Held):
        reason = f"{cell.id} is to be replaced ({verdict.reason}): {budget.reason}"
        draft.hold(key, budget.rule, reason, budget.next_look_at)
        return
    served = 0.0 if cell.ready_at is None else draft.now - cell.ready_at
    early = served < draft.policy.early_seconds and verdict.rule not in NOT_ITS_OWN
    report = draft.sight.report_of(cell.server, cell.id)
    draft.emit(
        e.CellCondemned(
            cell=cell.id,
            health=verdict.health,
            rule=verdict.rule,
            reason=verdict.reason,
            evidence=verdict.evidence,
            budget=budget.budget,
            autopsy=report.autopsy if report else None,
            backoff=next_backoff(state, cell.digest, draft.now, draft.policy) if early else None,
        )
    )
    if server is not None and server.phase is Phase.READY and verdict.health is Health.DEAD:
        condemn_server(draft, server, verdict)
    draft.dirty({ServerKey(cell.server): f"event:{draft.fleet.position}"} if cell.server else {})


def _budget_of(draft: Draft, key: SlotKey, state: GroupState, cell: Cell, health: Health) -> Allowed | Held:
    """Whether a cell that is dead or sick may go now. Of containers only the orders of successors are held."""
    if health is Health.DEAD:
        return Allowed("a dead cell needs none")
    if cell.kind is CellKind.CONTAINER:
        return Allowed("replaced before it goes")
    if not cell.was_ready or key.slot >= state.wanted_slots:
        return Allowed("none needed: nobody misses it")
    return may_condemn_server(state, draft.now)


def _may_condemn_due(draft: Draft, state: GroupState) -> Allowed | Held:
    """May one that is well but outdated or old go?"""
    if state.group.kind is GroupKind.POOL:
        return may_condemn_due_server(state, draft.now)
    return may_condemn_outdated(state, draft.policy)


def _may_condemn_touched(draft: Draft, state: GroupState) -> Allowed | Held:
    """May one go that is touched, or whose server is drained?"""
    if state.group.kind is GroupKind.POOL:
        return may_condemn_server(state, draft.now)
    return may_condemn_drained(state, draft.policy)


class _Doom(Struct, frozen=True):
    """Why a cell that is well must go all the same. ``cause``: what brought it about."""

    rule: str
    reason: str
    cause: str
    allowed: Allowed | Held
    needs_place: bool = True
    evidence: tuple[Evidence, ...] = ()
    """What it rests on, beside the verdict."""


def _doom(draft: Draft, key: SlotKey, state: GroupState, cell: Cell) -> _Doom | None:
    """The first reason that applies, with whether the budget allows it now."""
    server = draft.fleet.servers.get(cell.server)
    if key.slot >= state.wanted_slots:
        why = ("deleted", "its group was deleted") if state.deleted else ("scaled_down", "its slot is gone")
        return _Doom(*why, "", Allowed("none needed"), needs_place=False)
    if cell.digest != state.digest:
        reason = f"revision {cell.revision}; the group is at {state.revision}"
        return _Doom("outdated", reason, f"event:{state.last_position}", _may_condemn_due(draft, state))
    if server is not None and server.phase is Phase.CONDEMNED:
        cause = f"event:{server.last_position}"
        reason = f"its server {server.id} is drained"
        return _Doom("server_drained", reason, cause, _may_condemn_touched(draft, state))
    if cell.dies_at is not None:
        if draft.now >= cell.dies_at:
            reason = "a shell was opened in it, and its time is over"
            fact = Evidence(
                "scheduler", "a shell was opened in it", cell.dies_at - draft.policy.shell_seconds
            )
            cause, allowed = f"event:{cell.last_position}", _may_condemn_touched(draft, state)
            return _Doom("touched", reason, cause, allowed, evidence=(fact,))
        draft.look(key, cell.dies_at)
    report = draft.sight.report_of(cell.server, cell.id)
    if report is not None and report.touched and state.group.replace_touched:
        reason = f"touched: {'; '.join(report.touched)}"
        allowed = _may_condemn_touched(draft, state)
        seen = draft.sight.servers.get(cell.server)
        at = seen.heard_at if seen else draft.now
        facts = tuple(Evidence(f"agent {cell.server}", difference, at) for difference in report.touched)
        return _Doom("touched", reason, "", allowed, evidence=facts)
    due_at = due_of(state, cell)
    if due_at is not None:
        if draft.now >= due_at:
            reason = f"older than {state.group.max_age_seconds:g} s, give or take a tenth"
            return _Doom("old", reason, "", _may_condemn_due(draft, state))
        draft.look(key, due_at)
    return None


def _carry_out(
    draft: Draft, key: SlotKey, state: GroupState, cell: Cell, verdict: Verdict, doom: _Doom
) -> bool:
    """True where the cell was condemned; else what holds that back is noted."""
    allowed = (
        doom.allowed if cell.was_ready or not doom.needs_place else Allowed("none needed: it never served")
    )
    if isinstance(allowed, Held):
        reason = f"{cell.id} is to be replaced ({doom.reason}): {allowed.reason}"
        draft.hold(key, allowed.rule, reason, allowed.next_look_at)
        return False
    if doom.needs_place and cell.was_ready:
        place = carrier_of(cell).place(draft, state)
        if isinstance(place, Unplaceable):
            draft.hold(key, "no_capacity", f"{cell.id} is to be replaced ({doom.reason}): {place.explain()}")
            return False
    draft.emit(
        e.CellCondemned(
            cell=cell.id,
            health=verdict.health,
            rule=doom.rule,
            reason=doom.reason,
            evidence=(*doom.evidence, *verdict.evidence),
            budget=allowed.budget,
        ),
        doom.cause,
    )
    return True


# --- ordering -----------------------------------------------------------------------------------------------------


def _fill(draft: Draft, key: SlotKey) -> None:
    """Order a cell where the slot is wanted and nothing that stays is in it."""
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
    place = _carrier(state).place(draft, state)
    if isinstance(place, Unplaceable):
        draft.hold(key, "no_capacity", place.explain())
        return
    _order(draft, key, state, place)


def _held(draft: Draft, state: GroupState, number: int, slot: Slot) -> Held | None:
    """The first brake that holds the order."""
    if state.group.spec.exclusive and slot.cells:
        return _held_by_rival(draft, state, slot.cells[-1])
    held = backoff_hold(state, draft.now)
    if held is not None:
        blame = blame_spec(state.deaths, state.digest, draft.now, draft.policy.blame_window_seconds)
        return held if blame is None else Held("spec_blamed", blame.reason, held.next_look_at)
    if state.group.kind is GroupKind.POOL:
        return _held_by_pool(draft, state, number, slot)
    if any(still_waits(cell) for cell in slot.cells):
        allowed = may_surge(state, draft.policy)
        return allowed if isinstance(allowed, Held) else None
    return None


def _held_by_rival(draft: Draft, state: GroupState, cell: Cell) -> Held:
    reason = f"{cell.id} may still run, and there must never be two"
    at = fenced_at(draft, state, cell)
    if at is None:
        return Held("exclusive", reason)
    wait = f"its agent or the watchdog there ends it, within {max(0.0, at - draft.now):.1f} s at the latest"
    return Held("exclusive", f"{reason}; its server {cell.server} is lost: {wait}", at)


def _held_by_pool(draft: Draft, state: GroupState, number: int, slot: Slot) -> Held | None:
    beside = may_order_beside(state, slot)
    if isinstance(beside, Held):
        return beside
    before = _predecessor(state, number, slot)
    another = may_order_another(state, draft.now)
    return another if isinstance(another, Held) and before and was_lost(draft.fleet, slot, before) else None


def _carrier(state: GroupState) -> Carrier:
    return carrier_of(state.group)


def _order(draft: Draft, key: SlotKey, state: GroupState, server: str) -> None:
    slot = state.slots.get(key.slot) or Slot(next_generation=state.first_generation)
    cell_id = str(CellId(key.group, key.slot, slot.next_generation))
    replaces = _predecessor(state, key.slot, slot)
    before = draft.fleet.cell(replaces)
    cause = f"event:{before.last_position if before else state.last_position}"
    resources = state.group.spec.resources
    draft.emit(e.CellOrdered(cell_id, state.digest, state.revision, server, resources, replaces), cause)


def _predecessor(state: GroupState, number: int, slot: Slot) -> str:
    """The cell that had the slot before, though it may be gone by now: a backoff outlives the dead."""
    generation = slot.next_generation
    return (
        str(CellId(state.group.name, number, generation - 1)) if generation > state.first_generation else ""
    )


# --- ending -------------------------------------------------------------------------------------------------------


def _retire(draft: Draft, key: SlotKey, cell: Cell) -> None:
    """Lead a condemned cell to its end: wait for its successor, have it ended, note that it is gone."""
    if not cell.is_condemned:
        return
    carrier = carrier_of(cell)
    proof = carrier.out_of_reach(draft, key, cell)
    if proof:
        _decommissioned(draft, cell, proof)
        return
    if cell.phase is Phase.CONDEMNED and _may_go(draft, key, cell):
        draft.emit(e.CellDraining(cell.id), f"event:{cell.last_position}")
        cell = next(c for c in _cells(draft, key) if c.id == cell.id)
    if cell.phase is not Phase.DRAINING:
        return
    proof = carrier.end(draft, key, cell)
    if proof:
        _decommissioned(draft, cell, proof)


def _may_go(draft: Draft, key: SlotKey, cell: Cell) -> bool:
    """A cell that still serves goes when its successor is READY; anything else goes at once."""
    state = draft.fleet.groups[key.group]
    if key.slot >= state.wanted_slots or not still_waits(cell):
        return True
    if state.group.spec.exclusive:
        return True  # there can be no successor beside it
    current = _slot(draft, key).wanted_cell
    if current is not None and current.phase is Phase.READY:
        return True
    verdict = carrier_of(cell).verdict(draft, state, cell)
    if verdict.health is Health.DEAD and verdict.rule not in SILENCE_RULES:
        return True
    return cell.kind is CellKind.SERVER and goes_first(state) and _may_go_first(draft, key, state, cell)


def _may_go_first(draft: Draft, key: SlotKey, state: GroupState, cell: Cell) -> bool:
    """A server of a pool that orders none beside those that go."""
    allowed = may_go_first(state)
    if isinstance(allowed, Held):
        draft.hold(key, allowed.rule, f"{cell.id} is to go: {allowed.reason}", allowed.next_look_at)
    return isinstance(allowed, Allowed)


def _decommissioned(draft: Draft, cell: Cell, proof: str) -> None:
    report = draft.sight.report_of(cell.server, cell.id)
    autopsy = report.autopsy if report else None
    provider = carrier_of(cell).provider_of(draft, cell)
    draft.emit(e.CellDecommissioned(cell.id, proof, autopsy))
    key = SlotKey(cell.group, cell.slot)
    if _slot(draft, key).wanted_cell is None:
        draft.look(key, draft.now)  # its successor may have waited for just that
    if proof == "agent":  # what a lost server showed last is where its orphans are looked for when it returns
        draft.forget(cell.server, cell.id)
    if provider:
        draft.forget_server(provider, cell.id)
        draft.look(ServerKey(cell.id), draft.now)  # nothing that was seen of it is of use any more
    if cell.server:
        draft.freed_servers.add(cell.server)
        bury_server(draft, cell.server)
