"""Decisions about servers as places for cells: which one joins, which one is lost.

``slots`` decides that a pool's server must go, as for every cell. Here the decision takes effect on the place: it takes
no more cells, and its cells are either dead with it or replaced first.
"""

from __future__ import annotations

from galactica.scheduler.core.budgets.services import Held
from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.commands import Resync
from galactica.scheduler.core.model.fleet import Fleet, Phase, Server, server_facts
from galactica.scheduler.core.model.keys import (
    Key,
    OrphanKey,
    ServerKey,
    Storm,
    cells_of,
    own_slot,
)
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.rules import SILENCE_RULES, HoldRule, Rule
from galactica.scheduler.core.model.spec import Spec
from galactica.scheduler.core.model.verdict import Health, Verdict
from galactica.scheduler.core.reconcile.draft import Draft, resend
from galactica.scheduler.core.sight.state import Sight
from galactica.scheduler.core.unknown import unknown_on
from galactica.scheduler.core.verdicts.fence import ended_at
from galactica.scheduler.core.verdicts.machines import known_from
from galactica.scheduler.core.verdicts.maintenance import is_back, maintenance_of
from galactica.scheduler.core.verdicts.servers import server_verdict
from galactica.scheduler.core.verdicts.storm import is_released
from galactica.scheduler.core.verdicts.vitals import own_ailments


def look_server(draft: Draft, key: ServerKey) -> None:
    server = draft.fleet.servers.get(key.server)
    if server is None:
        _forget_stranger(draft, key.server)
        return
    server = _without_ended_maintenance(draft, server, key)
    match server.phase:
        case Phase.ORDERED | Phase.DECOMMISSIONED:
            _admit(draft, server, key)
        case _:
            _judge(draft, _with_machine(draft, server, key), key)
    seen = draft.sight.servers.get(server.id)
    if seen is not None and seen.is_doubtful:
        resend(draft, key, Resync(server.id))


def _without_ended_maintenance(draft: Draft, server: Server, key: ServerKey) -> Server:
    """The server, after the end of its maintenance is recorded: its agent is back, or the time has run out."""
    lease = server.maintenance
    if lease is None:
        return server
    if maintenance_of(server, draft.sight, draft.now) is not None:
        draft.look(key, lease.until)
        return server
    reason = "its agent is back" if is_back(lease, server.id, draft.sight) else "the time has run out"
    draft.emit(e.MaintenanceEnded(server.id, reason))
    draft.servers_with_room.add(server.id)
    draft.dirty(own_slot(server, draft.cause))
    return draft.fleet.servers[server.id]


def _with_machine(draft: Draft, server: Server, key: ServerKey) -> Server:
    """The server, after it is recorded which machine it is from here on: it was not known, or the known one has not
    come back within its lease."""
    seen = draft.sight.servers.get(server.id)
    if seen is None or not seen.is_open or seen.machine == server.machine or server.is_lost:
        return server
    if server.machine:
        at = known_from(draft.fleet, server, seen, draft.sight, draft.policy)
        if draft.now < at:
            reason = f"another machine than before is attached as server {server.id}: what it says of the cells there"
            draft.hold(
                key, HoldRule.OTHER_MACHINE, f"{reason} is no proof for another {at - draft.now:.1f} s", at
            )
            return server
    record = draft.emit(e.MachineRecognised(server.id, seen.machine))
    cause = f"event:{record.position}"
    draft.servers_with_room.add(server.id)
    draft.dirty(cells_of(server, cause))
    draft.dirty({OrphanKey(server.id, cell): cause for cell in unknown_on(draft.fleet, server.id)})
    return draft.fleet.servers[server.id]


def _forget_stranger(draft: Draft, server_id: str) -> None:
    """Drop what was observed of a server that is no longer in the fleet, once its stream is closed."""
    seen = draft.sight.servers.get(server_id)
    if seen is None or not seen.is_open:
        draft.forget_place(server_id)


