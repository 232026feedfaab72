"""What is wrong with a value, and where; and the checks that services and pools share."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from galactica.scheduler.core.model.spec import (
    NAME,
    Group,
)

Path = tuple[str | int, ...]
ENTRIES_LIMIT = 256
LABEL_LIMIT = 63
DAY_SECONDS = 86_400.0
MAX_AGE_SECONDS_LEAST = 1.0
MAX_AGE_SECONDS_LIMIT = 3_650 * DAY_SECONDS
_LABEL_KEY = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9._/]{0,61}[A-Za-z0-9])?")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that a group may not be. ``at_key``: the name of the entry is wrong, not its value. ``needs``:
    other fields that it was concluded from; where one of these is itself unreadable, this may be no problem."""

    path: Path
    message: str
    at_key: bool = False
    needs: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{dotted(self.path)}: {self.message}" if self.path else self.message


def dotted(path: Iterable[str | int]) -> str:
    """``("command", 2)`` as ``command[2]``, ``("health", "http")`` as ``health.http``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part[:80]}" if text else part[:80]
    return text


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def name_problems(group: Group) -> Iterator[Problem]:
    if not group.name:
        yield Problem(("name",), f"is missing; every {group.kind} needs a name")
    elif NAME.fullmatch(group.name) is None:
        yield Problem(
            ("name",),
            f"{shown(group.name)} is no name: 1 to 63 lower-case letters, digits and '-', no '-' at either end",
        )


def max_age_problems(group: Group) -> Iterator[Problem]:
    age = group.max_age_seconds
    if age and not MAX_AGE_SECONDS_LEAST <= age <= MAX_AGE_SECONDS_LIMIT:
        yield Problem(("max_age",), f"is not between 1s and {MAX_AGE_SECONDS_LIMIT / DAY_SECONDS:.0f}d")


def duration_problems(path: Path, seconds: float, least: float, most: float) -> Iterator[Problem]:
    if not least <= seconds <= most:
        yield Problem(path, f"{seconds:g}s is not between {least:g}s and {most:g}s")


def label_problems(path: Path, labels: Mapping[str, str]) -> Iterator[Problem]:
    if len(labels) > ENTRIES_LIMIT:
        yield Problem(path, f"has {len(labels)} labels; at most {ENTRIES_LIMIT} are taken")
    for name, value in labels.items():
        if _LABEL_KEY.fullmatch(name) is None:
            yield Problem((*path, name), f"{shown(name)} is no label's name", at_key=True)
        if len(value) > LABEL_LIMIT or CONTROL.search(value):
            yield Problem((*path, name), f"{shown(value)} is no label's value")


def shown(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
