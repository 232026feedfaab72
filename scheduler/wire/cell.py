"""cell.proto: converts reports on cells, vitals and specs from protobuf and back; and defines the limits for incoming
messages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from galactica.scheduler.core.model.spec import (
    ExecProbe,
    GrpcProbe,
    HealthSpec,
    HttpProbe,
    Placement,
    Probe,
    Resources,
    RuntimeKind,
    ServerBody,
    Spec,
    Spread,
    Stop,
    TcpProbe,
)
from galactica.scheduler.core.model.verdict import Autopsy
from galactica.scheduler.core.sight.observations import (
    CellReport,
    CellState,
    ProbeStatus,
    Unread,
)
from galactica.scheduler.core.sight.state import REPORTS_LIMIT
from galactica.scheduler.core.sight.vitals import Vitals
from galactica.v1 import cell_pb2

CELLS_LIMIT = REPORTS_LIMIT
"""Limit for the cells in one message."""
ID_CHARACTERS = 200
"""Longer than this scheduler's own ids, because orphans may have other ids."""
TEXT_CHARACTERS = 1_000
WORD_CHARACTERS = 100
UNREAD_LIMIT = 32
LABEL_CHARACTERS = 256
ENDPOINTS_LIMIT = 64
LAST_LINES_LIMIT = 50
TOUCHES_LIMIT = 20
LARGEST_NUMBER = 1e15
_STATES: Mapping[int, CellState] = {
    cell_pb2.CELL_STATE_STARTING: CellState.STARTING,
    cell_pb2.CELL_STATE_RUNNING: CellState.RUNNING,
    cell_pb2.CELL_STATE_EXITED: CellState.EXITED,
    cell_pb2.CELL_STATE_FAILED: CellState.FAILED,
    cell_pb2.CELL_STATE_STOPPING: CellState.STOPPING,
    cell_pb2.CELL_STATE_GONE: CellState.GONE,
}


class WireError(ValueError):
    """A message is invalid; the text says which field and why."""


class CellReports(NamedTuple):
    """The entries of a message. No wrong one is just left out: its cell would read as vanished."""

    read: tuple[CellReport, ...] = ()
    unread: tuple[Unread, ...] = ()


def cell_reports(messages: Sequence[cell_pb2.CellReport], skipped: list[str]) -> CellReports:
    """Adds a text for each thing that is wrong to ``skipped``. Raises WireError if there are too many."""
    bounded("cells", len(messages), CELLS_LIMIT)
    entries = [_entry(message, skipped) for message in messages]
    return CellReports(
        tuple(entry for entry in entries if isinstance(entry, CellReport)),
        tuple(entry for entry in entries if isinstance(entry, Unread)),
    )


def _entry(message: cell_pb2.CellReport, skipped: list[str]) -> CellReport | Unread:
    cell = message.cell_id
    if not 0 < len(cell) <= ID_CHARACTERS:
        wrong_id = f"cells: an id has {len(cell)} characters; it must have 1 to {ID_CHARACTERS}"
        skipped.append(wrong_id)
        return Unread("", f"an entry of the report is wrong: {wrong_id}")
    try:
        return _cell_report(cell, message, skipped)
    except WireError as wrong:
        skipped.append(str(wrong))
        return Unread(cell, f"the report on it is wrong: {wrong}")


def _cell_report(cell: str, message: cell_pb2.CellReport, skipped: list[str]) -> CellReport:
    state = _STATES.get(message.state)
    if state is None:
        raise WireError(f"{cell}: unknown state {int(message.state)}")
    return CellReport(
        cell=cell,
        digest=bounded_text(f"{cell}: digest", message.digest, ID_CHARACTERS),
        state=state,
        runtime_id=bounded_text(f"{cell}: runtime_id", message.runtime_id, ID_CHARACTERS),
        endpoints=_endpoints(cell, message.endpoints) if message.endpoints else {},
        probe=_probe(message.probe) if message.HasField("probe") else None,
        autopsy=_autopsy(cell, message.autopsy, skipped) if message.HasField("autopsy") else None,
        progress=message.progress[:TEXT_CHARACTERS],
        touched=tuple(line[:TEXT_CHARACTERS] for line in message.touched[:TOUCHES_LIMIT]),
        doubt=message.doubt[:TEXT_CHARACTERS],
    )


