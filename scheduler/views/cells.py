"""Cells as rows of the operators' contract, made from one ``View``. Pure, and safe to run in a thread, because
everything in a view is immutable.

A cell or server shows its verdict at this moment. A condemned one shows the verdict that condemned it: it never comes
back, whatever its probe reports now.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from galactica.scheduler.core.model.fleet import Cell, CellKind, GroupState, Phase
from galactica.scheduler.core.model.rules import Rule
from galactica.scheduler.core.model.verdict import Health, Verdict
from galactica.scheduler.core.ports import View
from galactica.scheduler.core.serving import serving_cell
from galactica.scheduler.core.sight.observations import CellReport
from galactica.scheduler.core.verdicts import pools, proof
from galactica.scheduler.core.verdicts.cells import cell_verdict
from galactica.scheduler.core.verdicts.due import A_SHELL_WAS_OPENED, shell_fact, touched_facts, touched_words
from galactica.v1 import operator_pb2

# --- cells --------------------------------------------------------------------------------------------------------


def cells(view: View, group: str = "", *, with_graves: bool = False) -> Iterator[operator_pb2.Cell]:
    """Rows by group, slot and generation. ``with_graves``: also the decommissioned cells that the fleet remembers."""
    matches = [
        cell
        for name, state in view.fleet.groups.items()
        if not group or name == group
        for cell in cells_of_group(state)
    ]
    if with_graves:
        matches += [cell for cell in view.fleet.graves.values() if not group or cell.group == group]
    matches.sort(key=lambda cell: (cell.group, cell.slot, cell.generation))
    return (cell_row(view, cell) for cell in matches)


def find_cell(view: View, cell_id: str) -> Cell | None:
    """The cell, living or decommissioned, as far back as the fleet remembers."""
    living = view.fleet.cell(cell_id)
    if living is not None:
        return living
    return next((cell for cell in view.fleet.graves.values() if cell.id == cell_id), None)


def cell_row(view: View, cell: Cell) -> operator_pb2.Cell:
    report = view.sight.report_of(cell.server, cell.id)
    health, reason = verdict_words(cell, None if cell.is_condemned else verdict_of(view, cell))
    return operator_pb2.Cell(
        id=cell.id,
        group=cell.group,
        slot=cell.slot,
        generation=cell.generation,
        kind=cell.kind.value,
        phase=cell.phase.value,
        verdict=health,
        reason=reason,
        server=cell.server,
        digest=cell.digest,
        revision=cell.revision,
        ordered_at=cell.ordered_at,
        ready_at=cell.ready_at,
        condemned_at=cell.condemned_at,
        decommissioned_at=cell.decommissioned_at,
        replaces=cell.replaces,
        replaced_by=cell.replaced_by,
        endpoints=_endpoints(cell, report),
        runtime_id=cell.runtime_id or (report.runtime_id if report else ""),
        progress=_progress(cell, report),
        serving=_serves(view, cell),
    )


def _serves(view: View, cell: Cell) -> bool:
    state = view.fleet.groups.get(cell.group)
    slot = state.slots.get(cell.slot) if state and cell.slot < state.wanted_slots else None
    if state is None or slot is None or cell.kind is CellKind.SERVER:
        return False
    current = serving_cell(view.fleet, state, slot, view.sight, view.now, view.policy)
    return current is not None and current.id == cell.id


def _endpoints(cell: Cell, report: CellReport | None) -> Mapping[str, str]:
    """Empty for a cell in which a shell was opened and whose successor is proven: programs that read endpoints send it
    no more traffic, and the person in the shell has it for a while."""
    if cell.dies_at is not None and cell.phase in (Phase.DRAINING, Phase.DECOMMISSIONED):
        return {}
    return cell.endpoints or (report.endpoints if report else {})


def verdict_words(cell: Cell, verdict: Verdict | None) -> tuple[str, str]:
    """Health and reason to show. A condemned cell keeps the verdict that condemned it."""
    if cell.is_condemned or verdict is None:
        return str(cell.condemned_health or ""), cell.condemned_by
    return str(verdict.health), verdict.reason


def verdict_of(view: View, cell: Cell) -> Verdict:
    """The verdict on a living cell now."""
    verdict = _health_of(view, cell)
    if cell.kind is CellKind.SERVER or verdict.health is not Health.HEALTHY:
        return verdict
    return _touched(view, cell) or verdict


def _health_of(view: View, cell: Cell) -> Verdict:
    state = view.fleet.groups[cell.group]
    if cell.kind is CellKind.SERVER:
        return pools.pool_cell_verdict(view.fleet, state, cell, view.sight, view.now, view.policy)
    spec = state.spec_for(cell)
    server = view.fleet.servers.get(cell.server)
    return cell_verdict(cell, spec, server, view.sight, view.now, view.policy)


def is_proven(view: View, cell: Cell) -> bool:
    """Whether a READY cell was heard well for long enough, and nothing is known against it now."""
    tempo = view.policy.tempo(len(view.fleet.servers))
    at = proof.proven_at(view.fleet.groups[cell.group], cell, view.sight, view.policy, tempo)
    if at is None or view.now < at or not proof.was_heard(cell, view.sight, at, view.policy):
        return False
    verdict = _health_of(view, cell)
    if cell.kind is CellKind.SERVER:
        return pools.is_well(verdict, view.fleet, cell, view.sight, view.policy)
    return verdict.health is Health.HEALTHY


def _touched(view: View, cell: Cell) -> Verdict | None:
    """The verdict on a running cell that differs from its spec: it is replaced, or reported (``drift: report``)."""
    if cell.dies_at is not None:
        fact = shell_fact(cell.dies_at, view.policy)
        reason = f"{A_SHELL_WAS_OPENED}; its replacement comes first"
        return Verdict(Health.SUSPECT, Rule.TOUCHED, reason, (fact,))
    facts = touched_facts(cell, view.sight, view.now)
    return Verdict(Health.SUSPECT, Rule.TOUCHED, touched_words(facts), facts) if facts else None


def cells_of_group(state: GroupState) -> Iterator[Cell]:
    for slot in state.slots.values():
        yield from slot.cells


def _progress(cell: Cell, report: CellReport | None) -> str:
    if report is None or cell.was_ready or cell.is_condemned:
        return ""
    return report.progress
