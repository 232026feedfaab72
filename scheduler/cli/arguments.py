"""Options that many commands share, and parsers for arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

import typer

from galactica.scheduler.cli.output import Format
from galactica.scheduler.units import parse_duration
from galactica.v1 import operator_pb2

Scheduler = Annotated[
    str | None,
    typer.Option(
        "--scheduler",
        envvar="GALACTICA_SCHEDULER",
        metavar="HOST:PORT",
        help="Address of the scheduler. Default: the address in the context file.",
    ),
]
Output = Annotated[
    Format, typer.Option("--output", "-o", help="Output format: a table for people, or JSON for programs.")
]
Named = Annotated[
    str, typer.Argument(metavar="service/NAME|pool/NAME", help="A service or a pool, such as service/web.")
]

_Value = TypeVar("_Value")


def read(option: str, reader: Callable[[str], _Value], text: str) -> _Value:
    """The text as parsed by ``reader``. A ValueError becomes a usage error of that option."""
    try:
        return reader(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


KINDS = {"service": operator_pb2.GROUP_KIND_SERVICE, "pool": operator_pb2.GROUP_KIND_POOL}


def named_group(text: str) -> tuple[operator_pb2.GroupKind.ValueType, str]:
    """Kind and name in ``service/NAME`` or ``pool/NAME``."""
    kind, slash, name = text.partition("/")
    if kind not in KINDS or not slash or not name or "/" in name:
        meant = f"service/{text} or pool/{text}" if not slash and text else "service/NAME or pool/NAME"
        raise typer.BadParameter(f"invalid group {text!r}: write {meant}")
    return KINDS[kind], name


def group_name(text: str) -> str:
    """The name in ``NAME``, ``service/NAME`` or ``pool/NAME``; empty for an empty text."""
    return named_group(text)[1] if "/" in text else text


def duration(option: str, text: str) -> float:
    seconds = read(option, parse_duration, text)
    if not 0 < seconds <= 366 * 86_400:
        raise typer.BadParameter(f"{text!r} is not between 1ms and a year", param_hint=option)
    return seconds
