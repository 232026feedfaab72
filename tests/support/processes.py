"""Processes of this machine: how the product's programs are started, and what became of a cell's."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

Json = dict[str, Any]


ROOT = Path(__file__).parents[2]


PORTS = range(12_000, 30_000)
"""Below those that the kernel hands to outgoing connections: such a one could meet itself where nobody listens."""


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def below(directory: Path) -> Iterator[Path]:
    """Everything in this directory, also while others make and remove it: ``rglob`` fails there. Follows no links."""
    for place, directories, files in os.walk(directory):
        for name in (*directories, *files):
            yield Path(place, name)


def free_ports() -> tuple[int, int]:
    """Two that follow each other, as ``--listen`` alone would use them."""
    while True:
        port = random.choice(PORTS)
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 1))
            return port, port + 1


@dataclass(frozen=True, slots=True)
class Programs:
    """The product's programs as one tree has them. ``environment``: what they need in theirs."""

    tree: Path
    agent: tuple[str, ...]
    cli: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


OURS = Programs(
    ROOT, (sys.executable, "-m", "galactica.agent"), (sys.executable, "-m", "galactica.scheduler.cli")
)


def cli_command() -> list[str]:
    return [*OURS.cli]


def agent_command() -> list[str]:
    return [*OURS.agent]


def pids(cells: list[Json]) -> dict[str, int]:
    """Cell id to the process id of its main process."""
    return {cell["id"]: int(cell["runtime_id"]) for cell in cells}


def is_alive(pid: int) -> bool:
    """It runs, stopped or not. It may end while one asks, and a zombie has ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def naming(text: str, also: AbstractSet[int] = frozenset()) -> list[psutil.Process]:
    """Living processes, but for this one, that have it in their command or environment, such as a directory. ``also``:
    ids of processes that count although they do not."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            named = [*process.cmdline(), *process.environ().values()]
            if process.pid in also or (process.pid != os.getpid() and any(text in word for word in named)):
                found.append(process)
    return found


def kill_all(look: Callable[[], list[psutil.Process]], seconds: float) -> None:
    """Until nothing is left: agents that the scheduler's own provider began live in sessions of their own and outlive
    it, and one that is just being begun is seen by the next look."""
    for _ in range(100):
        left = look()
        if not left:
            return
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, seconds / 100)
    raise AssertionError(f"processes that do not end on SIGKILL: {left}")


def kill(cell: Json) -> None:
    os.kill(int(cell["runtime_id"]), signal.SIGKILL)


def answer_of(endpoint: str) -> tuple[int, str]:
    """Status and body of GET / there."""
    with urllib.request.urlopen(f"http://{endpoint}/", timeout=5) as answer:
        return answer.status, answer.read().decode()
