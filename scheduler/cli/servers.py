"""Commands about servers, pools, providers and storms."""

from __future__ import annotations

from typing import Annotated

import typer

from galactica.scheduler.cli import people, server_texts
from galactica.scheduler.cli.arguments import Output, Scheduler
from galactica.scheduler.cli.client import LONG_ANSWER_SECONDS, connect
from galactica.scheduler.cli.output import Format, Styled, line, print_json, table, tell, write
from galactica.scheduler.settings.errors import CommandFailed, ExitCode
from galactica.scheduler.views import shapes
from galactica.v1 import operator_pb2


def servers(scheduler: Scheduler = None, output: Output = Format.TABLE) -> None:
    """Show the servers, their verdicts with the evidence, and how many cells they run."""
    with connect(scheduler) as client:
        answer = client.ask(client.stub.ListServers, operator_pb2.ListServersRequest(), LONG_ANSWER_SECONDS)
    if output is Format.JSON:
        print_json([shapes.server(server) for server in answer.servers])
        return
    if not answer.servers:
        line("No servers. To let one join: galactica token create. To order servers: apply a pool")
        return
    table(people.SERVER_COLUMNS, (people.server_row(server, client.now) for server in answer.servers))
    doubtful = [server for server in answer.servers if server.verdict != "healthy" and server.evidence]
    for server in doubtful:
        write("\n")
        line(Styled(server.id, "bold"), ": ", people.verdict(server.verdict), f", {server.reason}")
        for fact in server.evidence:
            line(*people.evidence_parts(fact))


def pools(scheduler: Scheduler = None, output: Output = Format.TABLE) -> None:
    """Show the pools: their providers, how many servers are wanted, and how many exist."""
    with connect(scheduler) as client:
        status = client.ask(client.stub.GetStatus, operator_pb2.GetStatusRequest())
    groups = [group for group in status.groups if group.kind == "pool"]
    storms = {storm.pool: storm.id for storm in status.storms}
    if output is Format.JSON:
        print_json([shapes.pool(group, storms.get(group.name)) for group in groups])
    elif groups:
        table(
            server_texts.POOL_COLUMNS,
            (server_texts.pool_row(group, storms.get(group.name, "")) for group in groups),
        )
    else:
        line("No pools. Write a manifest (kind: pool) and apply it: galactica apply FILE")


def providers(scheduler: Scheduler = None, output: Output = Format.TABLE) -> None:
    """Show the providers of servers, how many servers each has, and whether it answers."""
    with connect(scheduler) as client:
        answer = client.ask(client.stub.ListProviders, operator_pb2.ListProvidersRequest())
    if output is Format.JSON:
        print_json([shapes.provider(provider) for provider in answer.providers])
    elif answer.providers:
        rows = (server_texts.provider_row(provider, client.now) for provider in answer.providers)
        table(server_texts.PROVIDER_COLUMNS, rows)
    else:
        line("No provider has answered yet. Each pool names its provider: galactica pools")


def storms(context: typer.Context, scheduler: Scheduler = None, output: Output = Format.TABLE) -> None:
    """Show the storms: many servers are silent at once, so the scheduler suspects its own network and condemns none."""
    if context.invoked_subcommand is not None:
        return
    with connect(scheduler) as client:
        status = client.ask(client.stub.GetStatus, operator_pb2.GetStatusRequest())
    if output is Format.JSON:
        print_json([shapes.storm(storm) for storm in status.storms])
    elif status.storms:
        for storm in status.storms:
            for parts in server_texts.storm_lines(storm, client.now):
                line(*parts)
    else:
        line("No storms.")


def regrow(
    take: Annotated[
        bool,
        typer.Option("--take", help="Take the newest genome that was heard, and wait for no other agent."),
    ] = False,
    without_genome: Annotated[
        bool, typer.Option("--without-genome", help="There is no genome: go on without one.")
    ] = False,
    settle: Annotated[
        bool,
        typer.Option("--settle", help="Judge and order again: what was not heard by now counts as silent."),
    ] = False,
    scheduler: Scheduler = None,
) -> None:
    """Say how a scheduler that is being grown anew (scheduler --regrow) goes on, if it is not to wait by itself."""
    steps = {
        operator_pb2.REGROW_STEP_TAKE: take,
        operator_pb2.REGROW_STEP_WITHOUT_GENOME: without_genome,
        operator_pb2.REGROW_STEP_SETTLE: settle,
    }
    chosen = [step for step, is_chosen in steps.items() if is_chosen]
    if len(chosen) != 1:
        raise CommandFailed(
            "say one of --take, --without-genome and --settle",
            ExitCode.USAGE,
            "How it stands: galactica status",
        )
    with connect(scheduler) as client:
        answer = client.ask(
            client.stub.Regrow, operator_pb2.RegrowRequest(step=chosen[0]), LONG_ANSWER_SECONDS
        )
    tell(f"{answer.done}. Watch: galactica status")


def release_storm(
    storm: Annotated[
        str, typer.Argument(metavar="ID", help="Id of the storm, as shown by galactica storms.")
    ],
    scheduler: Scheduler = None,
) -> None:
    """Release a storm: the silent servers may be condemned. Check first that they are really gone."""
    with connect(scheduler) as client:
        request = operator_pb2.ReleaseStormRequest(storm_id=storm)
        answer = client.ask(client.stub.ReleaseStorm, request)
    silent = people.counted(answer.servers, "silent server")
    line(f"{storm}: released; {silent} will be judged by the evidence. Watch: galactica servers")
