"""The cells of a scope: from the engine's list, and an inspection of each container.

One container never hides the others. What the list says of a container (its labels, whether it has ended) holds even if
its inspection fails: then the cell is in doubt. Everything here blocks; called from worker threads.
"""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from galactica.agent.core.model import Found
from galactica.agent.runtimes.docker.autopsy import Life, autopsy_of, autopsy_of_exit
from galactica.agent.runtimes.docker.spec import flaw_of, order_of
from galactica.agent.runtimes.port import RuntimeFailure
from galactica.v1 import cell_pb2, link_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from galactica.agent.runtimes.docker.engine import Engine

INSPECT_SECONDS = 5.0
"""For one inspection: an engine may never answer for a container whose lock is held."""
LOST_SECONDS = 10.0
"""After failing inspections have taken this long, a list makes do without further ones."""
ENDED = frozenset({"exited", "dead"})

_EXITED = re.compile(r"Exited \((-?\d+)\)")
_UNREADABLE = (LookupError, TypeError, ValueError, AttributeError)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Row:
    """One container in the engine's list. ``status``: for people, such as "Exited (3) 2 hours ago"."""

    container_id: str
    order: link_pb2.Order
    name: str
    state: str
    status: str


class Listing:
    """Remembers which containers it has skipped, to tell each once, and whose inspection has failed how often."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._skipped: frozenset[str] = frozenset()
        self._failures: dict[str, int] = {}

    def living(self) -> list[link_pb2.Order]:
        """The orders of all containers that have not ended, by the list alone. Raises RuntimeUnavailable."""
        return [row.order for row in self._rows(self._engine.rows()) if row.state not in ENDED]

    def found(self) -> list[Found]:
        """Raises RuntimeUnavailable if the engine does not answer at all."""
        rows = _one_for_each_cell(self._rows(self._engine.rows()), self._engine.scope.name_of)
        self._failures = {row.container_id: self._failures.get(row.container_id, 0) for row in rows}
        # Those that failed most often come last, so that they do not keep the others waiting.
        rows.sort(key=lambda row: self._failures[row.container_id])
        lost_seconds = 0.0
        found = []
        for row in rows:
            if lost_seconds >= LOST_SECONDS:
                found.append(self._by_the_list(row, "not inspected, because the engine answers too slowly"))
                continue
            began = time.monotonic()
            one = self._look_at(row)
            if one is not None:
                found.append(one)
            if self._failures[row.container_id]:
                lost_seconds += time.monotonic() - began
        return found

    def _rows(self, listed: Iterable[Mapping[str, Any]]) -> list[Row]:
        """Without containers whose labels do not name a cell: nobody could speak of them."""
        rows, flaws = [], dict[str, str]()
        for entry in listed:
            labels, container_id = entry.get("Labels") or {}, str(entry.get("Id", ""))
            flaw = flaw_of(labels)
            if flaw:
                flaws[container_id] = flaw
                continue
            names = entry.get("Names") or [""]
            state, status = str(entry.get("State", "")), str(entry.get("Status", ""))
            rows.append(Row(container_id, order_of(labels), str(names[0]).lstrip("/"), state, status))
        for container_id in sorted(flaws.keys() - self._skipped):
            _log.error("container skipped id=%s reason=%r", container_id[:12], flaws[container_id])
        self._skipped = frozenset(flaws)
        return rows

    def _look_at(self, row: Row) -> Found | None:
        """None if it is gone. The container is in ``alive`` before it is inspected, so that a death between this list
        and the event stream is not missed."""
        life = self._engine.alive.setdefault(row.container_id, Life(row.order.cell_id))
        try:
            inspected = self._engine.inspect(row.container_id, INSPECT_SECONDS)
            found = None if inspected is None else self._told_by(row, life, inspected)
        except RuntimeFailure as failure:
            doubt = str(failure)
        except _UNREADABLE as error:
            doubt = f"the engine's inspection cannot be read: {error!r}"
        else:
            self._failures[row.container_id] = 0
            if found is None or found.running is None:
                self._engine.alive.pop(row.container_id, None)
            return found
        self._engine.ping()  # an engine that is away says nothing about one container
        self._failures[row.container_id] += 1
        return self._by_the_list(row, doubt)

    def _told_by(self, row: Row, life: Life, inspected: Mapping[str, Any]) -> Found:
        if inspected["State"]["Running"]:
            life.learn(inspected)
            return Found(row.order, self._engine.running_of(row.order, inspected))
        try:
            return Found(row.order, None, self._engine.autopsy(inspected))
        except RuntimeFailure as failure:
            self._engine.ping()
            _log.warning("log not read cell=%s reason=%r", row.order.cell_id, str(failure))
            return Found(row.order, None, autopsy_of(inspected, b""))

    def _by_the_list(self, row: Row, doubt: str) -> Found:
        if row.state not in ENDED:
            return Found(row.order, None, doubt=doubt, runtime_id=row.container_id)
        self._engine.alive.pop(row.container_id, None)
        code = _EXITED.match(row.status)
        autopsy = (
            autopsy_of_exit(int(code[1]), 0.0) if code else cell_pb2.Autopsy(reason=row.status or "ended")
        )
        autopsy.reason += f" (nothing more is known: {doubt})"
        return Found(row.order, None, autopsy)


def _one_for_each_cell(rows: Iterable[Row], name_of: Callable[[str], str]) -> list[Row]:
    """Labels can be copied to another container, as by a commit of this one. The one with the cell's name counts, or
    the oldest if none has it; the engine lists the newest first."""
    chosen: dict[str, Row] = {}
    for row in rows:
        cell_id = row.order.cell_id
        if cell_id not in chosen or chosen[cell_id].name != name_of(cell_id):
            chosen[cell_id] = row
    return list(chosen.values())
