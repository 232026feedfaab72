"""Checks of what operators send, before the core sees it. All problems are told at once."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from galactica.scheduler.core.model.spec import Group
from galactica.scheduler.security.gate import InvalidRequest
from galactica.scheduler.wire.operator import group_from_proto
from galactica.v1 import operator_pb2

GROUPS_LIMIT = 1_000
"""The limit for one apply or plan."""


def groups_of(messages: Sequence[operator_pb2.Group]) -> tuple[Group, ...]:
    """Raises InvalidRequest with every problem of every group."""
    problems: list[str] = []
    groups: dict[str, Group] = {}
    if not messages:
        problems.append("the request contains no group")
    if len(messages) > GROUPS_LIMIT:
        raise InvalidRequest(f"too many groups in one request: {len(messages)}; the limit is {GROUPS_LIMIT}")
    for message in messages:
        try:
            group = group_from_proto(message)
        except ValueError as error:
            problems.append(str(error))
            continue
        if group.name in groups:
            problems.append(f"{group.name}: duplicate group in the request")
        groups[group.name] = group
    if problems:
        raise InvalidRequest("\n".join(problems))
    return tuple(groups.values())


def check_providers(groups: Sequence[Group], configured: Collection[str]) -> None:
    """Raises InvalidRequest with every pool whose provider is not configured."""
    names = ", ".join(sorted(configured)) or "none"
    problems = [
        f"{group.name}: provider '{group.spec.server.provider}' is not configured (configured: {names})"
        for group in groups
        if group.spec.server is not None and group.spec.server.provider not in configured
    ]
    if problems:
        raise InvalidRequest("\n".join(problems))


def check_range(*fields: tuple[str, int, int]) -> None:
    """Each field with its value and its limit. Raises InvalidRequest with all that are not between 1 and that."""
    problems = [
        f"{name}: {value} is not between 1 and {limit}"
        for name, value, limit in fields
        if not 1 <= value <= limit
    ]
    if problems:
        raise InvalidRequest("\n".join(problems))
