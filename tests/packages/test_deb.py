"""The Debian package in a fresh Debian 12 whose own systemd runs: installed, used, removed, purged.

The tests share one machine, which is booted once; each one brings the services into the state that it needs.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest

from galactica import __version__
from tests.support.debian import Machine, Root, command, until
from tests.support.engine import HELLO_1
from tests.support.processes import ROOT

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("packages"), pytest.mark.timeout(600)]

SCHEDULER = "galactica-scheduler.service"
AGENT = "galactica-agent.service"
CONTEXT = "/var/lib/galactica/.config/galactica/context.json"
FILLED = """\
GALACTICA_SCHEDULER=127.0.0.1:7400
GALACTICA_ADDRESS=127.0.0.1
GALACTICA_TOKEN={token}
GALACTICA_ARGUMENTS=--id host-1 --label zone=a
"""


def build(wheelhouse, directory):
    return Path(command(str(ROOT / "deploy/deb/build"), str(wheelhouse), str(directory)).strip())


@pytest.fixture(scope="module")
def deb(wheelhouse, tmp_path_factory):
    return build(wheelhouse, tmp_path_factory.mktemp("deb"))


@pytest.fixture(scope="module")
def machine(deb, engine, busybox_image, tmp_path_factory):
    """The package is installed by apt, with its dependencies. The engine of the tests is this machine's engine too."""
    log = tmp_path_factory.mktemp("machine") / "log"
    socket = engine.removeprefix("unix://")
    with Root.fresh() as root:
        (root.directory / "package").mkdir()
        root.apt_install(f"/package/{deb.name}", binds=(f"{deb.parent}:/package",))
        with Machine.booted(root, log, f"--bind={socket}:/run/docker.sock") as machine:
            yield machine


def galactica(machine, *words):
    return machine.run("galactica", *words, GALACTICA_CONTEXT=CONTEXT)


def facts(machine, *words):
    return json.loads(galactica(machine, *words, "-o", "json"))


def is_active(machine, unit):
    return machine.ask("systemctl", "is-active", unit).stdout.strip() == "active"


def start_scheduler(machine):
    machine.run("systemctl", "start", SCHEDULER)
    until(
        lambda: machine.ask("galactica", "events", "-n", "0", GALACTICA_CONTEXT=CONTEXT).returncode == 0,
        "the scheduler answers",
    )


def join(machine):
    """The agent is started as its unit says, and its server is there."""
    start_scheduler(machine)
    if not machine.root.exists("/var/lib/galactica-agent/identity"):
        token = facts(machine, "token", "create")["token"]
        environment = machine.root.directory / "etc/galactica/agent.env"
        environment.write_text(FILLED.format(token=token))
    machine.run("systemctl", "start", AGENT)
    try:
        until(lambda: is_attached(machine), "the agent is attached")
    except AssertionError as error:
        raise AssertionError(machine.journal(AGENT)) from error


def is_attached(machine):
    return [(one["phase"], one["verdict"]) for one in facts(machine, "servers")] == [("READY", "healthy")]


def apply(machine, name, **spec):
    """One cell of it is READY; its identity in its runtime."""
    manifest = {"kind": "service", "name": name, "replicas": 1, "stop": {"grace": "1s"}, **spec}
    (machine.root.directory / "root" / f"{name}.yaml").write_text(json.dumps(manifest))
    galactica(machine, "apply", f"/root/{name}.yaml")
    galactica(machine, "wait", f"service/{name}", "--ready", "--timeout", "30s")
    return runtime_id(machine, name)


def runtime_id(machine, name):
    (cell,) = (cell for cell in facts(machine, "cells") if cell["group"] == name)
    return cell["runtime_id"]


def main_process(machine, unit):
    """What the kernel says of the unit's main process."""
    lines = machine.run("cat", f"/proc/{machine.property(unit, 'MainPID')}/status").splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def runs_anew(machine, before):
    return machine.property(SCHEDULER, "MainPID") not in {"0", before}


def may_write(machine, unit, path):
    """Whether the unit's processes see this directory on a writable mount."""
    process = machine.property(unit, "MainPID")
    options = machine.run(
        "nsenter", "--mount", "--target", process, "findmnt", "-n", "-o", "OPTIONS", "-T", path
    )
    return "rw" in options.strip().split(",")


def test_the_same_wheels_give_the_same_package(deb, wheelhouse, tmp_path):
    assert build(wheelhouse, tmp_path).read_bytes() == deb.read_bytes()


def test_the_package_names_its_version_and_not_where_it_was_built(deb, tmp_path):
    assert command("dpkg-deb", "--field", str(deb), "Version").strip() == __version__
    command("dpkg-deb", "--raw-extract", str(deb), str(tmp_path / "all"))
    # The place of the repository, of the wheels, and any temporary directory of the build.
    found = subprocess.run(
        ["grep", "-rlaE", f"{ROOT}|{deb.parents[1]}|/tmp/tmp\\.", str(tmp_path / "all")],
        check=False,
        capture_output=True,
        text=True,
    )
    assert found.stdout == ""


def test_an_install_starts_nothing_and_brings_what_the_services_need(machine):
    assert machine.run("galactica", "version") == f"galactica {__version__}\n"
    for unit in (SCHEDULER, AGENT):
        assert machine.property(unit, "UnitFileState") == "disabled"
        assert machine.property(unit, "StartLimitIntervalUSec") == "0"
    assert machine.run("stat", "--format=%a %U", "/etc/galactica/agent.env") == "600 root\n"
    assert machine.run("id", "--name", "--user", "galactica") == "galactica\n"
    assert machine.ask("systemd-analyze", "verify", SCHEDULER, AGENT).stderr == ""
    assert machine.run("dpkg", "--verify", "galactica") == ""


