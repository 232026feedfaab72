"""A container's output as a stream: a worker thread reads it, the event loop takes it at its own pace."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import Executor
from typing import Any

import docker.errors

from galactica.agent.runtimes.docker.engine import Engine
from galactica.agent.runtimes.port import RuntimeFailure

CHUNKS_AHEAD = 64
"""How far the thread may read ahead of a slow reader (chunks of at most 16 KiB)."""


async def read_logs(
    engine: Engine, executor: Executor, cell_id: str, tail: int, *, follow: bool
) -> AsyncGenerator[bytes, None]:
    """The last ``tail`` lines, and with ``follow`` the new output until the cell ends. Raises RuntimeFailure."""
    reader = _Reader(asyncio.get_running_loop())
    ended = asyncio.get_running_loop().run_in_executor(executor, reader.run, engine, cell_id, tail, follow)
    try:
        while (chunk := await reader.next()) is not None:
            yield chunk
        await ended
    finally:
        reader.close()


class _Reader:
    """Connects the thread (``run``) and the event loop (``next``, ``close``)."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue()  # bounded by the credits
        self._credits = threading.Semaphore(CHUNKS_AHEAD)
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._stream: Any = None

    async def next(self) -> bytes | None:
        chunk = await self._chunks.get()
        self._credits.release()
        return chunk

    def close(self) -> None:
        """End the thread soon. Never blocks."""
        self._closed.set()
        self._credits.release()
        with self._lock:
            self._break()

    def _break(self) -> None:
        if self._stream is not None:
            with contextlib.suppress(OSError):
                self._stream.close()

    def run(self, engine: Engine, cell_id: str, tail: int, follow: bool) -> None:  # noqa: FBT001 - as the engine has it
        try:
            with engine.errors(f"read the log of {cell_id}"):
                self._read(engine, cell_id, tail, follow)
        finally:
            self._put(None)

    def _read(self, engine: Engine, cell_id: str, tail: int, follow: bool) -> None:  # noqa: FBT001
        name = engine.scope.name_of(cell_id)
        try:
            stream = engine.client().logs(
                name, stdout=True, stderr=True, stream=True, follow=follow, tail=tail
            )
        except docker.errors.NotFound as error:
            raise RuntimeFailure(f"no cell {cell_id} on this server") from error
        with self._lock:
            self._stream = stream
            if self._closed.is_set():
                self._break()
        with contextlib.closing(stream):
            for chunk in stream:
                self._credits.acquire()
                if self._closed.is_set():
                    return
                self._put(chunk)

    def _put(self, chunk: bytes | None) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop has ended, so nobody reads
            self._loop.call_soon_threadsafe(self._chunks.put_nowait, chunk)
