"""``galactica up`` and ``galactica scheduler`` as people run them: real processes, real journal, real cells."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support.forked import run_command_line
from tests.support.processes import is_alive

REPOSITORY = Path(__file__).parents[2]
LIMIT_SECONDS = 30.0
MANIFEST = """\
kind: service
name: web
replicas: 2
runtime: process
command: ["sleep", "1000"]
"""


class Machine:
    """One data directory, the schedulers that were started on it, and a command line that knows them."""

    def __init__(self, directory):
        self.directory = directory
        self.data = directory / "data"
        self.output = directory / "output"
        self.processes = []
        self.environment = {
            **os.environ,
            "GALACTICA_CONTEXT": str(directory / "context.json"),
            "NO_COLOR": "1",
        }

    def command(self, *words):
        return [sys.executable, "-m", "galactica.scheduler.cli", *words]

    def start(self, *words):
        """Start a scheduler and wait until it says where it listens."""
        before = self.output.stat().st_size if self.output.exists() else 0
        with self.output.open("ab") as output:
            process = subprocess.Popen(
                self.command(*words), env=self.environment, cwd=REPOSITORY, stdout=output, stderr=output
            )
        self.processes.append(process)
        until(
            lambda: "admin's context file" in self.output.read_text()[before:] or process.poll() is not None
        )
        assert process.poll() is None, self.output.read_text()
        return process

    def up(self, *words):
        return self.start(
            "up", "--data", str(self.data), "--listen", "127.0.0.1:0", "--runtime", "process", *words
        )

    def cli(self, *words, code=0):
        done = run_command_line(words, self.environment, seconds=LIMIT_SECONDS)
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done

    def json(self, *words):
        return json.loads(self.cli(*words, "-o", "json").stdout)

    def apply(self):
        manifest = self.directory / "web.yaml"
        manifest.write_text(MANIFEST)
        self.cli("apply", str(manifest))
        self.cli("wait", "service/web", "--ready", "--timeout", "25s")

    def cells(self):
        return {cell["id"]: cell["runtime_id"] for cell in self.json("cells")}

    def ended(self, process):
        return process.wait(LIMIT_SECONDS)

    def clean(self):
        """End everything that was started here, cells too: all of it has this directory in its environment."""
        for process in self.processes:
            process.kill()
            process.wait()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if any(str(self.directory) in value for value in process.environ().values()):
                    process.kill()


def until(condition):
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path)
    yield machine
    machine.clean()


def test_cells_outlive_a_scheduler_that_ends_and_are_taken_over_by_the_next(machine):
    first = machine.up("--label", "zone=a")
    machine.apply()
    before = machine.cells()
    assert set(before) == {"web/0.1", "web/1.1"}
    assert machine.json("servers")[0]["labels"] == {"zone": "a"}

    first.send_signal(signal.SIGINT)
    assert machine.ended(first) == 0
    assert all(is_alive(int(pid)) for pid in before.values())
    machine.cli("status", code=3)

    machine.up("--label", "zone=a")
    machine.cli("wait", "service/web", "--ready", "--timeout", "25s")
    until(lambda: machine.json("servers")[0]["verdict"] == "healthy")
    assert machine.cells() == before


def test_scheduler_that_is_killed_takes_its_agent_along_and_loses_nothing(machine):
    first = machine.up()
    machine.apply()
    before, events = machine.cells(), machine.cli("events", "-o", "json").stdout.splitlines()
    agents = [child for child in psutil.Process(first.pid).children() if "galactica.agent" in child.cmdline()]
    first.kill()
    first.wait()
    psutil.wait_procs(agents, timeout=LIMIT_SECONDS)
    assert [agent for agent in agents if agent.is_running()] == []

    machine.up()
    until(lambda: machine.json("servers")[0]["verdict"] == "healthy")
    machine.cli("wait", "service/web", "--ready", "--timeout", "25s")
    assert machine.cells() == before
    now = machine.cli("events", "--from", "1", "-o", "json").stdout.splitlines()
    assert now[: len(events)] == events


def test_a_file_elsewhere_says_which_providers_there_are(machine):
    named = machine.directory / "elsewhere.yaml"
    named.write_text("providers: {lab: {kind: exec, options: {program: [/bin/false]}}}")
    listen = ("--listen", "127.0.0.1:0", "--enrol-listen", "127.0.0.1:0")
    machine.start("scheduler", "--data", str(machine.data), *listen, "--providers", str(named))
    manifest = machine.directory / "pool.yaml"
    manifest.write_text("{kind: pool, name: rack, size: 1, provider: nobody}")

    refused = machine.cli("apply", str(manifest), code=2)

    said = "Error: rack: provider 'nobody' is not configured (configured: lab, local)"
    assert refused.stderr.splitlines()[0] == said


def test_dead_cell_is_replaced_and_its_certificate_says_why(machine):
    machine.up()
    machine.apply()
    os.kill(int(machine.cells()["web/0.1"]), signal.SIGKILL)
    until(lambda: set(machine.cells()) == {"web/0.2", "web/1.1"})

    why = machine.json("why", "web/0.1")
    assert (why["verdict"], why["rule"], why["replaced_by"]) == ("dead", "exited", "web/0.2")
    assert why["autopsy"]["signal"] == "SIGKILL"


def test_agent_that_dies_gets_a_successor_within_the_lease(machine):
    scheduler = machine.up()
    machine.apply()
    before = machine.cells()
    (agent,) = [
        child for child in psutil.Process(scheduler.pid).children() if "galactica.agent" in child.cmdline()
    ]
    agent.kill()

    until(lambda: machine.output.read_text().count("logger=agent event=started") == 2)
    until(lambda: machine.json("servers")[0]["verdict"] == "healthy")
    assert machine.cells() == before


def test_stop_cells_ends_them_too(machine):
    scheduler = machine.up("--stop-cells")
    machine.apply()
    cells = machine.cells()
    scheduler.send_signal(signal.SIGTERM)

    assert machine.ended(scheduler) == 0
    assert [pid for pid in cells.values() if is_alive(int(pid))] == []


def test_scheduler_alone_lets_servers_join_with_a_token(machine):
    scheduler = machine.start(
        "scheduler", "--data", str(machine.data), "--listen", "127.0.0.1:0", "--enrol-listen", "127.0.0.1:0",
        "--fleet", "alpha",
    )  # fmt: skip
    said = machine.output.read_text()
    link = re.search(r"agents and operators: (\S+)", said)[1]
    enrolment = re.search(r"enrolment: +(\S+)", said)[1]
    token = machine.json("token", "create")["token"]
    agent = subprocess.Popen(
        [
            sys.executable, "-m", "galactica.agent", "--scheduler", link, "--enrol", enrolment, "--id", "web-1",
            "--data", str(machine.directory / "agent"), "--runtime", "process",
        ],
        env={**machine.environment, "GALACTICA_TOKEN": token}, cwd=REPOSITORY,
    )  # fmt: skip
    machine.processes.append(agent)

    until(lambda: [(one["id"], one["phase"]) for one in machine.json("servers")] == [("web-1", "READY")])
    assert machine.json("status")["fleet"] == "alpha"
    secret = token.split(".")[2]
    assert secret not in machine.output.read_text()
    assert all(secret.encode() not in path.read_bytes() for path in machine.data.rglob("journal*"))
    scheduler.send_signal(signal.SIGTERM)
    assert machine.ended(scheduler) == 0


def test_a_second_fleet_on_one_machine_adds_its_context_and_the_first_ones_key_still_works(machine, tmp_path):
    machine.start("scheduler", "--data", str(machine.data), "--listen", "127.0.0.1:0")
    first = machine.json("context", "show")
    second_data = str(tmp_path / "second")
    machine.start("scheduler", "--data", second_data, "--listen", "127.0.0.1:0")  # of the same name
    second = machine.json("context", "show")
    assert second["fleet"] == first["fleet"] == "galactica"
    assert second["fleet_id"] != first["fleet_id"]
    assert "now the current one; others: galactica context list" in machine.output.read_text()

    assert machine.json("version")["scheduler"]["fleet_id"] == second["fleet_id"]
    machine.environment["GALACTICA_FLEET"] = first["fleet_id"]
    assert machine.json("version")["scheduler"]["fleet_id"] == first["fleet_id"]
    del machine.environment["GALACTICA_FLEET"]
    machine.cli("context", "use", "galactica")
    assert machine.json("version")["scheduler"]["fleet_id"] == first["fleet_id"]


class TestRefusals:
    """One line of what is wrong, one of what to do, exit code 1."""

    def refused(self, machine, *words, data=None):
        done = machine.cli("scheduler", "--data", str(data or machine.data), *words, code=1)
        assert "Traceback" not in done.stderr
        return done.stderr

    def test_second_scheduler_on_one_data_directory(self, machine):
        first = machine.up()
        said = self.refused(machine, "--listen", "127.0.0.1:0")
        assert f"is in use by process {first.pid}" in said

    def test_port_in_use(self, machine):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            said = self.refused(machine, "--listen", address, "--enrol-listen", "127.0.0.1:0")
        assert said.startswith(f"Error: cannot listen on {address}: it is in use\n")

    def test_damaged_journal(self, machine):
        machine.data.mkdir()
        (machine.data / "journal.db").write_bytes(b"nonsense" * 100)
        said = self.refused(machine, "--listen", "127.0.0.1:0")
        assert "is damaged" in said
        assert (machine.data / "journal.db").read_bytes() == b"nonsense" * 100

    def test_fleet_of_another_name(self, machine):
        first = machine.up()
        first.send_signal(signal.SIGTERM)
        machine.ended(first)
        said = self.refused(machine, "--listen", "127.0.0.1:0", "--fleet", "other")
        assert "belongs to the fleet 'galactica', not to 'other'" in said

    def test_data_directory_that_cannot_be_one(self, machine):
        (machine.directory / "file").write_text("")
        said = self.refused(machine, data=machine.directory / "file" / "data")
        assert "cannot use the data directory" in said
