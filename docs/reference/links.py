"""Links out of the pages into the repository. Pure.

A page's links are written as they work in the repository: ``../deploy/bus/mosquitto.conf``. On the site such a file
is a page of its own below ``source/``, so that the site is whole without the repository.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import PurePosixPath

PAGES = PurePosixPath("docs")
README = PurePosixPath("README.md")
START = "index.md"
SOURCES = "source"
PICTURES = frozenset({".svg", ".png"})

_LINK = re.compile(r"(?P<before>\]\()(?P<target>[^)\s]+)(?P<after>\))")
_FENCE = re.compile(r"^(```.*?^```)", re.MULTILINE | re.DOTALL)
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|/|#", re.IGNORECASE)
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".service": "ini", ".proto": "protobuf"}


def repository_paths(markdown: str, origin: PurePosixPath) -> Iterator[PurePosixPath]:
    """What the links of a text in the folder ``origin`` point to in the repository, from its root."""
    for prose in _FENCE.split(markdown)[::2]:
        for match in _LINK.finditer(prose):
            if path := _path_of(match["target"], origin):
                yield path


def rewritten(markdown: str, origin: PurePosixPath, page: PurePosixPath) -> str:
    """The text with links that work on the site, seen from ``page`` (such as ``reference/manifest.md``)."""

    def link(match: re.Match[str]) -> str:
        path = _path_of(match["target"], origin)
        if path is None:
            return match[0]
        there = posixpath.relpath(page_of(path), page.parent)
        _, hash_, anchor = match["target"].partition("#")
        return f"{match['before']}{there}{hash_}{anchor}{match['after']}"

    parts = _FENCE.split(markdown)
    parts[::2] = [_LINK.sub(link, prose) for prose in parts[::2]]
    return "".join(parts)


def _path_of(target: str, origin: PurePosixPath) -> PurePosixPath | None:
    """None for other sites and for places in the text itself."""
    if _ELSEWHERE.match(target):
        return None
    return PurePosixPath(posixpath.normpath(origin / target.partition("#")[0]))


def is_page(path: PurePosixPath) -> bool:
    return path == README or path.is_relative_to(PAGES)


def page_of(path: PurePosixPath) -> str:
    """Where the site shows a file of the repository."""
    if path == README:
        return START
    if is_page(path):
        return str(path.relative_to(PAGES))
    return f"{SOURCES}/{path}" if path.suffix in PICTURES else f"{SOURCES}/{path}.md"


def source_page(path: PurePosixPath, text: str) -> str:
    """A page that shows a file as it is."""
    return f"---\ntitle: {path.name}\n---\n\n# {path}\n\n````{_LANGUAGES.get(path.suffix, 'text')}\n{text}\n````\n"
