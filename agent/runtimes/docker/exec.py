"""Commands inside a container. Blocking; called from worker threads.

A command ends when its first process ends, even if others still have its output. What it leaves behind is killed then:
a probe that leaves one process each second would fill the cell. Such processes are recognised by an entry in their
environment.

The engine can start a command but cannot end it. The agent kills by process ids on the host. This works only if the
engine is on the same host and the agent may signal its processes. Otherwise (a remote engine, an agent in a container)
a command that takes too long, and what a command leaves, runs on inside the cell until it ends.
"""

import contextlib
import logging
import os
import secrets
import select
import signal
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import docker
import docker.errors
import requests

from galactica.agent.runtimes.docker.differences import OURS_KEYS
from galactica.agent.runtimes.docker.engine import Engine, explained, is_away
from galactica.agent.runtimes.port import LINE_CHARACTERS, RuntimeFailure

OUTPUT_BYTES = 65_536
"""Limit for the newest output that is kept."""
CANNOT_EXECUTE, NOT_FOUND = 126, 127

MARK = "CELL_COMMAND"
"""The variable that tells one command and what it started from others."""
FIRST_LOOK_SECONDS = 0.2
LOOK_EVERY_SECONDS = 1.0
"""How soon and how often the engine is asked whether a silent command has ended."""
KILL_ROUNDS = 20
KILL_PAUSE_SECONDS = 0.01
_CONTROL_GROUPS = Path("/sys/fs/cgroup")

_HEADER = struct.Struct(">BxxxL")

_log = logging.getLogger(__name__)


def execute(
    engine: Engine, cell_id: str, command: Sequence[str], timeout_seconds: float, begun: Callable[[], None]
) -> tuple[int, str]:
    """Exit code and last line of output. The time counts from ``begun``, which is called when the engine has taken the
    command: until then the engine may be slow, not the cell.

    Raises TimeoutError, RuntimeFailure, RuntimeUnavailable."""
    client = engine.client()
    with engine.errors(f"run a command in {cell_id}"):
        mark = f"{MARK}={secrets.token_hex(8)}"
        exec_id = _created(engine, client, cell_id, command, mark)
        begun()
        deadline = time.monotonic() + timeout_seconds
        try:
            output = _output(client, exec_id, deadline)
        except docker.errors.APIError as error:
            if is_away(error):
                raise
            return _not_started(explained(error))
        if output is None:
            end_command(client, exec_id)
        inspected = client.exec_inspect(exec_id)
        exit_code = inspected["ExitCode"]
        life = engine.alive.get(inspected["ContainerID"])
        if life is not None:
            _kill_what_is_left(life.process_id, inspected["ContainerID"], mark)
    if output is None:
        raise TimeoutError(f"{command[0]} took longer than {timeout_seconds:g} s in {cell_id}")
    line = _last_line(output)
    if exit_code in {CANNOT_EXECUTE, NOT_FOUND} and "OCI runtime exec failed" in line:
        return _not_started(line)
    return (-1 if exit_code is None else int(exit_code)), line


def _created(
    engine: Engine, client: docker.APIClient, cell_id: str, command: Sequence[str], mark: str
) -> str:
    name = engine.scope.name_of(cell_id)
    try:
        made = client.exec_create(name, list(command), environment=[mark], detach_keys=OURS_KEYS)
        exec_id = str(made["Id"])
    except docker.errors.NotFound as error:
        raise RuntimeFailure(f"no cell {cell_id} on this server") from error
    except docker.errors.APIError as error:
        if error.status_code == requests.codes.conflict:
            raise RuntimeFailure(f"cell {cell_id} is not running") from error
        raise
    engine.execs.note(exec_id)
    return exec_id


def _not_started(why: str) -> tuple[int, str]:
    """Exit code and error line, as in a shell."""
    line = _last_line(why.encode())
    return (NOT_FOUND if "not found" in line or "no such file" in line else CANNOT_EXECUTE), line


