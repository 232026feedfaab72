"""The last release as programs: the tree of its commit, beside this one, for tests in which both meet.

Its programs run with the interpreter and the libraries of this environment, from their own tree.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

from deploy.release.tree import LAST_FILE, Tree
from tests.support.processes import ROOT, Programs


def commit_of_last_release() -> str:
    """Its full id. Fails where this checkout does not have that commit: then nothing can be said about it."""
    commit = Tree(ROOT).last_release().commit
    found = subprocess.run(
        ["git", "cat-file", "-e", f"{commit}^{{commit}}"], cwd=ROOT, check=False, capture_output=True
    )
    assert found.returncode == 0, (
        f"the last release's commit {commit} ({LAST_FILE}) is not in this checkout. The tests with the last release "
        "need the whole history: clone with git and without --depth, or run git fetch --unshallow"
    )
    return commit


def last_release(directory: Path) -> Programs:
    """Its tree, unpacked below ``directory``."""
    commit = commit_of_last_release()
    packed = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True)
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(directory, filter="data")
    if (directory / "src/galactica").is_dir():
        imports, names = [directory / "src"], ("galactica.agent", "galactica.scheduler.cli")
    else:
        # Release 0.1 has three import names. Its `galactica` is a folder without __init__.py, and any other package of
        # that name, such as ours in this environment, would go first.
        imports, names = [directory, directory / "proto"], ("agent", "scheduler.cli")
        (directory / "proto/galactica/__init__.py").touch()
    _tell_entry_points(directory, imports[0])
    agent, cli = ((sys.executable, "-m", name) for name in names)
    return Programs(directory, agent, cli, {"PYTHONPATH": os.pathsep.join(map(str, imports))})


def _tell_entry_points(tree: Path, imported: Path) -> None:
    """As an installation would. Otherwise this environment answers with ours, which that release does not have."""
    project = tomllib.loads((tree / "pyproject.toml").read_text())["project"]
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    told = imported / "galactica-0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: galactica\nVersion: 0\n")
    (told / "entry_points.txt").write_text("\n".join(lines) + "\n")
