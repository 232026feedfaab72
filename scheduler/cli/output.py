"""Printing: tables and colours on a terminal, plain columns in a pipe, JSON for programs.

In a pipe nothing is cut off. Control characters in texts from the network are replaced, so they cannot control the
terminal.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Styled:
    """A text with a rich style ("bold red") for terminals."""

    text: str
    style: str = ""


Shown = str | Styled


class OutputLost(OSError):
    """Standard output takes nothing, for example because its disk is full."""


def is_terminal() -> bool:
    return sys.stdout.isatty()


def safe(text: str) -> str:
    """The text with control characters replaced."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def write(text: str) -> None:
    """Write to standard output. Ends the command quietly if the reader has closed the pipe."""
    write_bytes(text.encode(errors="replace"))


def write_bytes(data: bytes) -> None:
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        _end_quietly()
    except OSError as error:
        _end_buffer()
        raise OutputLost(error.errno, f"cannot write the output: {error.strerror}") from error


def _end_quietly() -> NoReturn:
    _end_buffer()
    raise typer.Exit(0) from None


def _end_buffer() -> None:
    """What remains in the buffer is written at exit, where it would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def line(*parts: Shown) -> None:
    """Print one line, with colours on a terminal."""
    if not is_terminal():
        write("".join(_plain(part) for part in parts) + "\n")
        return
    from rich.text import Text

    render(Text.assemble(*((_plain(part), _style(part)) for part in parts)))


def tell(*parts: Shown) -> None:
    """Print one line about what was done. What was done stays done: that the line cannot be written is no failure."""
    try:
        line(*parts)
    except OutputLost as lost:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"Warning: {lost.strerror}\n")
            sys.stderr.flush()


def table(columns: Sequence[str], rows: Iterable[Sequence[Shown]]) -> None:
    """Print a table with a heading, with colours on a terminal."""
    if not is_terminal():
        write(plain_table(columns, rows))
        return
    render(rich_table(columns, rows))


def plain_table(columns: Sequence[str], rows: Iterable[Sequence[Shown]]) -> str:
    """Columns as wide as needed, two blanks apart."""
    texts = [list(columns)] + [[_plain(value).replace("\n", " ") for value in row] for row in rows]
    widths = [max(len(row[index]) for row in texts) for index in range(len(columns))]
    lines = ("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in texts)
    return "".join(f"{text.rstrip()}\n" for text in lines)


def rich_table(columns: Sequence[str], rows: Iterable[Sequence[Shown | Text]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    result = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, column in enumerate(columns):
        # The first column, the name, stays on one line; the others may wrap.
        result.add_column(column, no_wrap=index == 0, overflow="fold")
    for row in rows:
        result.add_row(
            *(value if isinstance(value, Text) else Text(_plain(value), style=_style(value)) for value in row)
        )
    return result


def render(renderable: RenderableType) -> None:
    """Print a rich renderable on a terminal."""
    with_console = console()
    with with_console.capture() as captured:
        with_console.print(renderable)
    write(captured.get())


def console() -> Console:
    """A rich console. It respects NO_COLOR, TERM and the terminal's width."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


def print_json(value: object) -> None:
    write(json.dumps(value, indent=2) + "\n")


def print_json_line(value: object) -> None:
    write(json.dumps(value, separators=(",", ":")) + "\n")


def _plain(shown: Shown) -> str:
    return safe(shown.text if isinstance(shown, Styled) else shown)


def _style(shown: Shown) -> str:
    return shown.style if isinstance(shown, Styled) else ""