def _last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").rstrip().splitlines()
    return lines[-1][:LINE_CHARACTERS] if lines else ""


def _output(client: docker.APIClient, exec_id: str, deadline: float) -> bytes | None:
    """The newest OUTPUT_BYTES of output up to the command's end; None if the deadline comes first."""

    def has_ended() -> bool:
        return not client.exec_inspect(exec_id)["Running"]

    connection: Any = client.exec_start(exec_id, socket=True)
    kept = bytearray()
    try:
        for payload in _payloads(connection, deadline, has_ended):
            kept += payload
            del kept[:-OUTPUT_BYTES]
    except TimeoutError:
        return None
    finally:
        with contextlib.suppress(OSError):
            connection.close()
    return bytes(kept)


def _payloads(connection: Any, deadline: float, has_ended: Callable[[], bool]) -> Iterator[bytes]:
    """Pieces of the frames' payloads as they arrive (header: stream, three zero bytes, length)."""
    header, left = b"", 0
    while data := _received(connection, deadline, has_ended):
        while data:
            if left:
                yield data[:left]
                data, left = data[left:], max(left - len(data), 0)
            else:
                missing = _HEADER.size - len(header)
                header, data = header + data[:missing], data[missing:]
                if len(header) == _HEADER.size:
                    (_, left), header = _HEADER.unpack(header), b""


def _received(connection: Any, deadline: float, has_ended: Callable[[], bool]) -> bytes:
    """Up to 16 KiB; empty at the end, which is that of the output or, while nothing comes, that of the command."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    pause_seconds = FIRST_LOOK_SECONDS
    while not poll.poll(min(pause_seconds, max(deadline - time.monotonic(), 0.0)) * 1000):
        if has_ended():
            if poll.poll(0):  # its last words
                break
            return b""
        if time.monotonic() >= deadline:
            raise TimeoutError
        pause_seconds = min(2 * pause_seconds, LOOK_EVERY_SECONDS)
    received: bytes = connection.read(16_384) if hasattr(connection, "read") else connection.recv(16_384)
    return received or b""


def end_command(client: docker.APIClient, exec_id: str) -> None:
    """Kill the command and the processes that it started: the engine runs it as the leader of its own session."""
    inspected = client.exec_inspect(exec_id)
    process_id = inspected.get("Pid") or 0
    if not inspected["Running"] or process_id <= 1:
        return
    if not _is_of_container(process_id, inspected["ContainerID"]):
        _log.warning("a command exceeded its time limit but cannot be killed: its engine is not on this host")
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process_id, signal.SIGKILL)


def _kill_what_is_left(process_id: int, container_id: str, mark: str) -> None:
    """``process_id``: of the container's first process, on its host."""
    entry = mark.encode()
    for _ in range(KILL_ROUNDS):
        left = [pid for pid in _processes_beside(process_id, container_id) if _has_entry(pid, entry)]
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(KILL_PAUSE_SECONDS)


def _processes_beside(process_id: int, container_id: str) -> list[int]:
    """The processes of the container, from its control group; none if its engine is not on this host."""
    if process_id <= 1 or not _is_of_container(process_id, container_id):
        return []
    try:
        lines = [line.split(":", 2) for line in Path(f"/proc/{process_id}/cgroup").read_text().splitlines()]
        for _, controllers, path in lines:
            if container_id in path and controllers in {"", "pids"}:
                group = _CONTROL_GROUPS / controllers / path.lstrip("/")
                return [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
    except (OSError, ValueError):  # ended meanwhile
        return []
    return []


def _has_entry(process_id: int, entry: bytes) -> bool:
    try:
        return entry in Path(f"/proc/{process_id}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _is_of_container(process_id: int, container_id: str) -> bool:
    """Whether that process of this host is in the container's control group. Other processes must not be killed."""
    try:
        return container_id in Path(f"/proc/{process_id}/cgroup").read_text(
            encoding="ascii", errors="replace"
        )
    except OSError:
        return False
