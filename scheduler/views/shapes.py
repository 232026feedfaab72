"""Rows as JSON, for scripts and the message bus. Times are RFC 3339 in UTC with microseconds; absent values are null.

New keys may be added. An existing key and its meaning never change.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from google.protobuf.message import Message

from galactica.v1 import cell_pb2, operator_pb2

Json = dict[str, Any]

CALENDAR_ENDS = 253_402_300_799.0
"""The end of the year 9999, where RFC 3339 ends."""


def time_text(at: float) -> str:
    """``2026-01-31T12:00:00.000000Z``. Never raises: a time outside the calendar is shown as a plain number."""
    if not 0 <= at < CALENDAR_ENDS:
        return str(at)
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def cell(message: operator_pb2.Cell) -> Json:
    return {
        "id": message.id,
        "group": message.group,
        "slot": message.slot,
        "generation": message.generation,
        "kind": message.kind,
        "phase": message.phase,
        "verdict": message.verdict or None,
        "server": message.server or None,
        "digest": message.digest,
        "revision": message.revision,
        "ordered_at": _time(message, "ordered_at"),
        "ready_at": _time(message, "ready_at"),
        "condemned_at": _time(message, "condemned_at"),
        "replaces": message.replaces or None,
        "replaced_by": message.replaced_by or None,
        "endpoints": dict(sorted(message.endpoints.items())),
        "runtime_id": message.runtime_id or None,
        "serving": message.serving,
    }


def server(message: operator_pb2.Server) -> Json:
    return {
        "id": message.id,
        "phase": message.phase,
        "verdict": message.verdict or None,
        "labels": dict(sorted(message.labels.items())),
        "runtimes": list(message.runtimes),
        "capacity": _capacity(message.capacity) if message.HasField("capacity") else None,
        "used": _capacity(message.used) if message.HasField("used") else None,
        "cells": list(message.cells),
        "agent_version": message.agent_version or None,
        "last_beat_at": _time(message, "last_beat_at"),
        "vitals": _vitals(message.vitals) if message.HasField("vitals") else None,
        "pool": message.pool or None,
        "slot": message.slot if message.pool else None,
        "generation": message.generation if message.pool else None,
        "provider_ref": message.provider_ref or None,
        "evidence": [_evidence(fact) for fact in message.evidence],
        "neighbours": [
            {"server": neighbour.server_id, "answer": neighbour.answer} for neighbour in message.neighbours
        ],
        "notes": list(message.notes),
        "maintenance_until": _time(message, "maintenance_until"),
        "watch_address": message.watch_address or None,
        "wire_version": message.wire_version or None,
        "is_behind": message.is_behind,
    }


def pool(message: operator_pb2.GroupStatus, storm: str | None) -> Json:
    """``storm``: the id of the storm in this pool, if there is one."""
    return {**_group_status(message), "provider": message.provider or None, "storm": storm}


def provider(message: operator_pb2.Provider) -> Json:
    return {
        "name": message.name,
        "servers": message.servers,
        "deleting": message.deleting,
        "trouble": message.trouble or None,
        "listed_at": _time(message, "listed_at"),
    }


def storm(message: operator_pb2.Storm) -> Json:
    return {
        "id": message.id,
        "pool": message.pool or None,
        "silent": message.silent,
        "of": message.of,
        "since": time_text(message.since),
        "expires_at": time_text(message.expires_at),
        "reason": message.reason,
    }


def _evidence(message: operator_pb2.Evidence) -> Json:
    return {"source": message.source, "says": message.says, "at": time_text(message.at)}


def status(message: operator_pb2.GetStatusResponse) -> Json:
    return {
        "fleet": message.fleet,
        "healthy": message.healthy,
        "groups": [_group_status(group) for group in message.groups],
        "held": [hold(held) for held in message.held],
        "storms": [storm(row) for row in message.storms],
        "notes": list(message.notes),
        "genome": _genome(message.genome) if message.HasField("genome") else None,
    }


def _genome(message: operator_pb2.GenomeStatus) -> Json:
    return {
        "epoch": message.epoch,
        "position": message.position,
        "kept": message.kept,
        "wanted": message.wanted,
    }


def hold(message: operator_pb2.Hold) -> Json:
    return {
        "group": message.group or None,
        "rule": message.rule,
        "reason": message.reason,
        "next_look_at": _time(message, "next_look_at"),
    }


def event_head(message: operator_pb2.Event) -> Json:
    """The fields that every event has."""
    return {
        "position": message.position,
        "at": time_text(message.at),
        "type": message.type,
        "cell": message.cell or None,
        "group": message.group or None,
        "server": message.server or None,
        "cause": message.cause or None,
        "schema": message.schema,
    }


def event(message: operator_pb2.Event) -> Json:
    """The common fields first, then the event's own fields. An own field never overwrites a common field."""
    common = event_head(message)
    return common | {key: value for key, value in _with_times(details(message)).items() if key not in common}


