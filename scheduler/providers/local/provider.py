"""Servers that are processes of this machine: each is one agent with a data directory of its own.

A server lives as long as its agent. When the agent ends, whatever it left behind is ended too, so that GONE means
what it means for a machine without power: nothing of it runs any more. Nobody begins the agent anew.

    DATA/pool.0.1/server.json      what this provider knows of pool/0.1
    DATA/pool.0.1/agent/           the agent's data, its cells too
    DATA/pool.0.1/agent.log        what the agent wrote

The body of a pool's ``server``: ``{"runtime": "process" | "docker", "listen_host": ADDRESS}``, both optional.
Agents outlive the scheduler; the next one knows them again by their record.
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
from galactica.scheduler.providers.port import ProviderUnavailable, Setting, UserData

TOKEN_VARIABLE = "GALACTICA_TOKEN"  # noqa: S105 - a name, no token
KILL_SECONDS = 5.0
DEATHS_LIMIT = 1_000

log = structlog.get_logger("scheduler.providers")


class Options(BaseModel):
    """The configuration. ``stop_seconds``: how long an agent may take to end its cells, and itself, in peace."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stop_seconds: float = Field(default=20.0, ge=0, le=100)


class Body(BaseModel):
    """``runtime`` empty: what the machine offers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    runtime: Literal["process", "docker", ""] = ""
    listen_host: str = Field(default="127.0.0.1", min_length=1, max_length=255)


class LocalProvider:
    """Implements ``Provider`` and ``WatchingProvider``."""

    def __init__(self, setting: Setting, options: Options) -> None:
        self._name = setting.name
        self._fleet = setting.fleet
        self._data = setting.data.absolute()
        self._options = options
        self._servers: dict[str, LocalServer] = {}
        self._lock = asyncio.Lock()
        """Held while servers are found again, and while one begins."""
        self._is_loaded = False
        self._deaths: asyncio.Queue[LocalServer] = asyncio.Queue(DEATHS_LIMIT)

    @property
    def name(self) -> str:
        return self._name

    async def order(self, cell_id: str, spec: ServerBody, user_data: UserData) -> str:
        body = checked_body(Body, spec)
        async with self._lock:
            await self._load()
            server = self._servers.get(cell_id) or await self._begin(cell_id, body, user_data)
        return server.ref

    async def decommission(self, ref: str, cell_id: str) -> None:  # noqa: ARG002 - the cell id says all
        async with self._lock:
            await self._load()
        server = self._servers.get(cell_id)
        if server is None:
            return
        await self._end(server)
        if not await self._clear(server):
            raise ProviderUnavailable(f"the server {cell_id} is not gone: {server.trouble}")
        await asyncio.to_thread(shutil.rmtree, server.directory, ignore_errors=True)
        self._servers.pop(cell_id, None)

    async def list(self) -> tuple[ProviderServer, ...]:
        async with self._lock:
            await self._load()
        for server in tuple(self._servers.values()):
            if server.pidfd is not None and processes.has_ended(server.pidfd):
                self._ended(server)
            if server.has_ended.is_set():
                await self._clear(server)
        return tuple(server.seen for server in self._servers.values())

    async def watch(self) -> AsyncIterator[ProviderServer]:
        """Deaths, once nothing is left of the server."""
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
            message = f"an agent cannot begin in {server.directory}: {error.strerror or error}"
            raise ProviderUnavailable(message) from error
        finally:
            # A moment, also when cancelled: what has begun must be known.
            await asyncio.wait([beginning])
            if beginning.exception() is None:
                self._adopt(server)
        log.info("local_server_began", cell=cell_id, ref=server.ref)
        return server

    async def _end(self, server: LocalServer) -> None:
        """The agent's process: ask it, then kill it. Raises ProviderUnavailable."""
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
            raise ProviderUnavailable(f"the agent {server.ref} does not end on SIGKILL; look at it with ps")

    async def _clear(self, server: LocalServer) -> bool:
        """End what the agent left behind, once it has ended. False, with ``trouble``, where something is left."""
        async with server.lock:
            if server.is_cleared:
                return True
            try:
                await asyncio.to_thread(self._clear_now, server)
            except (processes.StubbornProcesses, containers.EngineUnavailable, OSError) as error:
                server.trouble = f"it {server.record.ended}, but not all of it is gone: {error}"
                log.warning("local_server_lingers", cell=server.record.cell, reason=server.trouble)
                return False
            server.is_cleared = True
            return True

    def _clear_now(self, server: LocalServer) -> None:
        """Blocks. Raises StubbornProcesses, EngineUnavailable, OSError."""
        processes.kill_all_of(server.directory)
        if server.record.runtime != RuntimeKind.PROCESS:
            try:
                containers.remove_all_of(self._fleet, server.record.cell)
            except containers.EngineUnavailable:
                # It may have had none; only where containers were asked for is there something to be sure of.
                if server.record.runtime == RuntimeKind.DOCKER:
                    raise
        if server.directory.exists():
            write(server.directory, server.record)

    # --- all of them ----------------------------------------------------------------------------------------------

    async def _load(self) -> None:
        """Once: those that a scheduler before this one began. Raises ProviderUnavailable."""
        if self._is_loaded:
            return
        try:
            found = await asyncio.to_thread(read_all, self._data)
        except (OSError, processes.StubbornProcesses) as error:
            raise ProviderUnavailable(f"{self._data} cannot be taken over: {error}") from error
        for server in found:
            self._adopt(server)
        self._is_loaded = True

    def _adopt(self, server: LocalServer) -> None:
        self._servers[server.record.cell] = server
        process = server.record.process
        server.pidfd = processes.open_pidfd(process) if process else None
        if server.pidfd is None:
            server.bury("ended while nobody looked")
        else:
            asyncio.get_running_loop().add_reader(server.pidfd, self._ended, server)

    def _ended(self, server: LocalServer) -> None:
        """The kernel says that the agent's process has ended."""
        if server.pidfd is None:
            return
        how = processes.bury(server.pidfd)
        self._let_go(server)
        server.bury(how)
        log.info("local_server_ended", cell=server.record.cell, ref=server.ref, how=how)
        if not self._deaths.full():  # else the list, which is asked for anyway, tells of it
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
    """On record before and after, so that an end of the scheduler in between loses nothing. Blocks. Raises OSError."""
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
    """The only one, if there is only one."""
    return user_data.runtimes[0].value if len(user_data.runtimes) == 1 else ""


def _environment(user_data: UserData) -> dict[str, str]:
    """Ours without what is the scheduler's; the token here, since ``ps`` shows arguments to everybody."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("GALACTICA_")}
    return {**own, TOKEN_VARIABLE: user_data.token}
