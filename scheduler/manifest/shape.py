"""The shape of a service's manifest: which keys exist and which type of value each takes. ``core.validation.services``
checks the values. Every key has a default here, so that one mistake does not hide the others.
"""

# ruff: noqa: TRY004 - pydantic collects ValueErrors; a TypeError would end the reading
from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from galactica.scheduler.core.model.spec import (
    ExecProbe,
    Group,
    GroupKind,
    GrpcProbe,
    HealthSpec,
    HttpProbe,
    Placement,
    Probe,
    Resources,
    RuntimeKind,
    Spec,
    Stop,
    TcpProbe,
)
from galactica.scheduler.core.validation.problems import Path, did_you_mean
from galactica.scheduler.manifest.tree import Data, Scalar
from galactica.scheduler.units import parse_duration, parse_memory

DEFAULT_TIMEOUT_SECONDS = 1.0


def _scalar(data: Any) -> Scalar:
    if not isinstance(data, Scalar):
        raise ValueError(f"must be a single value, not a {'mapping' if isinstance(data, dict) else 'list'}")
    if data.value is None:
        raise ValueError('is empty; give it a value, or remove the key ("" is an empty text)')
    return data


def _text(data: Any) -> str:
    return _scalar(data).text


def _whole(data: Any) -> int:
    scalar = _scalar(data)
    if isinstance(scalar.value, bool) or not isinstance(scalar.value, int):
        raise ValueError(f"must be a whole number, not {scalar.text!r}")
    return scalar.value


def _count(data: Any) -> int:
    number = _whole(data)
    if number <= 0:
        raise ValueError(f"must be greater than 0, not {number}; remove it for no limit")
    return number


def _cpu(data: Any) -> int:
    scalar = _scalar(data)
    if isinstance(scalar.value, bool) or not isinstance(scalar.value, int | float):
        meant = f"; did you mean {int(scalar.text[:-1]) / 1_000:g}?" if _is_millicores(scalar.text) else ""
        raise ValueError(f"must be a number of cores, for example 0.5, not {scalar.text!r}{meant}")
    if not math.isfinite(scalar.value) or round(scalar.value * 1_000) < 1:
        raise ValueError(f"must be at least 0.001 cores, not {scalar.text}; remove it for no limit")
    return round(scalar.value * 1_000)


def _is_millicores(text: str) -> bool:
    return text.endswith("m") and text[:-1].isdecimal() and len(text) < 10


def _memory(data: Any) -> int:
    amount = parse_memory(_text(data))
    if amount <= 0:
        raise ValueError("must be greater than 0; remove it for no limit")
    return amount


def _duration(data: Any) -> float:
    return parse_duration(_text(data))


def _age(data: Any) -> float:
    seconds = parse_duration(_text(data))
    if seconds <= 0:
        raise ValueError("must be greater than 0; remove it for no age limit")
    return seconds


def _flag(data: Any) -> bool:
    scalar = _scalar(data)
    if not isinstance(scalar.value, bool):
        raise ValueError(f"must be true or false, not {scalar.text!r}")
    return scalar.value


def _port(data: Any) -> int:
    scalar = _scalar(data)
    if scalar.text == "auto":
        return 0
    number = scalar.value
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError(f"must be a number from 1 to 65535, or auto, not {scalar.text!r}")
    if not 1 <= number <= 65_535:
        hint = "; write auto for a free port" if number == 0 else ""
        raise ValueError(f"{number} is not between 1 and 65535{hint}")
    return number


def _words(data: Any) -> list[Scalar]:
    if isinstance(data, list):
        return data
    if isinstance(data, Scalar) and data.value is not None:
        try:
            words = shlex.split(data.text)
        except ValueError:
            words = [data.text]
        example = ", ".join(f'"{word}"' for word in words[:20])
        raise ValueError(f"must be a list of words; write [{example}]")
    raise ValueError("must be a list")


def _one_of(*choices: str) -> Callable[[Any], str]:
    def check(data: Any) -> str:
        text = _text(data)
        if text not in choices:
            hint = did_you_mean(text, choices) or f"; write {' or '.join(choices)}"
            raise ValueError(f"invalid value {text!r}{hint}")
        return text

    return check


