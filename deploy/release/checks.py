"""What speaks against a release. All reasons are told at once."""

from __future__ import annotations

import re
from collections.abc import Iterator

from deploy.release.changelog import UNRELEASED, changelog_of, section_of
from deploy.release.contract import breaking_changes
from deploy.release.tree import VERSION_FILE, Tree

_FILES_TOLD = 10


def reasons_against(tree: Tree) -> Iterator[str]:
    version = tree.version()
    yield from _version_reasons(tree, version)
    yield from _changelog_reasons(tree, version)
    yield from _tag_reasons(tree, version)
    yield from _dirt(tree)
    yield from _contract_reasons(tree)


def tag_of(version: str) -> str:
    return f"v{version}"


def _version_reasons(tree: Tree, version: str) -> Iterator[str]:
    last = tree.last_release().version
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        yield f"the version {version!r} in {VERSION_FILE} is not MAJOR.MINOR.PATCH"
    elif _numbers(version) <= _numbers(last):
        yield f"the version {version} in {VERSION_FILE} is not above {last}, the last release: raise it"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split("."))


def _changelog_reasons(tree: Tree, version: str) -> Iterator[str]:
    text = changelog_of(tree)
    section = section_of(text, version)
    heading = f"## [{version}] - YYYY-MM-DD"
    if section is None:
        yield f"CHANGELOG.md has no section for {version}: write one below {heading}"
    elif not section.date:
        yield f"CHANGELOG.md: the section for {version} has no date: write {heading}"
    elif not section.notes:
        yield f"CHANGELOG.md: the section for {version} is empty"
    waiting = section_of(text, UNRELEASED)
    if waiting is not None and waiting.notes:
        yield f"CHANGELOG.md: notes are left below [{UNRELEASED}]: move them to {version}"


def _tag_reasons(tree: Tree, version: str) -> Iterator[str]:
    tag = tag_of(version)
    if tree.git("tag", "--list", tag).strip():
        yield f"the tag {tag} exists: a released version never changes; choose a higher one"


def _dirt(tree: Tree) -> Iterator[str]:
    files = [line[3:] for line in tree.git("status", "--porcelain").splitlines()]
    if files:
        more = f" and {len(files) - _FILES_TOLD} more" if len(files) > _FILES_TOLD else ""
        yield f"the tree has changes that are not committed: {', '.join(files[:_FILES_TOLD])}{more}"


def _contract_reasons(tree: Tree) -> Iterator[str]:
    changes = breaking_changes(tree)
    if changes:
        yield f"the contract breaks with the last release:\n{changes}"
