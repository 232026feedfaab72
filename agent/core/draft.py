"""One step of the agent's state in progress.

A ``Draft`` collects the changes of a step and its instructions. ``settle`` returns the next state.
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
"""How many removed cells the agent remembers, so that a late order cannot start one of them again."""
MAY_LIVE = frozenset({CellState.STARTING, CellState.RUNNING, CellState.STOPPING})


class Draft:
    """One step in progress: the changes so far, and the instructions."""

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
        """The state, without the draft's changes to cells, gone and retries."""
        return self._state

    def change(self, **fields: object) -> None:
        self._state = replace(self._state, **fields)  # type: ignore[arg-type]

    def emit(self, instruction: Instruction) -> None:
        self._instructions.append(instruction)

    def tell(self, cell_id: str, report: CellReport | None = None) -> None:
        """Add a cell to the next report: in its state at the time of sending, or as given in ``report``."""
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
        """Try to start or stop the cell again at that time; None: never."""
        retries = self._state.retries if self._retries is None else self._retries
        if at is None and cell_id not in retries:
            return
        self._retries = dict(retries)
        if at is None:
            del self._retries[cell_id]
        else:
            self._retries[cell_id] = at

    def settle(self) -> tuple[State, tuple[Instruction, ...]]:
        """The next state and the instructions. If a report is due, it is the last instruction."""
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
                # Only an echo extends the lease of exclusive cells, so each beat asks for one.
                echo_share=0.0 if state.exclusive else reporting.ECHO_SHARE,
                is_leaving=state.is_closing,
            )
            if session is not state.session:
                state = replace(state, session=session)
            if report:
                self._instructions.append(report)
        return state, tuple(self._instructions)
