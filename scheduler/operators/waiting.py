"""Waits until a group stands: all its cells READY and proven."""

from __future__ import annotations

import asyncio

from galactica.scheduler.core.model.requests import Refused
from galactica.scheduler.core.ports import Mind
from galactica.scheduler.views import events as event_views
from galactica.scheduler.views import groups as group_views
from galactica.scheduler.views import status as status_views
from galactica.v1 import operator_pb2

TAKEN_IN_SECONDS = 0.002
PROOF_LOOK_SECONDS = 0.25


async def until_it_stands(mind: Mind, name: str) -> operator_pb2.GroupStatus:
    """Returns when all its cells are READY, of the newest revision and proven. No record tells of the proof: time
    brings it. Raises Refused if the group is deleted."""
    while True:
        await _until_ready(mind, name)
        view = mind.view()
        state = view.fleet.groups.get(name)
        if state is not None and await asyncio.to_thread(group_views.stands, view, state):
            return status_views.group_status(view, state)
        await asyncio.sleep(PROOF_LOOK_SECONDS)


async def _until_ready(mind: Mind, name: str) -> None:
    """Wakes up on records about the group and then checks only the group's tally."""
    position = mind.fleet().position + 1
    if _is_ready(mind, name):
        return
    async for records in mind.feed(position):
        if not any(event_views.group_of(record.event) == name for record in records):
            continue
        await _taken_in(mind, records[-1].position)
        if _is_ready(mind, name):
            return


async def _taken_in(mind: Mind, position: int) -> None:
    """A record can be read a moment before the controller's fleet includes it."""
    while mind.fleet().position < position:  # noqa: ASYNC110 - a very short wait, and no event signals its end
        await asyncio.sleep(TAKEN_IN_SECONDS)


def _is_ready(mind: Mind, name: str) -> bool:
    state = mind.fleet().groups.get(name)
    if state is None or state.deleted:
        raise Refused("no_such_group", f"{name} was deleted", missing=True)
    return status_views.is_ready(state)
