"""``reconcile``: bring what is decided closer to what is wanted, for the keys that are news.

It looks at levels, never at edges: whatever got lost (a message, a process, a batch that the journal refused) is
decided again from what is wanted and what is seen. It does not read a clock, and a second call at the same
``now`` decides nothing new.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from scheduler import events as e
from scheduler.budget import (
    Allowed,
    Held,
    backoff_hold,
    may_condemn_drained,
    may_condemn_outdated,
    may_surge,
    next_backoff,
)
from scheduler.commands import Command, Decommission, Order, Resync
from scheduler.draft import Draft
from scheduler.events import Record
from scheduler.health import BEATS_MISSED, cell_verdict, is_serving, server_verdict
from scheduler.model import (
    Cell,
    CellId,
    Fleet,
    GroupState,
    Health,
    Hold,
    Key,
    OrphanKey,
    Phase,
    Policy,
    Server,
    ServerKey,
    Slot,
    SlotKey,
    Spec,
    Tally,
    Verdict,
    parse_cell_id,
)
from scheduler.placement import Unplaceable
from scheduler.sight import CellState, Sight
from scheduler.transitions import still_waits

NO_HEALTH_RULES = frozenset({"server_lost"})
"""Deaths that say nothing about the spec, and so never count towards its backoff."""


class Plan(Struct, frozen=True):
    """What a reconciliation decided. ``looked``: the keys it dealt with; those that it holds are in ``holds``."""

    fleet: Fleet
    sight: Sight
    records: tuple[Record, ...]
    commands: tuple[Command, ...]
    holds: Mapping[Key, Hold]
    looks: tuple[tuple[float, Key], ...]
    looked: tuple[Key, ...]
    freed: frozenset[str]
    """Groups in which something that is held may go on now."""
    roomier: frozenset[str]
    """Servers that have room that they had not before, or that changed."""


def reconcile(fleet: Fleet, sight: Sight, dirty: Mapping[Key, str], now: float, policy: Policy) -> Plan:
    """Decide for the dirty keys (each with the cause that made it dirty), and for what becomes dirty by that."""
    draft = Draft(fleet, sight, now, policy)
    return finish(draft, dirty)


def finish(draft: Draft, dirty: Mapping[Key, str]) -> Plan:
    """Like ``reconcile``, on top of what was already decided in the draft."""
    looked: dict[Key, None] = {}
    pending = dict(dirty)
    while pending:
        for key in sorted(pending, key=_order_of_looks):
            draft.cause = pending[key]
            look(draft, key)
            looked[key] = None
        pending = {key: cause for key, cause in draft.more.items() if key not in looked}
        draft.more = {}
    return Plan(
        draft.fleet,
        draft.sight,
        tuple(draft.records),
        tuple(draft.commands),
        draft.holds,
        tuple(draft.looks),
        tuple(looked),
        frozenset(draft.freed),
        frozenset(draft.freed_servers),
    )


def _order_of_looks(key: Key) -> tuple[int, Key]:
    """Servers first, since their fate decides that of their cells; the rest in a stable order."""
    return (0 if isinstance(key, ServerKey) else 1 if isinstance(key, OrphanKey) else 2, key)


def look(draft: Draft, key: Key) -> None:
    match key:
        case ServerKey():
            _look_server(draft, key)
        case OrphanKey():
            _look_orphan(draft, key)
        case SlotKey():
            _look_slot(draft, key)


# --- servers ------------------------------------------------------------------------------------------------------


def _look_server(draft: Draft, key: ServerKey) -> None:
    server = draft.fleet.servers.get(key.server)
    if server is None:
        return
    match server.phase:
        case Phase.ORDERED | Phase.DECOMMISSIONED:
            _admit_server(draft, server, key)
        case _:
            _judge_server(draft, server, key)
    seen = draft.sight.servers.get(server.id)
    if seen is not None and seen.is_doubtful:
        _send_when_due(draft, key, Resync(server.id))


def _admit_server(draft: Draft, server: Server, key: ServerKey) -> None:
    """An enrolled server joins when its agent attaches; a lost one joins again as a new generation, empty."""
    seen = draft.sight.servers.get(server.id)
    if seen is None or not seen.is_open or (server.phase is Phase.DECOMMISSIONED and server.is_drained):
        return
    beat_seconds = draft.policy.tempo(len(draft.fleet.servers)).beat_seconds
    if draft.now - seen.heard_at > BEATS_MISSED * beat_seconds:
        draft.look(key, draft.now + beat_seconds)
        return
    facts = seen.facts
    draft.emit(
        e.ServerJoined(
            server.id,
            server.generation + 1,
            facts.labels,
            facts.capacity,
            facts.disk_bytes,
            facts.runtimes,
            facts.agent_version,
        )
    )
    draft.freed_servers.add(server.id)
    if seen.sequence:  # it went on in its old session, so what it showed may be old too
        draft.doubt(server.id)
    draft.dirty({OrphanKey(server.id, cell): f"report:{server.id}" for cell in seen.reports})
    _judge_server(draft, draft.fleet.servers[server.id], key)


def _judge_server(draft: Draft, server: Server, key: ServerKey) -> None:
    if server.phase is Phase.READY:
        _take_facts(draft, server)
    verdict = server_verdict(server, draft.sight, draft.now, draft.policy, len(draft.fleet.servers))
    if verdict.health is Health.DEAD and not server.is_lost:
        record = draft.emit(
            e.ServerCondemned(server.id, verdict.health, verdict.rule, verdict.reason, verdict.evidence)
        )
        draft.dirty(cells_of(draft.fleet.servers[server.id], f"event:{record.position}"))
    else:
        draft.look(key, verdict.next_look_at)
    _bury_server(draft, server.id)


def _take_facts(draft: Draft, server: Server) -> None:
    seen = draft.sight.servers.get(server.id)
    if seen is None:
        return
    facts = seen.facts
    said = (facts.labels, facts.capacity, facts.disk_bytes, facts.runtimes, facts.agent_version)
    known = (server.labels, server.capacity, server.disk_bytes, server.runtimes, server.agent_version)
    if said != known:
        draft.emit(e.ServerChanged(server.id, *said))
        draft.freed_servers.add(server.id)


def _bury_server(draft: Draft, server_id: str) -> None:
    server = draft.fleet.servers.get(server_id)
    if server is not None and server.phase is Phase.CONDEMNED and not len(server.cells):
        draft.emit(e.ServerDecommissioned(server.id), f"event:{server.last_position}")
        draft.look(ServerKey(server.id), draft.now)  # it may have come back meanwhile


def cells_of(server: Server, cause: str) -> dict[Key, str]:
    """The slots that a server's cells are in, as dirty keys."""
    keys: dict[Key, str] = {}
    for cell_id in server.cells:
        parsed = parse_cell_id(cell_id)
        if parsed is not None:
            keys[SlotKey(parsed.group, parsed.slot)] = cause
    return keys


