"""The last release: its record, the image of its contract, and what buf says when ours breaks with it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from deploy.release.changelog import UNRELEASED, sections
from deploy.release.contract import breaking_changes, write_image
from deploy.release.tree import IMAGE_FILE, Tree
from tests.support.clone import ROOT
from tests.support.last_release import commit_of_last_release

TREE = Tree(ROOT)
MAKE_LINT = re.compile(r"(?m)^\t@\$\(BIN\)/buf breaking --against (\S+)$")


def copy_of_contract(directory):
    shutil.copytree(ROOT / "proto", directory / "proto", ignore=shutil.ignore_patterns("*.py", "*.pyi"))
    shutil.copy2(ROOT / "buf.yaml", directory)
    return Tree(directory)


def files_of(image):
    """The contract in an image by file, without what buf adds to it."""
    described = descriptor_pb2.FileDescriptorSet.FromString(image.read_bytes())
    described.DiscardUnknownFields()
    return {file.name: file for file in described.file}


@pytest.fixture
def commit():
    """The last release's."""
    return commit_of_last_release()


def test_the_last_release_is_a_commit_of_this_history(commit):
    assert re.fullmatch(r"[0-9a-f]{40}", commit)
    TREE.git("merge-base", "--is-ancestor", commit, "HEAD")


def test_the_last_release_bore_its_version(commit):
    """The version stood in pyproject.toml once."""
    files = TREE.git("ls-tree", "--name-only", commit, "pyproject.toml", "src/galactica/__init__.py").split()
    text = "".join(TREE.git("show", f"{commit}:{file}") for file in files)
    assert f'"{TREE.last_release().version}"' in re.findall(r'(?m)^(?:version|__version__) = (".*")$', text)


def test_the_image_is_the_contract_of_the_last_release(commit, tmp_path):
    packed = subprocess.run(
        ["git", "archive", commit, "proto", "buf.yaml"], cwd=ROOT, check=True, capture_output=True
    )
    with tarfile.open(fileobj=BytesIO(packed.stdout)) as archive:
        archive.extractall(tmp_path / "then", filter="data")
    write_image(Tree(tmp_path / "then"), tmp_path / "image.binpb")
    assert files_of(ROOT / IMAGE_FILE) == files_of(tmp_path / "image.binpb")


def test_the_image_has_all_three_files():
    names = {name.rpartition("/")[2] for name in files_of(ROOT / IMAGE_FILE)}
    assert names >= {"cell.proto", "link.proto", "operator.proto"}


def test_make_lint_compares_with_the_image():
    assert MAKE_LINT.findall((ROOT / "Makefile").read_text()) == [IMAGE_FILE]


def test_our_contract_does_not_break_with_the_last_release():
    assert breaking_changes(TREE) == ""


@pytest.mark.parametrize(
    ("pattern", "instead", "says"),
    [
        (r"(?m)^  string cell_id = 1;", "", "was deleted"),
        (r"(?m)^  string cell_id = 1;", "  uint64 cell_id = 1;", "changed type"),
    ],
)
def test_a_contract_that_breaks_is_found(tmp_path, pattern, instead, says):
    tree = copy_of_contract(tmp_path)
    assert breaking_changes(tree) == ""
    file = tmp_path / "proto/galactica/v1/link.proto"
    changed, count = re.subn(pattern, instead, file.read_text(), count=1)
    assert count == 1
    file.write_text(changed)
    assert says in breaking_changes(tree)


def test_a_field_that_is_added_breaks_nothing(tmp_path):
    tree = copy_of_contract(tmp_path)
    file = tmp_path / "proto/galactica/v1/link.proto"
    file.write_text(
        re.sub(r"(?m)^message Hello \{", "message Hello {\n  string more = 900;", file.read_text())
    )
    assert breaking_changes(tree) == ""


def test_the_changelog_tells_versions_from_new_to_old_each_with_its_date():
    told = [
        section for section in sections((ROOT / "CHANGELOG.md").read_text()) if section.version != UNRELEASED
    ]
    numbers = [tuple(map(int, section.version.split("."))) for section in told]
    assert numbers == sorted(set(numbers), reverse=True)
    assert [section.version for section in told if not (section.date and section.notes)] == []
    assert [section.date for section in told] == sorted((section.date for section in told), reverse=True)


def test_the_code_bears_the_newest_version_of_the_changelog():
    told = [section.version for section in sections((ROOT / "CHANGELOG.md").read_text())]
    assert next(version for version in told if version != UNRELEASED) == TREE.version()
    assert TREE.last_release().version in told


def test_the_program_tells_the_version_that_a_release_would_have():
    code = "import galactica; print(galactica.__version__)"
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=Path("/"), check=True, capture_output=True, text=True
    )
    assert told.stdout.strip() == TREE.version()
