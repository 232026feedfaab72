"""What operators see of a change of groups: before it is made, and once it is accepted."""

from __future__ import annotations

from galactica.scheduler.core.model.requests import GroupChange
from galactica.scheduler.core.preview import Preview
from galactica.scheduler.views.status import hold_rows
from galactica.v1 import operator_pb2


def change_row(change: GroupChange) -> operator_pb2.GroupChange:
    return operator_pb2.GroupChange(
        group=change.group,
        change=change.change,
        revision=change.revision,
        digest=change.digest,
        differences=change.differences,
    )


def plan(planned: Preview) -> operator_pb2.PlanGroupsResponse:
    return operator_pb2.PlanGroupsResponse(
        changes=map(change_row, planned.changes),
        births=(
            operator_pb2.Birth(cell_id=birth.cell, server=birth.server, replaces=birth.replaces)
            for birth in planned.births
        ),
        deaths=(
            operator_pb2.Death(cell_id=death.cell, server=death.server, rule=death.rule)
            for death in planned.deaths
        ),
        held=hold_rows(planned.held),
        more_births=planned.more_births,
        more_deaths=planned.more_deaths,
    )
