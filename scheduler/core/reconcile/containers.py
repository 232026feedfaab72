"""How containers are carried: an agent starts and ends them on its server."""

# ruff: noqa: ARG002 - both carriers answer the same questions, and one may need what the other does not

from __future__ import annotations

from galactica.scheduler.core.budgets.services import (
    Allowed,
    Held,
    may_condemn_drained,
    may_condemn_outdated,
    may_go_before,
    may_renew,
    may_surge,
)
from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.commands import Decommission, Order
from galactica.scheduler.core.model.fleet import Cell, GroupState, Phase, Slot
from galactica.scheduler.core.model.keys import ServerKey, SlotKey
from galactica.scheduler.core.model.rules import HoldRule, Rule
from galactica.scheduler.core.model.succession import still_waits
from galactica.scheduler.core.model.verdict import Evidence, Health, Verdict
from galactica.scheduler.core.placement import Unplaceable
from galactica.scheduler.core.reconcile.draft import Draft, resend
from galactica.scheduler.core.reconcile.servers import bury_server
from galactica.scheduler.core.sight.observations import CellState, ProviderState
from galactica.scheduler.core.verdicts.cells import cell_verdict, is_serving
from galactica.scheduler.core.verdicts.evidence import made_by
from galactica.scheduler.core.verdicts.fence import ended_at, ended_elsewhere_at
from galactica.scheduler.core.verdicts.machines import is_other_machine
from galactica.scheduler.core.verdicts.maintenance import maintenance_of


class ByAgent:
    """Containers: placed on a server, ordered and ended through its agent."""

    def verdict(self, draft: Draft, state: GroupState, cell: Cell) -> Verdict:
        server = draft.fleet.servers.get(cell.server)
        verdict = cell_verdict(cell, state.spec_for(cell), server, draft.sight, draft.now, draft.policy)
        if verdict.health in (Health.DEAD, Health.SICK) or server is None or server.is_lost:
            return verdict
        return _ended_with_lease(draft, cell, _fenced_at(draft, state, cell)) or verdict

    def is_well(self, draft: Draft, state: GroupState, cell: Cell) -> bool:
        return self.verdict(draft, state, cell).health is Health.HEALTHY

    def place(self, draft: Draft, state: GroupState) -> str | Unplaceable:
        return draft.placer.place(state, state.group.spec)

    def deliver(self, draft: Draft, key: SlotKey, cell: Cell) -> None:
        spec = draft.fleet.groups[key.group].spec_of(cell.digest)
        report = draft.sight.report_of(cell.server, cell.id)
        if spec is None or (report is not None and report.state is not CellState.GONE):
            return
        if self._may_run_elsewhere(draft, key, cell):
            return
        resend(draft, key, Order(cell.server, cell.id, cell.digest, spec))

    def is_doubted(self, draft: Draft, key: SlotKey, cell: Cell, verdict: Verdict) -> bool:
        return False

    def may_condemn_ill(self, draft: Draft, state: GroupState, cell: Cell, health: Health) -> Allowed | Held:
        """Only the orders of successors are held."""
        return Allowed("none: the cell is dead" if health is Health.DEAD else "replaced before it goes")

    def may_condemn_touched(self, draft: Draft, state: GroupState) -> Allowed | Held:
        return may_condemn_drained(state, draft.policy)

    def may_condemn_due(self, draft: Draft, state: GroupState) -> Allowed | Held:
        return may_condemn_outdated(state, draft.now, draft.policy, draft.sight.trusted_since)

    def may_renew(self, draft: Draft, state: GroupState) -> Allowed | Held:
        return may_renew(state, draft.policy)

    def condemned(self, draft: Draft, cell: Cell, verdict: Verdict) -> None:
        if cell.server:
            draft.dirty({ServerKey(cell.server): f"event:{draft.fleet.position}"})

    def may_run_beside(self, state: GroupState) -> bool:
        return not state.group.spec.exclusive

    def may_order(self, draft: Draft, state: GroupState, number: int, slot: Slot) -> Allowed | Held:
        if slot.living or any(still_waits(cell) for cell in slot.cells):
            return may_surge(state, draft.policy)
        return Allowed("nothing runs beside it")

    def held_by_rival(self, draft: Draft, state: GroupState, cell: Cell) -> Held:
        reason = f"{cell.id} may still run, and two must never run at once"
        at = _ended_elsewhere_at(draft, state, cell)
        if at is not None and draft.now < at:
            wait = f"another machine was {cell.server}, and ends it within {at - draft.now:.1f} s"
            return Held(HoldRule.EXCLUSIVE, f"{reason}: {wait}", at)
        at = _fenced_at(draft, state, cell)
        if at is None:
            return Held(HoldRule.EXCLUSIVE, reason)
        wait_seconds = max(0.0, at - draft.now)
        wait = f"its agent or watchdog ends it within {wait_seconds:.1f} s"
        server = draft.fleet.servers[cell.server]
        why = "is lost" if server.is_lost else "is in maintenance"
        return Held(HoldRule.EXCLUSIVE, f"{reason}; its server {cell.server} {why}: {wait}", at)

    def goes_first(self, draft: Draft, key: SlotKey, state: GroupState, cell: Cell) -> str:
        """A sick cell does, if nothing but its place is missing for its successor."""
        held = draft.holds.get(key)
        if held is None or held.rule != HoldRule.NO_CAPACITY or not self._is_sick(draft, state, cell):
            return ""
        spec = state.group.spec
        place = draft.placer.place(state, spec)
        if not isinstance(place, Unplaceable) or not draft.placer.would_fit_without(cell, spec):
            return ""
        allowed = may_go_before(state, draft.now, draft.policy, draft.sight.trusted_since)
        if isinstance(allowed, Held):
            draft.hold(key, allowed.rule, f"{cell.id} is to go: {allowed.reason}", allowed.next_look_at)
            return ""
        return f"it goes before its successor, which has room only in its place on {cell.server}: {place.explain()}"

    def _is_sick(self, draft: Draft, state: GroupState, cell: Cell) -> bool:
        """Whether it was condemned as sick, or has become so since."""
        if cell.condemned_health is Health.SICK:
            return True
        return self.verdict(draft, state, cell).health is Health.SICK

    def advance(self, draft: Draft, key: SlotKey, state: GroupState, cell: Cell) -> None:
        report = draft.sight.report_of(cell.server, cell.id)
        if cell.phase is Phase.READY or report is None or _is_other_machine(draft, cell):
            return
        if is_serving(cell, state.spec_for(cell), draft.sight):
            draft.emit(e.CellReady(cell.id, report.endpoints, report.runtime_id))
        elif cell.phase is Phase.ORDERED and report.state in (CellState.STARTING, CellState.RUNNING):
            draft.emit(e.CellBooting(cell.id))

    def out_of_reach(self, draft: Draft, key: SlotKey, cell: Cell) -> str:
        server = draft.fleet.servers.get(cell.server)
        state = draft.fleet.groups[cell.group]
        if server is not None and not server.is_lost and _fenced_at(draft, state, cell) is None:
            return ""
        is_exclusive = state.group.spec.exclusive or state.spec_for(cell).exclusive
        if server is None or not is_exclusive:
            return "server_lost"
        # Silence does not prove that it ended. That its provider's list says gone does.
        made = made_by(draft.fleet, server, draft.sight)
        if made is not None and made.state is ProviderState.GONE and not made.is_doubtful:
            return "provider"
        at = _fenced_at(draft, state, cell)
        if at is None or draft.now < at:
            draft.look(key, at)
            return ""
        return "fenced"

    def end(self, draft: Draft, key: SlotKey, cell: Cell) -> str:
        report = draft.sight.report_of(cell.server, cell.id)
        if report is None and _is_other_machine(draft, cell):
            return ""
        if report is not None and report.state is CellState.GONE:
            return "" if self._may_run_elsewhere(draft, key, cell) else "agent"
        resend(draft, key, Decommission(cell.server, cell.id, cell.condemned_by))
        return ""

    def _may_run_elsewhere(self, draft: Draft, key: SlotKey, cell: Cell) -> bool:
        """Whether another machine, that is or was its server, may still run it. Of an exclusive one two must never
        run."""
        if _is_other_machine(draft, cell):
            return True
        at = _ended_elsewhere_at(draft, draft.fleet.groups[cell.group], cell)
        if at is None or draft.now >= at:
            return False
        draft.look(key, at)
        return True

    def provider_of(self, draft: Draft, cell: Cell) -> str:
        return ""

    def forget(self, draft: Draft, cell: Cell, provider: str, proof: str) -> None:
        if (
            proof == "agent"
        ):  # the last report of a lost server stays: it shows the orphans to look for if the server returns
            draft.forget(cell.server, cell.id)
        if cell.server:
            draft.servers_with_room.add(cell.server)
            draft.placer.touch(cell.server)  # at once: its successor comes before others that wait for room
            bury_server(draft, cell.server)


