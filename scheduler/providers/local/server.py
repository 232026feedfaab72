"""One server of the local provider, and its record on disk. The functions for files block: call them in a thread."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog
from msgspec import Struct
from msgspec.structs import replace

from galactica.scheduler.core.model.fleet import parse_cell_id
from galactica.scheduler.core.sight.observations import ProviderServer, ProviderState
from galactica.scheduler.providers.local import processes

RECORD = "server.json"
LOG = "agent.log"
LOG_TAIL_BYTES = 2_048

log = structlog.get_logger("scheduler.providers")


class Record(Struct, frozen=True):
    """``process`` None: the agent is being started, or was when the scheduler ended. ``runtime`` empty: unknown.
    ``ended``: how its agent ended; empty while it lives."""

    cell: str
    runtime: str = ""
    process: processes.Process | None = None
    ended: str = ""


class LocalServer:
    """``pidfd``: set while the agent's process lives. ``is_cleared``: nothing of the server is left."""

    def __init__(self, record: Record, directory: Path) -> None:
        self.record = record
        self.directory = directory
        self.pidfd: int | None = None
        self.has_ended = asyncio.Event()
        self.is_cleared = False
        self.trouble = ""
        self.lock = asyncio.Lock()

    @property
    def ref(self) -> str:
        return f"pid:{self.record.process.pid}" if self.record.process else "pid:unknown"

    @property
    def seen(self) -> ProviderServer:
        """The server for the port: RUNNING until nothing of it runs any more."""
        if self.is_cleared:
            return ProviderServer(
                self.record.cell, self.ref, ProviderState.GONE, f"its agent {self.record.ended}"
            )
        return ProviderServer(self.record.cell, self.ref, ProviderState.RUNNING, self.trouble)

    def bury(self, how: str) -> None:
        """Note that the server's agent has ended, and how."""
        if not self.record.ended:
            self.record = replace(self.record, ended=how + _last_words(self.directory / LOG))
        self.has_ended.set()


def write(directory: Path, record: Record) -> None:
    """Write the record atomically. Raises OSError."""
    draft = directory / f"{RECORD}.new"
    draft.write_bytes(msgspec.json.encode(record))
    draft.replace(directory / RECORD)


class Taken(NamedTuple):
    """What is recorded. ``unread``: cell ids of servers of which nothing can be said now, with the reason."""

    servers: list[LocalServer]
    unread: dict[str, str]


def read_all(data: Path, wanted: AbstractSet[str] | None = None) -> Taken:
    """All recorded servers; ``wanted``: only these. The record of a server that never started is removed. One server
    never hides the others. Raises OSError if the whole directory cannot be read."""
    taken = Taken([], {})
    for directory in sorted(data.iterdir()) if data.is_dir() else ():
        cell = _cell_of(directory)
        if cell is None:
            log.warning("foreign_directory", path=str(directory))
        elif wanted is None or cell in wanted:
            try:
                server = _read(directory, cell)
            except (OSError, processes.StubbornProcesses) as error:
                log.warning("server_unread", path=str(directory), reason=str(error))
                taken.unread[cell] = str(error)
            else:
                taken.servers.extend([server] if server else [])
    return taken


def _read(directory: Path, cell: str) -> LocalServer | None:
    """Raises OSError, StubbornProcesses."""
    if not directory.is_dir():
        return None
    try:
        record = msgspec.json.decode((directory / RECORD).read_bytes(), type=Record)
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        log.warning("record_unreadable", path=str(directory), reason=str(error))
        record = Record(cell)
    if record.process is None:
        record = replace(record, process=processes.find(directory))
    if record.process is None:
        processes.kill_all_of(directory)
        shutil.rmtree(directory, ignore_errors=True)
        return None
    return LocalServer(record, directory)


def _cell_of(directory: Path) -> str | None:
    """``pool.0.1`` is the directory of pool/0.1: a group's name has no dot."""
    cell = directory.name.replace(".", "/", 1)
    return cell if parse_cell_id(cell) is not None else None


def _last_words(path: Path) -> str:
    """The last line of its log, after a colon; empty without a log."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - LOG_TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return f": {lines[-1]}" if lines else ""
