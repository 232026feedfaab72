"""The agent's state, and one step of it under way.

A ``Draft`` gathers what a step changes and which instructions follow; ``settle`` makes the next state of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from galactica.agent.core import reporting
from galactica.agent.core.model import CellState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from galactica.agent.core.instructions import Instruction
    from galactica.agent.core.model import Cell, CellReport
from galactica.agent.core.model import State

GONE_KEPT = 1_000
"""How many cells that are gone are remembered, so that a late order cannot bring one back."""
MAY_LIVE = frozenset({CellState.STARTING, CellState.RUNNING, CellState.STOPPING})


class Draft:
    """One step under way: what changed so far, and the instructions that follow."""

    __slots__ = ("_cells", "_gone", "_instructions", "_news", "_retries", "_state", "now")

    def __init__(self, state: State, now: float) -> None:
        self._state = state
        self.now = now
        self._cells: dict[str, Cell] | None = None
        self._gone: dict[str, float] | None = None
        self._retries: dict[str, float] | None = None
        self._news: dict[str, CellReport | None] = {}
        self._instructions: list[Instruction] = []

    @property
    def cells(self) -> Mapping[str, Cell]:
        return self._state.cells if self._cells is None else self._cells

    @property
    def gone(self) -> Mapping[str, float]:
        return self._state.gone if self._gone is None else self._gone

    @property
    def state(self) -> State:
        """The state but for cells, retries and news, which are the draft's own."""
        return self._state

    def change(self, **fields: object) -> None:
        self._state = replace(self._state, **fields)  # type: ignore[arg-type]

    def emit(self, instruction: Instruction) -> None:
        self._instructions.append(instruction)

    def tell(self, cell_id: str, report: CellReport | None = None) -> None:
        """Put a cell on the next report: as it is when that goes out, or as ``report`` says."""
        self._news[cell_id] = report

    def put(self, cell: Cell) -> None:
        if self._cells is None:
            self._cells = dict(self._state.cells)
        self._cells[cell.id] = cell
        self.tell(cell.id)
        if cell.is_exclusive:
            self._note_exclusive(cell.id, may_live=cell.state in MAY_LIVE)

    def bury(self, cell: Cell) -> None:
        if self._cells is None:
            self._cells = dict(self._state.cells)
        if self._gone is None:
            self._gone = dict(self._state.gone)
        del self._cells[cell.id]
        self._gone[cell.id] = self.now
        while len(self._gone) > GONE_KEPT:
            del self._gone[next(iter(self._gone))]
        self.retry(cell.id, None)
        self.tell(cell.id, reporting.gone(cell.id, cell.digest))
        self._note_exclusive(cell.id, may_live=False)

    def _note_exclusive(self, cell_id: str, *, may_live: bool) -> None:
        if (cell_id in self._state.exclusive) != may_live:
            self.change(exclusive=self._state.exclusive ^ {cell_id})

    def retry(self, cell_id: str, at: float | None) -> None:
        """Look at the cell again at that time; None: no more."""
        retries = self._state.retries if self._retries is None else self._retries
        if at is None and cell_id not in retries:
            return
        self._retries = dict(retries)
        if at is None:
            del self._retries[cell_id]
        else:
            self._retries[cell_id] = at

    def settle(self) -> tuple[State, tuple[Instruction, ...]]:
        """The state and the instructions, with the report that is due as the last of them."""
        state = self._state
        if self._cells is not None or self._gone is not None or self._retries is not None:
            state = replace(
                state,
                cells=self.cells,
                gone=self.gone,
                retries=state.retries if self._retries is None else self._retries,
            )
        if self._news and state.greeting is not None:
            state = replace(state, since_hello={**state.since_hello, **self._news})
        if state.session:
            session, report = reporting.flush(
                state.session,
                self._news,
                state.cells,
                state.vitals,
                state.testimonies,
                self.now,
                # Exclusive cells live on what the scheduler says to have heard, so each beat asks.
                echo_share=0.0 if state.exclusive else reporting.ECHO_SHARE,
                is_leaving=state.is_closing,
            )
            if session is not state.session:
                state = replace(state, session=session)
            if report:
                self._instructions.append(report)
        return state, tuple(self._instructions)
