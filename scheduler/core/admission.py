"""Admission: turns a request into events, or refuses it and names the rule. All or nothing."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Any

import msgspec

from galactica.scheduler.core import regrowing
from galactica.scheduler.core.epochs import is_strange
from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.commands import Decommission
from galactica.scheduler.core.model.fleet import Cell, CellKind, GroupState, Phase, UnknownCell, parse_cell_id
from galactica.scheduler.core.model.keys import Key, OrphanKey, ServerKey, SlotKey, cells_of, own_slot
from galactica.scheduler.core.model.requests import (
    Accepted,
    Admitted,
    AdoptCells,
    ApplyGroups,
    Asker,
    BeginMaintenance,
    ClaimEpoch,
    CondemnCell,
    CondemnUnknown,
    CreateToken,
    DeleteGroup,
    DrainServer,
    EndRegrowth,
    Enrol,
    EnrolOperator,
    GroupChange,
    OpenShell,
    PlantGenome,
    RecogniseServer,
    RecordRefusal,
    Refused,
    ReleaseStorm,
    Request,
)
from galactica.scheduler.core.model.rules import Rule
from galactica.scheduler.core.model.spec import Group, digest_of
from galactica.scheduler.core.model.verdict import Health
from galactica.scheduler.core.reconcile.draft import Draft
from galactica.scheduler.core.reconcile.leftovers import adopt_cell, shows
from galactica.scheduler.core.unknown import first_above

MAX_GROUPS = 10_000
MAX_CELLS = 1_000_000
MAX_TOKENS = 10_000
EPOCH_LEAP_LIMIT = 1_000_000
"""No fleet has started that many schedulers since its newest backup. An agent that says so is not believed."""
NOTES_TOLD = 20


def admit(draft: Draft, request: Request, by: Asker) -> Admitted:
    """Decide a request on top of the draft. Raises Refused; the draft then has no new records."""
    draft.cause = str(by)
    regrowing.check_ready(draft, request)
    return _ADMIT[type(request)](draft, request, by)


def _apply_groups(draft: Draft, request: ApplyGroups, _: Asker) -> Admitted:
    _check_size(draft, request)
    changes = []
    dirty: dict[Key, str] = {}
    for group in request.groups:
        _check_kind(draft, group)
        change = change_of(draft, group)
        changes.append(change)
        if change.change == "unchanged":
            continue
        before = draft.fleet.groups.get(group.name)
        record = draft.emit(e.GroupApplied(group, change.digest, change.revision))
        for slot in range(max(_slots_in_use(before), group.replicas)):
            dirty[SlotKey(group.name, slot)] = f"event:{record.position}"
    return Admitted(Accepted(draft.fleet.position, len(dirty), tuple(changes)), dirty)


def _check_kind(draft: Draft, group: Group) -> None:
    """A name belongs to one kind of group until the last cell of that group is gone."""
    before = draft.fleet.groups.get(group.name)
    if before is None or before.group.kind is group.kind:
        return
    kind = before.group.kind
    if before.deleted:
        hint = f"the {kind} is being deleted; wait until its last cell is gone"
    else:
        hint = f"delete the {kind} first, or choose another name"
    raise Refused("name_taken", f"the name {group.name} already belongs to a {kind}; {hint}")


def _slots_in_use(state: GroupState | None) -> int:
    """How many slots have cells or want one. Empty slots count too: the change may end what holds them."""
    return max(max(state.slots, default=-1) + 1, state.wanted_slots) if state else 0


def _check_size(draft: Draft, request: ApplyGroups) -> None:
    replicas = {name: state.wanted_slots for name, state in draft.fleet.groups.items()}
    replicas.update((group.name, group.replicas) for group in request.groups)
    if len(replicas) > MAX_GROUPS:
        raise Refused("too_many_groups", f"too many groups: {len(replicas)}; the limit is {MAX_GROUPS}")
    cells = sum(replicas.values())
    if cells > MAX_CELLS:
        raise Refused("too_many_cells", f"too many cells wanted: {cells}; the limit is {MAX_CELLS}")


def change_of(draft: Draft, group: Group) -> GroupChange:
    """What applying the group would change."""
    before = draft.fleet.groups.get(group.name)
    digest = digest_of(group.spec)
    if before is None:
        return GroupChange(group.name, "created", 1, digest)
    if before.group == group and not before.deleted:
        return GroupChange(group.name, "unchanged", before.revision, digest)
    revision = before.revision if digest == before.digest else before.revision + 1
    return GroupChange(group.name, "changed", revision, digest, differences(before.group, group))


def differences(before: Group, after: Group) -> tuple[str, ...]:
    """Each field that differs, as "path: old -> new". Values of the environment may be secrets and are not shown."""
    old, new = _flat(msgspec.to_builtins(before)), _flat(msgspec.to_builtins(after))
    lines = []
    for path in sorted({**old, **new}):
        left, right = old.get(path, "-"), new.get(path, "-")
        if left != right:
            hidden = path.startswith("spec.env.")
            lines.append(f"{path}: changed" if hidden else f"{path}: {left} -> {right}")
    return tuple(lines)


def _flat(value: Any, path: str = "") -> dict[str, str]:
    if not isinstance(value, dict):
        return {path: " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)}
    flat: dict[str, str] = {}
    for key, inner in value.items():
        flat.update(_flat(inner, f"{path}.{key}" if path else str(key)))
    return flat


def _delete_group(draft: Draft, request: DeleteGroup, _: Asker) -> Admitted:
    state = draft.fleet.groups.get(request.name)
    if state is None or state.deleted:
        raise Refused("no_such_group", f"no such group: {request.name}", missing=True)
    record = draft.emit(e.GroupDeleted(request.name))
    dirty: dict[Key, str] = {
        SlotKey(request.name, number): f"event:{record.position}" for number in range(_slots_in_use(state))
    }
    cells = sum(1 for slot in state.slots.values() if slot.cells)
    return Admitted(Accepted(draft.fleet.position, cells), dirty)


def _condemn_cell(draft: Draft, request: CondemnCell, by: Asker) -> Admitted:
    cell = draft.fleet.cell(request.cell)
    if cell is None:
        if request.cell in draft.fleet.servers:
            raise Refused(
                "is_server",
                f"{request.cell} is a server that joined on its own, not a cell of a pool; remove it with: "
                f"galactica drain {request.cell}",
            )
        raise _no_such_cell(request.cell)
    reason = f"condemned by {by.name}" + (f": {request.reason}" if request.reason else "")
    return _condemn_for_operator(draft, cell, reason)


def _no_such_cell(cell_id: str) -> Refused:
    return Refused("no_such_cell", f"no such cell: {cell_id} (or it is already decommissioned)", missing=True)


def _condemn_for_operator(draft: Draft, cell: Cell, reason: str) -> Admitted:
    """Condemn a cell, or a pool's server, because an operator asked. A server drains when its successor is READY."""
    if cell.is_condemned:
        raise Refused("condemned", f"{cell.id} is already condemned, by rule {cell.condemned_by}")
    budget = "an operator's request needs no budget; the replacement comes first"
    draft.emit(e.CellCondemned(cell.id, Health.HEALTHY, Rule.OPERATOR, reason, budget=budget))
    return Admitted(Accepted(draft.fleet.position, 1), {SlotKey(cell.group, cell.slot): draft.cause})


