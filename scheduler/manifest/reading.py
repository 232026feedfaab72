"""Turns a document into a group, or into a list of all its mistakes.

The shape is checked first. Then the unreadable parts are removed and the rules check the rest, so that one run
reports everything. A rule that depends on a removed part reports nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from galactica.scheduler.core.model.spec import Group, GroupKind
from galactica.scheduler.core.validation.pools import problems_of_pool
from galactica.scheduler.core.validation.problems import Path, Problem, did_you_mean, dotted
from galactica.scheduler.core.validation.services import problems_of
from galactica.scheduler.manifest.pool_shape import POOL_SECTIONS, PoolShape, pool_data_problems, pool_of
from galactica.scheduler.manifest.shape import PROBES, SERVICE_SECTIONS, ServiceShape, service_of
from galactica.scheduler.manifest.tree import Data, Document, Place, Scalar

MISTAKES_SHOWN = 100


@dataclass(frozen=True, slots=True)
class _Form:
    """One kind of manifest. ``sections``: each path with fixed keys, and its model.
    ``group_of`` raises pydantic's ValidationError. ``data_problems``: problems that only the document itself shows."""

    kind: GroupKind
    shape: type[BaseModel]
    sections: Mapping[Path, type[BaseModel]]
    group_of: Callable[[Data], Group]
    problems_of: Callable[[Group], Iterable[Problem]]
    data_problems: Callable[[Data], Iterable[Problem]]


@dataclass(frozen=True, slots=True)
class Mistake:
    """One mistake. ``line`` 0: it is about the whole file. ``text``: the source text at that place."""

    file: str
    line: int
    column: int
    message: str
    text: str = ""
    path: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        message = f"{self.path}: {self.message}" if self.path else self.message
        return f"{where}: {message}" if self.text in message else f"{where}: {message} (here: {self.text})"


class ManifestErrors(Exception):
    """All mistakes of all files, in the order of the files and of the lines."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        lines = [str(mistake) for mistake in self.mistakes[:MISTAKES_SHOWN]]
        if len(self.mistakes) > MISTAKES_SHOWN:
            lines.append(f"and {len(self.mistakes) - MISTAKES_SHOWN} more")
        super().__init__("\n".join(lines))


def read(document: Document, file: str) -> Group | list[Mistake]:
    """The group that a document describes, or its mistakes (at least one)."""
    mistakes = [_mistake(file, fault.place, fault.message, fault.path) for fault in document.faults]
    if not isinstance(document.data, dict):
        message = "a manifest is a mapping that begins with kind: service or kind: pool"
        return [*mistakes, _mistake(file, document.place_of(()), message, ())]
    form = _form_of(document.data)
    if _is_of_another_kind(document.data):
        return [*mistakes, *_of_problems(document, file, _shape_problems(form, document.data, {"kind"}))]
    faulty = {fault.path for fault in document.faults}
    shape_problems = [
        problem for problem in _shape_problems(form, document.data) if problem.path not in faulty
    ]
    problems = shape_problems + list(_rule_problems(form, document, shape_problems))
    mistakes += _of_problems(document, file, problems)
    if mistakes:
        return sorted(mistakes, key=lambda mistake: (mistake.line, mistake.column))
    return form.group_of(document.data)


def _form_of(data: dict[str, Data]) -> _Form:
    """The form of the document's kind. If the kind is missing or misspelt, the form that shares most of its keys."""
    kind = data.get("kind")
    if isinstance(kind, Scalar) and (matches := difflib.get_close_matches(kind.text, list(_FORMS), n=1)):
        return _FORMS[GroupKind(matches[0])]
    return max(_FORMS.values(), key=lambda form: len(data.keys() & form.shape.model_fields.keys()))


def _is_of_another_kind(data: dict[str, Data]) -> bool:
    """Whether the kind is foreign, not a misspelt one of ours. Then its other keys are not checked."""
    kind = data.get("kind")
    return isinstance(kind, Scalar) and not did_you_mean(kind.text, list(GroupKind))


def _of_problems(document: Document, file: str, problems: Iterable[Problem]) -> list[Mistake]:
    return [
        _mistake(file, document.place_of(problem.path, at_key=problem.at_key), problem.message, problem.path)
        for problem in problems
    ]


def _mistake(file: str, place: Place, message: str, path: Path) -> Mistake:
    return Mistake(file, place.line, place.column, message, place.text, dotted(path))


