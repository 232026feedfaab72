"""All commands in one app."""

from __future__ import annotations

import typer

from galactica.scheduler.cli import access, changing, contexts, reading, servers, serving, shell, waiting
from galactica.scheduler.settings.errors import EXIT_CODES


def build() -> typer.Typer:
    """The app. A call ends with SystemExit, or raises CommandFailed."""
    app = _group(
        "Galactica runs a fleet in which nothing is ever repaired or updated: sick cells are replaced.",
        completion=True,
    )
    for name, command in (
        ("up", serving.up),
        ("scheduler", serving.scheduler),
        ("apply", changing.apply),
        ("plan", changing.plan),
        ("delete", changing.delete),
        ("wait", waiting.wait),
        ("condemn", changing.condemn),
        ("adopt", changing.adopt),
        ("drain", changing.drain),
        ("regrow", servers.regrow),
        ("status", reading.status),
        ("top", reading.top),
        ("cells", reading.cells),
        ("servers", servers.servers),
        ("pools", servers.pools),
        ("providers", servers.providers),
        ("events", reading.events),
        ("why", reading.why),
        ("logs", reading.logs),
        ("shell", shell.shell),
        ("version", access.version),
    ):
        app.command(name, epilog=EXIT_CODES)(command)
    token = _group("Join tokens. Servers enrol with them.")
    token.command("create", epilog=EXIT_CODES)(access.create_token)
    operator = _group("Operators: the people who may use this fleet.")
    operator.command("create", epilog=EXIT_CODES)(access.create_operator)
    context = _group("The fleets that this command line knows, and as which operator.")
    context.command("show", epilog=EXIT_CODES)(contexts.show)
    context.command("list", epilog=EXIT_CODES)(contexts.list_all)
    context.command("use", epilog=EXIT_CODES)(contexts.use)
    context.command("add", epilog=EXIT_CODES)(contexts.add)
    context.command("forget", epilog=EXIT_CODES)(contexts.forget)
    storms = typer.Typer(epilog=EXIT_CODES)
    storms.callback(invoke_without_command=True)(servers.storms)
    storms.command("release", epilog=EXIT_CODES)(servers.release_storm)
    app.add_typer(storms, name="storms")
    app.add_typer(token, name="token")
    app.add_typer(operator, name="operator")
    app.add_typer(context, name="context")
    return app


def _group(about: str, *, completion: bool = False) -> typer.Typer:
    return typer.Typer(
        help=about,
        epilog=EXIT_CODES,
        no_args_is_help=True,
        add_completion=completion,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
