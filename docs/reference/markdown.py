"""Small pieces of Markdown that the generated pages share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with its heading. A line break or a bar in a cell does not end it."""
    lines = [_row(columns), _row(["---"] * len(columns)), *(_row(row) for row in rows)]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def code(text: str) -> str:
    """As it is typed; nothing for an empty text."""
    return f"`{text}`" if text else ""


def escaped(text: str) -> str:
    """Prose of the program that Markdown and HTML must leave alone."""
    for character in "\\`*_[]<>":
        text = text.replace(character, f"\\{character}" if character not in "<>" else _ENTITIES[character])
    return text


_ENTITIES = {"<": "&lt;", ">": "&gt;"}
