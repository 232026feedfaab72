"""The checkout that a release is cut from: its git, its version, and what its records say of the last release."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

VERSION_FILE = "src/galactica/__init__.py"
LAST_FILE = "deploy/release/last.toml"
IMAGE_FILE = "proto/released.binpb"

_VERSION = re.compile(r'^__version__ = "([^"]*)"$', re.MULTILINE)


class Refused(Exception):
    """There will be no release; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Release:
    """A release that was made: its version and the full id of its commit."""

    version: str
    commit: str


@dataclass(frozen=True, slots=True)
class Tree:
    """``root`` is the top folder of a git checkout."""

    root: Path

    def git(self, *words: str) -> str:
        """What git prints. Raises Refused with git's own words."""
        return self.run("git", *words)

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """What a program prints that has to work, run in ``cwd`` (default: the root). Raises Refused."""
        done = subprocess.run(
            command,
            cwd=cwd or self.root,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            said = "\n".join(text for text in (done.stdout.strip(), done.stderr.strip()) if text)
            raise Refused(f"{' '.join(command)} failed:\n{said}")
        return done.stdout

    def version(self) -> str:
        """The version that the code bears. It is written in one place, which the build reads too. Raises Refused."""
        found = _VERSION.search((self.root / VERSION_FILE).read_text())
        if found is None:
            raise Refused(f'{VERSION_FILE} has no line __version__ = "…"')
        return found[1]

    def last_release(self) -> Release:
        written = tomllib.loads((self.root / LAST_FILE).read_text())
        return Release(written["version"], written["commit"])


def tool(name: str) -> str:
    """A program of the environment that runs us: one that the development group pins."""
    return str(Path(sys.executable).parent / name)
