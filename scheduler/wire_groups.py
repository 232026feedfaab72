"""Groups and specs as protobuf, there and back. What comes back is checked: no client is trusted."""

from __future__ import annotations

from msgspec.structs import replace

from galactica.scheduler.group_rules import Problem, problems_of
from galactica.scheduler.model import (
    ExecProbe,
    Group,
    GroupKind,
    GrpcProbe,
    HealthSpec,
    HttpProbe,
    Placement,
    Probe,
    Replace,
    Resources,
    RuntimeKind,
    ServerBody,
    Spec,
    Stop,
    TcpProbe,
)
from galactica.scheduler.pool_rules import problems_of_pool, read_body
from galactica.v1 import cell_pb2, operator_pb2

PROBLEMS_TOLD = 20

KINDS = {
    operator_pb2.GROUP_KIND_SERVICE: GroupKind.SERVICE,
    operator_pb2.GROUP_KIND_POOL: GroupKind.POOL,
}
_DRIFTS = {operator_pb2.DRIFT_UNSPECIFIED, operator_pb2.DRIFT_REPLACE, operator_pb2.DRIFT_REPORT}
_RUNTIMES = {
    cell_pb2.RUNTIME_KIND_PROCESS: RuntimeKind.PROCESS,
    cell_pb2.RUNTIME_KIND_DOCKER: RuntimeKind.DOCKER,
    cell_pb2.RUNTIME_KIND_SERVER: RuntimeKind.SERVER,
}


def group_to_proto(group: Group) -> operator_pb2.Group:
    """The contract's form of a valid group; nothing is lost."""
    kind = next(wire for wire, own in KINDS.items() if own is group.kind)
    message = operator_pb2.Group(
        kind=kind,
        name=group.name,
        replicas=group.replicas,
        spec=spec_to_proto(group.spec),
        max_age_ms=_milliseconds(group.max_age_seconds),
        drift=operator_pb2.DRIFT_REPLACE if group.replace_touched else operator_pb2.DRIFT_REPORT,
    )
    if group.kind is GroupKind.POOL:
        message.replace.CopyFrom(_replace_to_proto(group.replace))
        message.lease_ms = _milliseconds(group.lease_seconds)
        message.cut_off_after_ms = _milliseconds(group.cut_off_after_seconds)
    return message


def group_from_proto(message: operator_pb2.Group) -> Group:
    """The group that a client sent. Raises ValueError that lists every problem with its field's path."""
    problems: list[Problem] = []
    kind = KINDS.get(message.kind)
    if kind is None:
        problems.append(Problem(("kind",), f"{int(message.kind)} is not known to this scheduler"))
    if message.spec.runtime not in _RUNTIMES:
        problems.append(Problem(("runtime",), f"{int(message.spec.runtime)} is not known to this scheduler"))
    if message.drift not in _DRIFTS:
        problems.append(Problem(("drift",), f"{int(message.drift)} is not known to this scheduler"))
    group = _pool(message, problems) if kind is GroupKind.POOL else _service(message)
    unreadable = {problem.path[0] for problem in problems}
    rules = problems_of_pool if kind is GroupKind.POOL else problems_of
    problems += [problem for problem in rules(group) if not (problem.needs | {problem.path[0]}) & unreadable]
    if problems:
        raise ValueError(_told(message.name, problems))
    return group


def _service(message: operator_pb2.Group) -> Group:
    return Group(
        GroupKind.SERVICE,
        message.name,
        message.replicas,
        spec_from_proto(message.spec),
        max_age_seconds=message.max_age_ms / 1_000,
        replace_touched=message.drift != operator_pb2.DRIFT_REPORT,
    )


def _pool(message: operator_pb2.Group, problems: list[Problem]) -> Group:
    """Of the spec only what a server has, so that one pool has one digest however it was sent."""
    sent = message.spec.server
    try:
        body = read_body(sent.body_json) if sent.body_json else "{}"
    except ValueError as error:
        body = "{}"
        problems.append(Problem(("server",), str(error)))
    health = HealthSpec()
    if message.spec.HasField("health"):
        health = HealthSpec(boot_within_seconds=message.spec.health.boot_within_ms / 1_000)
    spec = Spec(
        runtime=_RUNTIMES.get(message.spec.runtime, RuntimeKind.SERVER),
        health=health,
        server=ServerBody(sent.provider, body, dict(sent.labels)),
    )
    pool = Group(
        GroupKind.POOL,
        message.name,
        message.replicas,
        spec,
        max_age_seconds=message.max_age_ms / 1_000,
        lease_seconds=message.lease_ms / 1_000,
    )
    if message.HasField("replace"):
        pool = replace(pool, replace=_replace_from_proto(message.replace))
    if message.cut_off_after_ms:
        pool = replace(pool, cut_off_after_seconds=message.cut_off_after_ms / 1_000)
    return pool


def _replace_to_proto(pace: Replace) -> operator_pb2.Replace:
    return operator_pb2.Replace(
        surge=pace.surge,
        unavailable=pace.unavailable,
        count=pace.count,
        window_ms=_milliseconds(pace.window_seconds),
    )


def _replace_from_proto(message: operator_pb2.Replace) -> Replace:
    return Replace(message.surge, message.unavailable, message.count, message.window_ms / 1_000)


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
        server=_server_to_proto(spec.server) if spec.server else None,
    )


def _server_to_proto(body: ServerBody) -> cell_pb2.ServerBody:
    return cell_pb2.ServerBody(provider=body.provider, body_json=body.body_json, labels=body.labels)


def spec_from_proto(message: cell_pb2.Spec) -> Spec:
    """A container's spec as it was sent, unchecked but for its shape. An unknown runtime comes back as ``process``."""
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