def _open_shell(draft: Draft, request: OpenShell, by: Asker) -> Admitted:
    """The first shell touches the cell and sets how long it may stay. Later shells do not extend that."""
    cell = draft.fleet.cell(request.cell)
    if cell is None:
        raise _no_such_cell(request.cell)
    if cell.kind is CellKind.SERVER:
        raise Refused("is_server", f"{cell.id} is a server; open a shell in a cell that runs on a server")
    dies_at = draft.now + draft.policy.shell_seconds
    if cell.dies_at is not None:
        dies_at = min(dies_at, cell.dies_at)
    draft.emit(e.ShellOpened(cell.id, by.name, dies_at))
    return Admitted(Accepted(draft.fleet.position, 1), {SlotKey(cell.group, cell.slot): draft.cause})


def _drain_server(draft: Draft, request: DrainServer, by: Asker) -> Admitted:
    server = draft.fleet.servers.get(request.server)
    if server is None:
        raise Refused("no_such_server", f"no such server: {request.server}", missing=True)
    if server.phase is not Phase.READY:
        raise Refused(
            "not_ready", f"server {server.id} is {server.phase}; only a READY server can be drained"
        )
    reason = f"drained by {by.name}"
    cell = draft.fleet.cell(server.id) if server.pool else None
    if cell is not None:
        admitted = _condemn_for_operator(draft, cell, reason)
        return Admitted(Accepted(admitted.accepted.position, len(server.cells)), admitted.dirty)
    draft.emit(e.ServerCondemned(server.id, Health.HEALTHY, Rule.OPERATOR, reason))
    dirty = cells_of(server, draft.cause)
    return Admitted(Accepted(draft.fleet.position, len(dirty)), {ServerKey(server.id): draft.cause, **dirty})