def _admit(draft: Draft, server: Server, key: ServerKey) -> None:
    """An enrolled server joins when its agent attaches. A lost server of no pool may join again, without cells."""
    seen = draft.sight.servers.get(server.id)
    if seen is None or not seen.is_open:
        return
    if not _may_join(draft, server):
        # Heard again after it was lost while it was drained: what it still runs is nobody's.
        draft.dirty({OrphanKey(server.id, cell): f"report:{server.id}" for cell in seen.reports})
        return
    tempo = draft.policy.tempo(len(draft.fleet.servers))
    if tempo.is_silent(
        seen.heard_at, draft.now
    ):  # a server that could be condemned for silence does not join
        draft.look(key, draft.now + tempo.beat_seconds)
        return
    ailing = own_ailments(draft.fleet, server, draft.sight, draft.policy.vitals)
    if ailing and server.phase is Phase.DECOMMISSIONED:  # it was drained for this, and still has it
        draft.hold(key, ailing[0].rule, f"{server.id} cannot join again yet: {ailing[0].says}")
        return
    draft.emit(
        e.ServerJoined(server.id, server.generation + 1, **server_facts(seen.facts), machine=seen.machine)
    )
    draft.servers_with_room.add(server.id)
    if seen.sequence:  # the session is older than the joining, so its reports may be outdated
        draft.doubt(server.id)
    draft.dirty({OrphanKey(server.id, cell): f"report:{server.id}" for cell in seen.reports})
    draft.dirty(own_slot(server, f"report:{server.id}"))
    _judge(draft, draft.fleet.servers[server.id], key)


def _may_join(draft: Draft, server: Server) -> bool:
    """A pool's server is a cell: it joins once, and not if it is condemned."""
    if server.pool:
        cell = draft.fleet.cell(server.id)
        return server.phase is Phase.ORDERED and cell is not None and not cell.is_condemned
    return server.phase is Phase.ORDERED or not server.is_drained


def _judge(draft: Draft, server: Server, key: ServerKey) -> None:
    if server.phase is Phase.READY:
        _take_facts(draft, server)
    cell = draft.fleet.cell(server.id) if server.pool else None
    if cell is not None and not cell.is_condemned and server.phase is Phase.READY:
        draft.dirty(own_slot(server, draft.cause))  # its slot decides whether it must go
        return
    verdict = verdict_on(draft, server)
    if verdict.health is Health.DEAD and not server.is_lost:
        if not _is_held_by_regrowth(draft, key, server, verdict) and not held_by_storm(
            draft, key, server, verdict
        ):
            condemn_server(draft, server, verdict)
    elif verdict.health is Health.SICK and server.phase is Phase.READY:
        if not _is_held_by_regrowth(draft, key, server, verdict) and not _held_by_others(
            draft, key, server, verdict
        ):
            condemn_server(draft, server, verdict)
    else:
        draft.look(key, verdict.next_look_at)
        show_cut_off(draft, key, server.id, verdict)
    bury_server(draft, server.id)


def show_cut_off(draft: Draft, key: Key, server_id: str, verdict: Verdict) -> None:
    """Shows in ``status`` that a cut-off server keeps its cells, and until when."""
    if verdict.rule == Rule.CUT_OFF:
        draft.hold(key, Rule.CUT_OFF, f"{server_id}: {verdict.reason}", verdict.next_look_at)


def held_until_heard(draft: Draft, spec: Spec) -> Held | None:
    """The hold on orders until every server was heard, since an agent may have cells that this journal does not know:
    it may be a backup. After a start it lasts one lease, as for all silence. Where agents showed that the journal is
    older than its fleet, it lasts longer, and for an exclusive cell until one on an unheard server has ended."""
    lease_seconds = draft.policy.tempo(len(draft.fleet.servers)).lease_seconds
    until = draft.sight.began_at + lease_seconds
    if draft.fleet.overtaken_at is not None:
        until = max(until, draft.fleet.overtaken_at + draft.policy.overtaken_seconds)
    if draft.now >= until and not spec.exclusive:
        return None
    missing = _never_heard(draft, spec)
    if spec.exclusive:
        until = max(
            (until, *(ended_at(draft.fleet, one, spec, draft.sight, draft.policy) for one in missing))
        )
    if not missing or draft.now >= until:
        return None
    more = f", nor on {len(missing) - 1} others" if len(missing) > 1 else ""
    reason = f"what runs on {missing[0].id} is not known yet{more}: this scheduler has just begun to listen"
    return Held(HoldRule.LISTENING, reason, min(until, draft.now + draft.policy.beat_seconds))


def _never_heard(draft: Draft, spec: Spec) -> list[Server]:
    """Servers that are not heard yet. For an exclusive cell also those that were lost unheard since the start."""
    return [
        one
        for one in draft.fleet.servers.values()
        if _is_unheard(draft, one) or (spec.exclusive and _is_lost_unheard(draft, one))
    ]


def _is_lost_unheard(draft: Draft, server: Server) -> bool:
    condemned_at = server.condemned_at or 0.0
    return server.is_lost and condemned_at >= draft.sight.began_at and server.id not in draft.sight.servers


def held_by_regrowth(draft: Draft) -> Held | None:
    return regrowth_hold(draft.fleet, draft.sight, draft.now, draft.policy)


