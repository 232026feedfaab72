"""The shape of a pool's manifest. ``core.validation.pools`` checks the values; the provider checks what is below
``server``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field

from galactica.scheduler.core.model.spec import (
    Group,
    GroupKind,
    HealthSpec,
    Replace,
    RuntimeKind,
    ServerBody,
    Spec,
)
from galactica.scheduler.core.validation.pools import canonical_body
from galactica.scheduler.core.validation.problems import Path, Problem
from galactica.scheduler.manifest.shape import Age, Count, Duration, Kind, Shape, Text, Whole
from galactica.scheduler.manifest.tree import Data, Scalar
from galactica.scheduler.units import parse_duration

BOOT_WITHIN_SECONDS = 300.0
"""A machine takes longer than a container."""


def _lease(data: Any) -> float:
    if isinstance(data, Scalar) and data.value is not None:
        seconds = parse_duration(data.text)
        if seconds <= 0:
            raise ValueError("must be greater than 0; remove it to use the fleet's lease")
        return seconds
    raise ValueError("must be a single value, for example 30s")


Lease = Annotated[float, BeforeValidator(_lease)]


class PerShape(Shape):
    count: Count = 0
    window: Duration = Replace().window_seconds


class ReplaceShape(Shape):
    surge: Whole = Replace().surge
    unavailable: Whole = Replace().unavailable
    per: PerShape = PerShape()


class PoolShape(Shape):
    kind: Kind = "pool"
    name: Text = ""
    size: Whole = 1
    provider: Text = ""
    server: dict[str, Any] = Field(default_factory=dict)
    labels: dict[str, Text] = Field(default_factory=dict)
    boot_within: Duration = BOOT_WITHIN_SECONDS
    max_age: Age = 0.0
    lease: Lease = 0.0
    cut_off_after: Duration = 300.0
    replace: ReplaceShape = ReplaceShape()


POOL_SECTIONS: dict[Path, type[BaseModel]] = {
    (): PoolShape,
    ("replace",): ReplaceShape,
    ("replace", "per"): PerShape,
}


def pool_of(data: Data) -> Group:
    """The pool that a manifest of this shape means. Raises pydantic's ValidationError."""
    shape = PoolShape.model_validate(data)
    per = shape.replace.per
    return Group(
        GroupKind.POOL,
        shape.name,
        shape.size,
        Spec(
            runtime=RuntimeKind.SERVER,
            health=HealthSpec(boot_within_seconds=shape.boot_within),
            server=ServerBody(shape.provider, canonical_body(_plain(shape.server)), dict(shape.labels)),
        ),
        max_age_seconds=shape.max_age,
        replace=Replace(shape.replace.surge, shape.replace.unavailable, per.count, per.window),
        lease_seconds=shape.lease,
        cut_off_after_seconds=shape.cut_off_after,
    )


def _plain(data: Any) -> Any:
    match data:
        case dict():
            return {key: _plain(value) for key, value in data.items()}
        case list():
            return [_plain(value) for value in data]
        case Scalar(value=float() as number) if not math.isfinite(number):
            return None  # ``pool_data_problems`` reports it
        case Scalar(value=value):
            return value
        case _:
            raise TypeError(type(data).__name__)


def pool_data_problems(data: Data) -> Iterator[Problem]:
    """Problems of a pool's manifest that the resulting group no longer shows."""
    if not isinstance(data, dict):
        return
    yield from _no_numbers(("server",), data.get("server", {}))
    replace = data.get("replace")
    per = replace.get("per") if isinstance(replace, dict) else None
    if isinstance(per, dict) and "count" not in per:
        yield Problem(
            ("replace", "per", "count"), "is missing; write how many servers may be replaced in a window"
        )


def _no_numbers(path: Path, data: Data) -> Iterator[Problem]:
    """Numbers that JSON does not support, so the provider cannot read them."""
    match data:
        case dict():
            for key, value in data.items():
                yield from _no_numbers((*path, key), value)
        case list():
            for index, value in enumerate(data):
                yield from _no_numbers((*path, index), value)
        case Scalar(text=text, value=float() as number) if not math.isfinite(number):
            yield Problem(path, f"invalid number {text}: providers take finite numbers only")
