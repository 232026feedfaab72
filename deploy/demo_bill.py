"""The demo's bill: how long each replacement took, from the scheduler's own events, and its tables."""

from __future__ import annotations

import io
import json
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, ConsoleDimensions, RenderableType
from rich.table import Table
from rich.text import Text

from galactica.v1 import operator_pb2

PICTURE_SIZE = ConsoleDimensions(120, 28)
_REMOTE_FONT = re.compile(r"@font-face \{.*?\}|<!-- Generated with Rich.*?-->", re.DOTALL)


@dataclass
class Murder:
    """One killed cell or server, and its successor. Times are Unix seconds; None: not yet."""

    victim: str
    on: str
    at: float
    seen_at: float | None = None
    ordered_at: float | None = None
    ready_at: float | None = None

    @property
    def successor(self) -> str:
        slot, _, generation = self.victim.rpartition(".")
        return f"{slot}.{int(generation) + 1}"

    @property
    def is_answered(self) -> bool:
        return None not in (self.seen_at, self.ordered_at, self.ready_at)

    def since_the_kill(self) -> tuple[float | None, ...]:
        """Seconds from the kill to: death seen, successor ordered, successor ready."""
        return tuple(at and at - self.at for at in (self.seen_at, self.ordered_at, self.ready_at))

    def note(self, event: operator_pb2.Event) -> None:
        if event.type == "CellCondemned" and event.cell == self.victim:
            self.seen_at = event.at
        elif event.type == "CellOrdered" and _details(event).get("replaces") == self.victim:
            self.ordered_at = event.at
        elif event.type == "CellReady" and event.cell == self.successor:
            self.ready_at = event.at


@dataclass
class Bill:
    """``cells``: the cells that were killed one by one. ``server``: the killed server, with ``its_cells``. ``rule``:
    the rule by which it was condemned."""

    cells: list[Murder] = field(default_factory=list)
    server: Murder | None = None
    its_cells: list[Murder] = field(default_factory=list)
    rule: str = ""

    @property
    def murders(self) -> list[Murder]:
        return [*self.cells, *([self.server] if self.server else []), *self.its_cells]

    @property
    def is_settled(self) -> bool:
        return all(murder.is_answered for murder in self.murders)

    def note(self, event: operator_pb2.Event) -> None:
        """Fill in the times from the event."""
        for murder in self.murders:
            murder.note(event)
        if self.server and event.type == "CellCondemned" and event.cell == self.server.victim:
            self.rule = str(_details(event).get("rule", ""))

    def tables(self) -> Iterable[RenderableType]:
        """The tables of a finished demo."""
        yield _table("cells killed one by one: ms after the kill", self._cell_rows())
        if self.server:
            rows = self._server_rows(self.server)
            yield _table(f"server {self.server.victim} killed with its cells: ms after the kill", rows)
            yield Text(f"{self.server.victim} was condemned as dead by the rule {self.rule}\n", style="dim")

    def _cell_rows(self) -> Iterable[tuple[str, ...]]:
        yield "killed", "on", "seen", "successor ordered", "successor ready"
        for murder in self.cells:
            yield murder.victim, murder.on, *map(_ms, murder.since_the_kill())
        columns = list(zip(*(murder.since_the_kill() for murder in self.cells), strict=True))
        picks: tuple[tuple[str, Callable[[Sequence[float]], float]], ...] = (
            ("median", statistics.median),
            ("worst", max),
        )
        for name, pick in picks:
            yield name, "", *(_ms(pick([at for at in column if at is not None])) for column in columns)

    def _server_rows(self, server: Murder) -> Iterable[tuple[str, ...]]:
        seen, ordered, ready = server.since_the_kill()
        cells = [murder.since_the_kill() for murder in self.its_cells]
        yield "what", "", "ms"
        yield "condemned", server.victim, _ms(seen)
        yield "a new server ordered", server.successor, _ms(ordered)
        yield "first replacement cell ordered", f"1 of {len(cells)}", _ms(min(_times(cells, 1)))
        yield "all its cells replaced and ready", f"{len(cells)} of {len(cells)}", _ms(max(_times(cells, 2)))
        yield "the new server ready", server.successor, _ms(ready)


def paint(file: Path, *parts: RenderableType) -> None:
    """Draw the README's picture into the file."""
    canvas = Console(record=True, width=PICTURE_SIZE.width, file=io.StringIO(), highlight=False)
    for part in parts:
        canvas.print(part)
    picture = canvas.export_svg(title="make demo")
    file.write_text(_REMOTE_FONT.sub("", picture))  # the picture must not load anything from other hosts


def _table(title: str, rows: Iterable[tuple[str, ...]]) -> Table:
    heading, *others = rows
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(heading):
        table.add_column(column, justify="left" if number < 2 else "right")
    for row in others:
        if row[0] == "median":
            table.add_section()
        table.add_row(*row)
    return table


def _times(cells: Iterable[tuple[float | None, ...]], stage: int) -> list[float]:
    return [at for cell in cells if (at := cell[stage]) is not None]


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:,.0f}"


def _details(event: operator_pb2.Event) -> dict[str, object]:
    details = json.loads(event.details_json or "{}")
    return details if isinstance(details, dict) else {}