# --- orphans ------------------------------------------------------------------------------------------------------


def _look_orphan(draft: Draft, key: OrphanKey) -> None:
    """A cell that is shown where none was ordered: tell the agent to remove it until it says that it is gone."""
    report = draft.sight.report_of(key.server, key.cell)
    cell = draft.fleet.cell(key.cell)
    if report is None or (cell is not None and cell.server == key.server):
        return
    if report.state is CellState.GONE:
        draft.forget(key.server, key.cell)
        return
    if draft.was_told(key.server, key.cell, Decommission.__name__) is None:
        reason = "nobody ordered it here" if cell is not None else "it is decommissioned or was never ordered"
        draft.emit(e.OrphanRemoved(key.cell, key.server, reason))
    _send_when_due(draft, key, Decommission(key.server, key.cell, "orphan"))


# --- slots --------------------------------------------------------------------------------------------------------


def _look_slot(draft: Draft, key: SlotKey) -> None:
    before = _tally(draft, key)
    _lead_slot(draft, key)
    after = _tally(draft, key)
    if after.ready > before.ready or after.replacing < before.replacing or after.surging < before.surging:
        draft.freed.add(key.group)  # that is what budgets look at


def _tally(draft: Draft, key: SlotKey) -> Tally:
    state = draft.fleet.groups.get(key.group)
    return state.tally if state else Tally()


def _lead_slot(draft: Draft, key: SlotKey) -> None:
    for cell in _cells(draft, key):
        if not cell.is_condemned:
            _judge_cell(draft, key, cell)
    _fill(draft, key)
    wanted = _slot(draft, key).wanted_cell
    if wanted is not None and wanted.phase is Phase.ORDERED:
        _deliver(draft, key, wanted)
    for cell in _cells(draft, key):
        _retire(draft, key, cell)


def _slot(draft: Draft, key: SlotKey) -> Slot:
    state = draft.fleet.groups.get(key.group)
    slot = state.slots.get(key.slot) if state else None
    return slot or Slot()


