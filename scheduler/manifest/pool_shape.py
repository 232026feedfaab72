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
from galactica.scheduler.manifest.notation import NEEDED, Bounds, Without, Written
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


Lease = Annotated[float, BeforeValidator(_lease), Written("duration")]


class PerShape(Shape):
    """At most `count` replacements in any `window`, those of dead servers included."""

    count: Annotated[Count, Bounds("1", "10000"), NEEDED] = Field(
        default=0, description="How many servers may be replaced in one window."
    )
    window: Annotated[Duration, Bounds("1s", "7d")] = Field(
        default=Replace().window_seconds, description="The length of the window."
    )


class ReplaceShape(Shape):
    """The budget of a pool. `surge` and `unavailable` must not both be 0."""

    surge: Annotated[Whole, Bounds("0", "10000")] = Field(
        default=Replace().surge,
        description="How many servers beyond `size` may exist at once. With 0 the old server goes first.",
    )
    unavailable: Annotated[Whole, Bounds("0", "10000")] = Field(
        default=Replace().unavailable, description="How many servers may be missing at once."
    )
    healthy_for: Annotated[Duration, Bounds("0s", "1d")] = Field(
        default=5.0,
        description="How long a new server must be READY and healthy until it is proven. Its predecessor stays until "
        "then.",
    )
    per: Annotated[PerShape, Without("no limit")] = Field(
        default=PerShape(), description="How many replacements are allowed in a stretch of time."
    )


class PoolShape(Shape):
    """A wanted number of identical servers. A provider makes and deletes them."""

    kind: Annotated[Kind, NEEDED] = Field(default="pool", description="What the document describes.")
    name: Annotated[Text, NEEDED] = Field(
        default="",
        description="The name of the group: 1 to 63 lower-case letters, digits and `-`, no `-` at either end. "
        "Names are unique across services and pools.",
    )
    size: Annotated[Whole, Bounds("0", "10000")] = Field(
        default=1, description="How many servers are wanted."
    )
    provider: Annotated[Text, Written("name of a provider"), NEEDED] = Field(
        default="",
        description="Who makes the servers. `galactica providers` lists the names that the scheduler has.",
    )
    server: Annotated[dict[str, Any], Written("any mapping")] = Field(
        default_factory=dict,
        description="What the provider makes a server from. Only the provider reads it. All of it is in the digest, "
        "so that any change replaces the servers. At most 65,536 bytes as JSON.",
    )
    labels: dict[str, Text] = Field(
        default_factory=dict,
        description="Labels of the servers. `placement.require` of a service finds them.",
    )
    boot_within: Annotated[Duration, Bounds("100ms", "1d")] = Field(
        default=BOOT_WITHIN_SECONDS,
        description="Time from the order to READY: until the server's agent sends heartbeats and its vitals are good.",
    )
    max_age: Annotated[Age, Bounds("1s", "3650d"), Without("no limit")] = Field(
        default=0.0,
        description="A server that is older is replaced, healthy or not, give or take a tenth and within the budget.",
    )
    lease: Annotated[Lease, Bounds("1s", "1d"), Without("`5s`, longer in fleets of thousands")] = Field(
        default=0.0,
        description="How long a server's silence is tolerated if there is no other evidence. At most `cut_off_after`.",
    )
    cut_off_after: Annotated[Duration, Bounds("1s", "7d")] = Field(
        default=300.0, description="How long a server that only its neighbours reach keeps its cells."
    )
    replace: ReplaceShape = Field(
        default=ReplaceShape(), description="The budget for every change of the pool."
    )


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
        healthy_for_seconds=shape.replace.healthy_for,
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
