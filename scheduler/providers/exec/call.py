"""Runs a program once: bytes in, bytes out, with limits for time and size. After a timeout no process of it is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

OUTPUT_BYTES_LIMIT = 16 * 2**20
WORDS_BYTES_LIMIT = 64 * 2**10
WORDS_CHARACTERS = 300
CHUNK_BYTES = 64 * 2**10
DRAIN_SECONDS = 1.0
"""How long to wait for output after the program's end: a child process may still have the pipe open."""


class Ended(Struct, frozen=True):
    """``code``: the return code, negative for a signal. ``words``: the end of its standard error."""

    code: int
    output: bytes
    words: str


class CallFailed(Exception):
    """The program did not start, took too long or wrote too much."""


async def call(
    program: Sequence[str], question: bytes, environment: Mapping[str, str], timeout_seconds: float
) -> Ended:
    """Run the program with ``question`` as its standard input. After a timeout, or if the caller is cancelled, its
    whole process group is killed. Raises CallFailed."""
    async with contextlib.AsyncExitStack() as stack:
        output = await _Pipe.open(stack)
        errors = await _Pipe.open(stack)
        process = await _begin(program, question, environment, output, errors)
        stack.push_async_callback(_leave_nothing, process)
        try:
            async with asyncio.timeout(timeout_seconds):
                code = await _finish(process, output, errors)
        except TimeoutError as error:
            details = f": {errors.words}" if errors.words else ""
            raise CallFailed(f"took longer than {timeout_seconds:g} s and was killed{details}") from error
        if output.overflowed:
            raise CallFailed(f"wrote more than {OUTPUT_BYTES_LIMIT} bytes and was killed")
        return Ended(code, bytes(output.data), errors.words)


async def _begin(
    program: Sequence[str], question: bytes, environment: Mapping[str, str], output: _Pipe, errors: _Pipe
) -> asyncio.subprocess.Process:
    stdin = os.memfd_create("question")
    try:
        with os.fdopen(os.dup(stdin), "wb") as file:
            file.write(question)
        os.lseek(stdin, 0, os.SEEK_SET)
        return await asyncio.create_subprocess_exec(
            *program,
            stdin=stdin,
            stdout=output.write_end,
            stderr=errors.write_end,
            env=dict(environment),
            start_new_session=True,
        )
    except OSError as error:
        raise CallFailed(f"cannot be run: {error.strerror or error}") from error
    finally:
        os.close(stdin)
        output.close_write_end()
        errors.close_write_end()


async def _finish(process: asyncio.subprocess.Process, output: _Pipe, errors: _Pipe) -> int:
    """Wait for the program's end and read its output. Returns its return code."""
    async with asyncio.TaskGroup() as tasks:
        readers = [
            tasks.create_task(output.read_all(OUTPUT_BYTES_LIMIT, lambda: _kill_group(process))),
            tasks.create_task(errors.read_end(WORDS_BYTES_LIMIT)),
        ]
        code = await process.wait()
        await asyncio.wait(readers, timeout=DRAIN_SECONDS)
        for reader in readers:
            reader.cancel()
    return code


async def _leave_nothing(process: asyncio.subprocess.Process) -> None:
    _kill_group(process)
    await process.wait()


def _kill_group(process: asyncio.subprocess.Process) -> None:
    """Kill the group, but only before its leader is reaped: until then no other process can have its number."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


class _Pipe:
    """A pipe to which a program writes."""

    def __init__(self, reader: asyncio.StreamReader, write_end: int) -> None:
        self.data = bytearray()
        self.overflowed = False
        self.write_end = write_end
        self._reader = reader
        self._is_open = True

    @classmethod
    async def open(cls, stack: contextlib.AsyncExitStack) -> _Pipe:
        read_end, write_end = os.pipe()
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb", buffering=0)
        )
        stack.callback(transport.close)
        pipe = cls(reader, write_end)
        stack.callback(pipe.close_write_end)
        return pipe

    @property
    def words(self) -> str:
        """The end of the data as one line for people."""
        return " ".join(self.data.decode("utf-8", "replace").split())[-WORDS_CHARACTERS:]

    async def read_all(self, limit: int, on_overflow: Callable[[], None]) -> None:
        while chunk := await self._reader.read(CHUNK_BYTES):
            self.data += chunk
            if len(self.data) > limit:
                self.overflowed = True
                on_overflow()
                return

    async def read_end(self, limit: int) -> None:
        while chunk := await self._reader.read(CHUNK_BYTES):
            self.data += chunk
            del self.data[:-limit]

    def close_write_end(self) -> None:
        if self._is_open:
            self._is_open = False
            os.close(self.write_end)
