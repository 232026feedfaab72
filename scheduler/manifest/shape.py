"""The shape of a service's manifest: which keys exist and which type of value each takes. ``core.validation.services``
checks the values. Every key has a default here, so that one mistake does not hide the others.
"""

# ruff: noqa: TRY004 - pydantic collects ValueErrors; a TypeError would end the reading
from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

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
from galactica.scheduler.manifest.notation import NEEDED, Bounds, Without, Written
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
    millis = scalar.value * 1_000
    if not millis > 0.5:  # nor a number at all
        raise ValueError(f"must be at least 0.001 cores, not {scalar.text}; remove it for no limit")
    return round(min(millis, sys.maxsize))


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


Text = Annotated[str, BeforeValidator(_text), Written("text")]
Whole = Annotated[int, BeforeValidator(_whole), Written("whole number")]
Count = Annotated[int, BeforeValidator(_count), Written("whole number")]
Cpu = Annotated[int, BeforeValidator(_cpu), Written("number of cores")]
Memory = Annotated[int, BeforeValidator(_memory), Written("amount of memory")]
Duration = Annotated[float, BeforeValidator(_duration), Written("duration")]
Age = Annotated[float, BeforeValidator(_age), Written("duration")]
Flag = Annotated[bool, BeforeValidator(_flag), Written("`true` or `false`")]
Drift = Annotated[str, BeforeValidator(_one_of("replace", "report")), Written("`replace` or `report`")]
Port = Annotated[int, BeforeValidator(_port), Written("port number or `auto`")]
Words = Annotated[list[Text], BeforeValidator(_words), Written("list of texts")]
Kind = Annotated[str, BeforeValidator(_one_of("service", "pool")), Written("`service` or `pool`")]
Runtime = Annotated[str, BeforeValidator(_one_of("docker", "process")), Written("`docker` or `process`")]
Spread = Annotated[Text, Written("`server` or `none`")]
PortName = Annotated[Text, Written("name of a port"), NEEDED]