def _release_storm(draft: Draft, request: ReleaseStorm, _: Asker) -> Admitted:
    for pool in {server.pool for server in draft.fleet.servers.values()}:
        storm = draft.storm(pool)
        if storm is not None and storm.id == request.storm:
            draft.emit(e.StormReleased(pool, draft.now + draft.policy.storm_hold_seconds))
            keys: dict[Key, str] = {
                ServerKey(server.id): draft.cause
                for server in draft.fleet.servers.values()
                if server.pool == pool
            }
            return Admitted(Accepted(draft.fleet.position, storm.silent), keys)
    raise Refused("no_such_storm", f"no such storm: {request.storm}", missing=True)


def _claim_epoch(draft: Draft, request: ClaimEpoch, _: Asker) -> Admitted:
    fleet, obeyed = draft.fleet, request.obeyed
    if obeyed.epoch > fleet.epoch + EPOCH_LEAP_LIMIT:
        raise Refused(
            "epoch",
            f"the agent of server {request.server} says that it obeyed epoch {obeyed.epoch}; this scheduler has "
            f"{fleet.epoch} and believes at most {EPOCH_LEAP_LIMIT} more. Enrol that server again",
        )
    if obeyed.epoch > fleet.epoch or is_strange(fleet, obeyed):
        epoch = max(obeyed.epoch, fleet.epoch) + 1
        draft.emit(e.EpochClaimed(epoch, request.server, obeyed.start, first_above(epoch)))
    return Admitted(Accepted(draft.fleet.position))


def _begin_maintenance(draft: Draft, request: BeginMaintenance, _: Asker) -> Admitted:
    server = draft.fleet.servers.get(request.server)
    if server is None or server.is_lost or server.phase not in (Phase.READY, Phase.CONDEMNED):
        raise Refused("not_ready", f"server {request.server} has no part in this fleet now")
    until = draft.now + min(request.seconds, draft.policy.maintenance_limit_seconds)
    draft.emit(e.MaintenanceBegan(server.id, request.session, until))
    dirty = cells_of(server, draft.cause)
    return Admitted(
        Accepted(draft.fleet.position, len(dirty)),
        {ServerKey(server.id): draft.cause, **own_slot(server, draft.cause), **dirty},
    )


def _unknown_named(draft: Draft, request: AdoptCells | CondemnUnknown) -> list[UnknownCell]:
    """The unknown cells of these names, or all of them."""
    every = sorted(one for cells_of_slot in draft.fleet.unknown.values() for one in cells_of_slot)
    known = [one for one in every if request.server in ("", one.server)]
    names = {one.cell for one in known}
    for cell in request.cells:
        if cell not in names:
            where = f"the agent of server {request.server}" if request.server else "no agent"
            runs = "does not run" if request.server else "runs"
            raise Refused("no_such_cell", f"{where} {runs} an unknown cell {cell}", missing=True)
    return [one for one in known if not request.cells or one.cell in request.cells]


def _adopt(draft: Draft, request: AdoptCells, _: Asker) -> Admitted:
    dirty: dict[Key, str] = {}
    notes = []
    chosen = _unknown_named(draft, request)
    for one in chosen:
        cell, server = one.cell, one.server
        why_not = _told_by_others(draft, chosen, one) or adopt_cell(draft, cell, server)
        if why_not:
            notes.append(f"{cell}: {why_not}")
        elif (parsed := parse_cell_id(cell)) is not None:
            dirty[SlotKey(parsed.group, parsed.slot)] = draft.cause
            draft.dirty({OrphanKey(server, cell): draft.cause})
    if notes and not dirty:
        raise Refused("not_adopted", "; ".join(notes[:NOTES_TOLD]))
    return Admitted(Accepted(draft.fleet.position, len(dirty), notes=tuple(notes)), dirty)


def _told_by_others(draft: Draft, chosen: list[UnknownCell], one: UnknownCell) -> str:
    """Why it is not clear which cell is meant; empty if it is. Where several servers show one id, one of them may lie,
    or the id was given twice."""
    others = (each for each in chosen if each.cell == one.cell)
    showing = [each.server for each in others if shows(draft, each.cell, each.server)]
    if len(showing) < 2 or one.server not in showing:
        return ""
    return f"servers {', '.join(showing)} show it: name one with --on SERVER"


