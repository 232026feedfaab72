"""link.proto: converts the link's messages to model values and back. No other module does.

Agents are not trusted: every incoming message is checked and bounded here. What makes a whole message unreadable is a
``WireError``, which ends the session that sent it. One wrong entry is only skipped, and told: the other entries and the
session live on. Texts for people are cut. Neither a long message nor a wrong entry is a reason to lose a server.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

from galactica.scheduler.core.model.commands import Command, Decommission, Order, Resync
from galactica.scheduler.core.model.policy import Tempo
from galactica.scheduler.core.model.requests import Obeyed
from galactica.scheduler.core.model.spec import Resources, RuntimeKind
from galactica.scheduler.core.sight.observations import (
    Answer,
    Attached,
    Place,
    Reported,
    ServerFacts,
    Testimony,
)
from galactica.scheduler.core.sight.vitals import Vitals
from galactica.scheduler.wire.cell import (
    ID_CHARACTERS,
    LABEL_CHARACTERS,
    TEXT_CHARACTERS,
    CellReports,
    WireError,
    bounded,
    bounded_text,
    cell_reports,
    spec_to_proto,
    vitals_from_proto,
)
from galactica.v1 import cell_pb2, link_pb2

WINDOW_BYTES = 64 * 1024
"""The window of ``link.proto``; agents use the same."""

LABELS_LIMIT = 64
RUNTIMES_LIMIT = 16
LARGEST_INTEGER = 2**63 - 1
CHUNK_BYTES_LIMIT = 1024 * 1024
TESTIMONIES_LIMIT = 256
"""For one message. An agent watches three servers, and in addition those that were absent when pairs were drawn."""

_RUNTIMES: Mapping[int, RuntimeKind] = {
    cell_pb2.RUNTIME_KIND_PROCESS: RuntimeKind.PROCESS,
    cell_pb2.RUNTIME_KIND_DOCKER: RuntimeKind.DOCKER,
}
_ANSWERS: Mapping[int, Answer] = {
    link_pb2.ANSWER_ANSWERS: Answer.ANSWERS,
    link_pb2.ANSWER_REFUSED: Answer.REFUSED,
    link_pb2.ANSWER_SILENT: Answer.SILENT,
}


class WatchedServer(NamedTuple):
    """A server that an agent watches, as a scheduler told the agent."""

    server: str
    address: str
    key: bytes


# --- in -----------------------------------------------------------------------------------------------------------


T = TypeVar("T")


class Heard(NamedTuple, Generic[T]):
    """What a message says. ``skipped``: a text for each entry of it that is wrong."""

    said: T
    skipped: tuple[str, ...] = ()


def attached(
    hello: link_pb2.Hello, server: str, session: str, at: float, wire_version: int = 0
) -> Heard[Attached]:
    """``wire_version``: of the session; 0: unknown. Raises WireError."""
    skipped: list[str] = []
    machine = bounded_text("hello.machine", hello.machine, LABEL_CHARACTERS)
    cells = cell_reports(hello.inventory, skipped)
    where, not_read = place(hello)
    facts = _facts(hello, skipped)
    booted_at = at - hello.beat_at if hello.beat_at > 0 else None
    said = Attached(
        server, session, at, facts, cells.read, machine, where, cells.unread, wire_version, booted_at
    )
    return Heard(said, (*skipped, *not_read))


def reported(report: link_pb2.Report, server: str, at: float) -> Heard[Reported]:
    """Raises WireError."""
    skipped: list[str] = []
    if report.sequence == 0:
        raise WireError("report: invalid sequence 0; the first one is 1")
    cells = cell_reports(report.cells, skipped) if report.cells else CellReports()
    said = Reported(
        server=server,
        session=report.session,
        sequence=report.sequence,
        at=at,
        cells=cells.read,
        vitals=_vitals(report.vitals, skipped) if report.HasField("vitals") else None,
        complete=report.complete,
        testimonies=_testimonies(report.testimonies, at, skipped) if report.testimonies else (),
        is_leaving=report.leaving,
        unread=cells.unread,
    )
    return Heard(said, tuple(skipped))


def _vitals(message: cell_pb2.Vitals, skipped: list[str]) -> Vitals | None:
    """Wrong ones do not count: the newest right ones do, and without any the server gets no cells."""
    try:
        return vitals_from_proto(message)
    except WireError as wrong:
        skipped.append(str(wrong))
        return None


def place(message: link_pb2.Hello | link_pb2.Moved) -> Heard[Place]:
    """Where neighbours reach the agent, or why they do not. A wrong address is none, and costs no session."""
    try:
        return Heard(Place(watch_address(message), message.watch_trouble[:TEXT_CHARACTERS]))
    except WireError as wrong:
        return Heard(Place("", str(wrong)), (str(wrong),))


def watch_address(message: link_pb2.Hello | link_pb2.Moved) -> str:
    """Where neighbours reach the agent, as "address:port" with a numeric address; empty: it takes no part.

    Raises WireError. Other agents send packets there, so it must be the address of one host, not a name that somebody
    else could resolve differently.
    """
    field = f"{message.DESCRIPTOR.name.lower()}.watch_address"
    return _host_address(field, message.watch_address) if message.watch_address else ""


def instance(hello: link_pb2.Hello) -> str:
    """Which run of which machine's agent it is; empty if the agent does not say. Raises WireError."""
    return bounded_text("hello.instance", hello.instance, LABEL_CHARACTERS)


