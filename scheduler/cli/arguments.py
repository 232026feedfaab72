"""Options that many commands share, and readers of what people type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

import typer

from scheduler.cli.output import Format
from scheduler.units import parse_duration

Scheduler = Annotated[
    str | None,
    typer.Option(
        "--scheduler",
        envvar="GALACTICA_SCHEDULER",
        metavar="HOST:PORT",
        help="Where the scheduler is, if not where the context file says.",
    ),
]
Output = Annotated[Format, typer.Option("--output", "-o", help="A table for people, or JSON for programs.")]

_Value = TypeVar("_Value")


def read(option: str, reader: Callable[[str], _Value], text: str) -> _Value:
    """What ``reader`` makes of the text; its ValueError becomes wrong usage of that option."""
    try:
        return reader(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def service_name(text: str) -> str:
    """The name in ``service/NAME``."""
    kind, slash, name = text.partition("/")
    if kind != "service" or not slash or not name or "/" in name:
        meant = f"service/{text}" if not slash and text else "service/NAME"
        raise typer.BadParameter(f"{text!r} names no service; write {meant}")
    return name


def group_name(text: str) -> str:
    """The name in ``NAME`` or ``service/NAME``; empty for none."""
    return service_name(text) if "/" in text else text


def duration(option: str, text: str) -> float:
    seconds = read(option, parse_duration, text)
    if not 0 < seconds <= 366 * 86_400:
        raise typer.BadParameter(f"{text!r} is not between 1ms and a year", param_hint=option)
    return seconds