def _shape_problems(form: _Form, data: dict[str, Data], only: set[str] | None = None) -> Iterator[Problem]:
    try:
        form.shape.model_validate(data)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            if only is None or details["loc"][0] in only:
                yield _shape_problem(form, details)
    if "kind" not in data and only is None:
        yield Problem(("kind",), f"is missing; write kind: {form.kind}")


def _shape_problem(form: _Form, details: Mapping[str, Any]) -> Problem:
    path: Path = details["loc"]
    match details["type"]:
        case "extra_forbidden":
            return Problem(path, f"unknown key{_key_hint(form, path)}", at_key=True)
        case "model_type" | "dict_type":
            return Problem(path, _instead("a mapping", details["input"]))
        case "list_type":
            return Problem(path, _instead("a list", details["input"]))
        case _:
            return Problem(path, str(details.get("ctx", {}).get("error", details["msg"])))


def _key_hint(form: _Form, path: Path) -> str:
    keys = list(form.sections[path[:-1]].model_fields)
    twin = _TWINS.get(str(path[-1]))
    if twin in keys:
        return f"; a {form.kind} has {twin}"
    elsewhere = [
        section for section, shape in form.sections.items() if section and path[-1] in shape.model_fields
    ]
    if elsewhere:
        return f" here; it belongs under {' or '.join(dotted(section) for section in elsewhere)}"
    close = did_you_mean(str(path[-1]), keys)
    if close:
        return close
    return f"; the keys are: {', '.join(keys)}"


_TWINS = {"replicas": "size", "size": "replicas"}
"""Keys with the same meaning in the other kind of manifest."""


def _instead(wanted: str, data: Any) -> str:
    if isinstance(data, Scalar):
        if data.value is None:
            return "is empty; give it a value, or remove the key"
        return f"must be {wanted}, not {data.text!r}"
    return f"must be {wanted}, not a {'mapping' if isinstance(data, dict) else 'list'}"


def _rule_problems(form: _Form, document: Document, found: list[Problem]) -> Iterator[Problem]:
    broken = [problem.path for problem in found] + [fault.path for fault in document.faults if fault.path]
    data = _without(document.data, broken)
    try:
        group = form.group_of(data)
    except ValidationError:  # the shape's problems already report it
        return
    # A port with a wrong number is still a port that probes and placeholders may name.
    unreadable = {path[0] for path in broken if len(path) == 1 or path[0] != "ports"}
    for problem in (*form.data_problems(document.data), *form.problems_of(group)):
        if not problem.needs & unreadable and not _is_reported(problem.path, broken):
            yield problem


def _is_reported(path: Path, broken: list[Path]) -> bool:
    """Whether a mistake at this path, above it or below it, is already reported."""
    return any(path[: len(other)] == other or other[: len(path)] == path for other in broken)


def _probe_count(data: Data) -> Iterator[Problem]:
    health = data.get("health") if isinstance(data, dict) else None
    if not isinstance(health, dict):
        return
    given = [kind for kind in PROBES if kind in health]
    if not given:
        yield Problem(("health",), "has no probe; add one of http, tcp, exec, grpc")
    for extra in given[1:]:
        yield Problem(
            ("health", extra), f"second probe after {given[0]}; a service has exactly one probe", at_key=True
        )


def _without(data: Data, paths: Iterable[Path]) -> Data:
    """The data without the entries at the paths. A list that contains such an entry is removed as a whole."""
    result = data
    for path in paths:
        result = _without_one(result, path)
    return result


def _without_one(data: Data, path: Path) -> Data:
    if not isinstance(data, dict) or not path or path[0] not in data:
        return data
    key = str(path[0])
    rest = {name: value for name, value in data.items() if name != key}
    child = data[key]
    if len(path) == 1 or not isinstance(child, dict):
        return rest
    if key == "ports":
        return {**data, key: {**child, str(path[1]): Scalar("auto", "auto")}}
    return {**rest, key: _without_one(child, path[1:])}


_FORMS = {
    form.kind: form
    for form in (
        _Form(GroupKind.SERVICE, ServiceShape, SERVICE_SECTIONS, service_of, problems_of, _probe_count),
        _Form(GroupKind.POOL, PoolShape, POOL_SECTIONS, pool_of, problems_of_pool, pool_data_problems),
    )
}
