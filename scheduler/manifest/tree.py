"""Reads YAML text into plain data, with the place of every key and value. It never executes or imports anything.

``ruamel.yaml``'s pure composer makes nodes, and this module turns the nodes into dictionaries, lists and ``Scalar``.
So each mistake has a place, and one module handles tags, duplicate keys and aliases.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, StringMark, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from galactica.scheduler.core.validation.problems import Path

FILE_BYTES_LIMIT = 2**20
DOCUMENTS_LIMIT = 1_000
NODES_LIMIT = 100_000
"""The limit for one document with its aliases expanded. More than this is an attack, not a manifest."""
DEPTH_LIMIT = 50
TEXT_SHOWN = 80

_TAG = "tag:yaml.org,2002:"
_DIGITS_LIMIT = 30
_NUMBER = re.compile(r"[-+]?[0-9_]+")


@dataclass(frozen=True, slots=True)
class Place:
    """A position in the source, lines and columns from 1, and the source text there."""

    line: int
    column: int
    text: str = ""


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value. ``value`` is its value by YAML's core schema; ``text`` is the source text, so that ``1.10`` stays
    ``1.10`` when a text is needed."""

    text: str
    value: str | int | float | bool | None


Data = dict[str, "Data"] | list["Data"] | Scalar


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that YAML or this reader does not allow."""

    place: Place
    message: str
    path: Path = ()


@dataclass(slots=True)
class Document:
    """One document. ``values`` and ``keys``: path to place."""

    data: Data
    values: dict[Path, Place] = field(default_factory=dict)
    keys: dict[Path, Place] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def place_of(self, path: Path, *, at_key: bool = False) -> Place:
        """The place of ``path``, or of its nearest existing parent."""
        for length in range(len(path), -1, -1):
            part = path[:length]
            if part == path and at_key and part in self.keys:
                return self.keys[part]
            if part != path and part in self.keys:
                return self.keys[part]
            if part in self.values:
                return self.values[part]
        return Place(1, 1)


class Unreadable(Exception):
    """The text is invalid YAML at ``fault``. The documents before it were read."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


def documents(text: str) -> Iterator[Document]:
    """The documents that are not empty, in order. Raises Unreadable after the last readable document."""
    composed = _nodes(text)
    for count, node in enumerate(composed, 1):
        if count > DOCUMENTS_LIMIT:
            message = f"more than {DOCUMENTS_LIMIT:,} documents in the file; split it"
            raise Unreadable(Fault(_place(node), message))
        document = _Builder().build(node)
        if document.data != Scalar("", None):
            yield document


def _nodes(text: str) -> Iterator[Node]:
    try:
        for node in YAML(typ="safe", pure=True).compose_all(text):
            if node is not None:
                yield node
    except ReaderError as error:
        raise Unreadable(Fault(_place_of_offset(text, error.position), _reader_message(error))) from error
    except MarkedYAMLError as error:
        message = f"invalid YAML: {_yaml_problem(text, error)}"
        raise Unreadable(Fault(_place_of_mark(text, error), message)) from error
    except RecursionError as error:
        raise Unreadable(Fault(Place(1, 1), "the document is nested too deeply")) from error
    except (YAMLError, ValueError) as error:
        raise Unreadable(Fault(Place(1, 1), f"invalid YAML: {str(error).splitlines()[0]}")) from error


def _reader_message(error: ReaderError) -> str:
    character = error.character if isinstance(error.character, int) else ord(error.character)
    return f"the character #x{character:02x} is not allowed in YAML"


_YAML_PROBLEMS = (
    (
        re.compile(r"mapping values are not allowed here"),
        "unexpected ':'; check the indentation, or quote the text",
    ),
    (
        re.compile(r"found character '(.+)' that cannot start any token"),
        "unexpected character '{}'; quote the text",
    ),
    (re.compile(r"found undefined alias '(.+)'"), "undefined alias '*{}'"),
    (re.compile(r"could not find expected ':'"), "missing ':' after a key; look at the line above too"),
    (re.compile(r"expected <block end>.*"), "wrong indentation"),
    (re.compile(r"expected ('.' or '.'), but got .*"), "missing {}"),
)
"""The library's messages that people meet most often, and what to tell them instead."""


def _yaml_problem(text: str, error: MarkedYAMLError) -> str:
    problem, context, mark = error.problem or "", error.context or "", error.problem_mark
    if mark is not None and "'\\t'" in problem:
        before = "".join(text.splitlines()[mark.line : mark.line + 1])[: mark.column]
        return "unexpected tab" if before.strip() else "tab used for indentation"
    if "quoted scalar" in context and "end of stream" in problem:
        return "missing closing quote"
    for pattern, plain in _YAML_PROBLEMS:
        if match := pattern.fullmatch(problem):
            return plain.format(*match.groups())
    return f"{problem} ({context})" if problem and context else problem or context