def test_an_agent_whose_environment_nobody_filled_says_so_and_does_not_try_for_ever(machine):
    machine.run("systemctl", "stop", AGENT)
    shutil.copy(ROOT / "deploy/systemd/agent.env", machine.root.directory / "etc/galactica/agent.env")
    machine.ask("systemctl", "start", AGENT)
    until(lambda: machine.property(AGENT, "ActiveState") == "failed", "it has failed")
    assert "use HOST:PORT" in machine.journal(AGENT)
    machine.run("systemctl", "reset-failed", AGENT)


def test_the_scheduler_runs_as_nobody_of_power(machine):
    start_scheduler(machine)
    process = main_process(machine, SCHEDULER)
    assert process["Uid"].split()[0] == machine.run("id", "--user", "galactica").strip()
    assert (process["CapEff"], process["CapBnd"]) == ("0" * 16, "0" * 16)
    assert (process["NoNewPrivs"], process["Seccomp"]) == ("1", "2")
    assert [
        path for path in ("/usr", "/etc", "/opt", "/var/log") if may_write(machine, SCHEDULER, path)
    ] == []
    assert may_write(machine, SCHEDULER, "/var/lib/galactica")
    assert machine.run("stat", "--format=%a %U", "/var/lib/galactica") == "700 galactica\n"


def test_a_scheduler_that_is_killed_is_followed_by_another_however_often(machine):
    """systemd's own limit would give up after the fifth within ten seconds."""
    start_scheduler(machine)
    for _ in range(7):
        before = machine.property(SCHEDULER, "MainPID")
        machine.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", SCHEDULER)
        until(partial(runs_anew, machine, before), "another one runs")
    start_scheduler(machine)


def test_the_agent_joins_and_runs_cells_of_both_runtimes(machine):
    join(machine)
    (server,) = facts(machine, "servers")
    assert (server["id"], server["labels"], server["runtimes"]) == (
        "host-1",
        {"zone": "a"},
        ["docker", "process"],
    )
    process = main_process(machine, AGENT)
    assert (process["NoNewPrivs"], process["Seccomp"]) == ("1", "2")
    assert [path for path in ("/usr", "/etc", "/opt", "/home") if may_write(machine, AGENT, path)] == []
    cell = apply(machine, "sleeper", runtime="process", command=["sleep", "10000"])
    assert machine.run("cat", f"/proc/{cell}/comm") == "sleep\n"
    container = apply(machine, "container", image=HELLO_1, command=["sleep", "10000"])
    assert command("docker", "inspect", "--format={{.State.Running}}", container).strip() == "true"
    galactica(machine, "delete", "service/container")
    until(
        lambda: not any(c["group"] == "container" for c in facts(machine, "cells")), "the container has gone"
    )


def test_cells_outlive_their_agent(machine):
    join(machine)
    cell = apply(machine, "sleeper", runtime="process", command=["sleep", "10000"])
    machine.run("systemctl", "stop", AGENT)
    assert machine.run("cat", f"/proc/{cell}/comm") == "sleep\n"
    machine.run("systemctl", "start", AGENT)
    until(lambda: is_attached(machine), "the next agent is attached")
    assert runtime_id(machine, "sleeper") == cell


def test_remove_keeps_the_state_and_purge_deletes_it(machine, deb):
    join(machine)
    cell = apply(machine, "sleeper", runtime="process", command=["sleep", "10000"])
    machine.run("systemctl", "enable", SCHEDULER, AGENT)
    package = machine.root.directory / "package" / deb.name
    shutil.copy(deb, package)

    machine.run("apt-get", "remove", "--yes", "galactica")
    assert not is_active(machine, SCHEDULER)
    assert not machine.root.exists("/opt/galactica")
    assert machine.root.exists("/var/lib/galactica/journal.db")
    assert "GALACTICA_TOKEN" in machine.root.text("/etc/galactica/agent.env")
    assert machine.run("cat", f"/proc/{cell}/comm") == "sleep\n"

    machine.run("dpkg", "--install", f"/package/{deb.name}")
    assert "GALACTICA_TOKEN" in machine.root.text("/etc/galactica/agent.env")
    join(machine)
    assert runtime_id(machine, "sleeper") == cell

    # The same package once more, as an upgrade: services go over to its files, cells stay.
    before = machine.property(SCHEDULER, "MainPID")
    machine.run("dpkg", "--install", f"/package/{deb.name}")
    assert runs_anew(machine, before)
    join(machine)
    assert runtime_id(machine, "sleeper") == cell

    machine.run("apt-get", "purge", "--yes", "galactica")
    left = [
        path
        for path in (
            *("/opt/galactica", "/etc/galactica", "/var/lib/galactica", "/var/lib/galactica-agent"),
            *(f"/etc/systemd/system/multi-user.target.wants/{unit}" for unit in (SCHEDULER, AGENT)),
            *("/usr/bin/galactica", "/usr/lib/systemd/system/galactica-agent.service"),
        )
        if machine.root.exists(path)
    ]
    assert left == []
    until(lambda: machine.ask("cat", f"/proc/{cell}/comm").returncode != 0, "its cells have ended")
