"""Commands about who may join and who may ask, and about this program itself."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from galactica import __version__
from galactica.scheduler.cli import people, shapes
from galactica.scheduler.cli.arguments import Output, Scheduler, duration
from galactica.scheduler.cli.client import connect
from galactica.scheduler.cli.output import Format, Styled, line, print_json
from galactica.scheduler.settings.context import Context, context_path, create_context, read_context
from galactica.scheduler.settings.errors import CommandFailed
from galactica.v1 import operator_pb2

VERSION_SECONDS = 2.0
_LOOPBACK = re.compile(r"127\.[\d.]+:\d+|localhost:\d+|\[::1\]:\d+")


class RoleChoice(StrEnum):
    VIEWER = "viewer"
    DEPLOYER = "deployer"
    ADMIN = "admin"


def create_token(
    uses: Annotated[int, typer.Option("--uses", min=1, max=100_000, help="How many servers may join.")] = 1,
    ttl: Annotated[str, typer.Option("--ttl", metavar="DURATION", help="How long it holds.")] = "1h",
    scheduler: Scheduler = None,
    output: Output = Format.TABLE,
) -> None:
    """Make a join token, with which servers enrol."""
    seconds = duration("--ttl", ttl)
    if seconds < 1:
        raise typer.BadParameter("a token holds at least 1s", param_hint="--ttl")
    with connect(scheduler) as client:
        request = operator_pb2.CreateTokenRequest(uses=uses, ttl_seconds=round(seconds))
        answer = client.ask(client.stub.CreateToken, request)
        address = answer.scheduler or client.address
    if output is Format.JSON:
        print_json(shapes.token(answer))
        return
    until = people.until_text(answer.expires_at)
    line(
        f"A join token for {people.counted(answer.uses, 'server')}, good until {until}. It is not shown again."
    )
    line("On each new server:")
    line(f"  GALACTICA_TOKEN={answer.token} galactica-agent --scheduler {address}")


def create_operator(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The person's name in this fleet.")],
    role: Annotated[
        RoleChoice, typer.Option("--role", help="What they may do; each role includes the ones before.")
    ],
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", help="The context file to write (NAME.context.json)."),
    ] = None,
    ttl: Annotated[
        str, typer.Option("--ttl", metavar="DURATION", help="How long the certificate holds.")
    ] = "720h",
    scheduler: Scheduler = None,
) -> None:
    """Let a person in: writes a context file for them. Its key is made here and never sent."""
    seconds = duration("--ttl", ttl)
    if "/" in name:
        raise typer.BadParameter("a name holds no '/'", param_hint="NAME")
    path = file or Path(f"{name}.context.json")
    if path.exists():
        raise CommandFailed(f"{path} is there already", hint="Move it away, or write --file FILE.")
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
        )
    try:
        create_context(path, context)
    except OSError as error:
        raise CommandFailed(
            f"{path} cannot be written: {error.strerror or error}",
            hint="Choose another place with --file FILE.",
        ) from error
    until = people.until_text(answer.expires_at)
    line(f"{name}: {role.value} of fleet {context.fleet} until {until}. Context file: {path}")
    line(f"It holds a private key. Hand it over safely; they put it at {_usual_place()}")
    if _LOOPBACK.fullmatch(context.scheduler):
        line(
            Styled(f"It says scheduler {context.scheduler}, which is this machine only.", "yellow"),
            " Elsewhere they set GALACTICA_SCHEDULER=HOST:PORT.",
        )


def _usual_place() -> str:
    return "~/.config/galactica/context.json, with mode 0600."


def show_context(output: Output = Format.TABLE) -> None:
    """Which scheduler this command line talks to, and as whom."""
    path = context_path()
    context = read_context(path)
    facts = {
        "file": str(path),
        "scheduler": context.scheduler,
        "fleet": context.fleet,
        "operator": context.operator,
        "role": context.role,
        "expires_at": _expires_at(context),
    }
    if output is Format.JSON:
        print_json(facts)
        return
    for name, value in facts.items():
        line(Styled(f"{name.replace('_', ' '):<12}", "dim"), value or "unknown")


def _expires_at(context: Context) -> str | None:
    from cryptography import x509

    from galactica.scheduler.cli.shapes import time_text

    try:
        certificate = x509.load_pem_x509_certificate(context.cert_pem.encode())
    except ValueError:
        return None
    return time_text(certificate.not_valid_after_utc.timestamp())


def version(scheduler: Scheduler = None, output: Output = Format.TABLE) -> None:
    """The version of this program, and the scheduler's where one answers."""
    own = __version__
    trouble = ""
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
                    "address": client.address,
                }
        except CommandFailed as error:
            trouble = str(error)
    if output is Format.JSON:
        print_json(facts)
        return
    line(f"galactica {own}")
    if isinstance(told := facts["scheduler"], dict):
        line(
            f"scheduler {told['version']} at {told['address']}, "
            f"fleet {told['fleet']}, wire version {told['wire_version']}"
        )
    elif trouble:
        line(Styled(trouble, "yellow"))