def regrowth_hold(fleet: Fleet, sight: Sight, now: float, policy: Policy) -> Held | None:
    """The hold on condemnations and orders while a scheduler is grown anew: what it does not see may only not be back
    yet."""
    regrowth = fleet.regrowth
    if regrowth is None:
        return None
    if not regrowth.is_planted:
        reason = "this scheduler is being grown anew: it orders nothing until it knows what the fleet wants"
        return Held(HoldRule.REGROWING, reason)
    tempo = policy.tempo(len(fleet.servers))
    there = (one for one in fleet.servers.values() if one.phase in (Phase.READY, Phase.CONDEMNED))
    missing = sorted(one.id for one in there if not sight.hears(one.id, now, tempo))
    reason = "this scheduler was grown anew: it condemns and orders nothing until it heard every server for a lease"
    if missing:
        more = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        reason += f"; not heard: {missing[0]}{more}. If they are gone: galactica regrow --settle"
    return Held(HoldRule.REGROWING, reason, now + policy.lease_seconds)


def _is_held_by_regrowth(draft: Draft, key: Key, server: Server, verdict: Verdict) -> bool:
    held = held_by_regrowth(draft)
    if held is None:
        return False
    draft.hold(key, held.rule, f"{server.id} is to go ({verdict.reason}): {held.reason}", held.next_look_at)
    return True


def _is_unheard(draft: Draft, server: Server) -> bool:
    """Also one that has only enrolled, by this journal: in a newer one it may have joined and carried cells."""
    return server.phase in (Phase.ORDERED, Phase.READY) and server.id not in draft.sight.servers


def verdict_on(draft: Draft, server: Server) -> Verdict:
    return server_verdict(draft.fleet, server, draft.sight, draft.now, draft.policy)


def doubted_in(draft: Draft, server: Server, verdict: Verdict) -> Storm | None:
    """The storm that keeps this verdict of silence from counting, if there is one."""
    if verdict.rule not in SILENCE_RULES:
        return None
    storm = draft.storm(server.pool)
    if storm is None or is_released(draft.fleet, draft.sight, server, draft.now, draft.policy):
        return None
    return storm


def held_by_storm(draft: Draft, key: Key, server: Server, verdict: Verdict) -> bool:
    storm = doubted_in(draft, server, verdict)
    if storm is None:
        return False
    draft.hold(
        key, HoldRule.STORM, storm.reason, min(storm.expires_at, draft.now + draft.policy.beat_seconds)
    )
    return True


def _held_by_others(draft: Draft, key: Key, server: Server, verdict: Verdict) -> bool:
    """Of servers that joined by themselves only one at a time is drained because it is sick. If the cause moves
    along with the cells, it stops at the next server."""
    if server.pool:
        return True  # its slot decides: it is drained when its successor is READY
    going = [one.id for one in draft.fleet.servers.values() if not one.pool and _drains_as_sick(one)]
    if not going:
        return False
    reason = (
        f"{server.id} is sick ({verdict.reason}), and {going[0]} is already being drained because it is sick"
    )
    draft.hold(key, HoldRule.ONE_BY_ONE, reason)
    return True


def _drains_as_sick(server: Server) -> bool:
    return server.phase is Phase.CONDEMNED and server.condemned_health is Health.SICK


def condemn_server(draft: Draft, server: Server, verdict: Verdict) -> None:
    """From here on the server takes no cells. If it is dead, its cells are dead with it."""
    record = draft.emit(
        e.ServerCondemned(server.id, verdict.health, verdict.rule, verdict.reason, verdict.evidence)
    )
    cause = f"event:{record.position}"
    draft.dirty(cells_of(draft.fleet.servers[server.id], cause))
    draft.dirty(own_slot(server, cause))


def _take_facts(draft: Draft, server: Server) -> None:
    seen = draft.sight.servers.get(server.id)
    if seen is None:
        return
    facts = server_facts(seen.facts)
    if facts != server_facts(server):
        draft.emit(e.ServerChanged(server.id, **facts))
        draft.servers_with_room.add(server.id)


def bury_server(draft: Draft, server_id: str) -> None:
    """Not while a scheduler is grown anew: the server's cells may only not be taken in yet."""
    server = draft.fleet.servers.get(server_id)
    if draft.fleet.regrowth is not None:
        return
    if server is not None and server.phase is Phase.CONDEMNED and not len(server.cells):
        unknown = unknown_on(draft.fleet, server.id)
        if unknown and not server.is_lost:
            return  # held by what is said of these cells: nobody ordered their end
        draft.emit(e.ServerDecommissioned(server.id), f"event:{server.last_position}")
        for cell in unknown:
            draft.look_at_slot_of(cell)
        draft.look(ServerKey(server.id), draft.now)  # it may have returned meanwhile
        for key in own_slot(server, draft.cause):
            draft.look(key, draft.now)  # it is empty now, so its provider may delete it
