"""Who carries a cell: an agent carries containers, a provider carries servers. Both answer the same questions."""

from __future__ import annotations

from typing import Protocol

from galactica.scheduler.core.budgets.services import Allowed, Held
from galactica.scheduler.core.model.fleet import Cell, CellKind, GroupState, Slot
from galactica.scheduler.core.model.keys import SlotKey
from galactica.scheduler.core.model.spec import Group, GroupKind
from galactica.scheduler.core.model.verdict import Health, Verdict
from galactica.scheduler.core.placement import Unplaceable
from galactica.scheduler.core.reconcile.containers import ByAgent
from galactica.scheduler.core.reconcile.draft import Draft
from galactica.scheduler.core.reconcile.pool_servers import ByProvider


class Carrier(Protocol):
    def verdict(self, draft: Draft, state: GroupState, cell: Cell) -> Verdict:
        """What the evidence says of a cell."""

    def is_well(self, draft: Draft, state: GroupState, cell: Cell) -> bool:
        """Whether the evidence shows nothing against the cell, so that it can become READY and be proven."""

    def place(self, draft: Draft, state: GroupState) -> str | Unplaceable:
        """Where a new cell of the group goes: a server's id; empty if a provider decides."""

    def deliver(self, draft: Draft, key: SlotKey, cell: Cell) -> None:
        """Send the order until there is a sign that it was accepted."""

    def is_doubted(self, draft: Draft, key: SlotKey, cell: Cell, verdict: Verdict) -> bool:
        """Whether the storm guard stops this verdict. Then a hold says so."""

    def may_condemn_ill(self, draft: Draft, state: GroupState, cell: Cell, health: Health) -> Allowed | Held:
        """May a dead or sick cell be condemned now?"""

    def may_condemn_touched(self, draft: Draft, state: GroupState) -> Allowed | Held:
        """May one more cell be condemned because it is touched, or because its server is drained?"""

    def may_condemn_due(self, draft: Draft, state: GroupState) -> Allowed | Held:
        """May one more healthy cell be condemned, before its successor exists, because it is outdated or old?"""

    def may_renew(self, draft: Draft, state: GroupState) -> Allowed | Held:
        """May a candidate be ordered beside one more healthy cell that is outdated or old?"""

    def condemned(self, draft: Draft, cell: Cell, verdict: Verdict) -> None:
        """What else follows from a condemnation by health."""

    def may_run_beside(self, state: GroupState) -> bool:
        """Whether a cell and its successor may both be there, so that the successor can prove itself first."""

    def may_order(self, draft: Draft, state: GroupState, number: int, slot: Slot) -> Allowed | Held:
        """May a cell be ordered for the slot, beside the cells that are still in it?"""

    def held_by_rival(self, draft: Draft, state: GroupState, cell: Cell) -> Held:
        """Why no successor of an exclusive cell is ordered yet, and until when."""

    def goes_first(self, draft: Draft, key: SlotKey, state: GroupState, cell: Cell) -> str:
        """Why a cell that serves goes before its successor is there; empty if it does not. A budget that forbids it is
        shown as a hold."""

    def advance(self, draft: Draft, key: SlotKey, state: GroupState, cell: Cell) -> None:
        """Record BOOTING and READY when the evidence shows them."""

    def out_of_reach(self, draft: Draft, key: SlotKey, cell: Cell) -> str:
        """The proof that a condemned cell is gone although its carrier cannot report it; empty if there is none."""

    def end(self, draft: Draft, key: SlotKey, cell: Cell) -> str:
        """End a draining cell. Answers the proof that it is gone, or an empty text until then."""

    def provider_of(self, draft: Draft, cell: Cell) -> str:
        """The provider that carries the cell; empty if an agent does."""

    def forget(self, draft: Draft, cell: Cell, provider: str, proof: str) -> None:
        """Drop what was observed of a cell that is decommissioned now, and what its carrier was told about it."""


def carrier_of(what: Cell | Group) -> Carrier:
    is_server = what.kind is (CellKind.SERVER if isinstance(what, Cell) else GroupKind.POOL)
    return ByProvider() if is_server else ByAgent()
