"""All commands in one app."""

from __future__ import annotations

import typer

from galactica.scheduler.cli import access, changing, reading, servers, serving, shell
from galactica.scheduler.settings.errors import EXIT_CODES


def build() -> typer.Typer:
    """The app. It ends with SystemExit, or raises CommandFailed."""
    app = _group(
        "A fleet in which nothing is ever repaired or updated: what is wrong is replaced.", completion=True
    )
    for name, command in (
        ("up", serving.up),
        ("scheduler", serving.scheduler),
        ("apply", changing.apply),
        ("plan", changing.plan),
        ("delete", changing.delete),
        ("wait", changing.wait),
        ("condemn", changing.condemn),
        ("drain", changing.drain),
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
    token = _group("Join tokens, with which servers enrol.")
    token.command("create", epilog=EXIT_CODES)(access.create_token)
    operator = _group("The people who may ask.")
    operator.command("create", epilog=EXIT_CODES)(access.create_operator)
    context = _group("Which scheduler this command line talks to.")
    context.command("show", epilog=EXIT_CODES)(access.show_context)
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
