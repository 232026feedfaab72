"""When exclusive cells must end because no scheduler hears this server. Part of the agent's pure half.

An exclusive slot must never have two live cells. A scheduler that hears nothing from this host orders the next cell
when the lease and a margin have passed since the last report that it received. So the agent counts the lease from the
time at which it *sent* the newest report that a scheduler has confirmed: each answer carries that time (``beat_at``).
Other messages from the scheduler do not extend the lease, because the scheduler may not receive this agent's reports.
A change of session does not change the lease. An agent that finds exclusive cells at its start continues the lease
that its predecessor stored; if none is stored, the lease has ended.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from galactica.agent.core import cells as life
from galactica.agent.core.instructions import RememberFence
from galactica.agent.core.model import CellState, Death

if TYPE_CHECKING:
    from galactica.agent.core.draft import Draft
    from galactica.agent.core.model import State

LIVE = frozenset({CellState.STARTING, CellState.RUNNING})
"""Running or starting, and not yet being stopped."""


def grant(draft: Draft, beat_at: float, lease_seconds: float) -> None:
    """A scheduler has received the report that was sent at ``beat_at``: extend the lease."""
    until = min(beat_at, draft.now) + lease_seconds
    if beat_at > 0.0 and until > draft.state.fence_at:
        draft.change(fence_at=until)


def mind(draft: Draft) -> None:
    """End the exclusive cells if the lease has ended."""
    state = draft.state
    if not state.exclusive or draft.now < state.fence_at:
        return
    for cell_id in sorted(state.exclusive):
        cell = draft.cells[cell_id]
        if cell.state not in LIVE:
            continue
        over = draft.now - state.fence_at
        lease = f"the lease ended {over:.1f} s ago" if over < draft.now else "the agent has no lease"
        lived = draft.now - cell.running_since if cell.state is CellState.RUNNING else 0.0
        autopsy = Death(
            f"fenced: no scheduler confirms that it hears this server; {lease}", lived, fenced=True
        )
        life.stop(draft, replace(cell, is_fenced=True, autopsy=autopsy))


def has_live(state: State) -> bool:
    """Whether there are cells to end when the lease ends."""
    return any(state.cells[cell_id].state in LIVE for cell_id in state.exclusive)


def to_remember(before: State, after: State) -> tuple[RememberFence, ...]:
    """Instructs the driver to store a changed end of the lease. The watchdog reads it and ends the cells if this
    process cannot."""
    if bool(before.exclusive) == bool(after.exclusive) and before.fence_at == after.fence_at:
        return ()
    if after.exclusive:
        return (RememberFence(after.fence_at),)
    return (RememberFence(None),) if before.exclusive else ()
