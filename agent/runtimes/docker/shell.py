"""A shell inside a container, for diagnosis by an operator. The socket blocks, so worker threads read and write it."""

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from typing import Any

import docker
import docker.errors
import requests

from galactica.agent.runtimes.docker.differences import OURS_KEYS
from galactica.agent.runtimes.docker.engine import Engine, explained
from galactica.agent.runtimes.docker.exec import end_command
from galactica.agent.runtimes.port import RuntimeFailure, Window

READ_BYTES = 16_384
CODE_SECONDS = 3.0
"""Time to wait for the exit code: the engine closes the stream shortly before it knows the code."""
CODE_PAUSE_SECONDS = 0.05
UNKNOWN_CODE = 255

_HEADER = struct.Struct(">BxxxL")
_STDERR = 2


class DockerShell:
    """One command and its streams. ``executor`` needs two threads for each shell."""

    def __init__(
        self, engine: Engine, executor: Executor, exec_id: str, connection: Any, *, tty: bool
    ) -> None:
        self._engine = engine
        self._executor = executor
        self._exec_id = exec_id
        self._connection = connection
        self._socket: socket.socket = getattr(connection, "_sock", connection)
        self._socket.settimeout(None)
        self._tty = tty
        self._header = b""
        self._left = 0
        self._is_error = False
        self._pieces: list[tuple[bytes, bool]] = []

    async def read(self) -> tuple[bytes, bool] | None:
        while not self._pieces:
            data = await self._in_thread(self._received)
            if not data:
                return None
            self._pieces = [(data, False)] if self._tty else list(self._unpacked(data))
        return self._pieces.pop(0)

    async def write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # the shell has ended; the reader notices
            await self._in_thread(self._socket.sendall, data)

    async def end_input(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    async def resize(self, window: Window) -> None:
        with contextlib.suppress(RuntimeFailure):  # the shell has ended
            await self._in_thread(self.resize_now, window)

    async def end(self) -> int:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        try:
            code: int = await self._in_thread(self._ended)
            return code
        finally:
            with contextlib.suppress(OSError):
                self._connection.close()

    async def _in_thread(self, work: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *args)

    def _received(self) -> bytes:
        try:
            return self._socket.recv(READ_BYTES)
        except OSError:
            return b""

    def _unpacked(self, data: bytes) -> Iterator[tuple[bytes, bool]]:
        """Unpack the frames that the engine sends without a terminal; a header has the stream and the length."""
        while data:
            if self._left:
                piece, data = data[: self._left], data[self._left :]
                self._left -= len(piece)
                yield piece, self._is_error
                continue
            missing = _HEADER.size - len(self._header)
            self._header, data = self._header + data[:missing], data[missing:]
            if len(self._header) == _HEADER.size:
                stream, self._left = _HEADER.unpack(self._header)
                self._is_error = stream == _STDERR
                self._header = b""

    def resize_now(self, window: Window) -> None:
        """Blocks. Does nothing if the shell has ended."""
        client = self._engine.client()
        with self._engine.errors("resize a terminal"), contextlib.suppress(docker.errors.APIError):
            client.exec_resize(self._exec_id, height=window.rows, width=window.columns)

    def _ended(self) -> int:
        """Kill the command if it still runs. Returns its exit code."""
        client = self._engine.client()
        with self._engine.errors("end a shell"):
            inspected = self._inspected(client)
            if inspected["Running"]:
                end_command(client, self._exec_id)
                inspected = self._inspected(client)
        code = inspected["ExitCode"]
        return UNKNOWN_CODE if code is None else int(code)

    def _inspected(self, client: docker.APIClient) -> Any:
        deadline = time.monotonic() + CODE_SECONDS
        while (inspected := client.exec_inspect(self._exec_id))["Running"] and time.monotonic() < deadline:
            time.sleep(CODE_PAUSE_SECONDS)
        return inspected


def open_shell(
    engine: Engine, executor: Executor, cell_id: str, command: Sequence[str], term: str, window: Window | None
) -> DockerShell:
    """Blocks. Raises RuntimeFailure, RuntimeUnavailable."""
    client, tty = engine.client(), window is not None
    with engine.errors(f"open a shell in {cell_id}"):
        try:
            created = client.exec_create(
                engine.scope.name_of(cell_id),
                list(command),
                stdin=True,
                tty=tty,
                environment={"TERM": term} if term and tty else None,
                detach_keys=OURS_KEYS,
            )
            exec_id = str(created["Id"])
            engine.execs.note(exec_id)
            connection = client.exec_start(exec_id, tty=tty, socket=True)
        except docker.errors.NotFound as error:
            raise RuntimeFailure(f"no cell {cell_id} on this server") from error
        except docker.errors.APIError as error:
            if error.status_code == requests.codes.conflict:
                raise RuntimeFailure(f"cell {cell_id} is not running") from error
            raise RuntimeFailure(
                f"the engine cannot open a shell in {cell_id}: {explained(error)}"
            ) from error
    shell = DockerShell(engine, executor, exec_id, connection, tty=tty)
    if window is not None:
        shell.resize_now(window)
    return shell
