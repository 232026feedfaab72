"""A real fleet for measurements: scheduler and agents as processes of their own, as a user would start them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from galactica.scheduler.cli.client import Client, connect
from galactica.v1 import operator_pb2

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 60.0

T = TypeVar("T")


class Fleet:
    """One scheduler and what is started beside it; everything lives in ``directory``."""

    def __init__(self, directory: Path, host: str) -> None:
        self.directory = directory
        self.name = f"bench-{directory.name.lower().replace('_', '-').rpartition('-')[2]}"
        self.address, self.enrolment = _free_addresses(host)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "GALACTICA_CONTEXT": str(directory / "context.json"),
            "GRPC_VERBOSITY": "NONE",
        }

    def start(self) -> None:
        words = ["--data", str(self.directory / "scheduler"), "--fleet", self.name]
        words += ["--listen", self.address, "--enrol-listen", self.enrolment]
        self._spawn("scheduler", "scheduler.cli", "scheduler", *words)
        until(lambda: self._galactica("status").returncode == 0, "the scheduler to answer")

    def start_agent(self, server: str, runtime: str) -> int:
        """The pid of an agent that has attached."""
        return self.start_agents({server: []}, runtime)[server]

    @property
    def pid(self) -> int:
        """The scheduler's."""
        return self._processes[0].pid

    def token(self, uses: int) -> str:
        done = self._galactica("token", "create", "--uses", str(uses), "-o", "json")
        return str(json.loads(done.stdout)["token"])

    def start_agents(self, servers: Mapping[str, Sequence[str]], runtime: str, *more: str) -> dict[str, int]:
        """The pids of agents that have attached. ``servers``: with what comes before each one's command."""
        token = self.token(len(servers))
        pids = {}
        for server, before in servers.items():
            words = ["--scheduler", self.address, "--enrol", self.enrolment, "--id", server, "--stop-cells"]
            words += ["--data", str(self.directory / server), "--runtime", runtime, *more]
            pids[server] = self._spawn(server, "agent", *words, before=before, GALACTICA_TOKEN=token)
        until(lambda: set(servers) <= self._ready_servers(), f"{', '.join(servers)} to attach")
        return pids

    def _ready_servers(self) -> set[str]:
        self._check_processes()
        servers = json.loads(self._galactica("servers", "-o", "json").stdout or "[]")
        return {one["id"] for one in servers if one["phase"] == "READY"}

    def _check_processes(self) -> None:
        for process in self._processes:
            assert process.poll() is None, f"{process.args!r} ended by itself with {process.returncode}"

    def apply(self, **manifest: object) -> None:
        path = self.directory / "manifest.yaml"
        path.write_text(json.dumps({"kind": "service", **manifest}))  # JSON is YAML
        done = self._galactica("apply", str(path))
        assert done.returncode == 0, done.stderr

    @contextlib.contextmanager
    def operator(self) -> Iterator[Client]:
        before = os.environ.get("GALACTICA_CONTEXT")
        os.environ["GALACTICA_CONTEXT"] = self._environment["GALACTICA_CONTEXT"]
        try:
            with connect(None) as client:
                yield client
        finally:
            if before is None:
                del os.environ["GALACTICA_CONTEXT"]
            else:
                os.environ["GALACTICA_CONTEXT"] = before

    def stop(self) -> None:
        """Agents first, so that they end their cells; then the scheduler."""
        for processes in (self._processes[1:], self._processes[:1]):
            for process in processes:
                process.send_signal(signal.SIGTERM)
            for process in processes:
                try:
                    process.wait(WAIT_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def _spawn(
        self, name: str, module: str, *words: str, before: Sequence[str] = (), **environment: str
    ) -> int:
        with (self.directory / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [*before, sys.executable, "-m", module, *words],
                env={**self._environment, **environment},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._processes.append(process)
        return process.pid

    def _galactica(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "galactica.scheduler.cli", *words]
        return subprocess.run(
            command, env=self._environment, cwd=ROOT, capture_output=True, text=True, check=False
        )


@contextlib.contextmanager
def a_fleet(host: str = "127.0.0.1") -> Iterator[Fleet]:
    """``host``: an address of this machine, on which the scheduler listens."""
    with tempfile.TemporaryDirectory(prefix="galactica-bench-") as directory:
        fleet = Fleet(Path(directory), host)
        try:
            fleet.start()
            yield fleet
        except BaseException:
            for log in sorted(fleet.directory.glob("*.log")):
                print(f"--- the end of {log.name}\n{log.read_text()[-2_000:]}", file=sys.stderr)
            raise
        finally:
            fleet.stop()


def cells(client: Client) -> list[operator_pb2.Cell]:
    return list(client.ask(client.stub.ListCells, operator_pb2.ListCellsRequest()).cells)


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


def _free_addresses(host: str) -> tuple[str, str]:
    with socket.socket() as one, socket.socket() as other:
        one.bind((host, 0))
        other.bind((host, 0))
        first, second = one.getsockname()[1], other.getsockname()[1]
    return f"{host}:{first}", f"{host}:{second}"
