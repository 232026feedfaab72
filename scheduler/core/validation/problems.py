"""``Problem``: what is wrong with a value and where. Also the checks that services and pools share."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from galactica.scheduler.core.model.spec import (
    NAME,
    Group,
    GroupKind,
)

Path = tuple[str | int, ...]
ENTRIES_LIMIT = 256
LABEL_LIMIT = 63
DAY_SECONDS = 86_400.0
MAX_AGE_SECONDS_LEAST = 1.0
MAX_AGE_SECONDS_LIMIT = 3_650 * DAY_SECONDS
HEALTHY_FOR_SECONDS_LIMIT = DAY_SECONDS
NAME_HINT = "use 1 to 63 lower-case letters, digits and '-'; begin and end with a letter or digit"
_LABEL_KEY = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9._/]{0,61}[A-Za-z0-9])?")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Problem:
    """One broken rule. ``at_key``: the name of the entry is wrong, not its value. ``needs``: the other fields that
    the rule depends on. The reader drops the problem when one of those fields is unreadable."""

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


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """``; did you mean 'x'?``, or an empty text when no choice is similar."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def name_problems(group: Group) -> Iterator[Problem]:
    if not group.name:
        yield Problem(("name",), f"is missing; every {group.kind} needs a name")
    elif NAME.fullmatch(group.name) is None:
        yield Problem(
            ("name",),
            f"invalid name {shown(group.name)}: {NAME_HINT}",
        )


def max_age_problems(group: Group) -> Iterator[Problem]:
    age = group.max_age_seconds
    if age and not MAX_AGE_SECONDS_LEAST <= age <= MAX_AGE_SECONDS_LIMIT:
        yield Problem(("max_age",), f"must be between 1s and {MAX_AGE_SECONDS_LIMIT / DAY_SECONDS:.0f}d")


def healthy_for_problems(group: Group) -> Iterator[Problem]:
    section = "rollout" if group.kind is GroupKind.SERVICE else "replace"
    return duration_problems(
        (section, "healthy_for"), group.healthy_for_seconds, 0, HEALTHY_FOR_SECONDS_LIMIT
    )


def duration_problems(path: Path, seconds: float, least: float, most: float) -> Iterator[Problem]:
    if not least <= seconds <= most:
        yield Problem(path, f"{seconds:g}s is not between {least:g}s and {most:g}s")


def label_problems(path: Path, labels: Mapping[str, str]) -> Iterator[Problem]:
    if len(labels) > ENTRIES_LIMIT:
        yield Problem(path, f"has {len(labels)} labels; the limit is {ENTRIES_LIMIT}")
    for name, value in labels.items():
        if _LABEL_KEY.fullmatch(name) is None:
            yield Problem(
                (*path, name),
                f"invalid label name {shown(name)}: use 1 to 63 letters, digits, '-', '_', '.' and '/'; "
                "begin and end with a letter or digit",
                at_key=True,
            )
        if len(value) > LABEL_LIMIT or CONTROL.search(value):
            yield Problem(
                (*path, name),
                f"invalid label value {shown(value)}: use at most {LABEL_LIMIT} characters, "
                "no control characters",
            )


def shown(text: str) -> str:
    """The text in quotes, shortened to 80 characters."""
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
