"""Commands about the context file, which holds one context for each fleet. None of them calls a scheduler."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from galactica.scheduler.cli.arguments import Output
from galactica.scheduler.cli.output import Format, Styled, line, print_json, table
from galactica.scheduler.settings.context import (
    FLEET_VARIABLE,
    Context,
    context_path,
    forget_context,
    keep_context,
    read_context,
    read_contexts,
    use_context,
)
from galactica.scheduler.settings.errors import CommandFailed

_Done = TypeVar("_Done")

Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="Name of a context, as in galactica context list, or a fleet's id."),
]

COLUMNS = ("CONTEXT", "CURRENT", "FLEET", "ID", "SCHEDULER", "OPERATOR", "ROLE")


def show(output: Output = Format.TABLE) -> None:
    """Show which scheduler this command line talks to, and as which operator."""
    path = context_path()
    context = read_context(path, os.environ.get(FLEET_VARIABLE, ""))
    facts = {
        "file": str(path),
        "scheduler": context.scheduler,
        "fleet": context.fleet,
        "fleet_id": context.fleet_id or None,
        "operator": context.operator,
        "role": context.role,
        "expires_at": _expires_at(context),
    }
    if output is Format.JSON:
        print_json(facts)
        return
    for name, value in facts.items():
        line(Styled(f"{name.replace('_', ' '):<12}", "dim"), value or "unknown")


def list_all(output: Output = Format.TABLE) -> None:
    """Show the contexts in the context file. Commands use the current one, or the one that GALACTICA_FLEET names."""
    contexts = read_contexts(context_path())
    rows = sorted(contexts.by_name.items())
    if output is Format.JSON:
        print_json(
            [
                {
                    "name": name,
                    "is_current": name == contexts.current,
                    "fleet": one.fleet,
                    "fleet_id": one.fleet_id or None,
                    "scheduler": one.scheduler,
                    "operator": one.operator,
                    "role": one.role,
                }
                for name, one in rows
            ]
        )
        return
    marks = {contexts.current: Styled("yes", "green")}
    table(
        COLUMNS,
        (
            [name, marks.get(name, ""), one.fleet, one.fleet_id, one.scheduler, one.operator, one.role]
            for name, one in rows
        ),
    )


def use(name: Name) -> None:
    """Make a context the current one: from now on commands talk to its scheduler."""
    chosen = _written(lambda: use_context(context_path(), name))
    line(f"{chosen} is the current context.")


def add(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A context file, as galactica operator create writes it.")
    ],
) -> None:
    """Add the context in a file to the context file. It becomes the current one if its fleet is new there."""
    context = read_context(file)
    kept = _written(lambda: keep_context(context_path(), context))
    line(
        f"{kept.name}: {context.operator} of fleet {context.fleet}, now in {context_path()}.",
        "" if kept.is_current else f" To use it: galactica context use {kept.name}",
    )
    if kept.aside is not None:
        line(Styled(f"That file was damaged. It was moved to {kept.aside}.", "yellow"))


def forget(name: Name) -> None:
    """Remove a context and its key from the context file. The fleet is not touched."""
    forgotten = _written(lambda: forget_context(context_path(), name))
    line(f"{forgotten}: removed from {context_path()}.")


def _written(work: Callable[[], _Done]) -> _Done:
    """Raises CommandFailed."""
    try:
        return work()
    except OSError as error:
        raise CommandFailed(
            f"cannot write the context file {context_path()}: {error.strerror or error}",
            hint="Set GALACTICA_CONTEXT to a writable path.",
        ) from error


def _expires_at(context: Context) -> str | None:
    from cryptography import x509

    from galactica.scheduler.views.shapes import time_text

    try:
        certificate = x509.load_pem_x509_certificate(context.cert_pem.encode())
    except ValueError:
        return None
    return time_text(certificate.not_valid_after_utc.timestamp())