def _place_of_mark(text: str, error: MarkedYAMLError) -> Place:
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return Place(1, 1)
    lines = text.splitlines()
    shown = lines[mark.line].strip() if mark.line < len(lines) else ""
    return Place(mark.line + 1, mark.column + 1, shown[:TEXT_SHOWN])


def _place_of_offset(text: str, offset: int) -> Place:
    before = text[:offset]
    return Place(before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1)


def _place(node: Node, text: str = "") -> Place:
    mark: StringMark = node.start_mark
    return Place(mark.line + 1, mark.column + 1, text)


class _Builder:
    """Turns one document's nodes into data."""

    def __init__(self) -> None:
        self._nodes = 0
        self._open: set[int] = set()

    def build(self, node: Node) -> Document:
        document = Document(Scalar("", None))
        document.data = self._data(document, node, ())
        return document

    def _data(self, document: Document, node: Node, path: Path) -> Data:
        place = _place(node, str(node.value)[:TEXT_SHOWN] if isinstance(node, ScalarNode) else "")
        document.values[path] = place
        self._nodes += 1
        if self._nodes > NODES_LIMIT or len(path) > DEPTH_LIMIT:
            what = "too many values" if self._nodes > NODES_LIMIT else "too many levels"
            raise Unreadable(Fault(place, f"the document has {what} (aliases count as their content)"))
        if id(node) in self._open:
            raise Unreadable(Fault(place, f"the anchor &{node.anchor} contains an alias of itself"))
        self._open.add(id(node))
        try:
            return self._of_kind(document, node, path, place)
        finally:
            self._open.discard(id(node))

    def _of_kind(self, document: Document, node: Node, path: Path, place: Place) -> Data:
        name = _tag_of(node)
        if name not in _KNOWN_TAGS:
            message = f"the tag {name.replace(_TAG, '!!')} is not allowed; use plain values"
            document.faults.append(Fault(place, message, path))
        if isinstance(node, MappingNode):
            return self._mapping(document, node, path)
        if isinstance(node, SequenceNode):
            return [self._data(document, item, (*path, index)) for index, item in enumerate(node.value)]
        return _scalar(document, node, path, place)

    def _mapping(self, document: Document, node: MappingNode, path: Path) -> dict[str, Data]:
        data: dict[str, Data] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                document.faults.append(
                    Fault(_place(key_node), "a key must be plain text, not a list or a mapping", path)
                )
                continue
            key = _joined(str(key_node.value))
            here = (*path, key)
            place = _place(key_node, _readable(key)[:TEXT_SHOWN])
            if key != _readable(key):
                document.faults.append(Fault(place, _HALF, path))
                continue
            if key in data:
                first = document.keys[here]
                message = f"duplicate key {key!r}, first in line {first.line}"
                document.faults.append(Fault(place, message, here))
                continue
            document.keys[here] = place
            data[key] = self._data(document, value_node, here)
            if data[key] == Scalar("", None):  # the composer gives it the position of the next token
                document.values[here] = place
        return data


_KNOWN_TAGS = {
    f"{_TAG}{name}"
    for name in ("str", "int", "float", "bool", "null", "map", "seq", "timestamp", "merge", "value")
}


def _tag_of(node: Node) -> str:
    return str(node.tag)


_HALF = "half of a surrogate pair is no character; write the character itself"


def _joined(text: str) -> str:
    """JSON writes some characters as a pair of escapes."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def _readable(text: str) -> str:
    return text.encode(errors="replace").decode()


def _scalar(document: Document, node: Node, path: Path, place: Place) -> Scalar:
    joined = _joined(str(node.value))
    text = _readable(joined)
    if text != joined:
        document.faults.append(Fault(place, _HALF, path))
    match _tag_of(node).removeprefix(_TAG):
        case "null":
            return Scalar(text, None)
        case "bool":
            return Scalar(text, text.lower() == "true")
        case "int":
            return Scalar(text, _int(document, text, path, place))
        case "float":
            return Scalar(text, _float(text))
        case _:
            return Scalar(text, text)


def _int(document: Document, text: str, path: Path, place: Place) -> int | str:
    if len(text) > _DIGITS_LIMIT:
        document.faults.append(Fault(place, f"a number of {len(text)} digits is too long", path))
        return 0
    if _NUMBER.fullmatch(text):
        return int(text.replace("_", ""))
    try:
        return int(text.replace("_", ""), 0)
    except ValueError:
        return text


def _float(text: str) -> float | str:
    try:
        return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        return math.nan
