"""`make release`, for real, in a clone: what it refuses, and what it makes."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from deploy.release.artefacts import build_sdist, build_wheel, build_wheel_from_sdist
from deploy.release.tree import IMAGE_FILE, Tree
from tests.support.clone import clone_into, commit_all, done, run

# One worker, since the release that most of these look at is made once. Its environment takes a while to install.
pytestmark = [pytest.mark.xdist_group("release"), pytest.mark.timeout(600)]

VERSION = "99.0.0"
NOTES = "### Added\n\n- Something to speak about."
SECTION = f"## [{VERSION}] - 2031-02-03\n\n{NOTES}\n\n"
BIN = Path(sys.executable).parent


def write_version(root, version):
    file = root / "src/galactica/__init__.py"
    file.write_text(re.sub(r'__version__ = "[^"]*"', f'__version__ = "{version}"', file.read_text()))


def write_section(root, section):
    """In place of what is unreleased, and of such a section."""
    file = root / "CHANGELOG.md"
    told = re.sub(r"(?ms)^## \[Unreleased\]\n.*?(?=^## \[(?!99\.))", "", file.read_text(), count=1)
    file.write_text(re.sub(r"(?m)(?=^## \[)", f"## [Unreleased]\n\n{section}", told, count=1))


def make_release(root):
    """As a person types it, with the tools of our environment in place of one that the clone would make first."""
    return run(root, "make", "--old-file=venv", f"BIN={BIN}", "release")


def tags(root):
    return done(root, "git", "tag", "--list", "v99*").split()


def head(root):
    return done(root, "git", "rev-parse", "HEAD").strip()


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone in which all is ready for a release."""
    root = clone_into(tmp_path_factory.mktemp("release"))
    write_version(root, VERSION)
    write_section(root, SECTION)
    commit_all(root, f"Version {VERSION}")
    return root


@pytest.fixture
def ready(clone):
    """The same, and whatever a test does to it is undone."""
    before = head(clone)
    yield clone
    done(clone, "git", "reset", "--quiet", "--hard", before)
    done(clone, "git", "clean", "--quiet", "--force", "-d", "-x")
    for tag in tags(clone):
        done(clone, "git", "tag", "--delete", tag)


def assert_refused(root, *reasons):
    """It gives these reasons, and nothing has happened."""
    before, known = head(root), tags(root)
    ended = make_release(root)
    assert ended.returncode != 0
    assert [reason for reason in reasons if reason not in ended.stderr] == [], ended.stderr
    assert (head(root), tags(root)) == (before, known)
    assert not (root / "dist").exists()


def test_a_tree_with_changes_is_refused(ready):
    (ready / "stray.txt").write_text("not committed")
    assert_refused(ready, "changes that are not committed: stray.txt")


def test_a_version_that_the_changelog_does_not_know_is_refused(ready):
    write_section(ready, "")
    commit_all(ready, "No section")
    assert_refused(ready, f"CHANGELOG.md has no section for {VERSION}")


def test_a_section_without_a_date_is_refused(ready):
    write_section(ready, SECTION.replace(" - 2031-02-03", ""))
    commit_all(ready, "No date")
    assert_refused(ready, f"the section for {VERSION} has no date")


def test_notes_that_would_be_left_behind_are_refused(ready):
    write_section(ready, f"- Forgotten.\n\n{SECTION}")
    commit_all(ready, "Forgotten notes")
    assert_refused(ready, "notes are left below [Unreleased]")


def test_an_existing_tag_is_refused(ready):
    done(ready, "git", "tag", "--annotate", "--message", "before", f"v{VERSION}")
    assert_refused(ready, f"the tag v{VERSION} exists")


@pytest.mark.parametrize("version", ["0.0.9", "0.1.0"])
def test_a_version_that_is_not_above_the_last_release_is_refused(ready, version):
    write_version(ready, version)
    commit_all(ready, "An old version")
    assert_refused(ready, f"the version {version} in", "is not above")


def test_a_version_of_another_form_is_refused(ready):
    write_version(ready, "99.0")
    commit_all(ready, "Half a version")
    assert_refused(ready, "'99.0' in src/galactica/__init__.py is not MAJOR.MINOR.PATCH")


def test_all_reasons_are_told_at_once(ready):
    write_version(ready, "0.0.9")
    assert_refused(
        ready, "is not above", "has no section for 0.0.9", "not committed: src/galactica/__init__.py"
    )


