"""How a container ended: from the engine's inspection, or sooner, from facts that are known without asking it."""

import json
import math
import signal
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from galactica.agent.runtimes.docker.differences import Touches
from galactica.agent.runtimes.port import LAST_LINES, LINE_CHARACTERS
from galactica.v1 import cell_pb2

_FRAME = struct.Struct(">BxxxL")
LOG_TAIL_BYTES = 262_144
SIGNAL_EXIT_BASE = 128
LACK_SECONDS = 5.0
"""The engine tells of a death soon after the kernel's kill. What was killed longer ago was another process."""

_YEAR_ONE = "0001-"
"""The engine's zero time begins like this; it means that the event has not happened."""


@dataclass(slots=True)
class Life:
    """A container whose death will be reported. The fields with defaults are set after its inspection.

    ``lacked_at``: when the kernel last killed a process of it for lack of memory, in Unix seconds. ``known_at``: of the
    monotonic clock, before the container started, or when this agent found it. What was asked before says nothing
    about it. ``process_id``: of its first process, on the engine's host.
    """

    cell_id: str
    started_at: float = 0.0
    log_path: str = ""
    process_id: int = 0
    memory_bytes: int = 0
    lacked_at: float = -math.inf
    touches: Touches = field(default_factory=Touches)
    known_at: float = field(default_factory=time.monotonic)

    def learn(self, inspected: Mapping[str, Any]) -> None:
        self.memory_bytes = inspected["HostConfig"].get("Memory") or 0
        self.log_path = inspected.get("LogPath") or ""
        self.process_id = inspected["State"].get("Pid") or 0
        self.started_at = unix_seconds(inspected["State"]["StartedAt"])


@dataclass(frozen=True, slots=True)
class Death:
    """A container ended: the facts of the engine's event. ``at``: Unix seconds."""

    container_id: str
    exit_code: int
    at: float


def autopsy_at_once(life: Life, death: Death) -> cell_pb2.Autopsy | None:
    """The autopsy without asking the engine; None if facts are missing (an engine on another host, or no permission to
    read its files).

    After a container's end the engine removes its network, for a tenth of a second or longer, and answers no question
    about the container meanwhile. A successor need not wait for that. The log is complete before the engine reports
    the death, and an out-of-memory event comes before the death too."""
    lines = _lines_of_file(life.log_path, death.container_id)
    if not life.started_at or lines is None:
        return None
    autopsy = autopsy_of_exit(death.exit_code, max(death.at - life.started_at, 0.0))
    if _is_killed(death.exit_code) and death.at - life.lacked_at < LACK_SECONDS:
        _add_lack_of_memory(autopsy, life.memory_bytes)
    autopsy.last_lines.extend(lines)
    return autopsy


def _is_killed(exit_code: int) -> bool:
    """The engine also tells of children, and of commands beside the cell, that were killed for lack of memory. They do
    not explain the death of a cell that was not killed itself."""
    return exit_code == SIGNAL_EXIT_BASE + signal.SIGKILL


def _add_lack_of_memory(autopsy: cell_pb2.Autopsy, limit_bytes: int) -> None:
    autopsy.oom_killed = True
    autopsy.reason = f"ran out of memory (limit {limit_bytes / 2**20:.0f} MiB), {autopsy.reason}"


def _lines_of_file(log_path: str, container_id: str) -> list[str] | None:
    """The newest lines of the engine's log file and of the file before it."""
    if container_id not in log_path:
        return None
    text = ""
    try:
        for path in (Path(f"{log_path}.1"), Path(log_path)):
            if path.suffix == ".1" and not path.exists():
                continue
            text += "".join(_entries(_tail(path)))
    except OSError:
        return None
    return _newest(text)


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - LOG_TAIL_BYTES, 0))
        return file.read()


def _entries(raw: bytes) -> Iterator[str]:
    """The container's output. Each line of the file is a JSON object; an incomplete first line is skipped."""
    for line in raw.splitlines():
        try:
            yield str(json.loads(line)["log"])
        except (ValueError, KeyError, TypeError):
            continue


def _newest(text: str) -> list[str]:
    return [line[:LINE_CHARACTERS] for line in text.splitlines()[-LAST_LINES:]]


def unix_seconds(text: str) -> float:
    """Unix seconds of the engine's RFC 3339 time with nanoseconds; 0 if the event has not happened."""
    return 0.0 if not text or text.startswith(_YEAR_ONE) else datetime.fromisoformat(text).timestamp()


def autopsy_of(inspected: Mapping[str, Any], raw_log: bytes) -> cell_pb2.Autopsy:
    """``inspected``: the inspection of a container that is not running. ``raw_log``: its newest output, in the
    engine's frames."""
    state = inspected["State"]
    started_at = unix_seconds(state["StartedAt"])
    if not started_at:
        why = f": {state['Error']}" if state.get("Error") else ""
        return cell_pb2.Autopsy(reason=f"was created but never started{why}")
    autopsy = autopsy_of_exit(state["ExitCode"], max(unix_seconds(state["FinishedAt"]) - started_at, 0.0))
    if state.get("OOMKilled") and _is_killed(state["ExitCode"]):
        _add_lack_of_memory(autopsy, inspected["HostConfig"].get("Memory") or 0)
    autopsy.last_lines.extend(last_lines(raw_log))
    return autopsy


def autopsy_of_exit(exit_code: int, lived_seconds: float) -> cell_pb2.Autopsy:
    """The autopsy from the exit code alone. A code above 128 is 128 + the signal's number, as in shells."""
    name = _signal_name(exit_code - SIGNAL_EXIT_BASE)
    reason = f"killed by {name}" if name else f"exited with {exit_code}"
    return cell_pb2.Autopsy(reason=reason, exit_code=exit_code, signal=name, lived_seconds=lived_seconds)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return ""


def last_lines(raw_log: bytes) -> list[str]:
    return _newest(b"".join(frames(raw_log)).decode(errors="replace"))


def frames(raw: bytes) -> Iterator[bytes]:
    """The payloads of the engine's multiplexed stream (stdout and stderr in their order)."""
    at = 0
    while at + _FRAME.size <= len(raw):
        _, length = _FRAME.unpack_from(raw, at)
        at += _FRAME.size
        yield raw[at : at + length]
        at += length
