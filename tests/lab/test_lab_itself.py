"""The hosts themselves, and the program that makes them: as the exec provider's contract wants it, and nothing left."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.lab.host import environment_of, host_of
from deploy.lab.switch import CONTROL_GROUPS, NAMESPACES, LabError, Switch
from tests.support.processes import ROOT, Json

AGENT = ["--agent", "/bin/sh", "--agent-argument=-c", "--agent-argument=exec sleep 1000"]


@pytest.fixture
def switch(tmp_path: Path) -> Iterator[Switch]:
    switch = Switch(tmp_path / "lab")
    switch.up()
    yield switch
    switch.down()


def ask(switch: Switch, action: str, **more: object) -> subprocess.CompletedProcess[str]:
    question = {"version": 1, "action": action, "fleet": "f", **more}
    return subprocess.run(
        [sys.executable, "-m", "deploy.lab.provider", "--directory", str(switch.directory), *AGENT],
        input=json.dumps(question),
        env=environment_of(ROOT),
        capture_output=True,
        text=True,
        check=False,
    )


def create(switch: Switch, cell: str, **body: object) -> subprocess.CompletedProcess[str]:
    told = {"arguments": ["--id", cell], "runtimes": [], "token": "gal1.secret"}
    return ask(switch, "create", cell=cell, body=body, user_data=told)


def servers(switch: Switch) -> list[Json]:
    answer = json.loads(ask(switch, "list").stdout)
    found: list[Json] = answer["servers"]
    return found


def left_of(switch: Switch) -> list[Path]:
    links, groups = Path("/sys/class/net"), CONTROL_GROUPS
    found = [(NAMESPACES, ""), (links, ""), (groups, ""), (groups, "*/")]
    return [path for place, below in found for path in place.glob(f"{below}{switch.prefix}*")]


def test_a_host_is_made_once_is_gone_when_it_has_lost_its_power_and_is_deleted(switch: Switch) -> None:
    made = create(switch, "rack/0.1")
    ref = json.loads(made.stdout)["ref"]
    first = host_of(switch, "f", "rack/0.1").first_process
    assert first is not None
    assert "secret" not in " ".join(word for one in (first, *first.children()) for word in one.cmdline())
    assert create(switch, "rack/0.1").stdout == made.stdout
    assert servers(switch) == [{"cell": "rack/0.1", "ref": ref, "state": "running"}]
    host_of(switch, "f", "rack/0.1").lose_power()
    assert servers(switch) == [{"cell": "rack/0.1", "ref": ref, "state": "gone"}]
    assert create(switch, "rack/0.1").stdout == made.stdout, "a dead one is not made again"
    assert servers(switch) == [{"cell": "rack/0.1", "ref": ref, "state": "gone"}]
    for _ in range(2):
        assert ask(switch, "delete", cell="rack/0.1", ref=ref).stdout.strip() == "{}"
    assert servers(switch) == []


@pytest.mark.parametrize("body", [{"colour": "red"}, {"disk": "large"}, {"engine": "yes"}])
def test_a_body_that_is_not_understood_is_refused_for_good(switch: Switch, body: Json) -> None:
    done = create(switch, "rack/0.1", **body)
    assert (done.returncode, done.stdout) == (65, "")
    assert servers(switch) == []


def test_nothing_is_left_of_a_lab_that_nobody_ended_and_none_is_taken_from_another(
    switch: Switch, tmp_path: Path
) -> None:
    other = Switch(tmp_path / "other")
    other.up()
    try:
        assert other.network != switch.network
        for lab in (switch, other):
            assert create(lab, "rack/0.1").returncode == 0
        assert host_of(other, "f", "rack/0.1").is_on
        there = left_of(other)
        assert len(there) >= 3
    finally:
        other.down()
    assert left_of(other) == []
    assert not host_of(other, "f", "rack/0.1").is_on
    assert create(other, "rack/1.1").returncode == 1, "who comes late finds no lab to put a host into"
    assert left_of(other) == []
    assert [server["state"] for server in servers(switch)] == ["running"]
    with pytest.raises(LabError, match="no lab in"):
        other.address()
