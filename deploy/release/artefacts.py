"""What a release consists of: source distribution, wheel, bill of materials, and their checksums."""

from __future__ import annotations

import hashlib
import re
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

from deploy.release.tree import Refused, Tree, tool

CHECKSUMS = "SHA256SUMS"
REQUIREMENTS_FILE = "deploy/systemd/requirements.txt"


def build(tree: Tree, directory: Path) -> list[Path]:
    """Make all files of a release in ``directory``; they, the checksums last. Raises Refused."""
    directory.mkdir(parents=True, exist_ok=True)
    sdist = build_sdist(tree, directory)
    wheel = build_wheel_from_sdist(tree, sdist, directory)
    bill = build_bill(tree, wheel, directory / f"galactica-{tree.version()}.cdx.json")
    checksums = directory / CHECKSUMS
    checksums.write_text("".join(_checksum(file) for file in (sdist, wheel, bill)))
    return [sdist, wheel, bill, checksums]


def build_sdist(tree: Tree, directory: Path) -> Path:
    return _built(tree, tree.root, "sdist", directory)


def build_wheel(tree: Tree, directory: Path) -> Path:
    """From the tree itself. A release does not use it: the tests compare it with the wheel of the release."""
    return _built(tree, tree.root, "wheel", directory)


def build_wheel_from_sdist(tree: Tree, sdist: Path, directory: Path) -> Path:
    """Whoever builds from the source distribution gets this wheel too."""
    with tempfile.TemporaryDirectory(prefix="galactica-release-") as unpacked:
        with tarfile.open(sdist) as archive:
            archive.extractall(unpacked, filter="data")
        (source,) = Path(unpacked).iterdir()
        return _built(tree, source, "wheel", directory)


def build_bill(tree: Tree, wheel: Path, bill: Path) -> Path:
    """A CycloneDX bill of materials of an environment that is installed as the units' is: pins, hashes, our wheel."""
    with tempfile.TemporaryDirectory(prefix="galactica-release-") as place:
        environment = Path(place) / "environment"
        # Without pip, which would be in the bill.
        venv.create(environment, with_pip=False)
        python = environment / "bin" / "python"
        _install(tree, python, "--require-hashes", "-r", str(tree.root / REQUIREMENTS_FILE))
        _install(tree, python, "--no-deps", str(wheel))
        project = Path(place) / "pyproject.toml"
        project.write_text(_with_version((tree.root / "pyproject.toml").read_text(), tree.version()))
        tree.run(
            *(tool("cyclonedx-py"), "environment", "--pyproject", str(project)),
            *("--output-reproducible", "--output-format", "JSON", "--output-file", str(bill), str(python)),
        )
    return bill


def _built(tree: Tree, source: Path, target: str, directory: Path) -> Path:
    before = set(directory.iterdir())
    command = (sys.executable, "-m", "hatchling", "build", "--target", target)
    tree.run(*command, "--directory", str(directory.absolute()), cwd=source)
    (made,) = set(directory.iterdir()) - before
    return made


def _install(tree: Tree, python: Path, *what: str) -> None:
    pip = (sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet")
    tree.run(*pip, "--disable-pip-version-check", "--root-user-action", "ignore", "--no-compile", *what)


def _with_version(project: str, version: str) -> str:
    """The bill's maker reads a version that is written in pyproject.toml only."""
    result, count = re.subn(
        r'^dynamic = \["version"\]$', f'version = "{version}"', project, flags=re.MULTILINE
    )
    if count != 1:
        raise Refused('pyproject.toml has no line dynamic = ["version"]')
    return result


def _checksum(file: Path) -> str:
    """A line as ``sha256sum`` writes and checks it."""
    return f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n"
