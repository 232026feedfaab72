"""The effect of an apply, computed in advance: the real core runs in an imagined world where every order, for cells
and for servers, succeeds at once.

Pure. The time grows with the size of the change, so call it in a thread. Fleet and sight are immutable, so the real
core continues meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.commands import Command, Decommission, Order, OrderServer, ProviderCommand
from galactica.scheduler.core.model.fleet import Fleet, parse_cell_id
from galactica.scheduler.core.model.keys import Hold, SlotKey
from galactica.scheduler.core.model.requests import (
    Accepted,
    ApplyGroups,
    Asker,
    AskerKind,
    CreateToken,
    Enrol,
    GroupChange,
)
from galactica.scheduler.core.model.spec import Group, RuntimeKind
from galactica.scheduler.core.ports import View
from galactica.scheduler.core.sight.observations import (
    Attached,
    CellReport,
    CellState,
    Detached,
    ProbeStatus,
    Reported,
    ServerFacts,
    ServerMade,
    ServerUnmade,
)
from galactica.scheduler.core.sight.vitals import Vitals
from galactica.scheduler.core.turns import Asked, Core, Start, Turn

MAX_TURNS = 200_000

LISTED_LIMIT = 20_000
"""So many births, and so many deaths, are listed; the rest is counted."""

_SECRET = "0" * 64
"""The hash of the secret that imagined servers join with. Nobody knows a secret with this hash."""


class Birth(Struct, frozen=True):
    cell: str
    server: str
    replaces: str


class Death(Struct, frozen=True):
    cell: str
    server: str
    rule: str


class Preview(Struct, frozen=True):
    """What would happen, in order. ``more_births``, ``more_deaths``: how many more there are than are listed. Births
    beyond the list are those that are wanted: whether there is room for them was not worked out."""

    changes: tuple[GroupChange, ...]
    births: tuple[Birth, ...]
    deaths: tuple[Death, ...]
    held: tuple[Hold, ...]
    more_births: int = 0
    more_deaths: int = 0


def preview(view: View, groups: Sequence[Group], listed_limit: int = LISTED_LIMIT) -> Preview:
    """The births and deaths that applying the groups causes, in order. Raises Refused if the apply would."""
    policy = replace(view.policy, waits_for_proof=False)
    core = Core(view.fleet, policy, view.now, Start(view.fleet.epoch, "preview"), view.sight)
    names = {group.name for group in groups}
    births: list[Birth] = []
    deaths: list[Death] = []
    turn = core.turn([Asked(0, ApplyGroups(tuple(groups)), Asker.operator("plan"))], view.now)
    answer = turn.answers[0][1]
    if not isinstance(answer, Accepted):
        raise answer
    joining: list[Asked] = []
    is_cut = False
    for _ in range(MAX_TURNS):
        before = core.fleet
        core.commit(turn)
        _note(before, turn, names, births, deaths)
        joined = [asked.request.server for asked in joining if isinstance(asked.request, Enrol)]
        _imagine_joined(core, joined, view.now)
        if len(births) > listed_limit:
            is_cut = True
            break
        for command in turn.commands:
            _imagine(core, command, view.now)
        joining = [
            asked
            for command in turn.provider_commands
            for asked in _imagine_provider(core, command, view.now)
        ]
        next_look_at = core.next_look_at()
        if not joining and (next_look_at is None or next_look_at > view.now):
            break
        turn = core.turn(joining, view.now)
    else:
        is_cut = True
    held = tuple(h for h in core.view(view.now).holds if isinstance(h.key, SlotKey) and h.key.group in names)
    births_to_come, deaths_to_come = _to_come(core.fleet, names) if is_cut else (0, 0)
    return Preview(
        answer.changes,
        tuple(births[:listed_limit]),
        tuple(deaths[:listed_limit]),
        held,
        max(0, len(births) - listed_limit) + births_to_come,
        max(0, len(deaths) - listed_limit) + deaths_to_come,
    )


def _to_come(fleet: Fleet, names: set[str]) -> tuple[int, int]:
    """Births and deaths that are still missing for what is wanted."""
    births = deaths = 0
    for name in names:
        state = fleet.groups[name]
        tally = state.tally
        births += max(0, state.wanted_slots - (tally.ready + tally.booting - tally.outdated + tally.renewing))
        deaths += tally.outdated
    return births, deaths


def _note(before: Fleet, turn: Turn, names: set[str], births: list[Birth], deaths: list[Death]) -> None:
    for record in turn.records:
        match record.event:
            case e.CellOrdered(cell=cell, server=server, replaces=replaces) if _group(cell) in names:
                births.append(Birth(cell, server, replaces))
            case e.CellCondemned(cell=cell, rule=rule) if _group(cell) in names:
                condemned = before.cell(cell) or turn.plan.fleet.cell(cell)
                deaths.append(Death(cell, condemned.server if condemned else "", rule))


def _group(cell_id: str) -> str:
    parsed = parse_cell_id(cell_id)
    return parsed.group if parsed else ""


def _imagine(core: Core, command: Command, now: float) -> None:
    """Imagine that the agent carries out the command at once."""
    match command:
        case Order(server=server, cell=cell, digest=digest):
            probe = ProbeStatus(has_passed=True)
            report = CellReport(cell, digest, CellState.RUNNING, probe=probe)
        case Decommission(server=server, cell=cell):
            report = CellReport(cell, "", CellState.GONE)
        case _:
            return
    seen = core.sight.servers.get(server)
    if seen is not None:
        core.take(Reported(server, seen.session, seen.sequence + 1, now, (report,)))


def _imagine_provider(core: Core, command: ProviderCommand, now: float) -> tuple[Asked, ...]:
    """Imagine that the provider carries out the command at once. Returns the requests of a new server's agent."""
    provider, cell = command.provider, command.cell
    if isinstance(command, OrderServer):
        core.take(ServerMade(provider, cell, "", now))
        token = CreateToken(cell, _SECRET, 1, now + 1.0, cell)
        return Asked(0, token, Asker(AskerKind.SCHEDULER)), Asked(
            1, Enrol(cell, _SECRET, cell), Asker.server(cell)
        )
    seen = core.sight.servers.get(cell)
    if seen is not None and seen.is_open:
        core.take(Detached(cell, seen.session, now))
    core.take(ServerUnmade(provider, cell, now, is_gone=True))
    return ()


def _imagine_joined(core: Core, servers: Sequence[str], now: float) -> None:
    """Imagine that the enrolled agents attach and are healthy."""
    facts = {pool: _facts_of(core.fleet, pool) for pool in set(map(_group, servers))}
    for server in servers:
        core.take(Attached(server, "preview", now, facts[_group(server)]))
        core.take(Reported(server, "preview", 1, now, vitals=Vitals()))


def _facts_of(fleet: Fleet, pool: str) -> ServerFacts:
    """What a new server of the pool will report: the size and runtimes of an existing server of the pool."""
    body = fleet.groups[pool].group.spec.server
    facts = ServerFacts(body.labels if body else {}, runtimes=(RuntimeKind.PROCESS, RuntimeKind.DOCKER))
    twin = next(
        (server for server in fleet.servers.values() if server.pool == pool and server.runtimes), None
    )
    if twin is None:
        return facts
    return replace(facts, capacity=twin.capacity, disk_bytes=twin.disk_bytes, runtimes=twin.runtimes)
