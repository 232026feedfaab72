"""Converts the contract's messages to the core's events, and instructions to messages. No other module does.

Outgoing messages are bounded by ``MESSAGE_BYTES``, whatever cells wrote before they died.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from galactica.agent.core.events import (
    Decommissioned,
    Echoed,
    Instructed,
    LogsAsked,
    LogsDeclined,
    NeighboursGiven,
    Ordered,
    ResyncAsked,
    Retuned,
    Verb,
    Welcomed,
)
from galactica.agent.core.instructions import SendHello, SendReport
from galactica.agent.core.model import CellReport, Death, Neighbour, ProbeStatus, TestimonyReport
from galactica.v1 import cell_pb2, link_pb2

WIRE_VERSION = 2
OLDEST_WIRE_VERSION = WIRE_VERSION - 1
"""An agent also speaks with a scheduler of the version before."""
FIRST_WITH_GOODBYE = 2
FIRST_WITH_MOVED = 2
MESSAGE_BYTES = 3 * 1024 * 1024
"""gRPC refuses messages above 4 MiB."""
LAST_WORDS_BYTES = 8 * 1024
"""Limit for an autopsy's last lines in a message that would otherwise be too large."""
BEAT_LEAST_SECONDS = 0.05
LONGEST_MS = 2**32 - 1


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """The facts about the server in a Hello; they stay the same while the agent runs."""

    labels: Mapping[str, str]
    capacity: cell_pb2.Capacity
    runtimes: tuple[cell_pb2.RuntimeKind.ValueType, ...]
    agent_version: str
    instance: str = ""
    """Names this run of the agent on this machine (``start.instance``)."""
    machine: str = ""
    """Names the machine (``start.machine``)."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where neighbours reach this agent; empty: nowhere. ``trouble``: why, if it wants to take part in the watch."""

    address: str = ""
    trouble: str = ""


NOWHERE = Place()


def moved(place: Place) -> link_pb2.AttachRequest:
    message = link_pb2.Moved(watch_address=place.address, watch_trouble=place.trouble)
    return link_pb2.AttachRequest(moved=message)


def hello(
    instruction: SendHello,
    facts: ServerFacts,
    watching: Sequence[Neighbour] = (),
    place: Place = NOWHERE,
    genome: link_pb2.GenomeMark | None = None,
) -> link_pb2.AttachRequest:
    """``watching``: the servers that this agent watches now. ``genome``: which one it keeps; None: it never does."""
    return link_pb2.AttachRequest(
        hello=link_pb2.Hello(
            wire_version=OLDEST_WIRE_VERSION,
            newest_wire_version=WIRE_VERSION,
            agent_version=facts.agent_version,
            labels=facts.labels,
            capacity=facts.capacity,
            runtimes=facts.runtimes,
            inventory=_bounded([_cell_report(cell) for cell in instruction.inventory]),
            epoch=instruction.epoch,
            start=instruction.start,
            position=instruction.position,
            watch_address=place.address,
            watch_trouble=place.trouble,
            instance=facts.instance,
            genome=genome,
            machine=facts.machine,
            beat_at=instruction.beat_at,
            watching=[
                link_pb2.Neighbour(
                    server_id=neighbour.server_id, address=neighbour.address, key=neighbour.key
                )
                for neighbour in watching
            ],
        )
    )


def spoken(welcome: link_pb2.Welcome) -> int:
    """The wire version of the session. Schedulers of version 1 do not tell it."""
    return welcome.wire_version or 1


def report(instruction: SendReport, wall_seconds: float) -> link_pb2.AttachRequest:
    """``wall_seconds``: the agent's wall clock, Unix seconds; sent only with a request for an echo."""
    return link_pb2.AttachRequest(
        report=link_pb2.Report(
            session=instruction.session,
            sequence=instruction.sequence,
            cells=_bounded([_cell_report(cell) for cell in instruction.cells]),
            vitals=instruction.vitals,
            complete=instruction.complete,
            sent_at=wall_seconds if instruction.wants_echo else 0.0,
            testimonies=[_testimony(testimony) for testimony in instruction.testimonies],
            leaving=instruction.leaving,
            beat_at=instruction.beat_at,
        )
    )


def log_chunk(
    stream: int, data: bytes = b"", *, end: bool = False, error: str = ""
) -> link_pb2.AttachRequest:
    return link_pb2.AttachRequest(
        log_chunk=link_pb2.LogChunk(stream=stream, data=data, end=end, error=error),
    )