def _condemn_unknown(draft: Draft, request: CondemnUnknown, by: Asker) -> Admitted:
    chosen = _unknown_named(draft, request)
    dirty: dict[Key, str] = {}
    for one in chosen:
        cell, server = one.cell, one.server
        reason = f"condemned as unknown by {by.name}"
        if _its_end_shows(draft, cell, server):
            if one not in draft.fleet.unwanted:
                draft.emit(e.UnknownCellCondemned(cell, server, reason))
        else:
            draft.emit(e.OrphanRemoved(cell, server, reason))
            draft.command(Decommission(server, cell, Rule.OPERATOR))
        dirty[OrphanKey(server, cell)] = draft.cause
        dirty[ServerKey(server)] = draft.cause
        parsed = parse_cell_id(cell)
        if parsed is not None and parsed.group in draft.fleet.groups:
            dirty[SlotKey(parsed.group, parsed.slot)] = draft.cause
    return Admitted(Accepted(draft.fleet.position, len(chosen)), dirty)


def _its_end_shows(draft: Draft, cell: str, server: str) -> bool:
    """Whether its slot has to wait for its end, which its agent will tell. Where no agent is heard the operator's word
    is all there is."""
    parsed = parse_cell_id(cell)
    state = draft.fleet.groups.get(parsed.group) if parsed else None
    seen = draft.sight.servers.get(server)
    return state is not None and state.group.spec.exclusive and seen is not None and seen.is_open


def _create_token(draft: Draft, request: CreateToken, _: Asker) -> Admitted:
    live = sum(1 for token in draft.fleet.tokens.values() if token.expires_at > draft.now)
    if live >= MAX_TOKENS:
        raise Refused(
            "too_many_tokens", f"too many open join tokens: {live}; wait until some are used or expire"
        )
    created = e.TokenCreated(
        request.token, request.secret_sha256, request.uses, request.expires_at, request.server
    )
    draft.emit(created)
    return Admitted(Accepted(draft.fleet.position))


def _enrol(draft: Draft, request: Enrol, _: Asker) -> Admitted:
    """The refusal is the same for a wrong secret and for an unknown token, so that callers learn nothing."""
    token = draft.fleet.tokens.get(request.token)
    stored = token.secret_sha256 if token else "0" * 64
    matches = hmac.compare_digest(stored, request.secret_sha256)
    if token is None or not matches:
        raise Refused("token", "the join token is unknown, wrong or used up; ask an operator for a new one")
    if token.expires_at <= draft.now:
        raise Refused("token", "the join token has expired; ask an operator for a new one")
    if token.server and token.server != request.server:
        raise Refused("token", f"the join token is for server {token.server}, not for {request.server}")
    if parse_cell_id(request.server) is not None:
        cell = draft.fleet.cell(request.server)
        if cell is None or cell.kind is not CellKind.SERVER or cell.is_condemned:
            raise Refused("token", f"no pool of this fleet expects a server with the id {request.server}")
    server = draft.fleet.servers.get(request.server)
    if server is not None and server.phase in (Phase.READY, Phase.CONDEMNED):
        raise Refused(
            "server_exists",
            f"this fleet already has a server with the id {request.server} ({server.phase}); "
            "choose another id with --id, or wait until that server is lost",
        )
    draft.emit(e.ServerEnrolled(request.server, request.token))
    return Admitted(Accepted(draft.fleet.position), {ServerKey(request.server): draft.cause})


def _operator_enrolled(draft: Draft, request: EnrolOperator, _: Asker) -> Admitted:
    draft.emit(e.OperatorEnrolled(request.operator, request.role, request.expires_at))
    return Admitted(Accepted(draft.fleet.position))


def _refusal_recorded(draft: Draft, request: RecordRefusal, _: Asker) -> Admitted:
    draft.emit(e.CallRefused(request.caller, request.role, request.call))
    return Admitted(Accepted(draft.fleet.position))


_ADMIT: dict[type[Request], Callable[[Draft, Any, Asker], Admitted]] = {
    ApplyGroups: _apply_groups,
    DeleteGroup: _delete_group,
    CondemnCell: _condemn_cell,
    OpenShell: _open_shell,
    DrainServer: _drain_server,
    CreateToken: _create_token,
    ReleaseStorm: _release_storm,
    Enrol: _enrol,
    EnrolOperator: _operator_enrolled,
    RecordRefusal: _refusal_recorded,
    AdoptCells: _adopt,
    CondemnUnknown: _condemn_unknown,
    ClaimEpoch: _claim_epoch,
    BeginMaintenance: _begin_maintenance,
    RecogniseServer: regrowing.recognise,
    PlantGenome: regrowing.plant,
    EndRegrowth: regrowing.end,
}