def _endpoints(cell: str, endpoints: Mapping[str, str]) -> dict[str, str]:
    bounded(f"{cell}: endpoints", len(endpoints), ENDPOINTS_LIMIT)
    for name, address in endpoints.items():
        bounded_text(f"{cell}: endpoints", name, ID_CHARACTERS)
        bounded_text(f"{cell}: endpoints[{name}]", address, LABEL_CHARACTERS)
    return dict(sorted(endpoints.items()))


def _probe(message: cell_pb2.ProbeStatus) -> ProbeStatus:
    return ProbeStatus(message.has_passed, message.consecutive_failures, message.last_error[:TEXT_CHARACTERS])


def _autopsy(cell: str, message: cell_pb2.Autopsy, skipped: list[str]) -> Autopsy:
    """A wrong number about a death does not undo the death: then how long the cell lived is not known."""
    try:
        lived_seconds = _number(f"{cell}: autopsy.lived_seconds", message.lived_seconds)
    except WireError as wrong:
        skipped.append(str(wrong))
        lived_seconds = 0.0
    return Autopsy(
        reason=message.reason[:TEXT_CHARACTERS],
        exit_code=message.exit_code if message.HasField("exit_code") else None,
        signal=message.signal[:LABEL_CHARACTERS],
        oom_killed=message.oom_killed,
        last_lines=tuple(line[:TEXT_CHARACTERS] for line in message.last_lines[-LAST_LINES_LIMIT:]),
        lived_seconds=lived_seconds,
        fenced=message.fenced,
    )


def vitals_from_proto(message: cell_pb2.Vitals) -> Vitals:
    """Raises WireError if a value is not finite or out of its range."""
    return Vitals(
        cpu_fraction=_number("vitals.cpu_fraction", message.cpu_fraction),
        memory_fraction=_number("vitals.memory_fraction", message.memory_fraction),
        disk_fraction=_number("vitals.disk_fraction", message.disk_fraction),
        load_1m=_number("vitals.load_1m", message.load_1m),
        pressure_cpu=_optional(message, "pressure_cpu"),
        pressure_memory=_optional(message, "pressure_memory"),
        pressure_io=_optional(message, "pressure_io"),
        engine_latency_ms=_optional(message, "engine_latency_ms", least=-LARGEST_NUMBER),
        clock_offset_ms=_optional(message, "clock_offset_ms", least=-LARGEST_NUMBER),
        disk_error=message.disk_error[:WORD_CHARACTERS] if message.HasField("disk_error") else None,
        kernel_errors=message.kernel_errors if message.HasField("kernel_errors") else None,
        foreign_cells=message.foreign_cells,
        agent_lacks=message.agent_lacks[:WORD_CHARACTERS],
        unread=tuple(name[:WORD_CHARACTERS] for name in message.unread[:UNREAD_LIMIT]),
    )


def _optional(message: cell_pb2.Vitals, field: str, least: float = 0.0) -> float | None:
    if not message.HasField(field):  # type: ignore[arg-type]  # the field's name is a literal at each call
        return None
    return _number(f"vitals.{field}", getattr(message, field), least)


def _number(field: str, value: float, least: float = 0.0) -> float:
    if not math.isfinite(value) or not least <= value <= LARGEST_NUMBER:
        raise WireError(f"{field}: invalid value {value:g}; the range is {least:g} to {LARGEST_NUMBER:g}")
    return value


def bounded(field: str, count: int, limit: int) -> None:
    if count > limit:
        raise WireError(f"{field}: {count} is too large; the limit is {limit}")


