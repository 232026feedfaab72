"""An agent that lies: about its own cells, about those of others, and about cells that nobody ever ordered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from galactica.agent.core.model import CellReport, CellState

GHOSTS = 5
"""How many cells it makes up that nobody ordered."""
FIRST_GHOST = 500
"""Generations of ghosts: no slot gets there in truth."""


@dataclass
class Liar:
    """``own``: the ids of its cells that it lies about; not the exclusive ones, for whose end its word is the only
    proof. ``others``: the ids of cells that run elsewhere."""

    random: Random
    own: Callable[[], Sequence[str]]
    others: Callable[[], Sequence[str]]
    ghosts: int = 0

    def tell(self, cells: tuple[CellReport, ...]) -> tuple[CellReport, ...]:
        """What it says instead."""
        lies = [lie for lie in (self._jump(), self._claim(), self._ghost()) if lie is not None]
        told = {lie.cell_id for lie in lies}
        return (*(cell for cell in cells if cell.cell_id not in told), *lies)

    def _jump(self) -> CellReport | None:
        """One of its cells is in another state than it was, or could be, a moment ago."""
        own = self.own()
        return self._any_state(self.random.choice(own)) if own and self.random.random() < 0.3 else None

    def _claim(self) -> CellReport | None:
        """It has a cell that is another's."""
        others = self.others()
        return self._any_state(self.random.choice(others)) if others and self.random.random() < 0.5 else None

    def _ghost(self) -> CellReport | None:
        if self.ghosts >= GHOSTS:
            return None
        self.ghosts += 1
        slot, generation = self.random.randint(0, 9), FIRST_GHOST + self.ghosts
        return replace(self._any_state(f"web/{slot}.{generation}"), state=CellState.RUNNING)

    def _any_state(self, cell: str) -> CellReport:
        return CellReport(cell, "a digest", self.random.choice(list(CellState)), "pid", {"http": "liar:1"})
