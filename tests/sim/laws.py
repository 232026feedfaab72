"""The promises, checked after every durable record. They keep their own books and trust none of the product's."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.commands import Command, Decommission, Order
from galactica.scheduler.core.model.events import Record
from galactica.scheduler.core.model.fleet import parse_cell_id
from galactica.scheduler.core.model.rules import SILENCE_RULES, Rule
from galactica.scheduler.core.model.verdict import Health
from galactica.scheduler.core.sight.observations import CellReport
from tests.sim.absences import Absences
from tests.sim.rollouts import Rollouts
from tests.sim.words import Words

RANK = {
    e.CellOrdered: 0,
    e.CellBooting: 1,
    e.CellReady: 2,
    e.CellCondemned: 3,
    e.CellDraining: 4,
    e.CellDecommissioned: 5,
}
READY, CONDEMNED, DRAINING, GONE = 2, 3, 4, 5
_LOUD = (e.CellOrdered, e.CellCondemned, e.ServerCondemned, e.OrphanRemoved, e.LeakRemoved)


class LawBroken(AssertionError):
    pass


@dataclass
class _Life:
    server: str
    digest: str
    rank: int = 0
    ready_at: float | None = None
    health: Health | None = None

    def is_proven(self, now: float, healthy_for: float) -> bool:
        """READY, and well since then for long enough."""
        return self.rank == READY and self.ready_at is not None and now >= self.ready_at + healthy_for

    @property
    def still_serves(self) -> bool:
        """READY, or condemned and not told to end yet, since it waits for its successor."""
        return (
            self.rank in (READY, CONDEMNED) and self.ready_at is not None and self.health is not Health.DEAD
        )


@dataclass
class Laws:
    """``records``: everything durable, in order; grows with ``durable``."""

    lives: dict[str, _Life] = field(default_factory=dict)
    slots: dict[tuple[str, int], list[str]] = field(default_factory=lambda: defaultdict(list))
    wanted: dict[str, tuple[int, str]] = field(default_factory=dict)
    healthy_for: dict[str, float] = field(default_factory=dict)
    """Group to the seconds for which a READY cell of it stays well before it is proven."""
    exclusive: set[str] = field(default_factory=set)
    """Groups whose cells never have another beside them in their slot."""
    deleted: set[str] = field(default_factory=set)
    """Groups that were deleted at some time."""
    lost: set[str] = field(default_factory=set)
    drained: set[str] = field(default_factory=set)
    started: dict[str, str] = field(default_factory=dict)
    ordered: set[tuple[str, str]] = field(default_factory=set)
    """Cells and the hosts for which an order of them was ever durable."""
    standing: set[str] = field(default_factory=set)
    """Machines that the provider has, whatever was asked of it."""
    lists_lied: bool = False
    """A list of the provider left out machines that stand: then nothing that it says can be proven."""
    liars: set[str] = field(default_factory=set)
    """Hosts whose agents lied, or that were copied. The scheduler may believe what such a one says of its own cells."""
    rollouts: Rollouts = field(default_factory=Rollouts)
    words: Words = field(default_factory=Words)
    maintenance: Absences = field(default_factory=Absences)
    given_up: set[str] = field(default_factory=set)
    """Cells that an operator condemned, or that this journal never ordered and that are on their way out."""
    was_restored: bool = False
    unheard: set[str] = field(default_factory=set)
    """Hosts that had cells before the journal was restored, and that no scheduler has heard since. Nobody else knows
    which ids they had."""
    unknowing: set[str] = field(default_factory=set)
    """Ids that were given out again while only unheard hosts knew of them."""
    used: set[str] = field(default_factory=set)
    """Ids of the cells of journals that were lost."""
    recognised: set[str] = field(default_factory=set)
    """Servers that a scheduler that is grown anew let in, and that its genome does not know: of no pool, whatever their
    names."""
    is_quiet: bool = False
    """A scheduler is being grown anew, and does not know yet what is there."""
    position: int = 0
    at: float = 0.0
    _is_history: bool = False
    """What is read is what an older journal says, and was judged when it came about."""

    def go_back(self, records: Sequence[Record]) -> None:
        """From here on the journal is an older one. What the world knows stays: what was made, and what is dead."""
        self.lives.clear()
        self.slots.clear()
        self.wanted.clear()
        self.silenced.clear()
        self.lost.clear()
        self.released.clear()
        self.rollouts = Rollouts()
        self.maintenance.leases.clear()
        self.position, self.at = 0, 0.0
        self.was_restored = True
        self.unheard.update(self.started.values())
        self._is_history = True
        self.durable(records)
        self._is_history = False

    def heard(self, host: str, cells: Sequence[CellReport], *, complete: bool) -> None:
        """An agent said so, and the scheduler took it."""
        self.unheard.discard(host)
        self.words.heard(host, cells, complete=complete)

    def lose(self) -> None:
        """From here on the journal is a new one, which knows nothing. No id of the old one may come again."""
        self.used |= self.lives.keys()
        self.recognised.clear()
        self.go_back([])

    def durable(self, records: Sequence[Record]) -> None:
        for record in records:
            self._require(record.position == self.position + 1, record, "positions have a hole")
            self._require(record.at >= self.at, record, f"time goes back from {self.at}")
            self.position, self.at = record.position, record.at
            self._note(record)
            broken = self.rollouts.note(record) or self.words.note(record) or self.maintenance.note(record)
            self._require(not broken, record, broken)

    def started_on(self, host: str, cell: str) -> None:
        """A runtime made a cell. Orders are idempotent: it happens once for each id, in the whole fleet. A journal from
        a backup may order again, on its host, what has come and gone there since: nobody may know of it any more. So
        may one that takes a copy of the host for it."""
        may_be_again = self.was_restored or host in self.liars
        before = self.started.get(cell, host)
        is_excused = (may_be_again and before == host) or before in self.unheard or cell in self.unknowing
        if cell in self.started and not is_excused:
            raise LawBroken(f"{cell} was made on {host}, and before on {self.started[cell]}")
        self.started[cell] = host
        if (cell, host) not in self.ordered:
            raise LawBroken(f"{cell} was made on {host}, but no journal has its order")

    @staticmethod
    def alone(alive: Sequence[str]) -> None:
        """Of cells that run now, no two are of one slot."""
        slots = Counter(cell.rpartition(".")[0] for cell in alive)
        if any(count > 1 for count in slots.values()):
            raise LawBroken(f"more than one cell of an exclusive slot runs: {sorted(alive)}")

    def forgotten(self, cell: str) -> None:
        """Nothing is left of it, and nobody may have heard that it ever was: its order may come again."""
        self.started.pop(cell, None)

    def sent(self, command: Command) -> None:
        """What was not yet durable is never sent."""
        match command:
            case Order(server=server, cell=cell):
                life = self.lives.get(cell)
                if life is None or life.server != server:
                    raise LawBroken(f"the order of {cell} for {server} was sent, but the journal says {life}")
                if life.rank >= CONDEMNED:
                    raise LawBroken(f"the order of {cell} was sent after it was condemned")
            case Decommission(server=server, cell=cell):
                life = self.lives.get(cell)
                if life is None and cell not in self.given_up:
                    raise LawBroken(f"{cell} on {server} was told to end, and this journal never ordered it")
                if life is not None and life.server == server and life.rank < DRAINING:
                    raise LawBroken(f"{cell} was told to end without a durable reason: {life}")

    def _note(self, record: Record) -> None:
        event = record.event
        if self.is_quiet and isinstance(event, _LOUD):
            is_asked_for = (
                record.cause.startswith("operator")
                or getattr(event, "is_gone", False)
                or getattr(event, "cell", "") in self.given_up
            )
            self._require(is_asked_for, record, "a scheduler that is being grown anew harms or orders")
        match event:
            case e.RegrowthBegan():
                self.is_quiet = True
            case e.RegrowthEnded():
                self.is_quiet = False
            case e.GenomePlanted():
                self._planted(record, event)
            case e.GroupApplied(group=group, digest=digest):
                self.wanted[group.name] = (group.replicas, digest)
                self.healthy_for[group.name] = group.healthy_for_seconds
                if group.spec.exclusive:
                    self.exclusive.add(group.name)
            case e.GroupDeleted(name=name):
                self.wanted.pop(name, None)
                self.deleted.add(name)
            case e.ServerRecognised(server=server):
                self.recognised.add(server)
            case e.ServerJoined(server=server):
                self.lost.discard(server)
            case e.StormReleased(pool=pool, until=until):
                self.released[pool] = until
            case e.ServerCondemned(server=server, health=health):
                if health is Health.DEAD:
                    self.lost.add(server)
                    self._certified(record, event)
            case e.CellOrdered():
                self._ordered(record, event)
            case e.CellAdopted(cell=cell, server=server, digest=digest):
                self.lives[cell] = _Life(server, digest)
                self.slots[cell.rpartition("/")[0], int(cell.rpartition("/")[2].split(".")[0])].append(cell)
            case e.UnknownCellCondemned(cell=cell):
                self.given_up.add(cell)
                self._require(record.cause.startswith("operator"), record, "nobody asked for this")
            case e.OrphanRemoved(cell=cell) if cell not in self.lives:
                self._given_up(record, event)
            case (
                e.CellBooting()
                | e.CellReady()
                | e.CellCondemned()
                | e.CellDraining()
                | e.CellDecommissioned()
            ):
                if isinstance(event, e.CellCondemned) and record.cause.startswith("operator"):
                    self.given_up.add(event.cell)  # whoever shows it later, it is to go
                self._moved(record, event)

    def _planted(self, record: Record, event: e.GenomePlanted) -> None:
        for one in event.genome.groups:
            current = one.revisions[-1]
            self._note(replace(record, event=e.GroupApplied(one.group, current.digest, current.number)))
            self.rollouts.note(
                replace(record, event=e.GroupApplied(one.group, current.digest, current.number))
            )
        for server in event.genome.servers:
            (self.recognised.discard if server.pool else self.recognised.add)(server.id)
            parsed = parse_cell_id(server.id) if server.pool else None
            if parsed is not None:
                self.lives[server.id] = _Life("", server.digest, READY, record.at)
                self.slots[parsed.group, parsed.slot].append(server.id)
                self.rollouts.note(
                    replace(record, event=e.CellAdopted(server.id, server.digest, server.revision, ""))
                )

    def _given_up(self, record: Record, event: e.OrphanRemoved) -> None:
        """What this journal never ordered goes when an operator says so, or by itself. Of a deleted group the journal
        keeps one number for all slots: ids below it count as ordered."""
        is_asked_for = record.cause.startswith("operator") or event.is_gone or event.cell in self.given_up
        self.given_up.add(event.cell)
        was_deleted = event.cell.partition("/")[0] in self.deleted
        self._require(is_asked_for or was_deleted, record, "it was never ordered, and nobody asked for this")

    def _ordered(self, record: Record, event: e.CellOrdered) -> None:
        self._require(event.cell not in self.lives, record, "a cell id was used again")
        self._require(event.cell not in self.used, record, "a cell id of a lost journal was used again")
        parsed = parse_cell_id(event.cell)
        assert parsed is not None
        replicas, digest = self.wanted.get(parsed.group, (0, ""))
        self._require(parsed.slot < replicas, record, "nobody wants this slot")
        self._require(event.digest == digest, record, "a cell of an old spec was ordered")
        least = GONE if parsed.group in self.exclusive else CONDEMNED
        there = [one for one in self.slots[parsed.group, parsed.slot] if self.lives[one].rank < least]
        is_beside_an_old_one = len(there) == 1 and self._may_have_candidate(there[0], parsed.group, digest)
        self._require(not there or is_beside_an_old_one, record, f"{' and '.join(there)} still hold the slot")
        self.lives[event.cell] = _Life(event.server, event.digest)
        self.ordered.add((event.cell, event.server))
        if not self._is_history and self.started.get(event.cell) in self.unheard:
            self.unknowing.add(event.cell)
        self.slots[parsed.group, parsed.slot].append(event.cell)

    def _may_have_candidate(self, cell: str, group: str, digest: str) -> bool:
        life = self.lives[cell]
        return life.rank == READY and life.digest != digest and group not in self.exclusive

    def _moved(self, record: Record, event: e.Event) -> None:
        cell = event.cell  # type: ignore[attr-defined]
        life = self.lives.get(cell)
        if life is None:
            raise LawBroken(f"{record} is about a cell that nobody ordered")
        rank = RANK[type(event)]
        self._require(rank > life.rank, record, f"its phase goes back: {life}")
        is_container = life.server != ""
        if is_container and isinstance(event, e.CellDecommissioned) and life.rank < DRAINING:
            is_fenced = event.proof == "fenced" and life.server in self.maintenance.leases
            is_unmade = event.proof == "provider" and life.server not in self.standing
            is_lost = life.server in self.lost or is_fenced or is_unmade
            self._require(is_lost, record, "gone without an agent's word or a lost server")
        if not is_container and isinstance(event, e.CellDecommissioned) and not self.lists_lied:
            self._require(cell not in self.standing, record, "its provider still has it")
        life.rank = rank
        if isinstance(event, e.CellReady):
            life.ready_at = record.at
            self._one_ready(record, cell)
        elif isinstance(event, e.CellCondemned):
            life.health = event.health
            self._has_certificate(record, event)
            if event.rule == Rule.OUTDATED:
                self._proven_before_the_kill(record, event, life)
        elif isinstance(event, e.CellDraining):
            self._proven_before_the_kill(record, event, life)

    def _one_ready(self, record: Record, cell: str) -> None:
        parsed = parse_cell_id(cell)
        assert parsed is not None
        ready = [c for c in self.slots[parsed.group, parsed.slot] if self.lives[c].rank == READY]
        digests = {self.lives[one].digest for one in ready}
        self._require(ready[-1] == cell, record, f"a cell becomes READY beside a younger one: {ready}")
        self._require(len(digests) == len(ready) <= 2, record, f"READY cells of one spec in a slot: {ready}")

    def _has_certificate(self, record: Record, event: e.CellCondemned) -> None:
        self._require(
            bool(event.rule and event.reason and event.budget and record.cause), record, "no certificate"
        )
        if event.health is not Health.HEALTHY:
            self._require(bool(event.evidence), record, "condemned by health without evidence")

    def _proven_before_the_kill(
        self, record: Record, event: e.CellCondemned | e.CellDraining, life: _Life
    ) -> None:
        """A cell that served and may still run is ended, or condemned as outdated, only behind a proven successor, or
        while an elder still serves in its place, or where none is wanted. A sick one may go first, and says why. A
        machine that its provider has, but does not list after its delete was taken, is taken for gone."""
        parsed = parse_cell_id(event.cell)
        assert parsed is not None
        replicas, _ = self.wanted.get(parsed.group, (0, ""))
        if (
            life.health is Health.DEAD
            or life.ready_at is None
            or (event.reason and life.health is Health.SICK)
            or parsed.slot >= replicas
            or parsed.group in self.exclusive
            or event.cell in self.known_dead
            or life.server in self.liars
            or (life.server == "" and self.lists_lied)
        ):
            return
        slot = self.slots[parsed.group, parsed.slot]
        healthy_for = self.healthy_for[parsed.group]
        self._require(
            any(self.lives[other].is_proven(record.at, healthy_for) for other in slot)
            or any(self.lives[elder].still_serves for elder in slot[: slot.index(event.cell)]),
            record,
            f"{'ended' if isinstance(event, e.CellDraining) else 'condemned'} before its replacement was proven",
        )

    released: dict[str, float] = field(default_factory=dict)
    silenced: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    """Pool ("" for joined servers) to its servers that were condemned for silence, and when."""

    def _certified(self, record: Record, event: e.ServerCondemned) -> None:
        """Every death of a server has evidence, and silence never condemns more than the guard believes."""
        self._require(bool(event.evidence and event.reason), record, "a server died without a certificate")
        if event.rule not in SILENCE_RULES:
            return
        parsed = parse_cell_id(event.server) if event.server not in self.recognised else None
        pool = parsed.group if parsed else ""
        recent = {server: at for server, at in self.silenced[pool].items() if record.at - at < 60.0}
        self.silenced[pool] = recent | {event.server: record.at}
        if record.at >= self.released.get(pool, 0.0):
            count = len(self.silenced[pool])  # pools here are small: one is what the guard believes
            self._require(count == 1, record, f"silence condemned {count} of pool {pool!r} in a minute")

    known_dead: set[str] = field(default_factory=set)
    """Cells whose bodies are dead in the virtual world, whatever the journal knows."""

    def _require(self, condition: bool, record: Record, message: str) -> None:
        if not condition and not self._is_history:
            raise LawBroken(f"{message}: {record}")
