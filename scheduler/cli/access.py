"""Commands about join tokens, operators and versions."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from galactica import __version__
from galactica.scheduler.cli import people
from galactica.scheduler.cli.arguments import Output, Scheduler, duration
from galactica.scheduler.cli.client import connect
from galactica.scheduler.cli.output import Format, Styled, line, print_json
from galactica.scheduler.settings.context import Context, context_path, create_context
from galactica.scheduler.settings.errors import CommandFailed
from galactica.scheduler.views import shapes
from galactica.v1 import operator_pb2

VERSION_SECONDS = 2.0
_LOOPBACK = re.compile(r"127\.[\d.]+:\d+|localhost:\d+|\[::1\]:\d+")


class RoleChoice(StrEnum):
    VIEWER = "viewer"
    DEPLOYER = "deployer"
    ADMIN = "admin"


def create_token(
    uses: Annotated[
        int, typer.Option("--uses", min=1, max=100_000, help="How many servers may join with it.")
    ] = 1,
    ttl: Annotated[
        str, typer.Option("--ttl", metavar="DURATION", help="How long the token is valid.")
    ] = "1h",
    scheduler: Scheduler = None,
    output: Output = Format.TABLE,
) -> None:
    """Create a join token. Servers enrol with it."""
    seconds = duration("--ttl", ttl)
    if seconds < 1:
        raise typer.BadParameter("must be at least 1s", param_hint="--ttl")
    with connect(scheduler) as client:
        request = operator_pb2.CreateTokenRequest(uses=uses, ttl_seconds=round(seconds))
        answer = client.ask(client.stub.CreateToken, request)
        address = answer.scheduler or client.address
    if output is Format.JSON:
        print_json(shapes.token(answer))
        return
    until = people.until_text(answer.expires_at)
    line(
        f"A join token for {people.counted(answer.uses, 'server')}, valid until {until}. It is shown only once."
    )
    line("Run on each new server:")
    line(f"  GALACTICA_TOKEN={answer.token} galactica-agent --scheduler {address}")


def create_operator(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the operator.")],
    role: Annotated[
        RoleChoice,
        typer.Option("--role", help="What the operator may do. Each role includes the roles before it."),
    ],
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", help="The context file to write. Default: NAME.context.json."),
    ] = None,
    ttl: Annotated[
        str, typer.Option("--ttl", metavar="DURATION", help="How long the certificate is valid.")
    ] = "720h",
    scheduler: Scheduler = None,
) -> None:
    """Create an operator: writes a context file for a person. The private key is made here and is never sent."""
    seconds = duration("--ttl", ttl)
    if "/" in name:
        raise typer.BadParameter("a name must not contain '/'", param_hint="NAME")
    path = file or Path(f"{name}.context.json")
    if path.exists():
        raise CommandFailed(
            f"{path} already exists", hint="Move it away, or choose another file: --file FILE"
        )
    with connect(scheduler) as client:
        from galactica.scheduler.security.ca import new_key_and_csr

        key_pem, csr_pem = new_key_and_csr()
        request = operator_pb2.CreateOperatorRequest(
            name=name, role=role.value, csr_pem=csr_pem, ttl_seconds=max(1, round(seconds))
        )
        answer = client.ask(client.stub.CreateOperator, request)
        context = Context(
            scheduler=client.address,
            ca_pem=answer.ca_pem.decode(),
            cert_pem=answer.certificate_pem.decode(),
            key_pem=key_pem.decode(),
            fleet=client.context.fleet,
            operator=name,
            role=role.value,
            fleet_id=client.context.fleet_id,
        )
    try:
        create_context(path, context)
    except OSError as error:
        raise CommandFailed(
            f"cannot write {path}: {error.strerror or error}",
            hint="Choose another file: --file FILE",
        ) from error
    until = people.until_text(answer.expires_at)
    line(f"{name}: {role.value} of fleet {context.fleet} until {until}. Context file: {path}")
    line(
        f"It contains a private key. Hand it over safely. The operator adds it: galactica context add {path.name}"
    )
    if _LOOPBACK.fullmatch(context.scheduler):
        line(
            Styled(f"Its scheduler address {context.scheduler} works on this machine only.", "yellow"),
            " On another machine, set GALACTICA_SCHEDULER=HOST:PORT.",
        )


def version(scheduler: Scheduler = None, output: Output = Format.TABLE) -> None:
    """Show the version of this program, and the scheduler's version if it answers."""
    own = __version__
    failure = ""
    facts: dict[str, object] = {"version": own, "scheduler": None}
    if scheduler or context_path().exists():
        try:
            with connect(scheduler) as client:
                request = operator_pb2.GetVersionRequest()
                answer = client.ask(client.stub.GetVersion, request, VERSION_SECONDS)
                facts["scheduler"] = {
                    "version": answer.version,
                    "wire_version": answer.wire_version,
                    "fleet": answer.fleet,
                    "fleet_id": answer.fleet_id or None,
                    "address": client.address,
                }
        except CommandFailed as error:
            failure = str(error)
    if output is Format.JSON:
        print_json(facts)
        return
    line(f"galactica {own}")
    if isinstance(reply := facts["scheduler"], dict):
        line(
            f"scheduler {reply['version']} at {reply['address']}, "
            f"fleet {reply['fleet']}, wire version {reply['wire_version']}"
        )
    elif failure:
        line(Styled(failure, "yellow"))