def obeyed(hello: link_pb2.Hello) -> Obeyed:
    """The newest scheduler that the agent has obeyed. Raises WireError."""
    return Obeyed(hello.epoch, bounded_text("hello.start", hello.start, LABEL_CHARACTERS), hello.position)


def watching(hello: link_pb2.Hello) -> Heard[tuple[WatchedServer, ...]]:
    """The servers that the agent says it watches. Raises WireError if there are too many."""
    bounded("hello.watching", len(hello.watching), TESTIMONIES_LIMIT)
    skipped: list[str] = []
    watched = []
    for neighbour in hello.watching:
        try:
            server = bounded_text("hello.watching", neighbour.server_id, ID_CHARACTERS)
            address = _host_address("hello.watching", neighbour.address)
        except WireError as wrong:
            skipped.append(str(wrong))
        else:
            watched.append(WatchedServer(server, address, neighbour.key))
    return Heard(tuple(watched), tuple(skipped))


def _host_address(field: str, given: str) -> str:
    """Raises WireError."""
    host, _, port = given[:LABEL_CHARACTERS].rpartition(":")
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise WireError(f"{field}: not a numeric ADDRESS:PORT") from None
    is_one_host = not (address.is_unspecified or address.is_multicast or str(address) == "255.255.255.255")
    if not is_one_host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise WireError(f"{field}: {given[:LABEL_CHARACTERS]} is not the address and port of one host")
    return given


def _testimonies(
    messages: Sequence[link_pb2.Testimony], at: float, skipped: list[str]
) -> tuple[Testimony, ...]:
    bounded("testimonies", len(messages), TESTIMONIES_LIMIT)
    testimonies = []
    for message in messages:
        try:
            testimonies.append(_testimony(message, at))
        except WireError as wrong:
            skipped.append(str(wrong))
    return tuple(testimonies)


def _testimony(message: link_pb2.Testimony, at: float) -> Testimony:
    server = bounded_text("testimonies", message.server_id, ID_CHARACTERS)
    answer = _ANSWERS.get(message.answer)
    if answer is None:
        raise WireError(f"testimonies: unknown answer {int(message.answer)} about {server}")
    return Testimony(server, answer, at - message.for_ms / 1_000, message.after_refusal)


def _facts(hello: link_pb2.Hello, skipped: list[str]) -> ServerFacts:
    bounded("hello.labels", len(hello.labels), LABELS_LIMIT)
    for name, value in hello.labels.items():
        bounded_text("hello.labels", name, LABEL_CHARACTERS)
        bounded_text(f"hello.labels[{name}]", value, LABEL_CHARACTERS)
    bounded("hello.runtimes", len(hello.runtimes), RUNTIMES_LIMIT)
    skipped.extend(
        f"hello.runtimes: unknown runtime {kind}" for kind in hello.runtimes if kind not in _RUNTIMES
    )
    bounded("hello.capacity.memory_bytes", hello.capacity.memory_bytes, LARGEST_INTEGER)
    bounded("hello.capacity.disk_bytes", hello.capacity.disk_bytes, LARGEST_INTEGER)
    return ServerFacts(
        labels=dict(sorted(hello.labels.items())),
        capacity=Resources(hello.capacity.cpu_millis, hello.capacity.memory_bytes),
        disk_bytes=hello.capacity.disk_bytes,
        runtimes=tuple(sorted({_RUNTIMES[kind] for kind in hello.runtimes if kind in _RUNTIMES})),
        agent_version=bounded_text("hello.agent_version", hello.agent_version, LABEL_CHARACTERS),
    )


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