def test_a_contract_that_breaks_with_the_last_release_is_refused(ready):
    file = ready / "proto/galactica/v1/link.proto"
    file.write_text(re.sub(r"(?m)^  string cell_id = 1;\n", "", file.read_text(), count=1))
    commit_all(ready, "A field less")
    assert_refused(ready, "the contract breaks with the last release", '"cell_id"', "was deleted")


def test_a_failing_build_leaves_neither_tag_nor_commit(ready):
    (ready / "deploy/systemd/requirements.txt").write_text(f"msgspec==0.22.0 --hash=sha256:{'0' * 64}\n")
    before = commit_all(ready, "A hash that no file has")
    ended = make_release(ready)
    assert ended.returncode != 0
    assert "DO NOT MATCH THE HASHES" in ended.stderr
    assert (head(ready), tags(ready)) == (before, [])
    assert list((ready / "dist").iterdir()) == []


@pytest.fixture(scope="module")
def released(clone, tmp_path_factory):
    """Such a clone after a release; with the commit that was released."""
    root = tmp_path_factory.mktemp("released") / "clone"
    shutil.copytree(clone, root, symlinks=True)
    before = head(root)
    ended = make_release(root)
    assert ended.returncode == 0, (ended.stdout, ended.stderr)
    return root, before


def test_a_release_has_an_annotated_tag_with_its_notes(released):
    root, commit = released
    assert done(root, "git", "cat-file", "-t", f"v{VERSION}").strip() == "tag"
    assert done(root, "git", "rev-parse", f"v{VERSION}^{{commit}}").strip() == commit
    message = done(root, "git", "tag", "--list", "--format=%(contents)", f"v{VERSION}").strip()
    assert message == f"Galactica {VERSION}\n\n{NOTES}"


def test_a_release_is_recorded_by_the_next_commit(released):
    root, commit = released
    assert done(root, "git", "rev-parse", "HEAD^").strip() == commit
    assert done(root, "git", "status", "--porcelain") == ""
    last = Tree(root).last_release()
    assert (last.version, last.commit) == (VERSION, commit)
    changed = done(root, "git", "diff", "--name-only", commit, "HEAD").split()
    assert set(changed) - {IMAGE_FILE} == {"deploy/release/last.toml"}


def test_a_release_is_made_only_once(released):
    root, _ = released
    ended = make_release(root)
    assert ended.returncode != 0
    assert f"the tag v{VERSION} exists" in ended.stderr


def test_the_checksums_are_those_of_all_files(released):
    root, _ = released
    names = {
        f"galactica-{VERSION}.tar.gz",
        f"galactica-{VERSION}-py3-none-any.whl",
        f"galactica-{VERSION}.cdx.json",
    }
    assert {file.name for file in (root / "dist").iterdir()} == {*names, "SHA256SUMS"}
    done(root / "dist", "sha256sum", "--check", "--strict", "SHA256SUMS")
    lines = (root / "dist/SHA256SUMS").read_text().splitlines()
    assert {line.split("  ")[1] for line in lines} == names


def test_the_bill_of_materials_names_what_the_units_install(released):
    root, _ = released
    bill = json.loads((root / f"dist/galactica-{VERSION}.cdx.json").read_text())
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == ("CycloneDX", "galactica")
    assert bill["metadata"]["component"]["version"] == VERSION
    named = {f"{normal(one['name'])}=={one['version']}" for one in bill["components"]}
    required = (root / "deploy/systemd/requirements.txt").read_text()
    assert named == set(re.findall(r"(?m)^([a-z0-9-]+==\S+)", required))
    assert str(root.parent) not in json.dumps(bill)


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}


def test_the_wheel_from_the_source_distribution_is_the_wheel_from_the_tree(clone, tmp_path):
    tree = Tree(clone)
    from_tree = contents(build_wheel(tree, directory(tmp_path / "tree")))
    sdist = build_sdist(tree, directory(tmp_path / "sdist"))
    from_sdist = contents(build_wheel_from_sdist(tree, sdist, directory(tmp_path / "wheel")))
    assert from_sdist == from_tree
    assert {"galactica/__init__.py", "galactica/scheduler/__init__.py", "galactica/v1/link_pb2.py"} <= set(
        from_tree
    )


def test_the_source_distribution_holds_real_files_once(clone, tmp_path):
    sdist = build_sdist(Tree(clone), directory(tmp_path / "sdist"))
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert [one.name for one in members if not one.isfile()] == []
    folders = {one.name.split("/")[1] for one in members if one.name.count("/") > 1}
    assert folders >= {"src", "deploy"}
    assert folders & {"agent", "scheduler", "proto", "tests"} == set()


def directory(path):
    path.mkdir()
    return path
