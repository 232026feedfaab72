"""When exclusive cells must end because no scheduler is heard. Part of the agent's pure half.

There must never be two cells of one slot, and a scheduler that hears nothing of this host orders the next one when
the lease and some more have passed since it last did. So the lease is counted here from the time at which the newest
report was *sent* that a scheduler is known to have heard: each answer gives back that time (``beat_at``). What merely
arrives from the scheduler grants nothing, for it may be deaf to us. Sessions come and go without a change to the lease.
An agent that finds such cells at its start goes on with the lease that the one before it kept; where none is kept it
has ended.
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
"""Not being stopped yet."""


def grant(draft: Draft, beat_at: float, lease_seconds: float) -> None:
    """A scheduler has heard what was sent at ``beat_at``."""
    until = min(beat_at, draft.now) + lease_seconds
    if beat_at > 0.0 and until > draft.state.fence_at:
        draft.change(fence_at=until)


def mind(draft: Draft) -> None:
    """End the exclusive cells when their time is up."""
    state = draft.state
    if not state.exclusive or draft.now < state.fence_at:
        return
    for cell_id in sorted(state.exclusive):
        cell = draft.cells[cell_id]
        if cell.state not in LIVE:
            continue
        over = draft.now - state.fence_at
        since = f"the lease ended {over:.1f} s ago" if over < draft.now else "no lease is known"
        lived = draft.now - cell.running_since if cell.state is CellState.RUNNING else 0.0
        autopsy = Death(f"fenced: no scheduler is known to hear this server; {since}", lived, fenced=True)
        life.stop(draft, replace(cell, is_fenced=True, autopsy=autopsy))


def has_live(state: State) -> bool:
    """Whether something is to be done when the lease ends."""
    return any(state.cells[cell_id].state in LIVE for cell_id in state.exclusive)


def to_remember(before: State, after: State) -> tuple[RememberFence, ...]:
    """What is to be kept because of a step: the watchdog ends the cells where this process cannot."""
    if bool(before.exclusive) == bool(after.exclusive) and before.fence_at == after.fence_at:
        return ()
    if after.exclusive:
        return (RememberFence(after.fence_at),)
    return (RememberFence(None),) if before.exclusive else ()
