"""Draws the screen of ``top``: a pure function from a ``Picture`` to a terminal of a given size or to plain text."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from galactica.scheduler.cli import people
from galactica.scheduler.cli.output import Shown, Styled, plain_table, rich_table, safe
from galactica.v1 import operator_pb2

if TYPE_CHECKING:
    from rich.console import ConsoleDimensions, RenderableType
    from rich.text import Text

EVENTS_SHOWN = 12
HOLDS_SHOWN = 3
STRIP_CELLS = 400
"""How many cells of a group are drawn as squares."""

_SQUARE = "\N{BLACK SQUARE}"
_HOLLOW = "\N{WHITE SQUARE}"
_SERVER_COLUMNS = ("SERVER", "PHASE", "VERDICT", "CELLS", "CPU", "MEMORY", "BEAT")


@dataclass(frozen=True, slots=True)
class Picture:
    """The scheduler's answers at ``at`` (Unix seconds, this machine's clock). ``cells`` is empty in a large fleet."""

    at: float
    status: operator_pb2.GetStatusResponse
    servers: tuple[operator_pb2.Server, ...]
    cells: tuple[operator_pb2.Cell, ...]
    events: tuple[operator_pb2.Event, ...]


def plain(picture: Picture) -> str:
    """Everything as plain text, without colours and without cutting."""
    parts = [_flat(people.headline(picture.status))]
    parts += [_flat([people.hold_text(hold, picture.at)]) for hold in picture.status.held]
    tables = [
        plain_table(people.GROUP_COLUMNS, map(people.group_row, picture.status.groups)),
        plain_table(_SERVER_COLUMNS, _server_rows(picture, picture.servers)),
        "".join(f"{_flat(people.event_parts(event))}\n" for event in picture.events),
    ]
    return "\n".join(["\n".join(parts) + "\n", *filter(None, tables)])


def draw(picture: Picture, failure: str, size: ConsoleDimensions) -> RenderableType:
    """Headline, holds, groups with their cells as squares, servers, the newest events; cut to the terminal's height."""
    from rich.console import Group

    above = [_line([Styled(_clock(picture.at), people.DIM), "  ", *people.headline(picture.status)])]
    if failure:
        above.append(_line([Styled(f"{failure} - showing the last answer; trying again", people.BAD)]))
    above += [
        _line([Styled("held  ", people.WARN), people.hold_text(hold, picture.at)])
        for hold in picture.status.held[:HOLDS_SHOWN]
    ]
    below = [_line([Styled("q or Ctrl-C closes this view; the fleet keeps running", people.DIM)])]
    room = size.height - len(above) - len(below) - 6
    groups, servers, events = _shares(
        room, len(picture.status.groups), len(picture.servers), len(picture.events)
    )
    middle: list[RenderableType] = [
        "",
        rich_table(("GROUP", "READY", "SICK", "CELLS"), _group_rows(picture, groups, size.width - 40)),
        "",
        rich_table(_SERVER_COLUMNS, _server_rows(picture, picture.servers[:servers])),
        _more(len(picture.servers) - servers),
        *(_line(people.event_parts(event)) for event in (picture.events[-events:] if events else ())),
    ]
    return Group(*above, *middle, *below)


def _shares(room: int, groups: int, servers: int, events: int) -> tuple[int, int, int]:
    """How many lines each part gets. With little room events shrink first, then servers, then groups;
    one group and one server always stay."""
    room = max(room, 3)
    groups = min(groups, max(1, room // 3))
    servers = min(servers, max(1, (room - groups) // 2))
    return groups, servers, max(0, min(events, room - groups - servers))


def _group_rows(picture: Picture, count: int, width: int) -> Iterator[tuple[Shown | Text, ...]]:
    strips = _strips(picture.cells)
    for group in picture.status.groups[:count]:
        name, _, _, ready, _, sick = people.group_row(group)
        share = Styled(f"{group.ready}/{group.wanted}", ready.style if isinstance(ready, Styled) else "")
        yield name, share, sick, _squares(strips.get(group.name, []), group, min(STRIP_CELLS, max(width, 10)))


def _squares(cells: Sequence[operator_pb2.Cell], group: operator_pb2.GroupStatus, room: int) -> Text:
    """A square for each cell, and a hollow square for each empty slot."""
    from rich.text import Text

    text = Text(no_wrap=True)
    for cell in cells[:room]:
        text.append(_SQUARE, style=_square_style(cell))
    empty = group.wanted - len({cell.slot for cell in cells})
    if not cells and group.ready:
        text.append("too many to draw", style=people.DIM)
    elif len(cells) < room:
        text.append(_HOLLOW * min(empty, room - len(cells)), style=people.DIM)
    if cells and len(cells) + max(0, empty) > room:
        text.append(" ...", style=people.DIM)
    return text


def _square_style(cell: operator_pb2.Cell) -> str:
    if cell.phase == "READY" and cell.verdict not in {"", "healthy"}:
        return people.verdict(cell.verdict).style
    return people.phase(cell.phase).style


def _strips(cells: Iterable[operator_pb2.Cell]) -> dict[str, list[operator_pb2.Cell]]:
    """Each group's cells by slot, and by age in a slot: a sick cell stands beside its replacement."""
    strips: dict[str, list[operator_pb2.Cell]] = {}
    for cell in sorted(cells, key=lambda cell: (cell.group, cell.slot, cell.generation)):
        strips.setdefault(cell.group, []).append(cell)
    return strips


def _server_rows(picture: Picture, servers: Iterable[operator_pb2.Server]) -> Iterator[tuple[Shown, ...]]:
    for server in servers:
        name, phase, verdict, cells, cpu, memory, _, _, beat, *_ = people.server_row(server, picture.at)
        yield name, phase, verdict, cells, cpu, memory, beat


def _more(count: int) -> Text:
    return _line([Styled(f"... and {count:,} more" if count > 0 else "", people.DIM)])


def _line(parts: Iterable[Shown]) -> Text:
    from rich.text import Text

    text = Text(no_wrap=True, overflow="ellipsis")
    for part in parts:
        text.append(safe(part.text), part.style) if isinstance(part, Styled) else text.append(safe(part))
    return text


def _flat(parts: Iterable[Shown]) -> str:
    return "".join(safe(part.text if isinstance(part, Styled) else part) for part in parts)


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))
