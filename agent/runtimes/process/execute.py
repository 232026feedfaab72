"""Runs one command in a process cell, for exec probes."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence

from galactica.agent.runtimes.logs import last_lines
from galactica.agent.runtimes.port import RuntimeFailure, StartFailed
from galactica.agent.runtimes.process import limits as process_limits
from galactica.agent.runtimes.process import plan as process_plan
from galactica.agent.runtimes.process.launch import Folder
from galactica.agent.runtimes.process.record import Record

KEPT_BYTES = 8 << 10
CHUNK_BYTES = 64 << 10
PIPE_READS = 64
"""Enough reads to empty a pipe after its writers have ended."""

SIGNAL_EXIT_BASE = 128


class _Output:
    """The newest output from a pipe. The pipe blocks neither this program nor the command."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._read, self.write = os.pipe()
        os.set_blocking(self._read, False)
        self.data = b""
        self._loop.add_reader(self._read, self.take)

    def take(self) -> bool:
        """Read once. Returns False if there is nothing to read now."""
        try:
            chunk = os.read(self._read, CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not chunk:
            self._loop.remove_reader(self._read)
        self.data = (self.data + chunk)[-KEPT_BYTES:]
        return bool(chunk)

    def close(self) -> None:
        self._loop.remove_reader(self._read)
        os.close(self._read)


async def execute(
    record: Record, folder: Folder, command: Sequence[str], timeout_seconds: float
) -> tuple[int, str]:
    """Exit code and last line. Kills the whole process group after the command's end or the timeout.

    Raises TimeoutError, RuntimeFailure (no such command).
    """
    environment = process_plan.environment_of(record.order, record.ports, folder.scratch)
    try:
        words = process_plan.fill_all(command, record.ports)
        executable = process_plan.find_executable(words[0], environment["PATH"], folder.scratch)
    except StartFailed as error:
        raise RuntimeFailure(str(error)) from error
    output = _Output()
    try:
        try:
            process = await asyncio.create_subprocess_exec(
                *words,
                executable=executable,
                cwd=folder.scratch,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output.write,
                stderr=output.write,
                start_new_session=True,
            )
        except OSError as error:
            raise RuntimeFailure(f"cannot run {executable}: {error.strerror}") from error
        finally:
            os.close(output.write)
        code = await _wait(process, record, timeout_seconds)
        for _ in range(PIPE_READS):
            if not output.take():
                break
    finally:
        output.close()
    lines = last_lines(output.data, 1)
    return (code if code >= 0 else SIGNAL_EXIT_BASE - code), lines[-1] if lines else ""


async def _wait(process: asyncio.subprocess.Process, record: Record, timeout_seconds: float) -> int:
    """The command's return code. Raises TimeoutError. In any case its process group is killed."""
    try:
        with contextlib.suppress(OSError):  # the command or the cell has already ended
            process_limits.join(record.groups, process.pid)
        async with asyncio.timeout(timeout_seconds):
            return await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
