"""operator.proto: converts groups to protobuf and back. Groups from clients are checked, because clients are not
trusted."""

from __future__ import annotations

from msgspec.structs import replace

from galactica.scheduler.core.model.spec import (
    Group,
    GroupKind,
    HealthSpec,
    Replace,
    RuntimeKind,
    ServerBody,
    Spec,
)
from galactica.scheduler.core.validation.pools import problems_of_pool, read_body
from galactica.scheduler.core.validation.problems import Problem
from galactica.scheduler.core.validation.services import problems_of
from galactica.scheduler.wire.cell import RUNTIMES, milliseconds, spec_from_proto, spec_to_proto
from galactica.v1 import operator_pb2

PROBLEMS_TOLD = 20

KINDS = {
    operator_pb2.GROUP_KIND_SERVICE: GroupKind.SERVICE,
    operator_pb2.GROUP_KIND_POOL: GroupKind.POOL,
}
_DRIFTS = {operator_pb2.DRIFT_UNSPECIFIED, operator_pb2.DRIFT_REPLACE, operator_pb2.DRIFT_REPORT}


def group_to_proto(group: Group) -> operator_pb2.Group:
    """Convert a valid group to the contract's message, without loss."""
    kind = next(wire for wire, own in KINDS.items() if own is group.kind)
    message = operator_pb2.Group(
        kind=kind,
        name=group.name,
        replicas=group.replicas,
        spec=spec_to_proto(group.spec),
        max_age_ms=milliseconds(group.max_age_seconds),
        drift=operator_pb2.DRIFT_REPLACE if group.replace_touched else operator_pb2.DRIFT_REPORT,
        healthy_for_ms=milliseconds(group.healthy_for_seconds),
    )
    if group.kind is GroupKind.POOL:
        message.replace.CopyFrom(_replace_to_proto(group.replace))
        message.lease_ms = milliseconds(group.lease_seconds)
        message.cut_off_after_ms = milliseconds(group.cut_off_after_seconds)
    return message


def group_from_proto(message: operator_pb2.Group) -> Group:
    """The group that a client sent. Raises ValueError; it lists every problem with the path of its field."""
    problems: list[Problem] = []
    kind = KINDS.get(message.kind)
    if kind is None:
        problems.append(Problem(("kind",), f"this scheduler does not know kind {int(message.kind)}"))
    if message.spec.runtime not in RUNTIMES:
        runtime = int(message.spec.runtime)
        problems.append(Problem(("runtime",), f"this scheduler does not know runtime {runtime}"))
    if message.drift not in _DRIFTS:
        problems.append(Problem(("drift",), f"this scheduler does not know drift {int(message.drift)}"))
    group = _pool(message, problems) if kind is GroupKind.POOL else _service(message)
    if message.HasField("healthy_for_ms"):
        group = replace(group, healthy_for_seconds=message.healthy_for_ms / 1_000)
    unreadable = {problem.path[0] for problem in problems}
    rules = problems_of_pool if kind is GroupKind.POOL else problems_of
    problems += [problem for problem in rules(group) if not (problem.needs | {problem.path[0]}) & unreadable]
    if problems:
        raise ValueError(_summary(message.name, problems))
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
    """The pool, with only those fields of the spec that a server has. So its digest does not depend on other fields
    that were sent."""
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
        runtime=RUNTIMES.get(message.spec.runtime, RuntimeKind.SERVER),
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
        window_ms=milliseconds(pace.window_seconds),
    )


def _replace_from_proto(message: operator_pb2.Replace) -> Replace:
    return Replace(message.surge, message.unavailable, message.count, message.window_ms / 1_000)


def _summary(name: str, problems: list[Problem]) -> str:
    texts = [str(problem) for problem in problems[:PROBLEMS_TOLD]]
    if len(problems) > PROBLEMS_TOLD:
        texts.append(f"and {len(problems) - PROBLEMS_TOLD} more")
    return f"{name[:63] or 'a group without a name'}: {'; '.join(texts)}"
