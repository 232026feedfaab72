"""A scheduler that has lost all but its CA is grown anew from its fleet: what is asked on the way, and when it ends.

First it listens: it orders nothing and wants nothing. Then it plants the newest genome that was heard, and takes in the
cells that run. It condemns and orders nothing until every server was heard for one lease, or an operator says so.
"""

from __future__ import annotations

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.fleet import Fleet, Phase
from galactica.scheduler.core.model.keys import Key, OrphanKey, ServerKey, SlotKey
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.requests import (
    Accepted,
    Admitted,
    Asker,
    ClaimEpoch,
    EndRegrowth,
    EnrolOperator,
    PlantGenome,
    RecogniseServer,
    RecordRefusal,
    Refused,
    Request,
)
from galactica.scheduler.core.reconcile.draft import Draft
from galactica.scheduler.core.sight.state import Sight
from galactica.scheduler.core.verdicts.fence import longest_lease_seconds

WHILE_LISTENING = (ClaimEpoch, EnrolOperator, PlantGenome, RecogniseServer, RecordRefusal)


def check_ready(draft: Draft, request: Request) -> None:
    """Raises Refused while it is not known what the fleet wants."""
    regrowth = draft.fleet.regrowth
    if regrowth is None or regrowth.is_planted or isinstance(request, WHILE_LISTENING):
        return
    raise Refused(
        "regrowing",
        "this scheduler is being grown anew and does not know yet what the fleet wants; wait for a genome (galactica "
        "status), or see galactica regrow",
    )


def recognise(draft: Draft, request: RecogniseServer, _: Asker) -> Admitted:
    """A certificate of our CA proves that the server enrolled. Only while a scheduler is grown anew: an older journal
    may know better."""
    if request.server in draft.fleet.servers:
        return Admitted(Accepted(draft.fleet.position))
    if draft.fleet.regrowth is None:
        raise Refused(
            "unknown_server", f"server {request.server} is not in this fleet: enrol it again with a new token"
        )
    draft.emit(e.ServerRecognised(request.server))
    return Admitted(Accepted(draft.fleet.position), {ServerKey(request.server): draft.cause})


def plant(draft: Draft, request: PlantGenome, _: Asker) -> Admitted:
    regrowth = draft.fleet.regrowth
    if regrowth is None or regrowth.is_planted:
        raise Refused("regrowing", "no genome is wanted: this scheduler knows what its fleet wants")
    if request.mark.epoch >= draft.fleet.epoch:
        draft.emit(e.EpochClaimed(request.mark.epoch + 1, request.server))
    planted = e.GenomePlanted(request.genome, request.mark.epoch, request.mark.position, request.server)
    draft.emit(planted)
    return Admitted(Accepted(draft.fleet.position), everything(draft.fleet, draft.sight, draft.cause))


def end(draft: Draft, _: EndRegrowth, by: Asker) -> Admitted:
    regrowth = draft.fleet.regrowth
    if regrowth is None or not regrowth.is_planted:
        raise Refused("regrowing", "nothing is held because a genome was planted")
    draft.emit(e.RegrowthEnded(f"settled by {by.name}"))
    return Admitted(Accepted(draft.fleet.position), everything(draft.fleet, draft.sight, draft.cause))


def has_settled(fleet: Fleet, sight: Sight, now: float, policy: Policy) -> bool:
    """Whether every server of the fleet was heard for one lease without a break. With none, nothing is known."""
    if fleet.regrowth is None or not fleet.regrowth.is_planted:
        return False
    tempo = policy.tempo(len(fleet.servers))
    since = now - longest_lease_seconds(fleet, policy)
    wanted = [one.id for one in fleet.servers.values() if one.phase in (Phase.READY, Phase.CONDEMNED)]
    return (
        bool(wanted)
        and fleet.regrowth.since <= since
        and all(sight.hears(one, now, tempo) and sight.servers[one].attached_at <= since for one in wanted)
    )


def everything(fleet: Fleet, sight: Sight, cause: str) -> dict[Key, str]:
    """All servers and slots, and all cells that are seen and not known."""
    keys: dict[Key, str] = {ServerKey(server): cause for server in fleet.servers}
    for server, seen in sight.servers.items():
        keys.update((OrphanKey(server, cell), cause) for cell in seen.reports if fleet.cell(cell) is None)
    for name, state in fleet.groups.items():
        numbers = set(range(state.wanted_slots)).union(state.slots)
        keys.update((SlotKey(name, number), cause) for number in sorted(numbers))
    return keys
