"""Journal records as rows for readers."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.fleet import parse_cell_id
from galactica.v1 import operator_pb2

_COMMON_FIELDS = ("type", "cell", "server")
_SECRETS = ("secret_sha256",)


def event_row(record: e.Record) -> operator_pb2.Event:
    """Values of environments are left out: they may be secrets, and every viewer can read events."""
    fields: dict[str, Any] = msgspec.to_builtins(record.event)
    cell = fields.get("cell", "")
    details = {name: value for name, value in fields.items() if name not in (*_COMMON_FIELDS, *_SECRETS)}
    if isinstance(record.event, e.GroupApplied):
        details["group"]["spec"]["env"] = dict.fromkeys(record.event.group.spec.env, "(not shown)")
    if isinstance(record.event, e.GenomePlanted):
        genome = record.event.genome
        details["genome"] = {"groups": len(genome.groups), "servers": len(genome.servers)}
    return operator_pb2.Event(
        position=record.position,
        at=record.at,
        type=str(fields["type"]),
        cell=cell,
        group=group_of(record.event),
        server=fields.get("server", ""),
        cause=record.cause,
        schema=record.schema,
        details_json=json.dumps(details, ensure_ascii=False),
    )


def group_of(event: e.AnyEvent) -> str:
    """The group that an event is about; empty if there is none."""
    match event:
        case e.GroupApplied(group=group):
            return group.name
        case e.GroupDeleted(name=name):
            return name
    parsed = parse_cell_id(getattr(event, "cell", ""))
    return parsed.group if parsed else ""