Text = Annotated[str, BeforeValidator(_text)]
Whole = Annotated[int, BeforeValidator(_whole)]
Count = Annotated[int, BeforeValidator(_count)]
Cpu = Annotated[int, BeforeValidator(_cpu)]
Memory = Annotated[int, BeforeValidator(_memory)]
Duration = Annotated[float, BeforeValidator(_duration)]
Age = Annotated[float, BeforeValidator(_age)]
Flag = Annotated[bool, BeforeValidator(_flag)]
Drift = Annotated[str, BeforeValidator(_one_of("replace", "report"))]
Port = Annotated[int, BeforeValidator(_port)]
Words = Annotated[list[Text], BeforeValidator(_words)]
Kind = Annotated[str, BeforeValidator(_one_of("service", "pool"))]
Runtime = Annotated[str, BeforeValidator(_one_of("docker", "process"))]


class Shape(BaseModel):
    """A mapping with known keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class HttpShape(Shape):
    port: Text = ""
    path: Text = "/"


class TcpShape(Shape):
    port: Text = ""


class ExecShape(Shape):
    command: Words = []


class GrpcShape(Shape):
    port: Text = ""
    service: Text = ""


class HealthShape(Shape):
    http: HttpShape | None = None
    tcp: TcpShape | None = None
    exec: ExecShape | None = None
    grpc: GrpcShape | None = None
    every: Duration = 1.0
    timeout: Duration | None = None
    sick_after: Whole = 3
    boot_within: Duration = 60.0


class ResourcesShape(Shape):
    cpu: Cpu = 0
    memory: Memory = 0
    pids: Count = 0


class StopShape(Shape):
    signal: Text = "SIGTERM"
    grace: Duration = 10.0


class PlacementShape(Shape):
    spread: Text = "server"
    require: dict[str, Text] = {}


class ServiceShape(Shape):
    kind: Kind = "service"
    name: Text = ""
    replicas: Whole = 1
    runtime: Runtime | None = None
    image: Text = ""
    command: Words = []
    ports: dict[str, Port] = {}
    env: dict[str, Text] = {}
    resources: ResourcesShape = ResourcesShape()
    health: HealthShape | None = None
    stop: StopShape = StopShape()
    placement: PlacementShape = PlacementShape()
    writable: list[Text] = []
    exclusive: Flag = False
    max_age: Age = 0.0
    drift: Drift = "replace"


SERVICE_SECTIONS: dict[Path, type[BaseModel]] = {
    (): ServiceShape,
    ("resources",): ResourcesShape,
    ("health",): HealthShape,
    ("health", "http"): HttpShape,
    ("health", "tcp"): TcpShape,
    ("health", "exec"): ExecShape,
    ("health", "grpc"): GrpcShape,
    ("stop",): StopShape,
    ("placement",): PlacementShape,
}
"""Each path with fixed keys, and its model."""

PROBES = ("http", "tcp", "exec", "grpc")


def service_of(data: Data) -> Group:
    """The service that a manifest of this shape means. Raises pydantic's ValidationError."""
    shape = ServiceShape.model_validate(data)
    runtime = shape.runtime or (RuntimeKind.DOCKER if shape.image else RuntimeKind.PROCESS)
    spec = Spec(
        runtime=RuntimeKind(runtime),
        image=shape.image,
        command=tuple(shape.command),
        ports=dict(shape.ports),
        env=dict(shape.env),
        resources=Resources(shape.resources.cpu, shape.resources.memory, shape.resources.pids),
        health=_health(shape.health) if shape.health else HealthSpec(),
        stop=Stop(shape.stop.signal, shape.stop.grace),
        writable=tuple(shape.writable),
        placement=Placement(shape.placement.spread, dict(shape.placement.require)),
        exclusive=shape.exclusive,
    )
    return Group(
        GroupKind.SERVICE,
        shape.name,
        shape.replicas,
        spec,
        max_age_seconds=shape.max_age,
        replace_touched=shape.drift == "replace",
    )


def _health(shape: HealthShape) -> HealthSpec:
    timeout = shape.timeout
    return HealthSpec(
        probe=_probe(shape),
        every_seconds=shape.every,
        timeout_seconds=min(DEFAULT_TIMEOUT_SECONDS, shape.every) if timeout is None else timeout,
        sick_after=shape.sick_after,
        boot_within_seconds=shape.boot_within,
    )


def _probe(shape: HealthShape) -> Probe | None:
    if shape.http:
        return HttpProbe(shape.http.port, shape.http.path)
    if shape.tcp:
        return TcpProbe(shape.tcp.port)
    if shape.exec:
        return ExecProbe(tuple(shape.exec.command))
    if shape.grpc:
        return GrpcProbe(shape.grpc.port, shape.grpc.service)
    return None
