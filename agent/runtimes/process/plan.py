"""Derives from an order what to run: ports, environment, command. Starts nothing."""

import contextlib
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from galactica.agent.core.cells import stop_of
from galactica.agent.runtimes.port import StartFailed
from galactica.v1 import link_pb2

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_LANG = "C.UTF-8"

PORTS_BELOW_EPHEMERAL = 12_000
DEFAULT_EPHEMERAL_START = 32_768
DRAWS = 200

_PLACEHOLDER = re.compile(r"\{port\.([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Plan:
    """``executable``: absolute. ``scratch``: working directory and home."""

    executable: str
    command: list[str]
    environment: dict[str, str]
    scratch: Path


def plan(order: link_pb2.Order, ports: Mapping[str, int], scratch: Path) -> Plan:
    """What to run. ``scratch`` need not exist yet. Raises StartFailed: no such command, unknown placeholder."""
    if not order.spec.command:
        raise StartFailed(
            'a process cell needs a command: add command: ["program", "argument", …] to its manifest'
        )
    environment = environment_of(order, ports, scratch)
    command = fill_all(order.spec.command, ports)
    return Plan(find_executable(command[0], environment["PATH"], scratch), command, environment, scratch)


def environment_of(order: link_pb2.Order, ports: Mapping[str, int], scratch: Path) -> dict[str, str]:
    """PATH, LANG, HOME and TMPDIR; the spec's variables override them; the ports, CELL_ID and CELL_DIRECTORY override
    both.

    By CELL_DIRECTORY the agent also recognises processes of the cell that have left its session.
    """
    return {
        "PATH": os.environ.get("PATH") or DEFAULT_PATH,
        "LANG": os.environ.get("LANG") or DEFAULT_LANG,
        "HOME": str(scratch),
        "TMPDIR": str(scratch / "tmp"),
        **{key: fill(value, ports) for key, value in order.spec.env.items()},
        **{f"PORT_{_variable(name)}": str(number) for name, number in ports.items()},
        "CELL_ID": order.cell_id,
        "CELL_DIRECTORY": str(scratch),
    }


def marker_of(scratch: Path) -> bytes:
    """The environment entry that only this cell's processes have."""
    return b"CELL_DIRECTORY=" + os.fsencode(scratch)


def scratch_in(entry: bytes) -> Path | None:
    """The directory of the cell that this environment entry marks a process of: its own, its keeper or its reaper."""
    name, _, value = entry.partition(b"=")
    return Path(os.fsdecode(value)) if name in {b"CELL_DIRECTORY", b"KEEPER_OF"} else None


def keeper_environment(order: link_pb2.Order, scratch: Path) -> dict[str, str]:
    """Identifies the keeper's cell. A different entry than the cell's own: the keeper must outlive the cell's
    processes, which are found and killed by theirs. Of an exclusive cell it has the grace too (see ``unaided``)."""
    environment = {"KEEPER_OF": str(scratch)}
    if order.spec.exclusive:
        environment["KEEPER_GRACE"] = repr(stop_of(order)[1])
    return environment


def exclusive_kept_by(entries: Iterable[bytes]) -> tuple[Path, float] | None:
    """Scratch directory and grace (seconds) of the exclusive cell whose keeper or reaper has this environment. None: it
    is no such process."""
    named = dict(entry.partition(b"=")[::2] for entry in entries)
    if b"KEEPER_OF" not in named or b"KEEPER_GRACE" not in named:
        return None
    return Path(os.fsdecode(named[b"KEEPER_OF"])), float(named[b"KEEPER_GRACE"])


def keeper_marker_of(scratch: Path) -> bytes:
    return b"KEEPER_OF=" + os.fsencode(scratch)


def fill_all(texts: Iterable[str], ports: Mapping[str, int]) -> list[str]:
    return [fill(text, ports) for text in texts]


def fill(text: str, ports: Mapping[str, int]) -> str:
    """Replace ``{port.NAME}`` by the number. Raises StartFailed if there is no such port."""

    def number(match: re.Match[str]) -> str:
        if match[1] not in ports:
            names = ", ".join(sorted(ports)) or "none"
            raise StartFailed(f"{match[0]} in {text!r}: the spec has no such port; its ports: {names}")
        return str(ports[match[1]])

    return _PLACEHOLDER.sub(number, text)


def find_executable(name: str, path: str, scratch: Path) -> str:
    """Absolute path of the program. Raises StartFailed; it says what is missing."""
    if "/" not in name:
        program = shutil.which(name, path=path)
        if program is None:
            raise StartFailed(
                f"command {name!r} not found in this server's PATH ({path}): install it or give its full path"
            )
        return str(Path(program).absolute())
    file = scratch / name
    if not file.exists():
        raise StartFailed(f"command {str(file)!r} not found on this server")
    if not file.is_file() or not os.access(file, os.X_OK):
        raise StartFailed(
            f"command {str(file)!r} is not an executable file: use chmod +x, or run it with its interpreter"
        )
    return str(file)


def claim_ports(wanted: Mapping[str, int], host: str, claimed: Mapping[int, str]) -> dict[str, int]:
    """Port name to number: the wanted number if it is free, any free one for 0.

    ``claimed``: number to the cell of this agent that has it, even if it does not listen yet.
    Raises StartFailed; it names the port and, if known, who uses it.
    """
    numbers: dict[str, int] = {}
    for name, number in sorted(wanted.items(), key=lambda item: item[1] == 0):
        if number:
            _check_free(name, number, host, claimed)
        numbers[name] = number or _free_port(host, {*claimed, *numbers.values()})
    return numbers


def _check_free(name: str, number: int, host: str, claimed: Mapping[int, str]) -> None:
    # Closed connections of an earlier listener do not hinder a server.
    if number not in claimed and _can_bind(host, number, reuse=1):
        return
    owner = claimed.get(number)
    holder = f"cell {owner}" if owner else _listener_on(number) or "another program"
    raise StartFailed(
        f"port {name}: {number} on {host} is already used by {holder}; "
        f"end it, choose another number, or write auto to get a free one"
    )


def _free_port(host: str, avoid: set[int]) -> int:
    """A number below the kernel's range for outgoing connections.

    Any connection could take a number of that range before the cell listens, and a probe that connects to such a number
    can connect to itself.
    """
    end = _ephemeral_start()
    start = max(1_024, end - PORTS_BELOW_EPHEMERAL)
    for _ in range(DRAWS if end > start else 0):
        number = start + secrets.randbelow(end - start)
        if number not in avoid and _can_bind(host, number, reuse=0):
            return number
    for _ in range(DRAWS):
        with socket.socket() as candidate:
            candidate.bind((host, 0))
            number = int(candidate.getsockname()[1])
        if number not in avoid:
            return number
    raise StartFailed(f"no free port found on {host}")


def _can_bind(host: str, number: int, *, reuse: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        try:
            candidate.bind((host, number))
        except OSError:
            return False
    return True


def _listener_on(number: int) -> str | None:
    """The program that listens on the port, for people; None if this user cannot see it."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status != psutil.CONN_LISTEN or not connection.pid or not connection.laddr:
                continue
            if connection.laddr.port == number:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return None


def _ephemeral_start() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return DEFAULT_EPHEMERAL_START


def _variable(name: str) -> str:
    return re.sub(r"[^A-Z0-9]", "_", name.upper())


def describe(command: Sequence[str]) -> str:
    return " ".join(command)[:80]
