"""How a pool's servers are carried: a provider makes and deletes them."""

# ruff: noqa: ARG002 - both carriers answer the same questions, and one may need what the other does not

from __future__ import annotations

from msgspec.structs import replace

from galactica.scheduler.core.budgets.pools import (
    goes_first,
    may_condemn_due_server,
    may_condemn_server,
    may_go_first,
    may_order_another,
    may_order_beside,
    may_renew_server,
)
from galactica.scheduler.core.budgets.services import Allowed, Held
from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.commands import DecommissionServer, OrderServer
from galactica.scheduler.core.model.fleet import Cell, GroupState, Phase, Server, Slot
from galactica.scheduler.core.model.keys import ServerKey, SlotKey, cells_of
from galactica.scheduler.core.model.rules import HoldRule
from galactica.scheduler.core.model.succession import predecessor_of, was_lost
from galactica.scheduler.core.model.verdict import Health, Verdict
from galactica.scheduler.core.placement import Unplaceable
from galactica.scheduler.core.reconcile.draft import Draft, resend_to_provider
from galactica.scheduler.core.reconcile.servers import condemn_server, doubted_in, held_by_storm
from galactica.scheduler.core.sight.observations import ProviderServer, ProviderState
from galactica.scheduler.core.unknown import unknown_on
from galactica.scheduler.core.verdicts.evidence import provider_of, provider_server
from galactica.scheduler.core.verdicts.pools import is_well, pool_cell_verdict


