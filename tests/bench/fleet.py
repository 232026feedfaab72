"""What measurements ask of a fleet, beside what ``tests.support.fleet`` has."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from galactica.scheduler.cli.client import Client, connect
from galactica.v1 import operator_pb2
from tests.support.fleet import Fleet

WAIT_SECONDS = 60.0

T = TypeVar("T")


def start_agents(fleet: Fleet, servers: Mapping[str, Sequence[str]], *words: str) -> dict[str, int]:
    """The pids of agents that are ready. ``servers``: with what comes before each one's command."""
    fleet.start_agents(servers, *words, before=servers)
    return {server: fleet.agents[server].pid for server in servers}


def start_agent(fleet: Fleet, server: str, runtime: str) -> int:
    """The pid of an agent that is ready."""
    fleet.start_agent(server, runtime=runtime)
    return fleet.agents[server].pid


def apply(fleet: Fleet, **manifest: object) -> None:
    """Waits for nothing."""
    path = fleet.directory / "manifest.yaml"
    path.write_text(json.dumps({"kind": "service", **manifest}))  # JSON is YAML
    fleet.done("apply", str(path))


@contextlib.contextmanager
def operator_of(fleet: Fleet) -> Iterator[Client]:
    before = os.environ.get("GALACTICA_CONTEXT")
    os.environ["GALACTICA_CONTEXT"] = str(fleet.context)
    try:
        with connect(None) as client:
            yield client
    finally:
        if before is None:
            del os.environ["GALACTICA_CONTEXT"]
        else:
            os.environ["GALACTICA_CONTEXT"] = before


def cells(client: Client) -> list[operator_pb2.Cell]:
    return list(client.ask(client.stub.ListCells, operator_pb2.ListCellsRequest()).cells)


def servers_of(client: Client) -> list[operator_pb2.Server]:
    return list(client.ask(client.stub.ListServers, operator_pb2.ListServersRequest()).servers)


def is_watched(server: operator_pb2.Server) -> bool:
    """By three who hear it."""
    answers = [one for one in server.neighbours if one.answer == "answers"]
    return server.phase == "READY" and len(answers) == 3


def ready(client: Client, number: int) -> list[operator_pb2.Cell]:
    """Wait until there are that many cells and all are READY; the longest serving first."""

    def all_ready() -> list[operator_pb2.Cell]:
        found = cells(client)
        whole = len(found) == number and all(cell.phase == "READY" for cell in found)
        return found if whole else []

    return sorted(until(all_ready, f"{number} cells to be ready"), key=lambda cell: cell.ready_at)


def until(condition: Callable[[], T], what: str) -> T:
    """Its first value that is true. Fails after a minute."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {WAIT_SECONDS:g} s in vain for {what}"
        time.sleep(0.02)
    return value
