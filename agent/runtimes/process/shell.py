"""A shell in a process cell: with the cell's directory, environment and control group, on its own terminal or on
pipes."""

import asyncio
import contextlib
import fcntl
import os
import signal
import struct
import termios
from collections.abc import Callable, Sequence

from galactica.agent.runtimes.port import RuntimeFailure, StartFailed, Window
from galactica.agent.runtimes.process import limits as process_limits
from galactica.agent.runtimes.process import plan as process_plan
from galactica.agent.runtimes.process.launch import Folder
from galactica.agent.runtimes.process.record import Record

READ_BYTES = 16_384
SIGNAL_EXIT_BASE = 128
OPEN_TERMINAL = ("/bin/sh", "-c", 'exec "$@" 0<>"$0" 1>&0 2>&1')
"""The first terminal that a session leader opens becomes its controlling terminal."""


class ProcessShell:
    """Used by the event loop only. ``outputs``: descriptor to whether it is standard error."""

    def __init__(
        self, process: asyncio.subprocess.Process, input_to: int, outputs: dict[int, bool], *, tty: bool
    ) -> None:
        self._process = process
        self._input: int | None = input_to
        self._outputs = outputs
        self._tty = tty
        self._exit = asyncio.ensure_future(process.wait())

    async def read(self) -> tuple[bytes, bool] | None:
        """Processes that the shell started may outlive it and keep the streams open; this does not wait for them."""
        while self._outputs:
            has_ended = self._exit.done()
            for descriptor in tuple(self._outputs):
                if piece := self._take(descriptor):
                    return piece
            if has_ended:
                return None
            await self._until_ready(tuple(self._outputs), asyncio.get_running_loop().add_reader)
        return None

    def _take(self, descriptor: int) -> tuple[bytes, bool] | None:
        try:
            data = os.read(descriptor, READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:  # the end of a terminal
            data = b""
        if data:
            return data, self._outputs[descriptor]
        del self._outputs[descriptor]
        if descriptor != self._input:
            os.close(descriptor)
        return None

    async def _until_ready(self, descriptors: Sequence[int], watch: Callable[..., object]) -> None:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        unwatch = loop.remove_reader if watch == loop.add_reader else loop.remove_writer
        for descriptor in descriptors:
            watch(descriptor, ready.set)
        waiting = asyncio.ensure_future(ready.wait())
        try:
            await asyncio.wait([waiting, self._exit], return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            for descriptor in descriptors:
                unwatch(descriptor)

    async def write(self, data: bytes) -> None:
        while data and self._input is not None and not self._exit.done():
            try:
                data = data[os.write(self._input, data) :]
            except BlockingIOError:
                await self._until_ready((self._input,), asyncio.get_running_loop().add_writer)
            except OSError:  # the reader has ended
                return

    async def end_input(self) -> None:
        if not self._tty and self._input is not None:
            os.close(self._input)
            self._input = None

    async def resize(self, window: Window) -> None:
        if self._tty and self._input is not None:
            _resize(self._input, window)

    async def end(self) -> int:
        """Kills the shell's process group. Other processes that it started get the terminal's hangup; they end with
        the cell at the latest."""
        if not self._exit.done():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        code = await self._exit
        descriptors = {*self._outputs} if self._input is None else {*self._outputs, self._input}
        for descriptor in descriptors:
            os.close(descriptor)
        self._outputs, self._input = {}, None
        return code if code >= 0 else SIGNAL_EXIT_BASE - code


def _resize(terminal: int, window: Window) -> None:
    with contextlib.suppress(OSError):
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", window.rows, window.columns, 0, 0))


async def open_shell(
    record: Record, folder: Folder, command: Sequence[str], term: str, window: Window | None
) -> ProcessShell:
    """Raises RuntimeFailure."""
    environment = process_plan.environment_of(record.order, record.ports, folder.scratch)
    try:
        executable = process_plan.find_executable(command[0], environment["PATH"], folder.scratch)
    except StartFailed as error:
        raise RuntimeFailure(str(error)) from error
    words = [executable, *command[1:]]
    if window is None:
        return await _on_pipes(record, folder, words, environment)
    return await _on_terminal(record, folder, words, {**environment, "TERM": term or "dumb"}, window)


async def _on_terminal(
    record: Record, folder: Folder, words: list[str], environment: dict[str, str], window: Window
) -> ProcessShell:
    ours, theirs = os.openpty()
    try:
        _resize(ours, window)
        os.set_blocking(ours, False)
        program = [*OPEN_TERMINAL, os.ttyname(theirs), *words]
        process = await _started(record, folder, program, environment, (theirs, theirs, theirs))
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    return ProcessShell(process, ours, {ours: False}, tty=True)


async def _on_pipes(
    record: Record, folder: Folder, words: list[str], environment: dict[str, str]
) -> ProcessShell:
    pipes = [os.pipe() for _ in range(3)]
    (their_input, our_input), (our_output, their_output), (our_error, their_error) = pipes
    theirs, ours = (their_input, their_output, their_error), (our_input, our_output, our_error)
    try:
        process = await _started(record, folder, words, environment, theirs)
    except BaseException:
        for descriptor in ours:
            os.close(descriptor)
        raise
    finally:
        for descriptor in theirs:
            os.close(descriptor)
    for descriptor in ours:
        os.set_blocking(descriptor, False)
    return ProcessShell(process, our_input, {our_output: False, our_error: True}, tty=False)


async def _started(
    record: Record,
    folder: Folder,
    words: list[str],
    environment: dict[str, str],
    streams: tuple[int, int, int],
) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *process_limits.joining(record.groups, folder.scratch, words),
            env=environment,
            stdin=streams[0],
            stdout=streams[1],
            stderr=streams[2],
            start_new_session=True,
        )
    except OSError as error:
        raise RuntimeFailure(f"cannot run {words[0]}: {error.strerror}") from error
