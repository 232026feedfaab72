"""From a cell's death to its replacement, for real: scheduler, agent, journal, engine, each as a process of its own.

Docker: both moments are the engine's own, read from its event stream. What the engine itself needs is measured between
the deaths with its raw API and the same container body, and taken off.

Processes: from just before kill -9 until the first line of the replacement's program runs; what this machine needs to
start that program is measured between the deaths and taken off.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from galactica.agent.runtimes.docker.spec import CELL_LABEL, Scope, body_of, order_of
from galactica.v1 import operator_pb2
from tests.bench.fleet import WAIT_SECONDS, apply, operator_of, ready, start_agent, until
from tests.bench.table import Row, median_and_worst
from tests.support.engine import HELLO_1, client_of, configured_host, import_hello_images
from tests.support.fleet import a_fleet

DEATHS = 50
REPLICAS = 8
OLD_ENOUGH_SECONDS = 6.5
"""A cell that served for less than 5 s died early, and backoff may hold its successor."""
TARGET = "median ≤ 30 ms, worst ≤ 150 ms"

MARK = 'echo "$EPOCHREALTIME" >"$MARKS/${CELL_ID//\\//-}.part" && mv "$MARKS/${CELL_ID//\\//-}"{.part,}; '
PROGRAM = ("bash", "-c", MARK + "exec sleep 100000")


def run() -> list[Row]:
    return [*_docker(), *_process()]


def victim_of(cells: list[operator_pb2.Cell]) -> operator_pb2.Cell:
    """The one that has served longest, once that is long enough."""
    victim = cells[0]
    time.sleep(max(0.0, victim.ready_at + OLD_ENOUGH_SECONDS - time.time()))
    return victim


def successor_of(cell: operator_pb2.Cell) -> str:
    return f"{cell.group}/{cell.slot}.{cell.generation + 1}"


def _above(seconds: list[float], needed: list[float]) -> list[float]:
    """What is left without what the machine itself needs, by its median."""
    usual = statistics.median(needed)
    return [one - usual for one in seconds]


# --- containers -------------------------------------------------------------------------------------------------------


class Happening(NamedTuple):
    """``at``: Unix seconds by the engine."""

    action: str
    container: str
    cell: str
    at: float


class Happenings:
    """The engine's event stream, read in a thread."""

    def __init__(self, host: str) -> None:
        self._client = client_of(host)
        self._stream = self._client.events(decode=True, filters={"type": "container"})
        self._seen: list[Happening] = []
        self._more = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def wait(self, condition: Callable[[Happening], bool], what: str) -> Happening:
        deadline = time.monotonic() + WAIT_SECONDS
        with self._more:
            while True:
                for seen in reversed(self._seen):
                    if condition(seen):
                        return seen
                left = deadline - time.monotonic()
                assert left > 0, f"the engine did not tell within {WAIT_SECONDS:g} s of {what}"
                self._more.wait(left)

    def of_container(self, action: str, container: str) -> Happening:
        return self.wait(lambda h: (h.action, h.container) == (action, container), f"{action} of {container}")

    def of_cell(self, action: str, cell: str) -> Happening:
        return self.wait(lambda h: (h.action, h.cell) == (action, cell), f"{action} of {cell}")

    def close(self) -> None:
        self._stream.close()
        self._thread.join(WAIT_SECONDS)
        self._client.close()

    def _read(self) -> None:
        for event in self._stream:
            actor = event["Actor"]
            cell = actor["Attributes"].get(CELL_LABEL, "")
            with self._more:
                self._seen.append(Happening(event["Action"], actor["ID"], cell, event["timeNano"] / 1e9))
                self._more.notify_all()


class Bare:
    """Containers like the fleet's, made by hand with the engine's API."""

    def __init__(self, engine: Any, happenings: Happenings, like: str, scope: Scope) -> None:
        found = engine.inspect_container(like)
        self._engine = engine
        self._happenings = happenings
        self._scope = scope
        self._order = order_of(found["Config"]["Labels"])
        self._init = bool(found["HostConfig"]["Init"])
        self._made = 0
        self._current = self._make()[0]

    def create_and_start(self) -> float:
        """Seconds of a create and a start while nothing else happens."""
        began = time.time()
        container, started_at = self._make()
        self._engine.remove_container(container, force=True, v=True)
        return started_at - began

    def replace(self) -> float:
        """Seconds from a death until a bare loop on the engine's events has started another container."""
        self._engine.kill(self._current)
        died = self._happenings.of_container("die", self._current)
        dead, (self._current, started_at) = self._current, self._make()
        self._engine.remove_container(dead, force=True, v=True)
        return started_at - died.at

    def remove(self) -> None:
        self._engine.remove_container(self._current, force=True, v=True)

    def _make(self) -> tuple[str, float]:
        self._made += 1
        self._order.cell_id = f"bare/0.{self._made}"
        body = body_of(self._scope, self._order, init=self._init)
        container = self._engine.create_container_from_config(body, self._scope.name_of(self._order.cell_id))[
            "Id"
        ]
        self._engine.start(container)
        return container, self._happenings.of_container("start", container).at