def bounded_text(field: str, value: str, limit: int) -> str:
    if len(value) > limit:
        raise WireError(f"{field}: {len(value)} characters is too long; the limit is {limit}")
    return value


def autopsy_to_proto(autopsy: Autopsy) -> cell_pb2.Autopsy:
    return cell_pb2.Autopsy(
        reason=autopsy.reason,
        exit_code=autopsy.exit_code,
        signal=autopsy.signal,
        oom_killed=autopsy.oom_killed,
        last_lines=autopsy.last_lines,
        lived_seconds=autopsy.lived_seconds,
        fenced=autopsy.fenced,
    )


def vitals_to_proto(vitals: Vitals) -> cell_pb2.Vitals:
    return cell_pb2.Vitals(
        cpu_fraction=vitals.cpu_fraction,
        memory_fraction=vitals.memory_fraction,
        disk_fraction=vitals.disk_fraction,
        load_1m=vitals.load_1m,
        pressure_cpu=vitals.pressure_cpu,
        pressure_memory=vitals.pressure_memory,
        pressure_io=vitals.pressure_io,
        engine_latency_ms=vitals.engine_latency_ms,
        clock_offset_ms=vitals.clock_offset_ms,
        disk_error=vitals.disk_error,
        kernel_errors=vitals.kernel_errors,
        foreign_cells=vitals.foreign_cells,
        agent_lacks=vitals.agent_lacks,
        unread=vitals.unread,
    )


RUNTIMES = {
    cell_pb2.RUNTIME_KIND_PROCESS: RuntimeKind.PROCESS,
    cell_pb2.RUNTIME_KIND_DOCKER: RuntimeKind.DOCKER,
    cell_pb2.RUNTIME_KIND_SERVER: RuntimeKind.SERVER,
}


def spec_to_proto(spec: Spec) -> cell_pb2.Spec:
    """Convert a valid spec to the contract's message, without loss."""
    runtime = next(wire for wire, own in RUNTIMES.items() if own is spec.runtime)
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
        stop=cell_pb2.Stop(signal=spec.stop.signal, grace_ms=milliseconds(spec.stop.grace_seconds)),
        writable=spec.writable,
        placement=cell_pb2.Placement(spread=spec.placement.spread, require=spec.placement.require),
        exclusive=spec.exclusive,
        server=_server_to_proto(spec.server) if spec.server else None,
    )


def _server_to_proto(body: ServerBody) -> cell_pb2.ServerBody:
    return cell_pb2.ServerBody(provider=body.provider, body_json=body.body_json, labels=body.labels)


def spec_from_proto(message: cell_pb2.Spec) -> Spec:
    """Convert a container's spec from the contract's message. Only its shape is checked. An unknown runtime becomes
    ``process``."""
    resources = message.resources
    return Spec(
        runtime=RUNTIMES.get(message.runtime, RuntimeKind.PROCESS),
        image=message.image,
        command=tuple(message.command),
        ports=dict(message.ports),
        env=dict(message.env),
        resources=Resources(resources.cpu_millis, resources.memory_bytes, resources.pids),
        health=_health_from_proto(message.health) if message.HasField("health") else HealthSpec(),
        stop=Stop(message.stop.signal, message.stop.grace_ms / 1_000) if message.HasField("stop") else Stop(),
        writable=tuple(message.writable),
        placement=Placement(message.placement.spread or Spread.SERVER, dict(message.placement.require)),
        exclusive=message.exclusive,
    )


def _health_to_proto(health: HealthSpec) -> cell_pb2.Health:
    message = cell_pb2.Health(
        every_ms=milliseconds(health.every_seconds),
        timeout_ms=milliseconds(health.timeout_seconds),
        sick_after=health.sick_after,
        boot_within_ms=milliseconds(health.boot_within_seconds),
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


def milliseconds(seconds: float) -> int:
    return round(seconds * 1_000)
