"""Who carries a cell: an agent (containers) or a provider (servers). The same questions are asked of both."""

# ruff: noqa: ARG002 - one may need what the other does not
from __future__ import annotations

from typing import Protocol

from galactica.scheduler import events as e
from galactica.scheduler.commands import Decommission, DecommissionServer, Order, OrderServer
from galactica.scheduler.draft import Draft
from galactica.scheduler.fence import ended_at
from galactica.scheduler.health import cell_verdict, is_serving
from galactica.scheduler.model import (
    Cell,
    CellKind,
    Group,
    GroupKind,
    GroupState,
    Health,
    Phase,
    Server,
    ServerKey,
    SlotKey,
    Verdict,
)
from galactica.scheduler.placement import Unplaceable
from galactica.scheduler.server_health import made_by, pool_cell_verdict
from galactica.scheduler.servers import cells_of, condemn_server, verdict_on
from galactica.scheduler.sight import CellState, ProviderServer, ProviderState
from galactica.scheduler.telling import send_when_due, tell_provider_when_due


class Carrier(Protocol):
    def verdict(self, draft: Draft, state: GroupState, cell: Cell) -> Verdict:
        """What the evidence says of a cell."""

    def place(self, draft: Draft, state: GroupState) -> str | Unplaceable:
        """Where a new cell of the group goes: a server's id; empty where a provider decides."""

    def deliver(self, draft: Draft, key: SlotKey, cell: Cell) -> None:
        """Hand over the order until it shows that it was taken."""

    def advance(self, draft: Draft, key: SlotKey, state: GroupState, cell: Cell) -> None:
        """Record BOOTING and READY when they are so."""

    def out_of_reach(self, draft: Draft, key: SlotKey, cell: Cell) -> str:
        """The proof that a condemned cell is no more, although nobody can say so of it; empty where there is none."""

    def end(self, draft: Draft, key: SlotKey, cell: Cell) -> str:
        """Have a draining cell ended; the proof that it is gone, or empty while it is not."""

    def provider_of(self, draft: Draft, cell: Cell) -> str:
        """The provider that carries the cell; empty where an agent does."""


def carrier_of(what: Cell | Group) -> Carrier:
    is_server = what.kind is (CellKind.SERVER if isinstance(what, Cell) else GroupKind.POOL)
    return ByProvider() if is_server else ByAgent()


class ByAgent:
    """Containers: placed on a server, ordered and ended through its agent."""

    def verdict(self, draft: Draft, state: GroupState, cell: Cell) -> Verdict:
        server = draft.fleet.servers.get(cell.server)
        return cell_verdict(cell, state.spec_for(cell), server, draft.sight, draft.now, draft.policy)

    def place(self, draft: Draft, state: GroupState) -> str | Unplaceable:
        return draft.placer.place(state, state.group.spec)

    def deliver(self, draft: Draft, key: SlotKey, cell: Cell) -> None:
        spec = draft.fleet.groups[key.group].spec_of(cell.digest)
        report = draft.sight.report_of(cell.server, cell.id)
        if spec is None or (report is not None and report.state is not CellState.GONE):
            return
        send_when_due(draft, key, Order(cell.server, cell.id, cell.digest, spec))

    def advance(self, draft: Draft, key: SlotKey, state: GroupState, cell: Cell) -> None:
        report = draft.sight.report_of(cell.server, cell.id)
        if cell.phase is Phase.READY or report is None:
            return
        if is_serving(cell, state.spec_for(cell), draft.sight):
            draft.emit(e.CellReady(cell.id, report.endpoints, report.runtime_id))
        elif cell.phase is Phase.ORDERED and report.state in (CellState.STARTING, CellState.RUNNING):
            draft.emit(e.CellBooting(cell.id))

    def out_of_reach(self, draft: Draft, key: SlotKey, cell: Cell) -> str:
        server = draft.fleet.servers.get(cell.server)
        if server is not None and not server.is_lost:
            return ""
        state = draft.fleet.groups[cell.group]
        is_exclusive = state.group.spec.exclusive or state.spec_for(cell).exclusive
        if server is None or not is_exclusive:
            return "server_lost"
        # There must never be two, and that nothing is heard proves nothing; that its provider deleted it does.
        made = made_by(draft.fleet, server, draft.sight)
        if made is not None and made.state is ProviderState.GONE:
            return "provider"
        at = fenced_at(draft, state, cell)
        if at is None or draft.now < at:
            draft.look(key, at)
            return ""
        return "fenced"

    def end(self, draft: Draft, key: SlotKey, cell: Cell) -> str:
        report = draft.sight.report_of(cell.server, cell.id)
        if report is not None and report.state is CellState.GONE:
            return "agent"
        send_when_due(draft, key, Decommission(cell.server, cell.id, cell.condemned_by))
        return ""

    def provider_of(self, draft: Draft, cell: Cell) -> str:
        return ""


