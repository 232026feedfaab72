"""What the systemd units install: pinned by hashes, complete, and the same as what is tested."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy/systemd/requirements.txt"
EXTRAS = ("scheduler", "docker", "enrol", "cloud", "bus")
PIN = re.compile(r"([a-z0-9-]+)==([A-Za-z0-9.]+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n")


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def pins():
    """Name to version."""
    return {name: version for name, version, _ in PIN.findall(FILE.read_text())}


def constraints():
    lines = (line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    return {normal(name): version for name, version in lines}


def needs(name, extras):
    """Names of what is installed with a package here, on Linux, itself included; by the packages' own metadata."""
    found, waiting = set(), [(normal(name), extra) for extra in ("", *extras)]
    while waiting:
        if (one := waiting.pop()) in found:
            continue
        found.add(one)
        for text in metadata.requires(one[0]) or ():
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": one[1]}):
                waiting += [(normal(need.name), extra) for extra in ("", *need.extras)]
    return {package for package, _ in found}


def test_every_line_is_a_pin_with_hashes_and_no_line_is_an_address():
    text = "".join(line for line in FILE.read_text().splitlines(keepends=True) if not line.startswith("#"))
    assert PIN.sub("", text) == ""
    assert len(PIN.findall(text)) > 20


def test_the_versions_are_those_that_are_tested():
    assert pins().items() <= constraints().items()


def test_it_is_all_that_the_units_need_and_nothing_else():
    assert set(pins()) == needs("galactica", EXTRAS) - {"galactica"}
