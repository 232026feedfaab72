"""Manifests: YAML in, groups out, or every mistake with file:line:column. Only the command line uses it.

A file contains any number of documents. ``kind: service`` is a group of identical container or process cells::

    kind: service
    name: web                  # 1 to 63 of a-z 0-9 -
    replicas: 6                # 0 to 100,000; default 1
    runtime: docker            # or process; default: docker where image is given
    image: hello:1             # docker only
    command: ["httpd", "-f"]   # a list of words; {port.http} becomes the port's number
    ports: {http: 8080}        # docker: the port inside; process: a number, or auto for a free one ($PORT_HTTP)
    env: {GREETING: hello}     # values are taken as they are written; {port.http} as in command
    resources: {cpu: 0.1, memory: 64MiB, pids: 64}     # cores, KiB/MiB/GiB or K/M/G; default: no limit
    health:                    # exactly one of http, tcp, exec, grpc; without health a running cell is healthy
      http: {port: http, path: /}                      # a name from ports
      every: 1s                # ms, s, m, h, d; default 1s
      timeout: 500ms           # default 1s, at most every
      sick_after: 3            # failures in a row; default 3
      boot_within: 30s         # from the order to the first success; default 60s
    stop: {signal: SIGTERM, grace: 10s}
    placement: {spread: server, require: {zone: a}}    # or spread: none, which packs
    writable: [/var/cache/app] # docker only: paths besides /tmp that the cell may write to
    exclusive: true            # never two cells of one slot alive at once, even across a partition; default false
    rollout: {healthy_for: 5s} # how long a new cell must stay well before the old one goes; default 5s
    max_age: 30d               # older cells are replaced even if they are healthy; default: never
    drift: report              # what to do with a cell that differs from its spec: report, or replace (default)

``kind: pool`` is a group of identical servers that a provider makes::

    kind: pool
    name: rack                 # names are unique across kinds
    size: 3                    # 0 to 10,000; default 1
    provider: local            # a configured provider; see galactica providers
    server: {flavour: small}   # any mapping; the provider reads it, and it is part of the digest
    labels: {zone: a}          # placement.require of services selects by these
    boot_within: 5m            # from the order until its agent sends beats and its vitals are good; default 5m
    max_age: 30d               # as above
    lease: 15s                 # how long a server may be silent; default: depends on the fleet's size
    cut_off_after: 5m          # how long a server that only its neighbours reach keeps its cells; default 5m
    replace:
      surge: 1                 # how many servers may exist beyond size at once; default 1
      unavailable: 0           # how many servers may be missing at once; default 0
      healthy_for: 5s          # how long a new server must stay well before the old one goes; default 5s
      per: {count: 10, window: 1h}                     # maximum number of replacements; default: no limit

Anchors and aliases work within a document. Tags, duplicate keys, files above 1 MiB and more than 1,000 documents are
refused.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from galactica.scheduler.core.model.spec import Group, GroupKind
from galactica.scheduler.manifest.reading import ManifestErrors, Mistake, read
from galactica.scheduler.manifest.tree import (
    DOCUMENTS_LIMIT,
    FILE_BYTES_LIMIT,
    Document,
    Unreadable,
    documents,
)

__all__ = ["STDIN", "ManifestErrors", "Mistake", "load", "parse"]

STDIN = "-"


def load(paths: Sequence[str]) -> tuple[Group, ...]:
    """The groups of all files, in order; "-" is standard input. Raises ManifestErrors with all mistakes."""
    mistakes: list[Mistake] = []
    sources: list[tuple[str, str]] = []
    for path in paths:
        try:
            sources.append(("<stdin>" if path == STDIN else path, _text_of(path)))
        except OSError as error:
            mistakes.append(Mistake(path, 0, 0, f"cannot read the file: {error.strerror or error}"))
        except UnicodeDecodeError as error:
            mistakes.append(
                Mistake(path, 0, 0, f"the file is not UTF-8 text (invalid at byte {error.start})")
            )
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


_TOO_LARGE = f"the file is larger than {FILE_BYTES_LIMIT // 2**20} MiB; split it into several files"


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
                Mistake(file, 0, 0, "the file is empty; a manifest begins with kind: service or kind: pool")
            )
    if len(groups) > DOCUMENTS_LIMIT:
        message = f"more than {DOCUMENTS_LIMIT:,} groups in total; apply the files one after the other"
        mistakes.append(Mistake("all files", 0, 0, message))
    return tuple(groups), mistakes


def _twice(
    document: Document, file: str, group: Group, first: dict[str, tuple[GroupKind, str]]
) -> list[Mistake]:
    """The mistake of a second document with the same name, in this file or in another one."""
    place = document.place_of(("name",))
    earlier = first.get(group.name)
    if earlier is None:
        first[group.name] = group.kind, f"{file}:{place.line}"
        return []
    kind, where = earlier
    unique = "" if kind is group.kind else "; names are unique across kinds"
    message = f"the {kind} {group.name!r} is already defined in {where}{unique}"
    return [Mistake(file, place.line, place.column, message, place.text, "name")]