class ByProvider:
    """Servers: made and deleted by a provider, and a place for containers in between."""

    def verdict(self, draft: Draft, state: GroupState, cell: Cell) -> Verdict:
        verdict = pool_cell_verdict(draft.fleet, state, cell, draft.sight, draft.now, draft.policy)
        server = draft.fleet.servers.get(cell.id)
        if server is not None and cell.slot >= state.wanted_slots and doubted_in(draft, server, verdict):
            return replace(
                verdict, health=Health.SUSPECT
            )  # not wanted: it goes like a cell that may be alive
        return verdict

    def is_well(self, draft: Draft, state: GroupState, cell: Cell) -> bool:
        return is_well(self.verdict(draft, state, cell), draft.fleet, cell, draft.sight, draft.policy)

    def place(self, draft: Draft, state: GroupState) -> str | Unplaceable:
        return ""

    def deliver(self, draft: Draft, key: SlotKey, cell: Cell) -> None:
        spec = draft.fleet.groups[key.group].spec_of(cell.digest)
        made = _made(draft, cell)
        if spec is None or made is not None:
            return
        resend_to_provider(draft, key, OrderServer(self.provider_of(draft, cell), cell.id, spec))

    def is_doubted(self, draft: Draft, key: SlotKey, cell: Cell, verdict: Verdict) -> bool:
        server = draft.fleet.servers.get(cell.id)
        return server is not None and held_by_storm(draft, key, server, verdict)

    def may_condemn_ill(self, draft: Draft, state: GroupState, cell: Cell, health: Health) -> Allowed | Held:
        if health is Health.DEAD:
            return Allowed("none: the cell is dead")
        if not cell.was_ready or cell.slot >= state.wanted_slots:
            return Allowed("none: nothing depends on it")
        return may_condemn_server(state, draft.now)

    def may_condemn_touched(self, draft: Draft, state: GroupState) -> Allowed | Held:
        return may_condemn_server(state, draft.now)

    def may_condemn_due(self, draft: Draft, state: GroupState) -> Allowed | Held:
        return may_condemn_due_server(state, draft.now, draft.policy, draft.sight.trusted_since)

    def may_renew(self, draft: Draft, state: GroupState) -> Allowed | Held:
        return may_renew_server(state, draft.now)

    def condemned(self, draft: Draft, cell: Cell, verdict: Verdict) -> None:
        server = draft.fleet.servers.get(cell.id)
        if server is not None and server.phase is Phase.READY and verdict.health is Health.DEAD:
            condemn_server(draft, server, verdict)

    def may_run_beside(self, state: GroupState) -> bool:
        return not goes_first(state)

    def may_order(self, draft: Draft, state: GroupState, number: int, slot: Slot) -> Allowed | Held:
        beside = may_order_beside(state, slot)
        if isinstance(beside, Held):
            return beside
        before = predecessor_of(state, number)
        if before and was_lost(draft.fleet, slot, before):
            return may_order_another(state, draft.now)
        return beside

    def held_by_rival(self, draft: Draft, state: GroupState, cell: Cell) -> Held:
        return Held(HoldRule.EXCLUSIVE, f"{cell.id} may still exist, and two must never exist at once")

    def goes_first(self, draft: Draft, key: SlotKey, state: GroupState, cell: Cell) -> str:
        if not goes_first(state):
            return ""
        allowed = may_go_first(state)
        if isinstance(allowed, Held):
            draft.hold(key, allowed.rule, f"{cell.id} is to go: {allowed.reason}", allowed.next_look_at)
            return ""
        return "its pool allows no server beside the wanted ones (surge: 0)"

    def advance(self, draft: Draft, key: SlotKey, state: GroupState, cell: Cell) -> None:
        made = _made(draft, cell)
        if cell.phase is Phase.ORDERED and made is not None and made.state is not ProviderState.GONE:
            draft.emit(e.CellBooting(cell.id, made.ref))
        server = draft.fleet.servers.get(cell.id)
        if cell.phase is Phase.READY or server is None or server.phase is not Phase.READY:
            return
        seen = draft.sight.servers.get(server.id)
        has_spoken = seen is not None and seen.vitals is not None
        if has_spoken and self.is_well(draft, state, cell):
            draft.emit(e.CellReady(cell.id, runtime_id=made.ref if made else cell.runtime_id))

    def out_of_reach(self, draft: Draft, key: SlotKey, cell: Cell) -> str:
        return ""

    def end(self, draft: Draft, key: SlotKey, cell: Cell) -> str:
        """First the server loses its cells, then its provider deletes it."""
        server = draft.fleet.servers.get(cell.id)
        if server is not None and server.phase is Phase.READY:
            reason = f"its pool decommissions it: {cell.condemned_by}"
            condemn_server(draft, server, Verdict(Health.HEALTHY, cell.condemned_by, reason))
            server = draft.fleet.servers[cell.id]
        has_cells = server is not None and bool(len(server.cells))
        if server is not None and has_cells and not server.is_lost and not self._waited(draft, key, server):
            return ""
        if server is not None and not server.is_lost and unknown_on(draft.fleet, server.id):
            return ""  # nobody ordered the end of these cells
        made = _made(draft, cell)
        if made is not None and made.state is ProviderState.GONE:
            if server is not None and has_cells:  # its cells waited for this proof and go first
                draft.dirty({ServerKey(server.id): f"provider:{self.provider_of(draft, cell)}"})
                draft.dirty(cells_of(server, f"provider:{self.provider_of(draft, cell)}"))
                return ""
            return "provider"
        ref = made.ref if made else cell.runtime_id
        provider = self.provider_of(draft, cell)
        resend_to_provider(draft, key, DecommissionServer(provider, cell.id, ref, cell.condemned_by))
        return ""

    def _waited(self, draft: Draft, key: SlotKey, server: Server) -> bool:
        """Whether all its cells are draining and each had its grace and a margin to end. If the engine hangs they never
        end, and go together with their server."""
        due_at = 0.0
        for cell_id in server.cells:
            cell = draft.fleet.cell(cell_id)
            if cell is None or cell.phase is not Phase.DRAINING:
                return False
            successor = draft.fleet.cell(cell.replaced_by)
            since = (successor.ready_at if successor else None) or cell.condemned_at or draft.now
            grace_seconds = draft.fleet.groups[cell.group].spec_for(cell).stop.grace_seconds
            due_at = max(due_at, since + grace_seconds + draft.policy.drain_margin_seconds)
        if draft.now < due_at:
            draft.look(key, due_at)
            return False
        return True

    def provider_of(self, draft: Draft, cell: Cell) -> str:
        return provider_of(draft.fleet.groups[cell.group].spec_for(cell))

    def forget(self, draft: Draft, cell: Cell, provider: str, proof: str) -> None:
        draft.forget_server(provider, cell.id)
        draft.look(ServerKey(cell.id), draft.now)  # then everything else observed of it is dropped too


def _made(draft: Draft, cell: Cell) -> ProviderServer | None:
    """The provider's word on the cell."""
    return provider_server(draft.sight, draft.fleet.groups[cell.group].spec_for(cell), cell.id)