def event(
    response: link_pb2.AttachResponse, link: int, now: float
) -> Welcomed | Instructed | Retuned | Echoed | NeighboursGiven | None:
    """The event of a response; None if this agent's version does not know the message."""
    match response.WhichOneof("message"):
        case "welcome":
            welcome = response.welcome
            beat_seconds, lease_seconds = _tempo(welcome.tempo)
            return Welcomed(
                link,
                welcome.session,
                welcome.epoch,
                beat_seconds,
                lease_seconds,
                now,
                welcome.beat_at,
                welcome.start,
                welcome.position,
            )
        case "instructions":
            batch = response.instructions
            verbs = tuple(verb for verb in map(_verb, batch.instructions) if verb is not None)
            return Instructed(link, batch.session, batch.sequence, verbs, now, batch.epoch)
        case "tempo":
            beat_seconds, lease_seconds = _tempo(response.tempo)
            return Retuned(link, beat_seconds, lease_seconds, now)
        case "echo":
            return Echoed(link, now, response.echo.beat_at, response.echo.position)
        case "neighbours":
            message = response.neighbours
            neighbours = tuple(
                Neighbour(neighbour.server_id, neighbour.address, neighbour.key)
                for neighbour in message.neighbours
            )
            return NeighboursGiven(link, neighbours, tuple(message.accepted_keys), now)
        case _:
            return None


def _tempo(tempo: link_pb2.Tempo) -> tuple[float, float]:
    """Beat and lease in seconds. Lower bounds keep the agent from spinning and from treating each pause as silence."""
    beat_seconds = max(BEAT_LEAST_SECONDS, tempo.beat_ms / 1_000)
    return beat_seconds, max(2 * beat_seconds, tempo.lease_ms / 1_000)


def _verb(instruction: link_pb2.Instruction) -> Verb | None:
    match instruction.WhichOneof("verb"):
        case "order":
            return Ordered(instruction.order, instruction.beat_at)
        case "decommission":
            return Decommissioned(instruction.decommission.cell_id, instruction.decommission.reason)
        case "resync":
            return ResyncAsked()
        case "fetch_logs":
            request = instruction.fetch_logs
            return LogsAsked(request.stream, request.cell_id, request.tail, request.follow)
        case "stop_logs":
            return LogsDeclined(instruction.stop_logs.stream)
        case _:
            return None


def _cell_report(cell: CellReport) -> cell_pb2.CellReport:
    return cell_pb2.CellReport(
        cell_id=cell.cell_id,
        digest=cell.digest,
        state=cell_pb2.CellState.ValueType(cell.state),
        runtime_id=cell.runtime_id,
        endpoints=cell.endpoints,
        probe=_probe_status(cell.probe),
        autopsy=_autopsy(cell.autopsy),
        progress=cell.progress,
        touched=cell.touched,
        doubt=cell.doubt,
    )


def _testimony(testimony: TestimonyReport) -> link_pb2.Testimony:
    return link_pb2.Testimony(
        server_id=testimony.server_id,
        answer=link_pb2.Answer.ValueType(testimony.answer),
        for_ms=min(LONGEST_MS, max(0, round(testimony.for_seconds * 1_000))),
        after_refusal=testimony.after_refusal,
    )


def _probe_status(probe: ProbeStatus | None) -> cell_pb2.ProbeStatus | None:
    if probe is None:
        return None
    return cell_pb2.ProbeStatus(
        has_passed=probe.has_passed,
        consecutive_failures=probe.consecutive_failures,
        last_error=probe.last_error,
    )


def _autopsy(autopsy: cell_pb2.Autopsy | Death | None) -> cell_pb2.Autopsy | None:
    if isinstance(autopsy, Death):
        return cell_pb2.Autopsy(
            reason=autopsy.reason, lived_seconds=autopsy.lived_seconds, fenced=autopsy.fenced
        )
    return autopsy


def _bounded(reports: Sequence[cell_pb2.CellReport]) -> Sequence[cell_pb2.CellReport]:
    """Shorten the last lines of the autopsies if many cells died at once. Every other fact is kept."""
    if len(reports) < 2 or sum(cell.ByteSize() for cell in reports) <= MESSAGE_BYTES:
        return reports
    share = min(LAST_WORDS_BYTES, MESSAGE_BYTES // 2 // len(reports))
    for cell in reports:
        kept: list[str] = []
        room = share
        for line in reversed(cell.autopsy.last_lines):
            room -= len(line.encode()) + 3
            if room < 0:
                break
            kept.insert(0, line)
        if cell.HasField("autopsy"):
            del cell.autopsy.last_lines[:]
            cell.autopsy.last_lines.extend(kept)
    return reports
