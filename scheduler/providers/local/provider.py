"""Servers that are processes of this machine: each is one agent with its own data directory.

A server lives as long as its agent. When the agent ends, everything that it left is killed too. So GONE means the same
as for a machine without power: nothing of it runs any more. The agent is never started again.

    DATA/pool.0.1/server.json      the record of pool/0.1
    DATA/pool.0.1/agent/           the data of the agent and its cells
    DATA/pool.0.1/agent.log        the agent's log

The body of a pool's ``server``: ``{"runtime": "process" | "docker", "listen_host": ADDRESS}``, both optional.
Agents outlive the scheduler; the next scheduler recognises them by their records.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from typing import Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field

from galactica.scheduler.core.model.spec import RuntimeKind, ServerBody
from galactica.scheduler.core.sight.observations import ProviderServer
from galactica.scheduler.providers.local import containers, processes
from galactica.scheduler.providers.local.server import LocalServer, Record, read_all, write
from galactica.scheduler.providers.options import checked_body, checked_options
from galactica.scheduler.providers.port import ProviderUnavailable, Setting, UserData, unreadable

TOKEN_VARIABLE = "GALACTICA_TOKEN"  # noqa: S105 - a name, no token
KILL_SECONDS = 5.0
DEATHS_LIMIT = 1_000

log = structlog.get_logger("scheduler.providers")


class Options(BaseModel):
    """The configuration. ``stop_seconds``: an agent that takes longer to end its cells and itself is killed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stop_seconds: float = Field(default=20.0, ge=0, le=100)


class Body(BaseModel):
    """``runtime`` empty: those that the machine offers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    runtime: Literal["process", "docker", ""] = ""
    listen_host: str = Field(default="127.0.0.1", min_length=1, max_length=255)


class LocalProvider:
    """Implements ``Provider`` and ``WatchingProvider``."""

    def __init__(self, setting: Setting, options: Options) -> None:
        self._name = setting.name
        self._fleet, self._fleet_id = setting.fleet, setting.fleet_id
        self._data = setting.data.absolute()
        self._options = options
        self._servers: dict[str, LocalServer] = {}
        self._lock = asyncio.Lock()
        """Held while servers are loaded and while one starts."""
        self._is_loaded = False
        self._unread: dict[str, str] = {}
        """Servers of which nothing can be said now, with the reason."""
        self._deaths: asyncio.Queue[LocalServer] = asyncio.Queue(DEATHS_LIMIT)

    @property
    def name(self) -> str:
        return self._name

    async def order(self, cell_id: str, spec: ServerBody, user_data: UserData) -> str:
        body = checked_body(Body, spec)
        async with self._lock:
            await self._load()
            self._check_read(cell_id)
            server = self._servers.get(cell_id) or await self._begin(cell_id, body, user_data)
        return server.ref

    async def decommission(self, ref: str, cell_id: str) -> bool:  # noqa: ARG002 - the cell id is enough
        async with self._lock:
            await self._load()
        self._check_read(cell_id)
        server = self._servers.get(cell_id)
        if server is None:
            return True
        await self._end(server)
        if not await self._clear(server):
            raise ProviderUnavailable(f"server {cell_id} is not gone: {server.trouble}")
        await asyncio.to_thread(shutil.rmtree, server.directory, ignore_errors=True)
        self._servers.pop(cell_id, None)
        return True

    async def list(self) -> tuple[ProviderServer, ...]:
        async with self._lock:
            await self._load()
        for server in tuple(self._servers.values()):
            if server.pidfd is not None and processes.has_ended(server.pidfd):
                self._ended(server)
            if server.has_ended.is_set():
                await self._clear(server)
        unread = (unreadable(cell, f"{cell}: {reason}") for cell, reason in self._unread.items())
        return (*(server.seen for server in self._servers.values()), *unread)

    async def watch(self) -> AsyncIterator[ProviderServer]:
        """Deaths of servers, after everything that they left was removed."""
        while True:
            server = await self._deaths.get()
            await self._clear(server)
            yield server.seen

    async def close(self) -> None:
        for server in self._servers.values():
            self._let_go(server)

    # --- one server -----------------------------------------------------------------------------------------------

    async def _begin(self, cell_id: str, body: Body, user_data: UserData) -> LocalServer:
        """Raises ProviderUnavailable."""
        record = Record(cell_id, body.runtime or _runtime_of(user_data))
        server = LocalServer(record, self._data / cell_id.replace("/", "."))
        command = _command(server, body, user_data)
        beginning = asyncio.get_running_loop().run_in_executor(
            None, _begin, server, command, _environment(user_data)
        )
        try:
            await asyncio.shield(beginning)
        except OSError as error:
            message = f"cannot start an agent in {server.directory}: {error.strerror or error}"
            raise ProviderUnavailable(message) from error
        finally:
            # Wait even if cancelled: a started agent must be registered. It takes only a moment.
            await asyncio.wait([beginning])
            if beginning.exception() is None:
                self._adopt_or_note(server)
        self._check_read(cell_id)
        log.info("local_server_began", cell=cell_id, ref=server.ref)
        return server

    async def _end(self, server: LocalServer) -> None:
        """Ask the agent's process to end, then kill it. Raises ProviderUnavailable."""
        steps = ((signal.SIGTERM, self._options.stop_seconds), (signal.SIGKILL, KILL_SECONDS))
        for number, seconds in steps:
            if server.pidfd is None:
                return
            processes.send_signal(server.pidfd, number)
            try:
                async with asyncio.timeout(seconds):
                    await server.has_ended.wait()
            except TimeoutError:
                log.warning("local_server_lingers", cell=server.record.cell, signal=number.name)
        if server.pidfd is not None:
            raise ProviderUnavailable(f"the agent {server.ref} does not end on SIGKILL; check it with ps")

    async def _clear(self, server: LocalServer) -> bool:
        """Remove what an ended agent left. Returns False and sets ``trouble`` if something is still left."""
        async with server.lock:
            if server.is_cleared:
                return True
            try:
                await asyncio.to_thread(self._clear_now, server)
            except (processes.StubbornProcesses, containers.EngineUnavailable, OSError) as error:
                server.trouble = f"its agent {server.record.ended}, but not everything of it is gone: {error}"
                log.warning("local_server_lingers", cell=server.record.cell, reason=server.trouble)
                return False
            server.is_cleared = True
            return True

    def _clear_now(self, server: LocalServer) -> None:
        """Blocks. Raises StubbornProcesses, EngineUnavailable, OSError."""
        processes.kill_all_of(server.directory)
        if server.record.runtime != RuntimeKind.PROCESS:
            try:
                containers.remove_all_of(self._fleet, self._fleet_id, server.record.cell)
            except containers.EngineUnavailable:
                # Without a chosen runtime it probably had no containers. With docker there may be some left.
                if server.record.runtime == RuntimeKind.DOCKER:
                    raise
        if server.directory.exists():
            write(server.directory, server.record)

    # --- all of them ----------------------------------------------------------------------------------------------

    async def _load(self) -> None:
        """Take over the servers of an earlier scheduler: once, and again those that could not be read. Raises
        ProviderUnavailable."""
        if self._is_loaded and not self._unread:
            return
        wanted = set(self._unread) if self._is_loaded else None
        try:
            taken = await asyncio.to_thread(read_all, self._data, wanted)
        except OSError as error:
            raise ProviderUnavailable(f"cannot take over the servers in {self._data}: {error}") from error
        self._unread = dict(taken.unread)
        for server in taken.servers:
            self._adopt_or_note(server)
        self._is_loaded = True

    def _check_read(self, cell: str) -> None:
        """Raises ProviderUnavailable."""
        if cell in self._unread:
            raise ProviderUnavailable(f"cannot tell what there is of server {cell}: {self._unread[cell]}")

    def _adopt_or_note(self, server: LocalServer) -> None:
        try:
            self._adopt(server)
        except OSError as error:
            self._unread[server.record.cell] = str(error)

    def _adopt(self, server: LocalServer) -> None:
        """Raises OSError; then nothing has changed."""
        process = server.record.process
        server.pidfd = processes.open_pidfd(process) if process else None
        self._servers[server.record.cell] = server
        if server.pidfd is None:
            server.bury("ended while no scheduler watched it")
        else:
            asyncio.get_running_loop().add_reader(server.pidfd, self._ended, server)

    def _ended(self, server: LocalServer) -> None:
        """The agent's process has ended."""
        if server.pidfd is None:
            return
        how = processes.bury(server.pidfd)
        self._let_go(server)
        server.bury(how)
        log.info("local_server_ended", cell=server.record.cell, ref=server.ref, how=how)
        if not self._deaths.full():  # otherwise the next list shows the death
            self._deaths.put_nowait(server)

    def _let_go(self, server: LocalServer) -> None:
        if server.pidfd is not None:
            asyncio.get_running_loop().remove_reader(server.pidfd)
            os.close(server.pidfd)
            server.pidfd = None