class Shape(BaseModel):
    """A mapping with known keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class HttpShape(Shape):
    """Asks for a page. A status from 200 to 399 is good."""

    port: PortName = Field(default="", description="The port to ask, a name from `ports`.")
    path: Text = Field(default="/", description="The path, as it is sent: `/` first, ASCII, no blanks.")


class TcpShape(Shape):
    """Opens a connection. It is good when somebody accepts it."""

    port: PortName = Field(default="", description="The port to connect to, a name from `ports`.")


class ExecShape(Shape):
    """Runs a program inside the cell. Exit code 0 is good."""

    command: Annotated[Words, NEEDED] = Field(
        default=[], description="The program and its arguments. No shell reads it."
    )


class GrpcShape(Shape):
    """Calls the standard health service of gRPC. The answer `SERVING` is good."""

    port: PortName = Field(default="", description="The port to call, a name from `ports`.")
    service: Text = Field(
        default="", description="The service to ask about, if not about the server. At most 127 bytes."
    )


class HealthShape(Shape):
    """How a cell is probed: exactly one of `http`, `tcp`, `exec` and `grpc`, and when. A cell whose spec has no
    probe is healthy while it runs."""

    http: HttpShape | None = Field(default=None, description="Ask for a page.")
    tcp: TcpShape | None = Field(default=None, description="Open a connection.")
    exec: ExecShape | None = Field(default=None, description="Run a program inside the cell.")
    grpc: GrpcShape | None = Field(default=None, description="Call the standard health service of gRPC.")
    every: Annotated[Duration, Bounds("10ms", "1h")] = Field(
        default=1.0, description="Time from one probe to the next. Probes of one cell never overlap."
    )
    timeout: Annotated[Duration, Bounds("1ms", "1h"), Without("`1s`, at most `every`")] | None = Field(
        default=None, description="A probe that takes longer has failed."
    )
    sick_after: Annotated[Whole, Bounds("1", "1000")] = Field(
        default=3, description="A READY cell is sick after this many failures in a row."
    )
    boot_within: Annotated[Duration, Bounds("1ms", "1d")] = Field(
        default=60.0,
        description="Time from the order to READY. Later than that the cell is sick. Time without contact to its "
        "agent does not count.",
    )


class ResourcesShape(Shape):
    """Limits of one cell. Placement reserves them on a server."""

    cpu: Annotated[Cpu, Bounds("0.001", "1024"), Without("no limit")] = Field(
        default=0, description="Processor time, in cores. Steps of a thousandth. A container needs 0.01."
    )
    memory: Annotated[Memory, Bounds("1B", "1024TiB"), Without("no limit")] = Field(
        default=0, description="Memory, swap included. A container needs at least 6MiB."
    )
    pids: Annotated[Count, Bounds("1", "4194304"), Without("no limit")] = Field(
        default=0, description="Number of processes and threads."
    )


class StopShape(Shape):
    """How a cell is asked to end."""

    signal: Text = Field(
        default="SIGTERM",
        description="The signal that asks the program to end, by its name: SIGTERM, SIGINT, SIGQUIT …",
    )
    grace: Annotated[Duration, Bounds("0s", "1h")] = Field(
        default=10.0, description="Time from the signal to SIGKILL."
    )


class PlacementShape(Shape):
    """Which servers a cell may run on."""

    spread: Spread = Field(
        default="server", description="`server` spreads the cells of a group over servers. `none` packs them."
    )
    require: dict[str, Text] = Field(
        default={}, description="Labels that a server must have, with these values."
    )


class RolloutShape(Shape):
    """How a changed spec takes the place of the one before, cell by cell."""

    healthy_for: Annotated[Duration, Bounds("0s", "1d")] = Field(
        default=5.0,
        description="How long a new cell must be READY and healthy until it is proven. Its predecessor stays until "
        "then, and no further cell makes room. A cell that dies earlier died young: for a minute after such a "
        "death no healthy cell goes for that revision.",
    )


class ServiceShape(Shape):
    """A wanted number of identical cells."""

    kind: Annotated[Kind, NEEDED] = Field(default="service", description="What the document describes.")
    name: Annotated[Text, NEEDED] = Field(
        default="",
        description="The name of the group: 1 to 63 lower-case letters, digits and `-`, no `-` at either end. "
        "Names are unique across services and pools.",
    )
    replicas: Annotated[Whole, Bounds("0", "100000")] = Field(
        default=1, description="How many cells are wanted."
    )
    runtime: Annotated[Runtime, Without("`docker` with an `image`, else `process`")] | None = Field(
        default=None, description="What runs the cell: a Docker Engine, or the agent as a plain process."
    )
    image: Text = Field(
        default="",
        description="The image of a container, such as `hello:1`. An image that the engine does not have is pulled. "
        "Only for `docker`, and required there.",
    )
    command: Words = Field(
        default=[],
        description="The program and its arguments. No shell reads it. `{port.NAME}` becomes the number of that port. "
        "A process needs a command. A container without one runs the command of its image.",
    )
    ports: dict[str, Port] = Field(
        default={},
        description="The ports that the cell listens on, by name: 1 to 32 lower-case letters, digits and `-`, at most "
        "64 ports. For a container the number inside it; it is published on a free port of the server. For a process "
        "a number, or `auto` for a free one. The cell finds the number in `$PORT_NAME`.",
    )
    env: dict[str, Text] = Field(
        default={},
        description="Variables of the environment, at most 256. Values are taken as they are written; `{port.NAME}` "
        "works as in `command`. The agent sets `CELL_ID`, `CELL_DIRECTORY` and `PORT_…` itself.",
    )
    resources: ResourcesShape = Field(default=ResourcesShape(), description="Limits of one cell.")
    health: Annotated[HealthShape, Without("no probe")] | None = Field(
        default=None, description="How a cell is probed."
    )
    stop: StopShape = Field(default=StopShape(), description="How a cell is asked to end.")
    placement: PlacementShape = Field(
        default=PlacementShape(), description="Which servers a cell may run on."
    )
    writable: list[Text] = Field(
        default=[],
        description="Paths that a container may write to, besides `/tmp`. The rest of its root filesystem is "
        "read-only. At most 64 absolute paths. They belong to the image's user where it could not write else. "
        "Only for `docker`; a process writes below `$CELL_DIRECTORY`.",
    )
    exclusive: Flag = Field(
        default=False,
        description="Two cells of one slot are never alive at the same time, even when the network is split. "
        "A replacement then waits until its predecessor is proven or certain to be gone.",
    )
    rollout: RolloutShape = Field(
        default=RolloutShape(), description="How a changed spec takes the place of the one before."
    )
    max_age: Annotated[Age, Bounds("1s", "3650d"), Without("no limit")] = Field(
        default=0.0,
        description="A cell that is older is replaced, healthy or not, give or take a tenth and within the budget.",
    )
    drift: Drift = Field(
        default="replace",
        description="What to do with a container that differs from its spec: replace it, or only report it.",
    )


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
    ("rollout",): RolloutShape,
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
        healthy_for_seconds=shape.rollout.healthy_for,
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
