"""The law on whose word counts: only a container's own agent says that it runs, that it ended or that it is gone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.events import Record
from galactica.scheduler.core.model.rules import Rule
from galactica.scheduler.core.sight.observations import CellReport, CellState

NEEDED: dict[str, CellState] = {
    Rule.EXITED: CellState.EXITED,
    Rule.FENCED: CellState.EXITED,
    Rule.START_FAILED: CellState.FAILED,
    Rule.VANISHED: CellState.GONE,
}
"""What an agent must have said of a cell that was condemned by that rule."""


@dataclass
class Words:
    said: dict[tuple[str, str], set[CellState]] = field(default_factory=lambda: defaultdict(set))
    """Server and cell to all that the server's agent ever said of it."""
    servers: dict[str, str] = field(default_factory=dict)
    """Container to the server where it was ordered."""

    def heard(self, server: str, reports: Iterable[CellReport], *, complete: bool) -> None:
        """The scheduler's side took this from the server's agent. What a complete report leaves out is gone."""
        told = {report.cell: report for report in reports}
        for cell, report in told.items():
            if not report.doubt:  # otherwise it is the last state that the agent knew
                self.said[server, cell].add(report.state)
        if complete:
            for where, cell in list(self.said):
                if where == server and cell not in told:
                    self.said[server, cell].add(CellState.GONE)

    def note(self, record: Record) -> str:
        """What the record breaks; empty where it breaks nothing."""
        event = record.event
        if isinstance(event, e.CellOrdered | e.CellAdopted) and event.server:
            self.servers[event.cell] = event.server
        needed = None
        if isinstance(event, e.CellReady):
            needed = CellState.RUNNING
        elif isinstance(event, e.CellCondemned):
            needed = NEEDED.get(event.rule)
        server = self.servers.get(getattr(event, "cell", ""))
        if needed is None or server is None or needed in self.said[server, event.cell]:  # type: ignore[union-attr]
            return ""
        return f"the agent of {server} never said that it is {needed.value}"
