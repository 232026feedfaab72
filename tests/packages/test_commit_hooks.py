"""The hooks before a commit, run by the real pre-commit in a clone: with our tools, and without fetching anything."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.support.clone import ROOT, clone_into, done, environment

pytestmark = pytest.mark.xdist_group("commit-hooks")

UNTIDY = "import os\nx = {  'a':1 }\n"
TIDY = '"""Nothing."""\n'


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """With a .venv of its own, newer than what it is made from, that lends the programs of ours."""
    root = clone_into(tmp_path_factory.mktemp("hooks"))
    (root / ".venv").mkdir()
    (root / ".venv/bin").symlink_to(Path(sys.executable).parent)
    (root / ".venv/.ready").touch()
    return root


@pytest.fixture(autouse=True)
def nothing_staged(clone):
    yield
    done(clone, "git", "reset", "--quiet", "--hard")


def stage(root, name, text):
    (root / name).write_text(text)
    done(root, "git", "add", name)


def hooks(root, *words):
    """Exit code and output of what would run before a commit. Nothing outside can be reached."""
    nowhere = {"PRE_COMMIT_HOME": str(root.parent / "cache")}
    unreachable = {f"{scheme}_proxy": "http://127.0.0.1:1" for scheme in ("http", "https")}
    ended = subprocess.run(
        [str(Path(sys.executable).parent / "pre-commit"), "run", *words],
        cwd=root,
        env={**environment(), **nowhere, **unreachable},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return ended.returncode, ended.stdout + ended.stderr


def passed(said):
    return set(re.findall(r"^(.+?)\.+Passed$", said, re.MULTILINE))


def failed(said):
    return set(re.findall(r"^(.+?)\.+Failed$", said, re.MULTILINE))


def test_an_untidy_file_cannot_be_committed(clone):
    stage(clone, "deploy/untidy.py", UNTIDY)
    code, said = hooks(clone)
    assert (code, failed(said)) == (1, {"ruff check", "ruff format"})
    assert "deploy/untidy.py" in said


def test_a_tidy_file_passes_and_nothing_else_is_looked_at(clone):
    stage(clone, "deploy/tidy.py", TIDY)
    code, said = hooks(clone)
    assert (code, passed(said)) == (0, {"ruff check", "ruff format"}), said


def test_a_contract_that_breaks_cannot_be_committed(clone):
    name = "proto/galactica/v1/link.proto"
    stage(clone, name, re.sub(r"(?m)^  string cell_id = 1;\n", "", (clone / name).read_text(), count=1))
    code, said = hooks(clone)
    assert (code, failed(said)) == (1, {"contract and generated code"}), said
    assert '"cell_id"' in said


def test_generated_code_is_left_alone(clone):
    name = "proto/galactica/v1/link_pb2.py"
    stage(clone, name, (clone / name).read_text() + "x = {  }\n")
    code, said = hooks(clone, "ruff-check")
    assert code == 0, said
    assert "ruff check" in passed(said)


def test_a_push_runs_what_the_gate_runs():
    (repository,) = YAML(typ="safe").load(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    pushed = [hook["entry"] for hook in repository["hooks"] if hook.get("stages") == ["pre-push"]]
    assert pushed == ["make lint"]
    assert "make lint" in (ROOT / ".ci/run").read_text()
