"""A whole fleet of real processes on this machine: scheduler, agents, their cells, and the command line beside them.

Everything is below one temporary directory and on free loopback ports. ``close`` ends by its id whatever was begun,
cells too, however the test ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import docker.errors
import grpc
import psutil
import requests.exceptions

from galactica.agent.runtimes.process.runtime import ProcessRuntime
from galactica.scheduler.security.ca import SCHEDULER_NAME
from galactica.scheduler.views import shapes
from galactica.v1 import operator_pb2, operator_pb2_grpc
from tests.support.engine import configured_host, remove_fleet
from tests.support.forked import Begun, begin, begin_anew, run_command_line
from tests.support.process_cells import remove_all
from tests.support.processes import OURS, Done, Json, Programs, below, free_ports, kill_all, naming

T = TypeVar("T")

WAIT_SECONDS = 30.0
LEASE_SECONDS = 5.0
LOOK_SECONDS, LONGEST_LOOK_SECONDS = 0.02, 0.15
"""From look to look. Each costs the scheduler some milliseconds, so what takes long is looked at less often."""

HTTP_SERVER = [sys.executable, "-S", "-m", "http.server", "{port.http}", "--bind", "127.0.0.1"]
SLEEP = ["sleep", "1000"]


@dataclass
class Fleet:
    """``directory`` holds the scheduler's data, one directory for each agent, and a log of each process."""

    directory: Path
    name: str = field(default_factory=lambda: f"test-{uuid.uuid4().hex[:12]}")
    host: str = "127.0.0.1"
    """The address on which the scheduler listens."""
    scheduler: Begun | None = None
    agents: dict[str, Begun] = field(default_factory=dict)
    errors_to: int | None = None
    """The descriptor that is standard error of what is begun next. None: its log file."""
    programs: Programs = OURS
    """What is begun next is of them. The command line is always ours."""
    _data: Path | None = None
    _ports: tuple[int, int] = field(default_factory=free_ports)
    _channel: grpc.Channel | None = None
    _token: str = ""
    _begun: list[Begun] = field(default_factory=list)
    _engines: set[str] = field(default_factory=set)
    """On which agents were begun that make containers."""

    # --- processes ------------------------------------------------------------------------------------------------

    @property
    def data(self) -> Path:
        """The scheduler's data directory."""
        return self._data or self.directory / "scheduler"

    @property
    def context(self) -> Path:
        return self.directory / "context.json"

    @property
    def id(self) -> str:
        return str(json.loads(self.context.read_text())["fleet_id"])

    @property
    def address(self) -> str:
        return f"{self.host}:{self._ports[0]}"

    @property
    def enrol_address(self) -> str:
        return f"{self.host}:{self._ports[1]}"

    def environment(self, **more: str) -> dict[str, str]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("GALACTICA_")}
        return {**inherited, "GALACTICA_CONTEXT": str(self.context), **more}

    def start_scheduler(self, data: Path | None = None, *, regrow: bool = False, **environment: str) -> None:
        """Returns when it answers. ``regrow``: all but its CA is lost."""
        self._data = data or self._data
        words = ["scheduler", "--data", str(self.data), "--fleet", self.name]
        words += ["--listen", self.address, "--enrol-listen", self.enrol_address]
        words += ["--regrow"] if regrow else []
        self.scheduler = self.spawn("scheduler", [*self.programs.cli, *words], **environment)
        self.until(self.answers, "the scheduler answers")

    def answers(self) -> bool:
        assert self.scheduler is not None
        assert self.scheduler.poll() is None, f"the scheduler ended:\n{self.log('scheduler')}"
        if not self.context.exists():
            return False
        try:
            self._ask("GetVersion", operator_pb2.GetVersionRequest(), 1.0)
        except grpc.RpcError:
            return False
        return True

    def kill_scheduler(self) -> None:
        assert self.scheduler is not None
        self.scheduler.kill()
        self.scheduler.wait()

    def lose_journal(self) -> None:
        """The scheduler is killed, and of its data directory nothing is left but the CA."""
        self.kill_scheduler()
        for path in self.data.iterdir():
            if path.name != "ca":
                path.unlink()

    @property
    def pid(self) -> int:
        """The scheduler's."""
        assert self.scheduler is not None
        return self.scheduler.pid

    def begin_agent(
        self,
        name: str,
        *words: str,
        runtime: str = "process",
        before: Sequence[str] = (),
        **environment: str,
    ) -> None:
        """Start it; says nothing about whether it comes up. Without a token it has to have enrolled before.

        ``before``: the words before its command, as those that make it run in a namespace."""
        command = [*before, *self.agent_words(name, name), "--runtime", runtime, *words]
        if runtime == "docker":
            self._engines.add(environment.get("DOCKER_HOST") or configured_host())
        self.agents[name] = self.spawn(name, command, **environment)

    def agent_words(self, name: str, data: str) -> list[str]:
        words = [*self.programs.agent, "--scheduler", self.address, "--enrol", self.enrol_address]
        return [*words, "--id", name, "--data", str(self.directory / data)]

    def start_agent(self, name: str, *words: str, runtime: str = "process", **environment: str) -> None:
        """Returns when it is READY and heard."""
        self.start_agents([name], *words, runtime=runtime, **environment)

    def start_agents(
        self,
        names: Iterable[str],
        *words: str,
        runtime: str = "process",
        before: Mapping[str, Sequence[str]] = MappingProxyType({}),
        **environment: str,
    ) -> None:
        """Those that never were here enrol. Returns when all are READY and heard."""
        names = list(names)
        for name in names:
            known = (self.directory / name / "identity").exists()
            token = {} if known else {"GALACTICA_TOKEN": self._usual_token()}
            prefix = before.get(name, ())
            self.begin_agent(name, *words, runtime=runtime, before=prefix, **token, **environment)
        for name in names:
            self.until(partial(self.is_attached, name), f"{name} is attached")

    def _usual_token(self) -> str:
        self._token = self._token or self.token("--uses", "1000")
        return self._token

    def is_attached(self, server: str) -> bool:
        found = next((one for one in self.servers() if one["id"] == server), None)
        return found is not None and (found["phase"], found["verdict"]) == ("READY", "healthy")

    def kill_agent(self, name: str) -> None:
        self.agents[name].kill()
        self.agents[name].wait()

    def end_agent(self, name: str) -> int:
        """SIGTERM; its exit code."""
        self.agents[name].terminate()
        return self.agents[name].wait(WAIT_SECONDS)

    def token(self, *words: str) -> str:
        done = self.run("token", "create", "-o", "json", *words)
        assert done.code == 0, done
        return str(done.json["token"])

    def spawn(self, name: str, command: list[str], *, anew: bool = False, **environment: str) -> Begun:
        """A process in a session of its own, whose output is appended to ``NAME.log``. ``anew``: never forked."""
        environment = self.environment(**self.programs.environment, **environment)
        with (self.directory / f"{name}.log").open("ab") as log, Path(os.devnull).open() as nothing:
            streams = nothing.fileno(), log.fileno(), self.errors_to or log.fileno()
            begun = (begin_anew if anew else begin)(command, environment, self.programs.tree, *streams)
        self._begun.append(begun)
        return begun

    def log(self, name: str, characters: int = 3_000) -> str:
        return (self.directory / f"{name}.log").read_text(errors="replace")[-characters:]

    # --- the command line -----------------------------------------------------------------------------------------

    def run(self, *words: str, context: Path | None = None, timeout_seconds: float = 60.0) -> Done:
        """``galactica WORDS``."""
        environment = self.environment(**({"GALACTICA_CONTEXT": str(context)} if context else {}))
        done = run_command_line(words, environment, seconds=timeout_seconds)
        assert "Traceback" not in done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    def done(self, *words: str) -> str:
        """What a command prints that has to work."""
        done = self.run(*words)
        assert done.code == 0, (words, done)
        return done.out

    def service(self, name: str, replicas: int = 1, **spec: object) -> Path:
        """A manifest in a file of its own (JSON is YAML); processes that sleep, where nothing else is said."""
        wanted: Json = {"kind": "service", "name": name, "replicas": replicas}
        if "image" not in spec:
            wanted |= {"runtime": "process", "command": SLEEP}
        wanted |= {"stop": {"grace": "1s"}, **spec}
        file = self.directory / f"{name}.yaml"
        file.write_text(json.dumps(wanted))
        return file

    def apply(self, name: str, replicas: int = 1, **spec: object) -> list[Json]:
        """Apply such a manifest of something new and wait until it is ready; its cells."""
        self.done("apply", str(self.service(name, replicas, **spec)))
        return self.until_ready(name, replicas)

    # --- looking (through a connection that stays, in the shapes of ``-o json``) ------------------------------------

    def cells(self, group: str = "", *, everything: bool = False) -> list[Json]:
        answer = self._ask("ListCells", operator_pb2.ListCellsRequest(all=everything))
        return [shapes.cell(cell) for cell in answer.cells if group in {"", cell.group}]

    def cell(self, cell_id: str) -> Json | None:
        return next((one for one in self.cells(everything=True) if one["id"] == cell_id), None)

    def ready(self, group: str) -> list[Json]:
        return [cell for cell in self.cells(group) if cell["phase"] == "READY"]

    def servers(self) -> list[Json]:
        answer = self._ask("ListServers", operator_pb2.ListServersRequest())
        return [shapes.server(server) for server in answer.servers]

    def server(self, name: str) -> Json:
        return next(one for one in self.servers() if one["id"] == name)

    def hear(self, server: str, beats: int = 2) -> None:
        """Returns when the scheduler has heard so many more beats: whatever the agent does by itself has happened."""
        for _ in range(beats):
            before = self.server(server)["last_beat_at"]
            self.until(lambda last=before: self.server(server)["last_beat_at"] != last, f"{server} beats")

    def status(self) -> Json:
        return shapes.status(self._ask("GetStatus", operator_pb2.GetStatusRequest()))

    def held(self, group: str | None) -> dict[str, Json]:
        """What is held of a group (None: of the fleet) by rule."""
        return {hold["rule"]: hold for hold in self.status()["held"] if hold["group"] == group}

    def position(self) -> int:
        """Of the newest event."""
        return int(self._ask("GetStatus", operator_pb2.GetStatusRequest()).position)

    def events(self, *types: str, after: int = 0) -> list[Json]:
        """All events of these types, oldest first."""
        request = operator_pb2.WatchEventsRequest(from_position=after + 1)
        answers = self._stub().WatchEvents(request, timeout=WAIT_SECONDS, wait_for_ready=True)
        found = [shapes.event(event) for answer in answers for event in answer.events]
        return [event for event in found if not types or event["type"] in types]

    def why(self, cell_id: str) -> Json:
        return shapes.certificate(
            self._ask("GetCertificate", operator_pb2.GetCertificateRequest(cell_id=cell_id))
        )

    def until(self, look: Callable[[], T], what: str, seconds: float = WAIT_SECONDS) -> T:
        """What ``look`` gives as soon as that is true. Fails with what was waited for and what the processes said."""
        began = time.monotonic()
        while not (value := look()):
            waited = time.monotonic() - began
            assert waited < seconds, f"not within {seconds:g} s: {what}\n{self._story()}"
            time.sleep(min(LOOK_SECONDS + waited / 50, LONGEST_LOOK_SECONDS))
        return value

    def until_ready(self, group: str, number: int, *, without: tuple[str, ...] = ()) -> list[Json]:
        """So many cells are READY, and none of these is there any more; they."""

        def look() -> list[Json]:
            cells = self.cells(group)
            whole = len(cells) == number and all(cell["phase"] == "READY" for cell in cells)
            return cells if whole and not {cell["id"] for cell in cells} & set(without) else []

        return self.until(look, f"{number} cells of {group} are ready without {without}")

    def _stub(self) -> Any:
        if self._channel is None:
            context = json.loads(self.context.read_text())
            self._channel = self.channel(context["key_pem"].encode(), context["cert_pem"].encode())
        return operator_pb2_grpc.OperatorServiceStub(self._channel)

    def channel(self, key: bytes, certificate: bytes) -> grpc.Channel:
        """A connection to the scheduler as whoever that certificate names."""
        authority = json.loads(self.context.read_text())["ca_pem"].encode()
        options = [
            ("grpc.ssl_target_name_override", SCHEDULER_NAME),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 200),
        ]
        credentials = grpc.ssl_channel_credentials(authority, key, certificate)
        return grpc.secure_channel(self.address, credentials, options)

    def _ask(self, call: str, request: object, timeout_seconds: float = WAIT_SECONDS) -> Any:
        return getattr(self._stub(), call)(request, timeout=timeout_seconds, wait_for_ready=True)

    def _story(self) -> str:
        logs = sorted(path for path in below(self.directory) if path.suffix == ".log")
        names = [str(log.relative_to(self.directory)) for log in logs]
        told = [f"--- {name}\n{self.log(name.removesuffix('.log'))}" for name in names]
        with contextlib.suppress(grpc.RpcError, OSError):
            if self.scheduler is not None and self.scheduler.poll() is None:
                told += [json.dumps(self.status(), indent=1), *map(json.dumps, self.cells()[:20])]
        return "\n".join(told)

    # --- the end --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End processes, then cells, then what is left of either."""
        if self._channel is not None:
            self._channel.close()
        for begun in self._begun:
            begun.kill()
            begun.wait()
        for home in [
            path for path in below(self.directory) if path.parent.name == "cells" and "@" in path.name
        ]:
            name, _, fleet_id = home.name.partition("@")
            with contextlib.suppress(Exception):  # what it cannot remove is killed below
                asyncio.run(remove_all(ProcessRuntime(home.parent, name, fleet_id)))
        kill_all(self.left_running, WAIT_SECONDS)
        for engine in self._engines:
            # One that has ended has taken its containers along.
            with contextlib.suppress(docker.errors.DockerException, requests.exceptions.RequestException):
                remove_fleet(engine, self.name)
        shutil.rmtree(self.directory, ignore_errors=True)

    def left_running(self) -> list[psutil.Process]:
        """Living processes that name this fleet's directory in their command or environment, and its own."""
        return naming(str(self.directory), {one.pid for one in self._begun if one.poll() is None})


@contextlib.contextmanager
def a_fleet(
    *agents: str, data: Path | None = None, host: str = "127.0.0.1", name: str = "", programs: Programs = OURS
) -> Iterator[Fleet]:
    """A scheduler and agents of these names, ready; all of it ends with the block. ``host``: an address of this
    machine, on which the scheduler listens."""
    directory = Path(tempfile.mkdtemp(prefix="galactica-fleet-"))
    fleet = Fleet(directory, **({"name": name} if name else {}), host=host, programs=programs)
    try:
        fleet.start_scheduler(data)
        fleet.start_agents(agents)
        yield fleet
    finally:
        fleet.close()
