"""The only place that turns the link's messages into the model's values and back.

No agent is trusted: whatever comes in is checked and bounded here. Names, counts and numbers that cannot be are a
``WireError``, which ends the session that sent them; texts that are for people only are cut, since a long
complaint is no reason to lose a server.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from galactica.scheduler.commands import Command, Decommission, Order, Resync
from galactica.scheduler.model import Autopsy, Resources, RuntimeKind, Tempo
from galactica.scheduler.sight import (
    Answer,
    Attached,
    CellReport,
    CellState,
    ProbeStatus,
    Reported,
    ServerFacts,
    Testimony,
)
from galactica.scheduler.vitals import Vitals
from galactica.scheduler.wire_groups import spec_to_proto
from galactica.v1 import cell_pb2, link_pb2

WIRE_VERSION = 1

CELLS_LIMIT = 10_000
"""Cells of one server, in one message."""
ID_CHARACTERS = 200
"""Orphans may have ids that this scheduler would not give."""
TEXT_CHARACTERS = 1_000
WORD_CHARACTERS = 100
LABELS_LIMIT = 64
LABEL_CHARACTERS = 256
ENDPOINTS_LIMIT = 64
LAST_LINES_LIMIT = 50
TOUCHES_LIMIT = 20
LARGEST_INTEGER = 2**63 - 1
LARGEST_NUMBER = 1e15
CHUNK_BYTES_LIMIT = 1024 * 1024
TESTIMONIES_LIMIT = 256
"""In one message; an agent watches three others, and those who were absent when pairs were drawn anew."""

_RUNTIMES: Mapping[int, RuntimeKind] = {
    cell_pb2.RUNTIME_KIND_PROCESS: RuntimeKind.PROCESS,
    cell_pb2.RUNTIME_KIND_DOCKER: RuntimeKind.DOCKER,
}
_STATES: Mapping[int, CellState] = {
    cell_pb2.CELL_STATE_STARTING: CellState.STARTING,
    cell_pb2.CELL_STATE_RUNNING: CellState.RUNNING,
    cell_pb2.CELL_STATE_EXITED: CellState.EXITED,
    cell_pb2.CELL_STATE_FAILED: CellState.FAILED,
    cell_pb2.CELL_STATE_STOPPING: CellState.STOPPING,
    cell_pb2.CELL_STATE_GONE: CellState.GONE,
}
_ANSWERS: Mapping[int, Answer] = {
    link_pb2.ANSWER_ANSWERS: Answer.ANSWERS,
    link_pb2.ANSWER_REFUSED: Answer.REFUSED,
    link_pb2.ANSWER_SILENT: Answer.SILENT,
}


class WatchedServer(NamedTuple):
    """Whom an agent watches, as a scheduler once told it."""

    server: str
    address: str
    key: bytes


class WireError(ValueError):
    """A message that no agent of ours would send; says what is wrong with which field."""


# --- in -----------------------------------------------------------------------------------------------------------


def attached(hello: link_pb2.Hello, server: str, session: str, at: float) -> Attached:
    """Raises WireError. The wire version is the dispatcher's to judge, before this."""
    return Attached(server, session, at, _facts(hello), _cell_reports(hello.inventory))


def reported(report: link_pb2.Report, server: str, at: float) -> Reported:
    """Raises WireError."""
    if report.sequence == 0:
        raise WireError("report: its sequence is 0; the first one is 1")
    return Reported(
        server=server,
        session=report.session,
        sequence=report.sequence,
        at=at,
        cells=_cell_reports(report.cells) if report.cells else (),
        vitals=vitals_from_proto(report.vitals) if report.HasField("vitals") else None,
        complete=report.complete,
        testimonies=_testimonies(report.testimonies, at) if report.testimonies else (),
        is_leaving=report.leaving,
    )


def watch_address(hello: link_pb2.Hello) -> str:
    """Where neighbours reach the agent, as "address:port" with a numeric address; empty where it takes no part.

    Raises WireError. Others will send there, so it must be one host's address, and no name that somebody else resolves.
    """
    return _host_address("hello.watch_address", hello.watch_address) if hello.watch_address else ""


def watching(hello: link_pb2.Hello) -> tuple[WatchedServer, ...]:
    """Whom the agent watches, as it says. Raises WireError."""
    _bound("hello.watching", len(hello.watching), TESTIMONIES_LIMIT)
    return tuple(
        WatchedServer(
            _text("hello.watching", one.server_id, ID_CHARACTERS),
            _host_address("hello.watching", one.address),
            one.key,
        )
        for one in hello.watching
    )


def _host_address(field: str, given: str) -> str:
    """Raises WireError."""
    host, _, port = given[:LABEL_CHARACTERS].rpartition(":")
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise WireError(f"{field}: not a numeric ADDRESS:PORT") from None
    is_one_host = not (address.is_unspecified or address.is_multicast or str(address) == "255.255.255.255")
    if not is_one_host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise WireError(f"{field}: nobody can be reached at {given[:LABEL_CHARACTERS]}")
    return given


def _testimonies(messages: Sequence[link_pb2.Testimony], at: float) -> tuple[Testimony, ...]:
    _bound("testimonies", len(messages), TESTIMONIES_LIMIT)
    return tuple(_testimony(message, at) for message in messages)


def _testimony(message: link_pb2.Testimony, at: float) -> Testimony:
    server = _text("testimonies", message.server_id, ID_CHARACTERS)
    answer = _ANSWERS.get(message.answer)
    if answer is None:
        raise WireError(f"testimonies: the answer {int(message.answer)} about {server} is not known here")
    return Testimony(server, answer, since=at - message.for_ms / 1_000)


