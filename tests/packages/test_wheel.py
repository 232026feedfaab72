"""What ``pip install`` gives to somebody who never saw the repository.

Everything here runs from environments of its own, outside the repository and without PYTHONPATH.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from galactica import __version__
from tests.support.fleet import WAIT_SECONDS, Fleet
from tests.support.processes import ROOT, Done, is_alive, pids

pytestmark = [pytest.mark.xdist_group("wheel"), pytest.mark.timeout(300)]

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
CONSTRAINTS = str(ROOT / "constraints.txt")


@dataclass(frozen=True)
class Environment:
    """A virtual environment and what runs in it."""

    directory: Path
    added: frozenset[str] = frozenset()
    """What the wheel itself has put into site-packages, without its dependencies."""

    @classmethod
    def make(cls, directory):
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(directory)], check=True)
        return cls(directory)

    def program(self, name):
        return str(self.directory / "bin" / name)

    @property
    def packages(self):
        (found,) = (self.directory / "lib").glob("python*/site-packages")
        return found

    @property
    def shared(self):
        return self.directory / "share" / "galactica"

    def install(self, *words):
        # Compiling takes longer than all that the tests import.
        command = [
            *PIP,
            "--python",
            self.program("python"),
            "install",
            "--no-compile",
            "-c",
            CONSTRAINTS,
            *words,
        ]
        subprocess.run(command, check=True, cwd=self.directory)

    def run(self, name, *words, **environment):
        command = [self.program(name), *words]
        done = subprocess.run(
            command,
            cwd=self.directory,
            env=outside(**environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=WAIT_SECONDS,
        )
        return Done(done.returncode, done.stdout, done.stderr)


def outside(**more):
    """An environment in which nothing leads to the repository."""
    ours = ("PYTHON", "GALACTICA_", "VIRTUAL_ENV")
    return {key: value for key, value in os.environ.items() if not key.startswith(ours)} | more


class ElsewhereFleet(Fleet):
    """Its processes begin outside the repository."""

    def spawn(self, name, command, **environment):
        with (self.directory / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.directory,
                env=outside(GALACTICA_CONTEXT=str(self.context), **environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built by the build backend that pyproject.toml names, at its pinned version."""
    directory = tmp_path_factory.mktemp("wheel")
    command = [*PIP, "wheel", "--no-deps", "--build-constraint", CONSTRAINTS, "--wheel-dir", str(directory)]
    subprocess.run([*command, str(ROOT)], check=True, cwd=directory)
    (found,) = directory.iterdir()
    return found


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory):
    """`pip install galactica`: what an agent needs, and no extra."""
    environment = Environment.make(tmp_path_factory.mktemp("bare"))
    environment.install("--no-deps", str(wheel))
    environment = replace(environment, added=frozenset(path.name for path in environment.packages.iterdir()))
    environment.install(str(wheel))
    return environment


@pytest.fixture(scope="module")
def whole(wheel, tmp_path_factory):
    """`pip install 'galactica[scheduler]'`."""
    environment = Environment.make(tmp_path_factory.mktemp("whole"))
    environment.install(f"{wheel}[scheduler]")
    return environment


@pytest.fixture
def fleet():
    """Nothing of it is running yet."""
    fleet = ElsewhereFleet(Path(tempfile.mkdtemp(prefix="galactica-wheel-")), name="galactica")
    try:
        yield fleet
    finally:
        fleet.close()


def up(environment, fleet):
    command = [environment.program("galactica"), "up", "--data", str(fleet.directory / "up"), "--stop-cells"]
    fleet.scheduler = fleet.spawn("up", [*command, "--listen", fleet.address, "--runtime", "process"])
    fleet.until(fleet.answers, "it answers")


def files_below(directory):
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def test_the_wheel_adds_one_package_at_top_level(bare):
    assert bare.added == {"galactica", f"galactica-{__version__}.dist-info"}
    assert {path.name for path in (bare.packages / "galactica").iterdir()} >= {"scheduler", "agent", "v1"}


def test_nothing_of_the_wheel_leads_back_to_the_repository(wheel):
    with zipfile.ZipFile(wheel) as archive:
        texts = {name: archive.read(name) for name in archive.namelist()}
    assert [name for name, text in texts.items() if str(ROOT).encode() in text] == []