def _with_times(value: Any, name: str = "") -> Any:
    """Convert the times in an event's own fields from Unix seconds to text."""
    match value:
        case dict():
            return {key: _with_times(item, key) for key, item in value.items()}
        case list():
            return [_with_times(item) for item in value]
        case int() | float() if is_time(name):
            return time_text(value)
        case _:
            return value


def is_time(name: str) -> bool:
    """Whether an event's field with this name contains Unix seconds."""
    return name == "at" or name.endswith("_at") or name == "not_before"


def details(message: operator_pb2.Event) -> Json:
    """The event's own fields; empty if they are unreadable."""
    try:
        parsed = json.loads(message.details_json or "{}")
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def certificate(message: operator_pb2.GetCertificateResponse) -> Json:
    return {
        "cell": message.cell.id,
        "evidence": [_evidence(fact) for fact in message.evidence],
        "verdict": message.verdict or None,
        "condemned_at": _time(message, "condemned_at"),
        "rule": message.rule or None,
        "budget": message.budget or None,
        "replaces": message.replaces or None,
        "replaced_by": message.replaced_by or None,
        "autopsy": _autopsy(message.autopsy) if message.HasField("autopsy") else None,
    }


def group(message: operator_pb2.GetGroupResponse) -> Json:
    return _group_status(message.group) | {
        "healthy": message.healthy,
        "blamed": message.blamed or None,
        "unproven": message.unproven,
        "held": [hold(held) for held in message.held],
        "deaths": [certificate(death) for death in message.deaths],
    }


def plan(message: operator_pb2.PlanGroupsResponse) -> Json:
    return {
        "changes": [change(row) for row in message.changes],
        "births": [
            {"cell": birth.cell_id, "server": birth.server or None, "replaces": birth.replaces or None}
            for birth in message.births
        ],
        "deaths": [
            {"cell": death.cell_id, "server": death.server or None, "rule": death.rule}
            for death in message.deaths
        ],
        "held": [hold(held) for held in message.held],
        "more_births": message.more_births,
        "more_deaths": message.more_deaths,
    }


def change(message: operator_pb2.GroupChange) -> Json:
    return {
        "group": message.group,
        "change": message.change,
        "revision": message.revision,
        "digest": message.digest,
        "differences": list(message.differences),
    }


def token(message: operator_pb2.CreateTokenResponse) -> Json:
    return {
        "token": message.token,
        "expires_at": time_text(message.expires_at),
        "uses": message.uses,
        "scheduler": message.scheduler or None,
    }


def _group_status(message: operator_pb2.GroupStatus) -> Json:
    return {
        "kind": message.kind,
        "name": message.name,
        "wanted": message.wanted,
        "ready": message.ready,
        "booting": message.booting,
        "sick": message.sick,
        "revision": message.revision,
    }


def _capacity(message: cell_pb2.Capacity) -> Json:
    return {
        "cpu_millis": message.cpu_millis,
        "memory_bytes": message.memory_bytes,
        "disk_bytes": message.disk_bytes,
    }


def _vitals(message: cell_pb2.Vitals) -> Json:
    return {
        "cpu_fraction": message.cpu_fraction,
        "memory_fraction": message.memory_fraction,
        "disk_fraction": message.disk_fraction,
        "load_1m": message.load_1m,
        "pressure_cpu": _present(message, "pressure_cpu"),
        "pressure_memory": _present(message, "pressure_memory"),
        "pressure_io": _present(message, "pressure_io"),
        "engine_latency_ms": _present(message, "engine_latency_ms"),
        "clock_offset_ms": _present(message, "clock_offset_ms"),
        "disk_error": _present(message, "disk_error"),
        "kernel_errors": _present(message, "kernel_errors"),
        "foreign_cells": message.foreign_cells,
        "agent_lacks": message.agent_lacks,
        "unread": list(message.unread),
    }


def _autopsy(message: cell_pb2.Autopsy) -> Json:
    return {
        "reason": message.reason,
        "exit_code": _present(message, "exit_code"),
        "signal": message.signal or None,
        "oom_killed": message.oom_killed,
        "last_lines": list(message.last_lines),
        "lived_seconds": message.lived_seconds,
    }


def _time(message: Message, name: str) -> str | None:
    return time_text(getattr(message, name)) if message.HasField(name) else None


def _present(message: Message, name: str) -> Any:
    return getattr(message, name) if message.HasField(name) else None