def make(setting: Setting, /) -> LocalProvider:
    """The entry point. Raises ProviderRefused."""
    return LocalProvider(setting, checked_options(Options, setting.options))


def _begin(server: LocalServer, command: list[str], environment: dict[str, str]) -> None:
    """Start the agent. The record is written before and after, so that a crash of the scheduler in between loses no
    agent. Blocks. Raises OSError."""
    server.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        write(server.directory, server.record)
        process = processes.spawn(command, environment, server.directory, server.directory / "agent.log")
    except OSError:
        shutil.rmtree(server.directory, ignore_errors=True)
        raise
    server.record = Record(server.record.cell, server.record.runtime, process)
    write(server.directory, server.record)


def _command(server: LocalServer, body: Body, user_data: UserData) -> list[str]:
    words = [sys.executable, "-m", "galactica.agent", *user_data.agent_arguments()]
    words += ["--data", str(server.directory / "agent"), "--host", body.listen_host, "--stop-cells"]
    if body.runtime and RuntimeKind(body.runtime) not in user_data.runtimes:
        words += ["--runtime", body.runtime]
    return words


def _runtime_of(user_data: UserData) -> str:
    """The runtime, if there is only one; else empty."""
    return user_data.runtimes[0].value if len(user_data.runtimes) == 1 else ""


def _environment(user_data: UserData) -> dict[str, str]:
    """Our environment without the scheduler's variables, and with the token: ``ps`` shows arguments to everybody."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("GALACTICA_")}
    return {**own, TOKEN_VARIABLE: user_data.token}
