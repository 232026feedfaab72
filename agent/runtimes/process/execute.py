"""Runs one command in a process cell, for exec probes.

A command ends when its first process ends. What it leaves behind is killed then: a probe that leaves one process each
second would fill the cell. Such processes are recognised by an entry in their environment.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import signal
from collections.abc import Sequence

from galactica.agent.runtimes.logs import last_lines
from galactica.agent.runtimes.port import RuntimeFailure, StartFailed
from galactica.agent.runtimes.process import groups as process_groups
from galactica.agent.runtimes.process import limits as process_limits
from galactica.agent.runtimes.process import plan as process_plan
from galactica.agent.runtimes.process import table as process_table
from galactica.agent.runtimes.process.launch import Folder
from galactica.agent.runtimes.process.record import Record

KEPT_BYTES = 8 << 10
CHUNK_BYTES = 64 << 10
PIPE_READS = 64
"""Enough reads to empty a pipe after its writers have ended."""

SIGNAL_EXIT_BASE = 128
MARK = "CELL_COMMAND"
"""The variable that tells one command and what it started from others."""

log = logging.getLogger(__name__)


class _Output:
    """The newest output from a pipe. The pipe blocks neither this program nor the command."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._read, self.write = os.pipe()
        os.set_blocking(self._read, False)
        self.data = b""
        self._is_at_end = False
        self._loop.add_reader(self._read, self.take)

    def take(self) -> bool:
        """Read once. Returns False if there is nothing to read now."""
        try:
            chunk = os.read(self._read, CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not chunk:
            self._is_at_end = True
            self._loop.remove_reader(self._read)
        self.data = (self.data + chunk)[-KEPT_BYTES:]
        return bool(chunk)

    @property
    def is_at_end(self) -> bool:
        """Whether nobody can write to it any more."""
        return self._is_at_end

    def take_all(self) -> None:
        for _ in range(PIPE_READS):
            if not self.take():
                break

    def close(self) -> None:
        self._loop.remove_reader(self._read)
        os.close(self._read)


async def execute(
    record: Record, folder: Folder, command: Sequence[str], timeout_seconds: float
) -> tuple[int, str]:
    """Exit code and last line. Kills all that the command started, after its end or the timeout.

    Raises TimeoutError, RuntimeFailure (no such command).
    """
    environment = process_plan.environment_of(record.order, record.ports, folder.scratch)
    try:
        words = process_plan.fill_all(command, record.ports)
        executable = process_plan.find_executable(words[0], environment["PATH"], folder.scratch)
    except StartFailed as error:
        raise RuntimeFailure(str(error)) from error
    mark = f"{MARK}={secrets.token_hex(8)}"
    program = [executable, *words[1:]]
    output = _Output()
    try:
        try:
            process = await asyncio.create_subprocess_exec(
                *process_limits.joining(record.groups, folder.scratch, program),
                env={**environment, MARK: mark.partition("=")[2]},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output.write,
                stderr=output.write,
                start_new_session=True,
            )
        except OSError as error:
            raise RuntimeFailure(f"cannot run {executable}: {error.strerror}") from error
        finally:
            os.close(output.write)
        try:
            code = await _wait(process, timeout_seconds)
        finally:
            output.take_all()
            await _kill_what_is_left(record, mark, is_held=not output.is_at_end)
    finally:
        output.close()
    lines = last_lines(output.data, 1)
    return (code if code >= 0 else SIGNAL_EXIT_BASE - code), lines[-1] if lines else ""


async def _wait(process: asyncio.subprocess.Process, timeout_seconds: float) -> int:
    """The command's return code. Raises TimeoutError. In any case its process group is killed."""
    try:
        async with asyncio.timeout(timeout_seconds):
            return await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _kill_what_is_left(record: Record, mark: str, *, is_held: bool) -> None:
    """``is_held``: somebody still has its output. Without control groups only that shows that anything is left: looking
    at all processes of the machine for each probe would take too long. Others then end with the cell."""
    entry = os.fsencode(mark)

    def left() -> set[int]:
        candidates = process_groups.members(record.groups) if record.groups else process_table.all_living()
        return {pid for pid in candidates if process_table.has_entry(pid, entry)}

    if record.groups or is_held:
        try:
            await asyncio.to_thread(process_table.kill_until_none, left)
        except (RuntimeFailure, RuntimeError, OSError) as error:
            log.warning("what a command left in %s goes on: %s", record.order.cell_id, error)
