"""The law on revisions whose cells die young: they may cost a service nothing of what served well before them."""

from __future__ import annotations

from dataclasses import dataclass, field

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.events import Record
from galactica.scheduler.core.model.fleet import parse_cell_id
from galactica.scheduler.core.model.rules import OWN_DEATHS, Rule
from galactica.scheduler.core.model.verdict import Health
from tests.sim.host import LIVES

Move = e.CellReady | e.CellCondemned | e.CellDraining

SURGE = 1
"""How many cells of a group are replaced at once because they are outdated."""
YOUNG_DEATH_SECONDS = 60.0
"""How long a death of a cell that was never proven is fresh."""


@dataclass
class Rollout:
    """What became of one revision of a group since it was applied."""

    digest: str
    healthy_for: float
    dies_young: bool = False
    """No cell of it lives long enough to be proven, whatever anybody sees of that."""
    replicas: int = 0
    ready_at: dict[str, float] = field(default_factory=dict)
    """Its cells that are READY, and since when."""
    is_proven: bool = False
    """One of them stayed READY for long enough."""
    let_go: list[str] = field(default_factory=list)
    """Cells of older revisions that were told to end only because they are outdated."""
    died_young_at: float = float("-inf")


@dataclass
class Rollouts:
    current: dict[str, Rollout] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    served: set[str] = field(default_factory=set)
    outdated: set[str] = field(default_factory=set)
    """Cells that served and are condemned only because they are outdated."""
    waiting: dict[str, str] = field(default_factory=dict)
    """Cells that served, are not dead, and are not told to end yet, to their slots."""

    def note(self, record: Record) -> str:
        """What the record breaks; empty where it breaks nothing."""
        event = record.event
        if isinstance(event, e.GroupApplied):
            self._applied(event)
        elif isinstance(event, e.GroupDeleted):
            self.current.pop(event.name, None)
        elif isinstance(event, e.CellOrdered | e.CellAdopted):
            self.digests[event.cell] = event.digest
        elif isinstance(event, e.CellReady | e.CellCondemned | e.CellDraining):
            return self._moved(record, event)
        return ""

    def _applied(self, event: e.GroupApplied) -> None:
        known = self.current.get(event.group.name)
        if known is None or known.digest != event.digest:
            dies_young = bool(set(event.group.spec.command) & LIVES.keys())
            known = Rollout(event.digest, event.group.healthy_for_seconds, dies_young)
            self.current[event.group.name] = known
        known.replicas = event.group.replicas

    def _moved(self, record: Record, event: Move) -> str:
        cell = parse_cell_id(event.cell)
        rollout = self.current.get(cell.group) if cell else None
        if cell is None or rollout is None or cell.slot >= rollout.replicas:
            return ""
        long_ago = record.at - rollout.healthy_for
        if not rollout.dies_young and any(since <= long_ago for since in rollout.ready_at.values()):
            rollout.is_proven = True
        if isinstance(event, e.CellReady):
            self.served.add(event.cell)
            self.waiting[event.cell] = event.cell.rpartition(".")[0]
        broken = ""
        if self.digests.get(event.cell) == rollout.digest:
            self._of_the_new(record, event, rollout)
        else:
            broken = self._of_an_old(record, event, rollout)
        if isinstance(event, e.CellDraining) or (
            isinstance(event, e.CellCondemned) and event.health is Health.DEAD
        ):
            self.waiting.pop(event.cell, None)
        return broken

    def _of_the_new(self, record: Record, event: Move, rollout: Rollout) -> None:
        if isinstance(event, e.CellReady):
            rollout.ready_at[event.cell] = record.at
        elif isinstance(event, e.CellCondemned):
            since = rollout.ready_at.pop(event.cell, record.at)
            lived = event.autopsy.lived_seconds if event.autopsy else 0.0
            served = min(record.at - since, lived or record.at - since)  # it may have been read late
            if event.rule in OWN_DEATHS and served < rollout.healthy_for:
                rollout.died_young_at = record.at

    def _of_an_old(self, record: Record, event: Move, rollout: Rollout) -> str:
        """A cell beside an elder that still serves in its slot is not missed."""
        slot = event.cell.rpartition(".")[0]
        generation = int(event.cell.rpartition(".")[2])
        has_elder = any(
            of == slot and int(one.rpartition(".")[2]) < generation for one, of in self.waiting.items()
        )
        if isinstance(event, e.CellCondemned) and event.rule == Rule.OUTDATED and event.cell in self.served:
            self.outdated.add(event.cell)
            if record.at < rollout.died_young_at + YOUNG_DEATH_SECONDS and not has_elder:
                return "a cell that serves is condemned for a revision of which one died young a moment ago"
        if isinstance(event, e.CellDraining) and event.cell in self.outdated and not has_elder:
            rollout.let_go.append(event.cell)
            if not rollout.is_proven and len(rollout.let_go) > 1 + SURGE:
                return f"a revision that proved nothing cost the service {rollout.let_go}"
        return ""
