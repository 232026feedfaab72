"""Prepares what the daemon needs: data directory, identity, runtimes, watch socket, watchdog and last will."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import ipaddress
import logging
import os
import secrets
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from galactica.agent.clock import boot_id
from galactica.agent.files import replace_file
from galactica.agent.link.identity import Identity
from galactica.agent.link.pauses import Pauses
from galactica.agent.neighbours.moving import is_own
from galactica.agent.neighbours.watch import (
    address_towards,
    joined_address,
    listen,
    split_address,
)
from galactica.agent.runtimes.port import RuntimeUnavailable
from galactica.agent.settings import (
    EXIT_FAILED,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    TOKEN_VARIABLE,
    WATCH_OFF,
    Settings,
    StartError,
    host_and_port,
)
from galactica.v1 import cell_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from galactica.agent.link.will import Will
    from galactica.agent.runtimes.port import Runtime

ENGINE_SECONDS = 3.0
INSTANCE_BYTES = 8

log = logging.getLogger("agent")


@contextlib.contextmanager
def owned(data: Path) -> Iterator[None]:
    """Hold the lock of the data directory, which only one agent may use at a time. Raises StartError."""
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (data / "agent.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
    except BlockingIOError as error:
        raise StartError(
            f"another agent already uses the data directory {data}; give this agent a different one with --data"
        ) from error
    except PermissionError as error:
        raise StartError(
            f"no access to {error.filename}: run the agent as its owner, or give another directory with --data"
        ) from error


def load_identity(settings: Settings) -> Identity:
    """The agent's identity. Enrols the server first if it has none. The link renews an expired certificate, not this.
    Raises StartError, IdentityError."""
    identity = Identity.load(identity_directory(settings.data))
    if identity is None:
        return enrolled_identity(settings, None)
    if settings.server_id not in {"", identity.server_id}:
        raise StartError(
            f"the data directory {settings.data} belongs to server {identity.server_id}, not {settings.server_id}; "
            "give each server its own directory with --data",
            EXIT_USAGE,
        )
    return identity


def enrolled_identity(settings: Settings, before: Identity | None) -> Identity:
    """Enrol in a child process, so that the memory of the cryptography library is freed. Raises StartError."""
    if not settings.token and not settings.token_file:
        raise StartError(
            "this server is not enrolled and needs a join token: create one with 'galactica token create' "
            f"at the scheduler and give it with --token-file FILE, {TOKEN_VARIABLE} or --token",
            EXIT_USAGE,
        )
    if not all(map(find_spec, ("cryptography", "OpenSSL"))):
        raise StartError("enrolment needs its libraries: pip install 'galactica[enrol]'")
    directory, enrolment = identity_directory(settings.data), enrolment_address(settings, before)
    until_resolved(enrolment)
    server_id = before.server_id if before else settings.server_id or socket.gethostname()
    command = [sys.executable, "-m", "galactica.agent.link.enrol", "--scheduler-enrol", enrolment]
    command += ["--scheduler", settings.scheduler, "--directory", str(directory), "--server-id", server_id]
    environment = dict(os.environ)
    if settings.token_file:
        command += ["--token-file", settings.token_file]
    else:
        environment[TOKEN_VARIABLE] = settings.token
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        message = (
            lines[-1].removeprefix("error: ") if lines else f"enrolment failed: exit code {done.returncode}"
        )
        exit_code = done.returncode if done.returncode in {EXIT_USAGE, EXIT_UNREACHABLE} else EXIT_FAILED
        raise StartError(message, exit_code)
    log.info("enrolled scheduler=%s", enrolment)
    identity = Identity.load(directory)
    if identity is None:
        raise StartError(f"enrolment failed: no identity in {directory}")
    return identity


def until_resolved(address: str, pause: Callable[[float], None] = time.sleep) -> None:
    """Return when the name of that host can be resolved: where a machine starts, its DNS may come later."""
    host, port = host_and_port(address)
    pauses = Pauses()
    while True:
        try:
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError) as error:
            seconds = pauses.next_seconds()
            reason = error.strerror if isinstance(error, OSError) else str(error)
            log.warning("no address of %s yet reason=%r next_in_seconds=%.2f", host, reason, seconds)
            pause(seconds)
        else:
            return


def enrolment_address(settings: Settings, identity: Identity | None) -> str:
    """The scheduler's enrolment port: as given with --enrol; else the one that enrolled this host, if the scheduler's
    address is still the same; else the port after the scheduler's."""
    if settings.enrolment:
        return settings.enrolment
    if identity and identity.enrolment and identity.scheduler == settings.scheduler:
        return identity.enrolment
    host, port = host_and_port(settings.scheduler)
    return joined_address(host, port + 1)


async def available_runtimes(settings: Settings, identity: Identity) -> dict[int, Runtime]:
    """The wanted runtimes by kind. By default: process, and docker if an engine answers."""
    wanted = settings.runtimes
    runtimes: dict[int, Runtime] = {}
    if "docker" in wanted or (not wanted and _may_have_engine()):
        docker = _docker(settings, identity)
        if docker is not None and (wanted or await _answers(docker)):
            runtimes[cell_pb2.RUNTIME_KIND_DOCKER] = docker
    if "process" in wanted or not wanted:
        from galactica.agent.runtimes.process.runtime import ProcessRuntime  # noqa: PLC0415 - only what is used is loaded

        directory = settings.data / "cells"
        fleet, fleet_id = identity.fleet, identity.fleet_id
        runtimes[cell_pb2.RUNTIME_KIND_PROCESS] = ProcessRuntime(directory, fleet, fleet_id, settings.host)
    return runtimes


def _may_have_engine() -> bool:
    return bool(os.environ.get("DOCKER_HOST")) or Path("/var/run/docker.sock").exists()


