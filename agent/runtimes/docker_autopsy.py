"""How a container ended, from what the engine says of it. Pure."""

import signal
import struct
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from galactica.v1 import cell_pb2

from agent.runtimes import LAST_LINES, LINE_CHARACTERS

_FRAME = struct.Struct(">BxxxL")
_YEAR_ONE = "0001-"
"""The engine's zero time: it has not happened."""


def unix_seconds(text: str) -> float:
    """Unix seconds of the engine's RFC 3339 time with nanoseconds; 0 where it has not happened."""
    return 0.0 if not text or text.startswith(_YEAR_ONE) else datetime.fromisoformat(text).timestamp()


def autopsy_of(inspected: Mapping[str, Any], raw_log: bytes) -> cell_pb2.Autopsy:
    """``inspected``: of a container that does not run. ``raw_log``: its newest output, in the engine's
    frames."""
    state = inspected["State"]
    started_at = unix_seconds(state["StartedAt"])
    if not started_at:
        why = f": {state['Error']}" if state.get("Error") else ""
        return cell_pb2.Autopsy(reason=f"was created but never started{why}")
    limit = inspected["HostConfig"].get("Memory") or 0
    autopsy = autopsy_of_exit(state["ExitCode"], max(unix_seconds(state["FinishedAt"]) - started_at, 0.0))
    if state.get("OOMKilled"):
        autopsy.oom_killed = True
        autopsy.reason = f"ran out of memory (limit {limit / 2**20:.0f} MiB), {autopsy.reason}"
    autopsy.last_lines.extend(last_lines(raw_log))
    return autopsy


def autopsy_of_exit(exit_code: int, lived_seconds: float) -> cell_pb2.Autopsy:
    """What the exit code alone says. Above 128 it is 128 + the signal's number, by the shells' and engine's
    habit."""
    name = _signal_name(exit_code - 128)
    reason = f"killed by {name}" if name else f"exited with {exit_code}"
    return cell_pb2.Autopsy(reason=reason, exit_code=exit_code, signal=name, lived_seconds=lived_seconds)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return ""


def last_lines(raw_log: bytes) -> list[str]:
    text = b"".join(frames(raw_log)).decode(errors="replace")
    return [line[:LINE_CHARACTERS] for line in text.splitlines()[-LAST_LINES:]]


def frames(raw: bytes) -> Iterator[bytes]:
    """The payloads of the engine's multiplexed stream (stdout and stderr, as they came); a cut last one is
    left out."""
    at = 0
    while at + _FRAME.size <= len(raw):
        _, length = _FRAME.unpack_from(raw, at)
        at += _FRAME.size
        yield raw[at : at + length]
        at += length