def _facts(hello: link_pb2.Hello) -> ServerFacts:
    _bound("hello.labels", len(hello.labels), LABELS_LIMIT)
    for name, value in hello.labels.items():
        _text("hello.labels", name, LABEL_CHARACTERS)
        _text(f"hello.labels[{name}]", value, LABEL_CHARACTERS)
    _bound("hello.runtimes", len(hello.runtimes), len(_RUNTIMES))
    unknown = [kind for kind in hello.runtimes if kind not in _RUNTIMES]
    if unknown:
        raise WireError(f"hello.runtimes: {unknown[0]} is not known here")
    _bound("hello.capacity.memory_bytes", hello.capacity.memory_bytes, LARGEST_INTEGER)
    _bound("hello.capacity.disk_bytes", hello.capacity.disk_bytes, LARGEST_INTEGER)
    return ServerFacts(
        labels=dict(sorted(hello.labels.items())),
        capacity=Resources(hello.capacity.cpu_millis, hello.capacity.memory_bytes),
        disk_bytes=hello.capacity.disk_bytes,
        runtimes=tuple(sorted({_RUNTIMES[kind] for kind in hello.runtimes})),
        agent_version=_text("hello.agent_version", hello.agent_version, LABEL_CHARACTERS),
    )


def _cell_reports(messages: Sequence[cell_pb2.CellReport]) -> tuple[CellReport, ...]:
    _bound("cells", len(messages), CELLS_LIMIT)
    return tuple(map(_cell_report, messages))


def _cell_report(message: cell_pb2.CellReport) -> CellReport:
    cell = message.cell_id
    if not cell:
        raise WireError("cells: one has no id")
    _text("cells", cell, ID_CHARACTERS)
    state = _STATES.get(message.state)
    if state is None:
        raise WireError(f"{cell}: its state {int(message.state)} is not known here")
    return CellReport(
        cell=cell,
        digest=_text(f"{cell}: digest", message.digest, ID_CHARACTERS),
        state=state,
        runtime_id=_text(f"{cell}: runtime_id", message.runtime_id, ID_CHARACTERS),
        endpoints=_endpoints(cell, message.endpoints) if message.endpoints else {},
        probe=_probe(message.probe) if message.HasField("probe") else None,
        autopsy=_autopsy(cell, message.autopsy) if message.HasField("autopsy") else None,
        progress=message.progress[:TEXT_CHARACTERS],
        touched=tuple(line[:TEXT_CHARACTERS] for line in message.touched[:TOUCHES_LIMIT]),
    )


def _endpoints(cell: str, endpoints: Mapping[str, str]) -> dict[str, str]:
    _bound(f"{cell}: endpoints", len(endpoints), ENDPOINTS_LIMIT)
    for name, address in endpoints.items():
        _text(f"{cell}: endpoints", name, ID_CHARACTERS)
        _text(f"{cell}: endpoints[{name}]", address, LABEL_CHARACTERS)
    return dict(sorted(endpoints.items()))


def _probe(message: cell_pb2.ProbeStatus) -> ProbeStatus:
    return ProbeStatus(message.has_passed, message.consecutive_failures, message.last_error[:TEXT_CHARACTERS])


def _autopsy(cell: str, message: cell_pb2.Autopsy) -> Autopsy:
    return Autopsy(
        reason=message.reason[:TEXT_CHARACTERS],
        exit_code=message.exit_code if message.HasField("exit_code") else None,
        signal=message.signal[:LABEL_CHARACTERS],
        oom_killed=message.oom_killed,
        last_lines=tuple(line[:TEXT_CHARACTERS] for line in message.last_lines[-LAST_LINES_LIMIT:]),
        lived_seconds=_number(f"{cell}: autopsy.lived_seconds", message.lived_seconds),
        fenced=message.fenced,
    )


def vitals_from_proto(message: cell_pb2.Vitals) -> Vitals:
    """Raises WireError where a value is no number, or below 0 and may not be."""
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
    )


def _optional(message: cell_pb2.Vitals, field: str, least: float = 0.0) -> float | None:
    if not message.HasField(field):  # type: ignore[arg-type]  # the field's name is a literal at each call
        return None
    return _number(f"vitals.{field}", getattr(message, field), least)


def _number(field: str, value: float, least: float = 0.0) -> float:
    if not math.isfinite(value) or not least <= value <= LARGEST_NUMBER:
        raise WireError(f"{field}: {value:g} cannot be")
    return value


def _bound(field: str, count: int, limit: int) -> None:
    if count > limit:
        raise WireError(f"{field}: {count} is more than {limit}")


def _text(field: str, value: str, limit: int) -> str:
    if len(value) > limit:
        raise WireError(f"{field}: {len(value)} characters are more than {limit}")
    return value


# --- out ----------------------------------------------------------------------------------------------------------


def instruction(command: Command) -> link_pb2.Instruction:
    match command:
        case Order(cell=cell, digest=digest, spec=spec):
            order = link_pb2.Order(cell_id=cell, digest=digest, spec=spec_to_proto(spec))
            return link_pb2.Instruction(order=order)
        case Decommission(cell=cell, reason=reason):
            return link_pb2.Instruction(decommission=link_pb2.Decommission(cell_id=cell, reason=reason))
        case Resync():
            return link_pb2.Instruction(resync=link_pb2.Resync())


def tempo_to_proto(tempo: Tempo) -> link_pb2.Tempo:
    return link_pb2.Tempo(
        beat_ms=max(1, round(tempo.beat_seconds * 1_000)), lease_ms=max(1, round(tempo.lease_seconds * 1_000))
    )


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
    )