def test_the_wheel_brings_types_units_and_examples(bare):
    assert (bare.packages / "galactica" / "py.typed").is_file()
    for brought, source in (("systemd", ROOT / "deploy" / "systemd"), ("examples", ROOT / "examples")):
        assert files_below(bare.shared / brought) == files_below(source)
    assert files_below(bare.shared / "systemd") >= {
        "galactica-agent.service",
        "galactica-scheduler.service",
    }


def test_the_package_is_typed_to_those_who_use_it(bare):
    """Beside the marker itself: its types resolve from outside."""
    user = bare.directory / "user.py"
    user.write_text("from galactica import __version__\nreveal_type(__version__)\n")
    mypy = [sys.executable, "-m", "mypy", "--python-executable", bare.program("python"), str(user)]
    checked = subprocess.run(
        [*mypy, "--cache-dir", str(bare.directory / "cache")],
        cwd=bare.directory,
        env=outside(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, 'Revealed type is "str"' in checked.stdout.replace("builtins.", "")) == (
        0,
        True,
    )


def test_a_fleet_runs_from_the_wheel(whole, fleet):
    up(whole, fleet)
    manifest = fleet.directory / "web.yaml"
    manifest.write_text(
        json.dumps(
            {
                "kind": "service",
                "name": "web",
                "replicas": 2,
                "runtime": "process",
                "command": ["sleep", "1000"],
            }
        )
    )
    for words in (["apply", str(manifest)], ["wait", "service/web", "--ready", "--timeout", "30s"]):
        done = whole.run("galactica", *words, GALACTICA_CONTEXT=str(fleet.context))
        assert done.code == 0, (words, done, fleet.log("up"))
    cells = pids(fleet.cells("web"))
    assert sorted(cells) == ["web/0.1", "web/1.1"]
    assert all(map(is_alive, cells.values()))
    fleet.scheduler.send_signal(signal.SIGINT)
    assert fleet.scheduler.wait(WAIT_SECONDS) == 0
    assert [pid for pid in cells.values() if is_alive(pid)] == []


@pytest.mark.parametrize("words", [[], ["--help"], ["status"], ["up"]])
def test_the_command_line_without_its_extra_names_it(bare, words):
    done = bare.run("galactica", *words, HOME=str(bare.directory))
    assert (done.code, done.out) == (1, "")
    assert "pip install 'galactica[scheduler]'" in done.err
    assert "Traceback" not in done.err


def test_a_package_that_goes_missing_later_is_named_too(whole):
    """Some commands import more than the first screen needs."""
    moved = {path: path.with_suffix(".away") for path in whole.packages.glob("structlog*")}
    assert moved
    try:
        for path, away in moved.items():
            path.rename(away)
        done = whole.run("galactica", "up", "--data", str(whole.directory / "up"), HOME=str(whole.directory))
    finally:
        for path, away in moved.items():
            away.rename(path)
    assert (done.code, "Traceback" in done.err) == (1, False)
    assert "'structlog'" in done.err
    assert "galactica[scheduler]" in done.err


def test_an_agent_without_its_extras_names_them_and_runs_processes_without(bare, whole, fleet):
    up(whole, fleet)
    agent = ["--scheduler", fleet.address, "--data", str(fleet.directory / "agent"), "--id", "other"]
    token = {"GALACTICA_TOKEN": fleet_token(whole, fleet)}
    refused = bare.run("galactica-agent", *agent, "--runtime", "process", **token)
    assert (refused.code, "Traceback" in refused.err) == (1, False)
    assert "enrolment needs its libraries: pip install 'galactica[enrol]'" in refused.err

    enrolled = [whole.program("galactica-agent"), *agent, "--runtime", "process"]
    fleet.agents["other"] = fleet.spawn("other", enrolled, **token)
    fleet.until(lambda: fleet.is_attached("other"), "it is attached")
    assert fleet.end_agent("other") == 0

    refused = bare.run("galactica-agent", *agent, "--runtime", "docker")
    assert (refused.code, "Traceback" in refused.err) == (1, False)
    assert (
        "the docker runtime needs a library that is not installed: pip install 'galactica[docker]'"
        in refused.err
    )

    fleet.until(lambda: not fleet.is_attached("other"), "its end is noticed")
    bare_agent = [bare.program("galactica-agent"), *agent, "--runtime", "process"]
    fleet.agents["other"] = fleet.spawn("other", bare_agent)
    fleet.until(lambda: fleet.is_attached("other"), "it is attached without any extra")


def fleet_token(environment, fleet):
    done = environment.run("galactica", "token", "create", "-o", "json", GALACTICA_CONTEXT=str(fleet.context))
    return done.json["token"]
