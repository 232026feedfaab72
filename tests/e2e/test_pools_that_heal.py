"""A pool of each kind of provider: a server is killed from outside; a new one takes its place, and so do its cells."""

from __future__ import annotations

import base64
import contextlib
import json
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil
import pytest
from libcloud.compute.base import Node
from libcloud.compute.providers import get_driver
from libcloud.compute.types import NodeState
from ruamel.yaml import YAML

from tests.support.ec2 import ec2
from tests.support.fleet import Fleet, a_fleet
from tests.support.processes import ROOT, Json, agent_command, is_alive, pids

pytestmark = pytest.mark.xdist_group("e2e-pools")

KEYS = {"key": "AKIA-test", "secret": "s3cr3t"}
Kill = Callable[[Path, str], None]


@dataclass(frozen=True, slots=True)
class Kind:
    """``kill`` takes a server away from outside."""

    provider: Json
    server: Json
    kill: Kill


def processes_of(directory: Path) -> Iterator[psutil.Process]:
    """Those that name it in their command or environment."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(directory) in " ".join((*process.cmdline(), *process.environ().values())):
                yield process


def kill_all(directory: Path) -> None:
    for process in processes_of(directory):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def kill_agent(directory: Path, server: str) -> None:
    (agent,) = [one for one in processes_of(directory) if {"galactica.agent", server} <= set(one.cmdline())]
    agent.kill()


@pytest.fixture(params=["local", "exec", "cloud"])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kind]:
    with contextlib.ExitStack() as stack:
        stack.callback(kill_all, tmp_path)  # servers outlive their scheduler
        yield kind_of(request.param, tmp_path, stack)


def kind_of(name: str, directory: Path, stack: contextlib.ExitStack) -> Kind:
    match name:
        case "local":
            return Kind({"kind": "local"}, {}, kill_agent)
        case "exec":
            program = [sys.executable, str(ROOT / "deploy/providers/processes.py")]
            program += ["--directory", str(directory / "servers"), "--agent", agent_command()[0]]
            program += [f"--agent-argument={word}" for word in agent_command()[1:]]
            environment = {"PYTHONPATH": str(ROOT)}
            options = {"program": program, "environment": environment}
            return Kind({"kind": "exec", "options": options}, {"nice": 0}, kill_agent)
        case _:
            machines = stack.enter_context(Machines(stack.enter_context(ec2()), directory))
            server = {"image": "ami-03cf127a", "size": "t3.micro"}
            return Kind(machines.provider(), server, machines.lose)


def test_a_killed_server_is_replaced_with_its_cells(kind: Kind, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    (data / "providers.yaml").write_text(json.dumps({"providers": {"it": kind.provider}}))
    with a_fleet(data=data) as fleet:
        pool = fleet.directory / "rack.yaml"
        wanted = {"kind": "pool", "name": "rack", "size": 2, "provider": "it", "server": kind.server}
        pool.write_text(json.dumps(wanted))
        fleet.done("apply", str(pool))
        servers(fleet, "rack/0.1", "rack/1.1")
        before = fleet.apply("web", 2)
        (doomed,) = [cell for cell in before if cell["server"] == "rack/0.1"]
        (spared,) = [cell for cell in before if cell is not doomed]
        position = fleet.position()
        kind.kill(tmp_path, "rack/0.1")
        servers(fleet, "rack/0.2", "rack/1.1")
        after = fleet.until_ready("web", 2, without=(doomed["id"],))
        assert pids(after)[spared["id"]] == pids(before)[spared["id"]]
        assert is_alive(int(spared["runtime_id"]))
        (event,) = fleet.events("ServerCondemned", after=position)
        assert (event["server"], event["health"]) == ("rack/0.1", "dead")
        why = fleet.why("rack/0.1")
        assert (why["verdict"], why["replaced_by"]) == ("dead", "rack/0.2")
        assert why["evidence"]
        fleet.until(lambda: not is_alive(int(doomed["runtime_id"])), "nothing of the dead server is left")
        assert fleet.why(doomed["id"])["rule"] == "server_lost"


def servers(fleet: Fleet, *names: str) -> None:
    """Wait until exactly these are there and well."""

    def look() -> bool:
        there = {one["id"] for one in fleet.servers()}
        return there == set(names) and all(map(fleet.is_attached, names))

    fleet.until(look, f"{names} are there and no others", 60.0)


@dataclass
class Machines:
    """What a cloud's nodes do on their first boot, here: each runs the script that its user data brings."""

    settings: dict[str, object]
    directory: Path
    _begun: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._driver = get_driver("ec2")(*KEYS.values(), **self.settings)
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for node in list(self._begun):
            self._end(node)

    def provider(self) -> Json:
        keys = self.directory / "keys.json"
        keys.write_text(json.dumps(KEYS))
        keys.chmod(0o600)
        options = {"driver": "ec2", "settings": self.settings, "credentials": str(keys)}
        return {"kind": "cloud", "options": options}

    def lose(self, _: Path, server: str) -> None:
        """The cloud takes it away, with all that runs on it."""
        (node,) = [one for one in self._nodes() if one.extra["tags"].get("galactica-cell") == server]
        self._driver.destroy_node(node)
        self._end(node.id)

    def _nodes(self) -> list[Node]:
        return [one for one in self._driver.list_nodes() if one.state == NodeState.RUNNING]

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            running = {node.id for node in self._nodes()}
            for node in running - self._begun.keys():
                self._boot(node)
            for node in self._begun.keys() - running:
                self._end(node)

    def _boot(self, node: str) -> None:
        asked = {"Action": "DescribeInstanceAttribute", "InstanceId": node, "Attribute": "userData"}
        answer = self._driver.connection.request("/", params=asked).object
        text = base64.b64decode(next(one.text for one in answer.iter() if one.tag.endswith("value"))).decode()
        files = {one["path"]: one["content"] for one in YAML(typ="safe").load(text)["write_files"]}
        begin = files["/opt/galactica/begin"]
        begin = begin.replace("/opt/galactica/bin/galactica-agent", shlex.join(agent_command()))
        begin = begin.replace("/var/lib/galactica-agent", str(self.directory / node))
        name, _, token = files["/etc/galactica/agent.env"].strip().partition("=")
        with (self.directory / f"{node}.log").open("ab") as log:
            self._begun[node] = subprocess.Popen(
                ["sh", "-c", begin],
                cwd=ROOT,
                env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", name: token},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _end(self, node: str) -> None:
        agent = self._begun[node]
        if agent.poll() is None:
            agent.kill()
            agent.wait()
        kill_all(self.directory / node)