def _cells(draft: Draft, key: SlotKey) -> tuple[Cell, ...]:
    return _slot(draft, key).cells


def _judge_cell(draft: Draft, key: SlotKey, cell: Cell) -> None:
    """Advance a living cell, or condemn it: by its health, or because it is not wanted any more."""
    state = draft.fleet.groups[key.group]
    verdict = _verdict(draft, state, cell)
    if verdict.health in (Health.DEAD, Health.SICK):
        _condemn_by_health(draft, state, cell, verdict)
        return
    if key.slot >= state.wanted_slots:
        rule, reason = (
            ("deleted", "its group was deleted") if state.deleted else ("scaled_down", "its slot is gone")
        )
        _condemn(draft, cell, verdict, rule, reason, "none needed")
        return
    if not _keep(draft, key, state, cell, verdict):
        return
    draft.look(key, verdict.next_look_at)
    _advance(draft, state, cell)


def _verdict(draft: Draft, state: GroupState, cell: Cell) -> Verdict:
    spec = _spec(state, cell)
    server = draft.fleet.servers.get(cell.server)
    return cell_verdict(cell, spec, server, draft.sight, draft.now, draft.policy)


def _spec(state: GroupState, cell: Cell) -> Spec:
    """The cell's spec; one that is too old to be remembered is judged by the newest."""
    return state.spec_of(cell.digest) or state.group.spec


def _condemn_by_health(draft: Draft, state: GroupState, cell: Cell, verdict: Verdict) -> None:
    served = 0.0 if cell.ready_at is None else draft.now - cell.ready_at
    early = served < draft.policy.early_seconds and verdict.rule not in NO_HEALTH_RULES
    report = draft.sight.report_of(cell.server, cell.id)
    draft.emit(
        e.CellCondemned(
            cell=cell.id,
            health=verdict.health,
            rule=verdict.rule,
            reason=verdict.reason,
            evidence=verdict.evidence,
            budget="a dead cell needs none" if verdict.health is Health.DEAD else "replaced before it goes",
            autopsy=report.autopsy if report else None,
            backoff=next_backoff(state, cell.digest, draft.now, draft.policy) if early else None,
        )
    )


def _condemn(
    draft: Draft, cell: Cell, verdict: Verdict, rule: str, reason: str, budget: str, cause: str = ""
) -> None:
    draft.emit(
        e.CellCondemned(
            cell=cell.id,
            health=verdict.health,
            rule=rule,
            reason=reason,
            evidence=verdict.evidence,
            budget=budget,
        ),
        cause,
    )


def _keep(draft: Draft, key: SlotKey, state: GroupState, cell: Cell, verdict: Verdict) -> bool:
    """False where a healthy cell was condemned, since its spec is outdated or its server is drained."""
    server = draft.fleet.servers.get(cell.server)
    if cell.digest != state.digest:
        rule, reason = "outdated", f"revision {cell.revision}; the group is at {state.revision}"
        allowed = may_condemn_outdated(state, draft.policy)
        cause = f"event:{state.last_position}"
    elif server is not None and server.phase is Phase.CONDEMNED:
        rule, reason = "server_drained", f"its server {server.id} is drained"
        allowed = may_condemn_drained(state, draft.policy)
        cause = f"event:{server.last_position}"
    else:
        return True
    if not cell.was_ready:
        allowed = Allowed("none needed: it never served")
    if isinstance(allowed, Held):
        draft.hold(
            key,
            allowed.rule,
            f"{cell.id} is to be replaced ({reason}): {allowed.reason}",
            allowed.next_look_at,
        )
        return True
    if cell.was_ready:
        place = draft.placer.place(state, state.group.spec)
        if isinstance(place, Unplaceable):
            draft.hold(key, "no_capacity", f"{cell.id} is to be replaced ({reason}): {place.explain()}")
            return True
    _condemn(draft, cell, verdict, rule, reason, allowed.budget, cause)
    return False


def _advance(draft: Draft, state: GroupState, cell: Cell) -> None:
    report = draft.sight.report_of(cell.server, cell.id)
    if cell.phase is Phase.READY or report is None:
        return
    if is_serving(cell, _spec(state, cell), draft.sight):
        draft.emit(e.CellReady(cell.id, report.endpoints, report.runtime_id))
    elif cell.phase is Phase.ORDERED and report.state in (CellState.STARTING, CellState.RUNNING):
        draft.emit(e.CellBooting(cell.id))


