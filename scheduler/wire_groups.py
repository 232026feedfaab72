"""Groups and specs as protobuf, there and back. What comes back is checked: no client is trusted."""

from __future__ import annotations

from galactica.v1 import cell_pb2, operator_pb2

from scheduler.group_rules import Problem, problems_of
from scheduler.model import (
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

PROBLEMS_TOLD = 20

_KINDS = {operator_pb2.GROUP_KIND_SERVICE: GroupKind.SERVICE}
_DRIFTS = {operator_pb2.DRIFT_UNSPECIFIED, operator_pb2.DRIFT_REPLACE, operator_pb2.DRIFT_REPORT}
_RUNTIMES = {
    cell_pb2.RUNTIME_KIND_PROCESS: RuntimeKind.PROCESS,
    cell_pb2.RUNTIME_KIND_DOCKER: RuntimeKind.DOCKER,
}


def group_to_proto(group: Group) -> operator_pb2.Group:
    """The contract's form of a valid group; nothing is lost."""
    kind = next(wire for wire, own in _KINDS.items() if own is group.kind)
    return operator_pb2.Group(
        kind=kind,
        name=group.name,
        replicas=group.replicas,
        spec=spec_to_proto(group.spec),
        max_age_ms=_milliseconds(group.max_age_seconds),
        drift=operator_pb2.DRIFT_REPLACE if group.replace_touched else operator_pb2.DRIFT_REPORT,
    )


def group_from_proto(message: operator_pb2.Group) -> Group:
    """The group that a client sent. Raises ValueError that lists every problem with its field's path."""
    problems: list[Problem] = []
    kind = _KINDS.get(message.kind)
    if kind is None:
        problems.append(Problem(("kind",), f"{int(message.kind)} is not known to this scheduler"))
    if message.spec.runtime not in _RUNTIMES:
        problems.append(Problem(("runtime",), f"{int(message.spec.runtime)} is not known to this scheduler"))
    if message.drift not in _DRIFTS:
        problems.append(Problem(("drift",), f"{int(message.drift)} is not known to this scheduler"))
    group = Group(
        kind or GroupKind.SERVICE,
        message.name,
        message.replicas,
        spec_from_proto(message.spec),
        max_age_seconds=message.max_age_ms / 1_000,
        replace_touched=message.drift != operator_pb2.DRIFT_REPORT,
    )
    unreadable = {problem.path[0] for problem in problems}
    problems += [problem for problem in problems_of(group) if not problem.needs & unreadable]
    if problems:
        raise ValueError(_told(message.name, problems))
    return group


def _told(name: str, problems: list[Problem]) -> str:
    told = [str(problem) for problem in problems[:PROBLEMS_TOLD]]
    if len(problems) > PROBLEMS_TOLD:
        told.append(f"and {len(problems) - PROBLEMS_TOLD} more")
    return f"{name[:63] or 'a group without a name'}: {'; '.join(told)}"


def spec_to_proto(spec: Spec) -> cell_pb2.Spec:
    """The contract's form of a valid spec; nothing is lost."""
    runtime = next(wire for wire, own in _RUNTIMES.items() if own is spec.runtime)
    return cell_pb2.Spec(
        runtime=runtime,
        image=spec.image,
        command=spec.command,
        ports=spec.ports,
        env=spec.env,
        resources=cell_pb2.Resources(
            cpu_millis=spec.resources.cpu_millis,
            memory_bytes=spec.resources.memory_bytes,
            pids=spec.resources.pids,
        ),
        health=_health_to_proto(spec.health),
        stop=cell_pb2.Stop(signal=spec.stop.signal, grace_ms=_milliseconds(spec.stop.grace_seconds)),
        writable=spec.writable,
        placement=cell_pb2.Placement(spread=spec.placement.spread, require=spec.placement.require),
        exclusive=spec.exclusive,
    )


def spec_from_proto(message: cell_pb2.Spec) -> Spec:
    """The spec as it was sent, unchecked but for its shape. An unknown runtime comes back as ``process``."""
    resources = message.resources
    return Spec(
        runtime=_RUNTIMES.get(message.runtime, RuntimeKind.PROCESS),
        image=message.image,
        command=tuple(message.command),
        ports=dict(message.ports),
        env=dict(message.env),
        resources=Resources(resources.cpu_millis, resources.memory_bytes, resources.pids),
        health=_health_from_proto(message.health) if message.HasField("health") else HealthSpec(),
        stop=Stop(message.stop.signal, message.stop.grace_ms / 1_000) if message.HasField("stop") else Stop(),
        writable=tuple(message.writable),
        placement=Placement(message.placement.spread or "server", dict(message.placement.require)),
        exclusive=message.exclusive,
    )


def _health_to_proto(health: HealthSpec) -> cell_pb2.Health:
    message = cell_pb2.Health(
        every_ms=_milliseconds(health.every_seconds),
        timeout_ms=_milliseconds(health.timeout_seconds),
        sick_after=health.sick_after,
        boot_within_ms=_milliseconds(health.boot_within_seconds),
    )
    match health.probe:
        case HttpProbe(port=port, path=path):
            message.http.CopyFrom(cell_pb2.HttpProbe(port=port, path=path))
        case TcpProbe(port=port):
            message.tcp.CopyFrom(cell_pb2.TcpProbe(port=port))
        case ExecProbe(command=command):
            message.exec.CopyFrom(cell_pb2.ExecProbe(command=command))
        case GrpcProbe(port=port, service=service):
            message.grpc.CopyFrom(cell_pb2.GrpcProbe(port=port, service=service))
        case None:
            pass
    return message


def _health_from_proto(message: cell_pb2.Health) -> HealthSpec:
    return HealthSpec(
        probe=_probe_from_proto(message),
        every_seconds=message.every_ms / 1_000,
        timeout_seconds=message.timeout_ms / 1_000,
        sick_after=message.sick_after,
        boot_within_seconds=message.boot_within_ms / 1_000,
    )


def _probe_from_proto(message: cell_pb2.Health) -> Probe | None:
    match message.WhichOneof("probe"):
        case "http":
            return HttpProbe(message.http.port, message.http.path or "/")
        case "tcp":
            return TcpProbe(message.tcp.port)
        case "exec":
            return ExecProbe(tuple(message.exec.command))
        case "grpc":
            return GrpcProbe(message.grpc.port, message.grpc.service)
        case _:
            return None


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1_000)
