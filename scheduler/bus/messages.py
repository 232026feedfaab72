"""Topics and payloads of the bus, as docs/bus.md describes them for readers. Pure.

Every payload is one JSON object with a ``version``. Fields may only be added; a change of meaning is a new version.
"""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

import msgspec
from msgspec import Struct

from galactica.scheduler.core.model.events import Record
from galactica.scheduler.core.model.fleet import SERVER_ID, Phase
from galactica.scheduler.core.ports import View
from galactica.scheduler.views import cells as cell_views
from galactica.scheduler.views import events as event_views
from galactica.scheduler.views import servers as server_views
from galactica.scheduler.views import shapes
from galactica.scheduler.views.shapes import Json
from galactica.v1 import operator_pb2

VERSION = 1
EVENT_BYTES_LIMIT = 64 * 1024
"""A larger event is sent without its own fields: brokers close the connection after a message that is too large."""


class Topics:
    """The topics. A slash in an id starts a level of the topic, so that ``cells/web/#`` is a group. A fleet's name is
    one level, and its id the next: fleets of one name never write each other's topics."""

    def __init__(self, fleet: str, fleet_id: str) -> None:
        self._root = f"galactica/{quote(fleet, safe=' ')}/{fleet_id}"

    def event(self, kind: str) -> str:
        return f"{self._root}/events/{kind}"

    def cell(self, cell_id: str) -> str:
        return f"{self._root}/cells/{cell_id}"

    def server(self, server_id: str) -> str:
        return f"{self._root}/servers/{server_id}"

    def will(self, server_id: str) -> str:
        return f"{self._root}/wills/{server_id}"

    @property
    def heard(self) -> tuple[str, ...]:
        """The scheduler's subscriptions: its own retained topics, and the wills."""
        return tuple(f"{self._root}/{kind}/#" for kind in ("cells", "servers", "wills"))

    def server_of_will(self, topic: str) -> str | None:
        """The server whose will has that topic; None if it is not a will's topic."""
        server = topic.removeprefix(f"{self._root}/wills/")
        return server if server != topic and SERVER_ID.fullmatch(server) else None


class Here(Struct, frozen=True, tag_field="says", tag="here"):
    """Retained: this connection speaks for this session of the agents' link, and its will counts."""

    version: int
    connection: str
    session: str


class Lost(Struct, frozen=True, tag_field="says", tag="lost"):
    """The last will of a connection."""

    version: int
    connection: str


_WILLS = msgspec.json.Decoder(Here | Lost)


def read_will(payload: bytes) -> Here | Lost:
    """Raises ValueError."""
    try:
        message: Here | Lost = _WILLS.decode(payload)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if message.version != VERSION:
        raise ValueError(f"unknown version {message.version}: this scheduler reads version {VERSION}")
    return message


def event_payload(record: Record) -> tuple[str, bytes]:
    """The event's type and payload, with the fields of ``events -o json``. Both hide the values of environments."""
    row = event_views.event_row(record)
    payload = _encode(shapes.event(row) | {"version": VERSION})
    if len(payload) > EVENT_BYTES_LIMIT:
        payload = _encode(shapes.event_head(row) | {"version": VERSION, "is_cut": True})
    return row.type, payload


def states(view: View, topics: Topics) -> dict[str, bytes]:
    """Topic to payload of all retained messages. Takes time in proportion to the fleet; may run in a thread."""
    payloads = {topics.cell(row.id): _encode(_cell(row)) for row in cell_views.cells(view)}
    payloads.update((topics.server(row.id), _encode(_server(row))) for row in _living_servers(view))
    return payloads


def _living_servers(view: View) -> Iterator[operator_pb2.Server]:
    return (row for row in server_views.servers(view) if row.phase != Phase.DECOMMISSIONED)


_CELL_KEYS = (
    *("id", "group", "slot", "generation", "kind", "phase", "verdict", "server", "digest", "revision"),
    *("ordered_at", "ready_at", "condemned_at", "replaces", "endpoints"),
)


def _cell(row: operator_pb2.Cell) -> Json:
    """Without texts that change all the time, such as a reason with seconds: each change would be a message."""
    shape = shapes.cell(row)
    return {"version": VERSION, **{key: shape[key] for key in _CELL_KEYS}}


def _server(row: operator_pb2.Server) -> Json:
    shape = shapes.server(row)
    kept = {key: shape[key] for key in ("id", "phase", "verdict", "labels", "agent_version")}
    return {"version": VERSION, **kept, "cells": len(row.cells)}


def _encode(value: Json) -> bytes:
    return msgspec.json.encode(value)
