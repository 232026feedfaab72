"""From a server's death to the verdict, and on to its cells' replacements, in a fleet of eight with 1 s beats.

Times are those at which an operator who follows the events is told, so they include the journal's commit.

*Silent*: hosts in network namespaces whose cable is pulled. The guard believes one silent death in five servers and a
minute, so each repetition is a fleet of its own.
*Gone*: servers of the local provider, killed by kill -9 of the agent; one fleet, one after the other.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from galactica.scheduler.cli.client import Client
from galactica.v1 import operator_pb2
from tests.bench.fleet import apply, is_watched, operator_of, ready, servers_of, start_agents, until
from tests.bench.heal import PROGRAM, mark, successor_of
from tests.bench.hosts import some_hosts
from tests.bench.observer import Observer, watching
from tests.bench.table import Row, median_and_worst
from tests.support.fleet import Fleet, a_fleet

SERVERS = 8
REPLICAS = 16
SILENT_DEATHS = 10
LOCAL_DEATHS = 16
GRACE_SECONDS = 6.0
"""A scheduler that has just started believes no silence for one lease; and what dies sooner died early."""


class Answer(NamedTuple):
    """Seconds. ``verdict``: after the death; ``ordered`` and ``running``, the first replacement: after the verdict."""

    rule: str
    verdict: float
    ordered: float
    running: float


def run() -> list[Row]:
    return [
        *_rows("host goes silent (cable pulled)", [_silent() for _ in range(SILENT_DEATHS)], "≤ 3 s"),
        *_rows("its provider reports a server gone (killed local server)", _local(), "≤ 1 s"),
    ]


def _rows(what: str, answers: list[Answer], target: str) -> list[Row]:
    number = len(answers)
    rules = sorted({answer.rule for answer in answers})
    ordered = [answer.ordered for answer in answers]
    running = median_and_worst([answer.running for answer in answers])
    return [
        Row(
            f"{what}: to the verdict, fleet of {SERVERS}, 1 s beats",
            f"{_seconds([answer.verdict for answer in answers])} of {number}",
            target,
            f"rule: {', '.join(rules)}",
        ),
        Row(
            "the verdict to the first replacement cell ordered",
            f"{median_and_worst(ordered)} of {number}",
            "≤ 100 ms",
            f"to its program running: {running}",
        ),
    ]


def _seconds(times: list[float]) -> str:
    if max(times) < 1.0:
        return median_and_worst(times)
    return f"median {statistics.median(times):.2f} s, worst {max(times):.2f} s"


def _silent() -> Answer:
    with some_hosts(SERVERS) as hosts, a_fleet(host=hosts.address) as fleet, _marks() as marks:
        start_agents(fleet, hosts.prefixes)
        _apply_service(fleet, Path(marks))
        with operator_of(fleet) as client, watching(client) as observer:
            ready(client, REPLICAS)
            until(lambda: all(is_watched(one) for one in servers_of(client)), "all to be watched")
            time.sleep(GRACE_SECONDS + random.random())  # at any moment between two beats
            victim = random.choice(hosts.all)
            began = time.time()
            hosts.cut(victim)
            return _answer(client, observer, Path(marks), victim.name, began)


def _local() -> list[Answer]:
    pool = {"size": SERVERS, "provider": "local", "server": {"runtime": "process"}}
    with a_fleet() as fleet, _marks() as marks:
        apply(fleet, kind="pool", name="rack", **pool)
        with operator_of(fleet) as client:
            until(lambda: sum(is_watched(one) for one in servers_of(client)) == SERVERS, "the pool")
            _apply_service(fleet, Path(marks))
            return [_local_death(client, Path(marks)) for _ in range(LOCAL_DEATHS)]


def _local_death(client: Client, marks: Path) -> Answer:
    until(lambda: sum(is_watched(one) for one in servers_of(client)) == SERVERS, "all servers to be ready")
    of_service = ready(client, SERVERS + REPLICAS)
    used = {cell.server for cell in of_service if cell.group == "web"}
    victim = next(cell for cell in of_service if cell.id in used)  # the one that has served longest
    time.sleep(max(0.0, victim.ready_at + GRACE_SECONDS - time.time()))
    pid = int(victim.runtime_id.removeprefix("pid:"))
    with watching(client) as observer:
        began = time.time()
        os.kill(pid, signal.SIGKILL)
        return _answer(client, observer, marks, victim.id, began)


def _answer(client: Client, observer: Observer, marks: Path, server: str, began: float) -> Answer:
    """``server`` died at ``began`` (Unix seconds)."""
    verdict = observer.wait(lambda one: (one.type, one.server) == ("ServerCondemned", server), "the verdict")
    ordered = observer.wait(lambda one: one.type == "CellOrdered" and _is_of_web(one), "a replacement")
    everything = client.ask(client.stub.ListCells, operator_pb2.ListCellsRequest(all=True)).cells
    dead = [cell for cell in everything if cell.server == server and cell.group == "web"]
    running = min(mark(marks, successor_of(cell)) for cell in dead)
    return Answer(
        verdict.more["rule"], verdict.at - began, max(0.0, ordered.at - verdict.at), running - verdict.at
    )


def _is_of_web(seen: object) -> bool:
    return str(getattr(seen, "cell", "")).startswith("web/")


def _marks() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="galactica-bench-")


def _apply_service(fleet: Fleet, marks: Path) -> None:
    apply(
        fleet,
        name="web",
        replicas=REPLICAS,
        runtime="process",
        command=list(PROGRAM),
        env={"MARKS": str(marks)},
    )
