"""CHANGELOG.md, in the form of Keep a Changelog: a section for each version, the newest first."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from deploy.release.tree import Refused, Tree

CHANGELOG_FILE = "CHANGELOG.md"
UNRELEASED = "Unreleased"

_HEADING = re.compile(r"^## \[([^\]]+)\](?: - (\d{4}-\d{2}-\d{2}))?[ \t]*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Section:
    """``date``: RFC 3339, empty where there is none. ``notes``: all that stands below the heading."""

    version: str
    date: str
    notes: str


def sections(text: str) -> Iterator[Section]:
    """All sections in their order, the unreleased one too."""
    headings = list(_HEADING.finditer(text))
    ends = [heading.start() for heading in headings[1:]] + [len(text)]
    for heading, end in zip(headings, ends, strict=True):
        yield Section(heading[1], heading[2] or "", text[heading.end() : end].strip())


def section_of(text: str, version: str) -> Section | None:
    return next((section for section in sections(text) if section.version == version), None)


def changelog_of(tree: Tree) -> str:
    return (tree.root / CHANGELOG_FILE).read_text()


def notes_of(tree: Tree, version: str) -> str:
    """Raises Refused where the version has no section."""
    section = section_of(changelog_of(tree), version)
    if section is None:
        raise Refused(f"{CHANGELOG_FILE} has no section for {version}")
    return section.notes
