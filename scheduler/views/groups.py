"""One group: how it stands, what is held and why, and its newest deaths. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from galactica.scheduler.core.budgets.services import backoff_hold
from galactica.scheduler.core.model.fleet import Cell, GroupState, Phase
from galactica.scheduler.core.model.rules import HoldRule
from galactica.scheduler.core.model.verdict import Health
from galactica.scheduler.core.ports import View
from galactica.scheduler.views import status as status_views
from galactica.scheduler.views.cells import cells_of_group, is_proven
from galactica.v1 import operator_pb2

DEATHS_SHOWN = 3
BLAMED_DEATHS = 3
"""So many early deaths of a revision blame its spec, while no cell of it is READY."""


def group(
    view: View, state: GroupState, deaths: Sequence[operator_pb2.GetCertificateResponse]
) -> operator_pb2.GetGroupResponse:
    """``deaths``: the certificates of ``newest_dead``."""
    row = status_views.group_status(view, state)
    held = [hold for hold in status_views.holds(view) if hold.group in ("", state.group.name)]
    return operator_pb2.GetGroupResponse(
        group=row,
        healthy=not held and status_views.is_whole(state, row),
        held=held,
        deaths=deaths,
        blamed=blamed(view, state),
        unproven=len(unproven(view, state)),
    )


def unproven(view: View, state: GroupState) -> list[Cell]:
    """Cells of the newest revision that are READY, which is one sighting, and not proven. The time grows with the
    group."""
    return [
        cell
        for cell in cells_of_group(state)
        if cell.phase is Phase.READY and cell.digest == state.digest and not is_proven(view, cell)
    ]


def stands(view: View, state: GroupState) -> bool:
    """Whether each wanted cell is READY, of the newest revision and proven."""
    return status_views.is_ready(state) and not unproven(view, state)


def newest_dead(view: View, state: GroupState) -> list[Cell]:
    """The cells that died or were sick, newest first, as far back as the fleet remembers; a few."""
    name = state.group.name
    graves = [cell for cell in view.fleet.graves.values() if cell.group == name]
    ended = [cell for cell in (*graves, *cells_of_group(state)) if _died(cell)]
    ended.sort(key=lambda cell: (cell.condemned_at or 0.0, cell.slot, cell.generation), reverse=True)
    return ended[:DEATHS_SHOWN]


def _died(cell: Cell) -> bool:
    return cell.condemned_health in (Health.SICK, Health.DEAD)


def blamed(view: View, state: GroupState) -> str:
    """Why the spec is to blame; empty if it is not: its deaths on several servers say so, or it died early again and
    again and no cell of it is READY."""
    for hold in status_views.holds(view):
        if hold.group == state.group.name and hold.rule == HoldRule.SPEC_BLAMED:
            return hold.reason
    held = backoff_hold(state, view.now)
    if held is None or state.backoff.early_deaths < BLAMED_DEATHS:
        return ""
    stands = any(cell.phase is Phase.READY and cell.digest == state.digest for cell in cells_of_group(state))
    return "" if stands else held.reason