def _fill(draft: Draft, key: SlotKey) -> None:
    """Order a cell where the slot is wanted and nothing that stays is in it."""
    state = draft.fleet.groups.get(key.group)
    if state is None or key.slot >= state.wanted_slots:
        return
    slot = _slot(draft, key)
    if slot.wanted_cell is not None:
        return
    waiting = next((cell for cell in reversed(slot.cells) if still_waits(cell)), None)
    held = backoff_hold(state, draft.now)
    if held is None and waiting is not None:
        allowed = may_surge(state, draft.policy)
        held = allowed if isinstance(allowed, Held) else None
    if held is not None:
        draft.hold(key, held.rule, held.reason, held.next_look_at)
        return
    spec = state.group.spec
    place = draft.placer.place(state, spec)
    if isinstance(place, Unplaceable):
        draft.hold(key, "no_capacity", place.explain())
        return
    _order(draft, key, state, place)


def _order(draft: Draft, key: SlotKey, state: GroupState, server: str) -> None:
    slot = state.slots.get(key.slot) or Slot(next_generation=state.first_generation)
    cell_id = str(CellId(key.group, key.slot, slot.next_generation))
    replaces = _predecessor(state, key.slot, slot.next_generation)
    before = draft.fleet.cell(replaces)
    cause = f"event:{before.last_position if before else state.last_position}"
    resources = state.group.spec.resources
    draft.emit(e.CellOrdered(cell_id, state.digest, state.revision, server, resources, replaces), cause)


def _predecessor(state: GroupState, slot: int, generation: int) -> str:
    """The cell that had the slot before, though it may be gone by now: a backoff outlives the dead."""
    return str(CellId(state.group.name, slot, generation - 1)) if generation > state.first_generation else ""


def _deliver(draft: Draft, key: SlotKey, cell: Cell) -> None:
    """Hand the order to the cell's agent until it shows the cell."""
    state = draft.fleet.groups[key.group]
    spec = state.spec_of(cell.digest)
    report = draft.sight.report_of(cell.server, cell.id)
    if spec is None or (report is not None and report.state is not CellState.GONE):
        return
    _send_when_due(draft, key, Order(cell.server, cell.id, cell.digest, spec))


def _send_when_due(draft: Draft, key: Key, command: Command) -> None:
    """Send at once; again when the agent has not shown it for a while; never into a closed session."""
    seen = draft.sight.servers.get(command.server)
    if seen is None or not seen.is_open:
        return
    told_at = draft.was_told(command.server, command.cell, type(command).__name__)
    if told_at is None or draft.now >= told_at + draft.policy.resend_seconds:
        draft.command(command)
        told_at = draft.now
    draft.look(key, told_at + draft.policy.resend_seconds)


def _retire(draft: Draft, key: SlotKey, cell: Cell) -> None:
    """Lead a condemned cell to its end: wait for its successor, have it ended, note that it is gone."""
    if not cell.is_condemned:
        return
    server = draft.fleet.servers.get(cell.server)
    if server is None or server.is_lost:
        _decommissioned(draft, cell, "server_lost")
        return
    if cell.phase is Phase.CONDEMNED and _may_go(draft, key, cell):
        draft.emit(e.CellDraining(cell.id), f"event:{cell.last_position}")
        cell = next(c for c in _cells(draft, key) if c.id == cell.id)
    if cell.phase is not Phase.DRAINING:
        return
    report = draft.sight.report_of(cell.server, cell.id)
    if report is not None and report.state is CellState.GONE:
        _decommissioned(draft, cell, "agent")
        return
    _send_when_due(draft, key, Decommission(cell.server, cell.id, cell.condemned_by))


def _may_go(draft: Draft, key: SlotKey, cell: Cell) -> bool:
    """A cell that still serves goes when its successor is READY; anything else goes at once."""
    state = draft.fleet.groups[key.group]
    if key.slot >= state.wanted_slots or not still_waits(cell):
        return True
    current = _slot(draft, key).wanted_cell
    if current is not None and current.phase is Phase.READY:
        return True
    return _verdict(draft, state, cell).health is Health.DEAD


def _decommissioned(draft: Draft, cell: Cell, proof: str) -> None:
    report = draft.sight.report_of(cell.server, cell.id)
    autopsy = report.autopsy if report else None
    draft.emit(e.CellDecommissioned(cell.id, proof, autopsy))
    if proof == "agent":  # what a lost server showed last is where its orphans are looked for when it returns
        draft.forget(cell.server, cell.id)
    draft.freed_servers.add(cell.server)
    _bury_server(draft, cell.server)