def _ended_with_lease(draft: Draft, cell: Cell, fenced_at: float | None) -> Verdict | None:
    """The verdict on an exclusive cell whose agent ended in order. It lives for as long as the agent's lease, and only
    the agent itself can extend that."""
    if fenced_at is None:
        return None
    reason = f"its server {cell.server} is in maintenance"
    fact = Evidence(f"server {cell.server}", "its agent ended in order", draft.now)
    if draft.now < fenced_at:
        reason = f"{reason}: it is exclusive, so the watchdog ends it with its agent's lease"
        return Verdict(Health.SUSPECT, Rule.MAINTENANCE, reason, (fact,), fenced_at)
    reason = f"{reason}, and the lease of exclusive cells there is over: the watchdog has ended it"
    return Verdict(Health.DEAD, Rule.LEASE_OVER, reason, (fact,))


def _is_other_machine(draft: Draft, cell: Cell) -> bool:
    """Whether a machine has the place of its server that may know nothing of it. Its slot is looked at again as soon as
    the server's own machine is back, or that one is the server."""
    return is_other_machine(draft.fleet.servers.get(cell.server), draft.sight)


def _ended_elsewhere_at(draft: Draft, state: GroupState, cell: Cell) -> float | None:
    """When any other machine that was its server has ended it for sure. None if the cell is not exclusive."""
    server = draft.fleet.servers.get(cell.server)
    spec = state.spec_of(cell.digest)
    if server is None or spec is None or not spec.exclusive:
        return None
    return ended_elsewhere_at(draft.fleet, server, cell, spec, draft.sight, draft.policy)


def _fenced_at(draft: Draft, state: GroupState, cell: Cell) -> float | None:
    """When a cell on a server that is lost or in maintenance has surely been ended, by its agent or the watchdog. None
    if they do not do that: the cell was not ordered as exclusive, or its server is neither."""
    server = draft.fleet.servers.get(cell.server)
    spec = state.spec_of(cell.digest)
    if server is None or spec is None or not spec.exclusive:
        return None
    if not server.is_lost and maintenance_of(server, draft.sight, draft.now) is None:
        return None
    return ended_at(draft.fleet, server, spec, draft.sight, draft.policy, cell.id)