def _docker() -> list[Row]:
    host = configured_host()
    import_hello_images(host)
    heals, bare_makes, bare_heals = [], [], []
    with a_fleet() as fleet, _engine_of(host) as (engine, happenings), operator_of(fleet) as client:
        start_agent(fleet, "one", "docker")
        apply(
            fleet,
            name="web",
            replicas=REPLICAS,
            image=HELLO_1,
            command=["httpd", "-f", "-p", "8080"],
            ports={"http": 8080},
            health={"http": {"port": "http", "path": "/"}, "every": "1s"},
        )
        like = ready(client, REPLICAS)[0].runtime_id
        bare = Bare(
            engine, happenings, like, Scope(f"{fleet.name}-bare", "0123456789abcdef", "one", "127.0.0.1")
        )
        try:
            for _ in range(DEATHS):
                bare_makes.append(bare.create_and_start())
                bare_heals.append(bare.replace())
                victim = victim_of(ready(client, REPLICAS))
                engine.kill(victim.runtime_id)
                died = happenings.of_container("die", victim.runtime_id)
                heals.append(happenings.of_cell("start", successor_of(victim)).at - died.at)
                happenings.of_container("destroy", victim.runtime_id)
        finally:
            bare.remove()
    return [
        Row(
            "container: death to replacement started, above the engine's own create + start",
            f"{median_and_worst(_above(heals, bare_makes))} of {DEATHS}",
            TARGET,
            f"the engine's create + start: {median_and_worst(bare_makes)}",
        ),
        Row(
            "the same with all that the engine does",
            f"{median_and_worst(heals)} of {DEATHS}",
            "",
            f"a bare loop on the engine's events: {median_and_worst(bare_heals)}",
        ),
    ]


@contextlib.contextmanager
def _engine_of(host: str) -> Iterator[tuple[Any, Happenings]]:
    with contextlib.closing(client_of(host)) as engine, contextlib.closing(Happenings(host)) as happenings:
        yield engine, happenings


# --- processes --------------------------------------------------------------------------------------------------------


def _process() -> list[Row]:
    heals, bare_starts = [], []
    with tempfile.TemporaryDirectory(prefix="galactica-bench-") as directory, a_fleet() as fleet:
        marks = Path(directory)
        start_agent(fleet, "one", "process")
        apply(
            fleet,
            name="web",
            replicas=REPLICAS,
            runtime="process",
            command=list(PROGRAM),
            env={"MARKS": str(marks)},
        )
        with operator_of(fleet) as client:
            for number in range(DEATHS):
                bare_starts.append(_bare_start(marks, number))
                victim = victim_of(ready(client, REPLICAS))
                began = time.time()
                os.kill(_pid_of(victim), signal.SIGKILL)
                heals.append(mark(marks, successor_of(victim)) - began)
    return [
        Row(
            "process: kill -9 to the replacement's program running, above starting that program",
            f"{median_and_worst(_above(heals, bare_starts))} of {DEATHS}",
            "",
            f"starting it: {median_and_worst(bare_starts)}",
        )
    ]


def _bare_start(marks: Path, number: int) -> float:
    environment = {**os.environ, "MARKS": str(marks), "CELL_ID": f"bare/0.{number}"}
    began = time.time()
    with subprocess.Popen(PROGRAM, env=environment) as process:
        started_at = mark(marks, f"bare/0.{number}")
        process.kill()
    return started_at - began


def mark(marks: Path, cell: str) -> float:
    """When the cell's program began, in Unix seconds, by its own clock."""
    path = marks / cell.replace("/", "-")
    until(path.exists, f"{cell} to run")
    return float(path.read_text())


def _pid_of(cell: operator_pb2.Cell) -> int:
    return int(cell.runtime_id.partition(":")[0].rpartition(" ")[2])