def fenced_at(draft: Draft, state: GroupState, cell: Cell) -> float | None:
    """When a cell on a lost server has ended by itself; None where only somebody's word proves its end: it was ordered
    as one that may live on, or its server is not lost."""
    server = draft.fleet.servers.get(cell.server)
    spec = state.spec_of(cell.digest)
    if server is None or not server.is_lost or spec is None or not spec.exclusive:
        return None
    return ended_at(draft.fleet, server, spec, draft.sight, draft.policy)


class ByProvider:
    """Servers: made and deleted by a provider, and a place for containers in between."""

    def verdict(self, draft: Draft, state: GroupState, cell: Cell) -> Verdict:
        return pool_cell_verdict(draft.fleet, state, cell, draft.sight, draft.now, draft.policy)

    def place(self, draft: Draft, state: GroupState) -> str | Unplaceable:
        return ""

    def deliver(self, draft: Draft, key: SlotKey, cell: Cell) -> None:
        spec = draft.fleet.groups[key.group].spec_of(cell.digest)
        made = self._made(draft, cell)
        if spec is None or made is not None:
            return
        tell_provider_when_due(draft, key, OrderServer(self.provider_of(draft, cell), cell.id, spec))

    def advance(self, draft: Draft, key: SlotKey, state: GroupState, cell: Cell) -> None:
        made = self._made(draft, cell)
        if cell.phase is Phase.ORDERED and made is not None and made.state is not ProviderState.GONE:
            draft.emit(e.CellBooting(cell.id, made.ref))
        server = draft.fleet.servers.get(cell.id)
        if cell.phase is Phase.READY or server is None or server.phase is not Phase.READY:
            return
        seen = draft.sight.servers.get(server.id)
        has_spoken = seen is not None and seen.vitals is not None
        if has_spoken and verdict_on(draft, server).health is Health.HEALTHY:
            draft.emit(e.CellReady(cell.id, runtime_id=made.ref if made else cell.runtime_id))

    def out_of_reach(self, draft: Draft, key: SlotKey, cell: Cell) -> str:
        return ""

    def end(self, draft: Draft, key: SlotKey, cell: Cell) -> str:
        """First the place is emptied, then the provider deletes it."""
        server = draft.fleet.servers.get(cell.id)
        if server is not None and server.phase is Phase.READY:
            reason = f"its pool lets it go: {cell.condemned_by}"
            condemn_server(draft, server, Verdict(Health.HEALTHY, cell.condemned_by, reason))
            server = draft.fleet.servers[cell.id]
        has_cells = server is not None and bool(len(server.cells))
        if server is not None and has_cells and not server.is_lost and not self._waited(draft, key, server):
            return ""
        made = self._made(draft, cell)
        if made is not None and made.state is ProviderState.GONE:
            if server is not None and has_cells:  # those that waited for this proof go first
                draft.dirty({ServerKey(server.id): f"provider:{self.provider_of(draft, cell)}"})
                draft.dirty(cells_of(server, f"provider:{self.provider_of(draft, cell)}"))
                return ""
            return "provider"
        ref = made.ref if made else cell.runtime_id
        provider = self.provider_of(draft, cell)
        tell_provider_when_due(draft, key, DecommissionServer(provider, cell.id, ref, cell.condemned_by))
        return ""

    def _waited(self, draft: Draft, key: SlotKey, server: Server) -> bool:
        """Whether none of its cells is needed any more, and each had its grace and more to end: where an engine hangs
        they never do, and go with their server."""
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
        body = draft.fleet.groups[cell.group].spec_for(cell).server
        return body.provider if body else ""

    def _made(self, draft: Draft, cell: Cell) -> ProviderServer | None:
        """The provider's word on the cell."""
        known = draft.sight.providers.get(self.provider_of(draft, cell))
        return known.servers.get(cell.id) if known else None
