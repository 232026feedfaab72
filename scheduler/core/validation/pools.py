"""The rules for a valid pool. They apply to manifests and to calls. The rules for services are in ``services``.

Pure. Only the provider understands ``server``; here only its size is checked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Never

from galactica.scheduler.core.model.spec import NAME, Group, Replace, RuntimeKind, ServerBody
from galactica.scheduler.core.validation.problems import (
    DAY_SECONDS,
    NAME_HINT,
    Problem,
    duration_problems,
    healthy_for_problems,
    label_problems,
    max_age_problems,
    name_problems,
    shown,
)

SIZE_LIMIT = 10_000
"""One scheduler is designed for up to this many agents."""
BODY_BYTES_LIMIT = 65_536


def canonical_body(body: dict[str, Any]) -> str:
    """The canonical JSON of a server's description: keys sorted, no blanks, ASCII. Raises ValueError for values that
    JSON does not support."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)


def read_body(text: str) -> str:
    """The canonical form of any JSON object. Raises ValueError with a message that says what is wrong."""
    if len(text) > BODY_BYTES_LIMIT:
        raise ValueError(f"is more than {BODY_BYTES_LIMIT:,} bytes long")
    try:
        body = json.loads(text, parse_constant=_refuse_constant)
        if isinstance(body, dict):
            json.dumps(body, ensure_ascii=False).encode()  # refuses half of a surrogate pair
            return canonical_body(body)
    except (ValueError, RecursionError) as error:
        raise ValueError("is not valid standard JSON") from error
    raise ValueError("must be a JSON object")


def _refuse_constant(text: str) -> Never:
    raise ValueError(text)


def problems_of_pool(group: Group) -> tuple[Problem, ...]:
    """All problems of a pool; empty for a valid one."""
    body = group.spec.server or ServerBody("")
    return tuple(
        problem
        for rules in (
            name_problems(group),
            _size(group),
            _runtime(group),
            _provider(body),
            _body(body),
            label_problems(("labels",), body.labels),
            duration_problems(("boot_within",), group.spec.health.boot_within_seconds, 0.1, DAY_SECONDS),
            max_age_problems(group),
            healthy_for_problems(group),
            _silence(group),
            _replace(group.replace),
        )
        for problem in rules
    )


def _size(group: Group) -> Iterator[Problem]:
    if not 0 <= group.replicas <= SIZE_LIMIT:
        yield Problem(("size",), f"{group.replicas} is not between 0 and {SIZE_LIMIT:,}")


def _runtime(group: Group) -> Iterator[Problem]:
    if group.spec.runtime is not RuntimeKind.SERVER:
        yield Problem(("runtime",), "a pool has no runtime, because its cells are servers; remove this field")


def _provider(body: ServerBody) -> Iterator[Problem]:
    if not body.provider:
        yield Problem(
            ("provider",), "is missing; name the provider that makes the servers, for example local"
        )
    elif NAME.fullmatch(body.provider) is None:
        yield Problem(("provider",), f"invalid provider name {shown(body.provider)}: {NAME_HINT}")


def _body(body: ServerBody) -> Iterator[Problem]:
    if len(body.body_json) > BODY_BYTES_LIMIT:
        yield Problem(
            ("server",), f"is {len(body.body_json):,} bytes of JSON; the limit is {BODY_BYTES_LIMIT:,}"
        )


def _silence(group: Group) -> Iterator[Problem]:
    if group.lease_seconds:
        yield from duration_problems(("lease",), group.lease_seconds, 1.0, DAY_SECONDS)
    yield from duration_problems(("cut_off_after",), group.cut_off_after_seconds, 1.0, 7 * DAY_SECONDS)
    if group.lease_seconds > group.cut_off_after_seconds:
        yield Problem(
            ("cut_off_after",),
            "is shorter than the lease; use at least the lease, so that a server that its neighbours still reach "
            "is kept at least as long as a silent one",
            needs=frozenset({"lease"}),
        )


def _replace(replace: Replace) -> Iterator[Problem]:
    for name, number in (("surge", replace.surge), ("unavailable", replace.unavailable)):
        if not 0 <= number <= SIZE_LIMIT:
            yield Problem(("replace", name), f"{number} is not between 0 and {SIZE_LIMIT:,}")
    if not replace.surge and not replace.unavailable:
        yield Problem(
            ("replace",),
            "surge and unavailable are both 0, so no server can be replaced; set one of them to 1 or more",
            needs=frozenset({"replace"}),
        )
    if not 0 <= replace.count <= SIZE_LIMIT:
        yield Problem(("replace", "per", "count"), f"{replace.count} is not between 1 and {SIZE_LIMIT:,}")
    yield from duration_problems(("replace", "per", "window"), replace.window_seconds, 1.0, 7 * DAY_SECONDS)
