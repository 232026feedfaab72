"""Manifests: YAML in, groups out, or every mistake at file:line:column. For the command line alone.

A file holds any number of documents. ``kind: service`` is a group of identical container or process cells, ``kind:
pool`` a group of identical servers. ``shape`` and ``pool_shape`` hold every key with its type, default, bounds and
meaning; docs/reference shows them to readers. ``tree`` reads YAML with positions, ``reading`` turns it into a group.

Anchors and aliases work within a document. Tags, duplicate keys, files above 1 MiB and more than 1,000 documents are
refused.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from galactica.scheduler.manifest.reading import ManifestErrors, Mistake, read
from galactica.scheduler.manifest.tree import (
    DOCUMENTS_LIMIT,
    FILE_BYTES_LIMIT,
    Document,
    Unreadable,
    documents,
)
from galactica.scheduler.model import Group, GroupKind

__all__ = ["STDIN", "ManifestErrors", "Mistake", "load", "parse"]

STDIN = "-"


def load(paths: Sequence[str]) -> tuple[Group, ...]:
    """The groups of all files, in order; "-" is standard input. Raises ManifestErrors with all mistakes of all."""
    mistakes: list[Mistake] = []
    sources: list[tuple[str, str]] = []
    for path in paths:
        try:
            sources.append(("<stdin>" if path == STDIN else path, _text_of(path)))
        except OSError as error:
            mistakes.append(Mistake(path, 0, 0, f"cannot be read: {error.strerror or error}"))
        except UnicodeDecodeError as error:
            mistakes.append(Mistake(path, 0, 0, f"is not UTF-8 text (byte {error.start})"))
        except ValueError as error:
            mistakes.append(Mistake(path, 0, 0, str(error)))
    groups, found = _groups(sources)
    if mistakes or found:
        raise ManifestErrors([*mistakes, *found])
    return groups


def parse(text: str, filename: str) -> tuple[Group, ...]:
    """The groups of one file's text. Raises ManifestErrors."""
    if len(text.encode()) > FILE_BYTES_LIMIT:
        raise ManifestErrors([Mistake(filename, 0, 0, _TOO_LARGE)])
    groups, mistakes = _groups([(filename, text)])
    if mistakes:
        raise ManifestErrors(mistakes)
    return groups


_TOO_LARGE = f"is larger than {FILE_BYTES_LIMIT // 2**20} MiB; split it into several files"


def _text_of(path: str) -> str:
    if path == STDIN:
        data = sys.stdin.buffer.read(FILE_BYTES_LIMIT + 1)
    else:
        with open(path, "rb") as file:  # noqa: PTH123 - so that the error names the path as it was given
            data = file.read(FILE_BYTES_LIMIT + 1)
    if len(data) > FILE_BYTES_LIMIT:
        raise ValueError(_TOO_LARGE)
    return data.decode("utf-8-sig")


def _groups(sources: Iterable[tuple[str, str]]) -> tuple[tuple[Group, ...], list[Mistake]]:
    groups: list[Group] = []
    mistakes: list[Mistake] = []
    first: dict[str, tuple[GroupKind, str]] = {}
    for file, text in sources:
        count = 0
        try:
            for document in documents(text):
                count += 1
                result = read(document, file)
                if isinstance(result, list):
                    mistakes += result
                    continue
                mistakes += _twice(document, file, result, first)
                groups.append(result)
        except Unreadable as error:
            count += 1
            place = error.fault.place
            mistakes.append(Mistake(file, place.line, place.column, error.fault.message, place.text))
        if not count:
            mistakes.append(
                Mistake(file, 0, 0, "holds no document; a manifest begins with kind: service or pool")
            )
    if len(groups) > DOCUMENTS_LIMIT:
        message = (
            f"there are more than {DOCUMENTS_LIMIT:,} groups in all; apply the files one after the other"
        )
        mistakes.append(Mistake("all files", 0, 0, message))
    return tuple(groups), mistakes


def _twice(
    document: Document, file: str, group: Group, first: dict[str, tuple[GroupKind, str]]
) -> list[Mistake]:
    """Two documents that speak of one group, here or in another file."""
    place = document.place_of(("name",))
    known = first.get(group.name)
    if known is None:
        first[group.name] = group.kind, f"{file}:{place.line}"
        return []
    kind, where = known
    unique = "" if kind is group.kind else "; names are unique across kinds"
    message = f"the {kind} {group.name!r} is in {where} already{unique}"
    return [Mistake(file, place.line, place.column, message, place.text, "name")]