def _docker(settings: Settings, identity: Identity) -> Runtime | None:
    try:
        from galactica.agent.runtimes.docker.runtime import DockerRuntime  # noqa: PLC0415 - its library is large
    except ModuleNotFoundError as error:
        if "docker" in settings.runtimes:
            raise StartError(
                "the docker runtime needs a library that is not installed: pip install 'galactica[docker]'"
            ) from error
        return None
    return DockerRuntime(identity.fleet, identity.fleet_id, host=settings.host, server=identity.server_id)


async def _answers(runtime: Runtime) -> bool:
    try:
        async with asyncio.timeout(ENGINE_SECONDS):
            await runtime.ping()
    except (RuntimeUnavailable, TimeoutError):
        await runtime.close()
        return False
    return True


def instance() -> str:
    """Names this run of the agent: the boot of its machine, and a number drawn now. By it the scheduler tells an agent
    that comes back from a second machine that has a copy of this one's identity."""
    return f"{_boot()}/{secrets.token_hex(INSTANCE_BYTES)}"


def machine(data: Path) -> str:
    """Names this machine until its next boot. A copy of it, or of the data directory alone, has another name. Empty if
    that cannot be told."""
    try:
        place = data.stat()
    except OSError:
        return ""
    boot = _boot()
    return f"{boot}/{place.st_dev}:{place.st_ino}" if boot else ""


def _boot() -> str:
    try:
        return boot_id()
    except OSError:
        return ""


def watch_socket(settings: Settings) -> socket.socket | None:
    """The UDP socket on which neighbours reach this agent. None: it takes no part in the watch. Raises StartError."""
    if settings.watch == WATCH_OFF:
        return None
    if settings.watch:
        host, port = watch_address_of(settings.watch)
        try:
            return listen(host, port)
        except OSError as error:
            raise StartError(
                f"cannot listen for neighbours at {settings.watch}: {error.strerror}; give an address of this "
                "server and a free UDP port with --watch, or switch it off with --watch off"
            ) from error
    try:
        return listen(*watch_place(settings))
    except OSError as error:  # the agent looks again
        log.warning("cannot listen for neighbours reason=%r hint='--watch ADDRESS:PORT'", str(error))
        return None


def watch_place(settings: Settings) -> tuple[str, int]:
    """Address and port on which neighbours reach this agent now; port 0: any. Raises OSError. May block."""
    return watch_address_of(settings.watch) if settings.watch else (_own_address(settings), 0)


def _own_address(settings: Settings) -> str:
    """The address on which cells are published, unless it is a loopback or wildcard address, or this machine does not
    have it (any more). Else this server's address on the way to the scheduler. Raises OSError."""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(settings.host)
        if not address.is_loopback and not address.is_unspecified and is_own(str(address)):
            return str(address)
    return address_towards(*host_and_port(settings.scheduler))


def watch_address_of(text: str) -> tuple[str, int]:
    """Raises StartError (wrong usage)."""
    try:
        host, port = split_address(text)
        if ipaddress.ip_address(host).is_unspecified:
            raise ValueError
    except ValueError:
        raise StartError(
            f"invalid --watch '{text}': use off, or ADDRESS:PORT with a numeric address that neighbours can reach",
            EXIT_USAGE,
        ) from None
    return host, port


def start_watchdog(settings: Settings, identity: Identity, kinds: Iterable[int]) -> list[str]:
    """The command that starts a watchdog."""
    command = [
        sys.executable,
        "-m",
        "galactica.agent.fencing.watchdog",
        "--data",
        str(settings.data),
        "--host",
        settings.host,
    ]
    command += ["--fleet", identity.fleet, "--fleet-id", identity.fleet_id, "--server", identity.server_id]
    return [*command, *(word for kind in kinds for word in ("--runtime", str(kind)))]


def last_will(settings: Settings, identity: Identity) -> Will | None:
    if not settings.bus:
        return None
    try:
        from galactica.agent.link.will import Will, broker  # noqa: PLC0415 - only what is used is loaded
    except ModuleNotFoundError as error:
        raise StartError(
            "--bus needs a library that is not installed: pip install 'galactica[bus]'"
        ) from error
    try:
        chosen = broker(settings.bus, settings.bus_ca, settings.bus_password_file, os.environ)
    except ValueError as error:
        raise StartError(str(error), EXIT_USAGE) from error
    return Will(chosen, identity.fleet, identity.fleet_id, identity.server_id)


def identity_directory(data: Path) -> Path:
    return data / "identity"


def stored_obeyed(data: Path) -> tuple[int, str]:
    """The highest epoch that was obeyed, and which start of a scheduler had it; empty if that is unknown."""
    try:
        epoch = int((data / "epoch").read_text("ascii"))
    except (FileNotFoundError, ValueError):
        return 0, ""
    # A file of its own: an older agent reads the other one too.
    with contextlib.suppress(OSError, ValueError):
        of_epoch, start = (data / "start").read_text("ascii").split()
        if int(of_epoch) == epoch:
            return epoch, start
    return epoch, ""


def store_obeyed(data: Path, epoch: int, start: str) -> None:
    """Store each atomically. Epochs only grow: a late call with an older epoch changes nothing.

    An error is logged, not raised: the running agent keeps them in memory, and a full disk must not end all agents when
    a scheduler starts."""
    stored, stored_start = stored_obeyed(data)
    if epoch < stored or (epoch, start) == (stored, stored_start):
        return
    try:
        replace_file(data / "start", f"{epoch} {start}\n".encode("ascii"))
        replace_file(data / "epoch", f"{epoch}\n".encode("ascii"))
    except OSError as error:
        log.error("epoch not stored epoch=%d reason=%r", epoch, str(error))  # noqa: TRY400 - for people
