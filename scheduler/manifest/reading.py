"""From a document to a group or to all its mistakes.

The shape is checked first. What it finds wrong is then left out, and the rules look at the rest, so that one round
tells everything; a rule that would conclude from something left out keeps silent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from scheduler.group_rules import Path, Problem, did_you_mean, dotted, problems_of
from scheduler.manifest.shape import PROBES, SECTIONS, ServiceShape, group_of
from scheduler.manifest.tree import Data, Document, Place, Scalar
from scheduler.model import Group, GroupKind

MISTAKES_TOLD = 100


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong. ``line`` 0: the file as a whole. ``text``: how it is written there."""

    file: str
    line: int
    column: int
    message: str
    text: str = ""
    path: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        said = f"{self.path}: {self.message}" if self.path else self.message
        return f"{where}: {said}" if self.text in said else f"{where}: {said} (here: {self.text})"


class ManifestErrors(Exception):
    """All mistakes of all files, in the order in which they stand there."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        lines = [str(mistake) for mistake in self.mistakes[:MISTAKES_TOLD]]
        if len(self.mistakes) > MISTAKES_TOLD:
            lines.append(f"and {len(self.mistakes) - MISTAKES_TOLD} more")
        super().__init__("\n".join(lines))


def read(document: Document, file: str) -> Group | list[Mistake]:
    """The group that a document describes, or its mistakes (at least one)."""
    mistakes = [_mistake(file, fault.place, fault.message, fault.path) for fault in document.faults]
    if not isinstance(document.data, dict):
        message = "a manifest is a mapping that begins with kind: service"
        return [*mistakes, _mistake(file, document.place_of(()), message, ())]
    if _is_of_another_kind(document.data):
        return [*mistakes, *_of_problems(document, file, _shape_problems(document.data, {"kind"}))]
    shape_problems = list(_shape_problems(document.data))
    problems = shape_problems + list(_rule_problems(document, shape_problems))
    mistakes += _of_problems(document, file, problems)
    if mistakes:
        return sorted(mistakes, key=lambda mistake: (mistake.line, mistake.column))
    return group_of(ServiceShape.model_validate(document.data))


def _is_of_another_kind(data: dict[str, Data]) -> bool:
    """A kind that is no misspelt one of ours has other keys, of which nothing can be said."""
    kind = data.get("kind")
    return isinstance(kind, Scalar) and not did_you_mean(kind.text, list(GroupKind))


def _of_problems(document: Document, file: str, problems: Iterable[Problem]) -> list[Mistake]:
    return [
        _mistake(file, document.place_of(problem.path, at_key=problem.at_key), problem.message, problem.path)
        for problem in problems
    ]


def _mistake(file: str, place: Place, message: str, path: Path) -> Mistake:
    return Mistake(file, place.line, place.column, message, place.text, dotted(path))


def _shape_problems(data: dict[str, Data], only: set[str] | None = None) -> Iterator[Problem]:
    try:
        ServiceShape.model_validate(data)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            if only is None or details["loc"][0] in only:
                yield _shape_problem(details)
    if "kind" not in data and only is None:
        yield Problem(("kind",), "is missing; write kind: service")


def _shape_problem(details: Mapping[str, Any]) -> Problem:
    path: Path = details["loc"]
    match details["type"]:
        case "extra_forbidden":
            return Problem(path, f"there is no such key{_known_keys(path)}", at_key=True)
        case "model_type" | "dict_type":
            return Problem(path, _instead("a mapping", details["input"]))
        case "list_type":
            return Problem(path, _instead("a list", details["input"]))
        case _:
            return Problem(path, str(details.get("ctx", {}).get("error", details["msg"])))


def _known_keys(path: Path) -> str:
    keys = list(SECTIONS[path[:-1]].model_fields)
    close = did_you_mean(str(path[-1]), keys)
    if close:
        return close
    elsewhere = [section for section, shape in SECTIONS.items() if section and path[-1] in shape.model_fields]
    if elsewhere:
        return f" here; it belongs under {' or '.join(dotted(section) for section in elsewhere)}"
    return f"; the keys are: {', '.join(keys)}"


def _instead(wanted: str, data: Any) -> str:
    if isinstance(data, Scalar):
        if data.value is None:
            return "is empty; give it a value, or leave the key out"
        return f"must be {wanted}, not {data.text!r}"
    return f"must be {wanted}, not a {'mapping' if isinstance(data, dict) else 'list'}"


def _rule_problems(document: Document, found: list[Problem]) -> Iterator[Problem]:
    broken = [problem.path for problem in found] + [fault.path for fault in document.faults if fault.path]
    data = _without(document.data, broken)
    try:
        group = group_of(ServiceShape.model_validate(data))
    except ValidationError:  # what is wrong is told already
        return
    # One port that is wrong is still a port that others may name.
    unreadable = {path[0] for path in broken if len(path) == 1 or path[0] != "ports"}
    for problem in (*_probe_count(document.data), *problems_of(group)):
        if not problem.needs & unreadable and not _is_told(problem.path, broken):
            yield problem


def _is_told(path: Path, broken: list[Path]) -> bool:
    """Something is known to be wrong there, above it or below it."""
    return any(path[: len(other)] == other or other[: len(path)] == path for other in broken)


def _probe_count(data: Data) -> Iterator[Problem]:
    health = data.get("health") if isinstance(data, dict) else None
    if not isinstance(health, dict):
        return
    given = [kind for kind in PROBES if kind in health]
    if not given:
        yield Problem(("health",), "has no probe; it needs one of http, tcp, exec, grpc")
    for extra in given[1:]:
        yield Problem(
            ("health", extra), f"there is a probe already ({given[0]}); a service has one", at_key=True
        )


def _without(data: Data, paths: Iterable[Path]) -> Data:
    """The data without what stands at the paths; a list that holds such a thing goes as a whole."""
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
