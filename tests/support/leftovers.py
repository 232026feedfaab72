"""What a command leaves on the machine although it should have gone with it: processes, mounts, networks, containers.

Other commands may make such things at the same time, so each of these is known by whose it is. *Processes*: this one
becomes the parent of all that its descendants leave alone (prctl(2), PR_SET_CHILD_SUBREAPER). *Mounts*, and network
namespaces that have a name, which are mounts too: this process gets a table of its own, which others neither see nor
change (unshare(2), CLONE_NEWNS). *Containers* are looked for on an engine that was started for the command; on one that
runs anyway nobody can say whose they are.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from pathlib import Path
from typing import Any

import docker.errors
import psutil
import requests.exceptions

from tests.support.engine import client_of

_SET_CHILD_SUBREAPER = 36
_NEW_MOUNTS = 0x0002_0000
_PRIVATE_AND_ALL_BELOW = (1 << 18) | (1 << 14)
_FLEET_LABEL = "galactica.fleet"
_END_SECONDS = 20.0
_ENDING_SECONDS = 5.0


class Watch:
    """``begin`` before the engine and the command are started; ``found`` when the command has ended."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._spared: set[int] = set()
        self._mounts: set[str] = set()
        self._own_engine = ""

    @staticmethod
    def begin() -> None:
        """Without root mounts are not told apart, and nobody can make some either."""
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        if os.geteuid() == 0 and libc.unshare(_NEW_MOUNTS) == 0:
            libc.mount(None, b"/", None, ctypes.c_ulong(_PRIVATE_AND_ALL_BELOW), None)

    def spare_what_is_there(self, own_engine: str) -> None:
        """What was there before the command. ``own_engine``: where the engine is that was started for the command, else
        empty."""
        self._own_engine = own_engine
        self._spared = {process.pid for process in psutil.Process().children(recursive=True)}
        self._mounts = set(_mounts())

    def found(self) -> list[str]:
        """A line for each, for people."""
        # What was just told to end may take a moment for it.
        psutil.wait_procs(self._processes(), _ENDING_SECONDS)
        told = [f"process {process.pid}: {_words(process)}" for process in self._processes()]
        told += [_name_of_mount(path) for path in self._new_mounts()]
        return told + [f"container {name}" for name in self._containers()]

    def remove(self) -> None:
        """So that the next command does not stumble over it."""
        processes = self._processes()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, _END_SECONDS)
        for path in sorted(self._new_mounts(), reverse=True):
            subprocess.run(["umount", "-l", path], check=False, stderr=subprocess.DEVNULL)
            if path.startswith("/run/netns/"):
                Path(path).unlink(missing_ok=True)

    def _containers(self) -> list[str]:
        """Names of those of fleets. None where no engine answers; the engine's end removes them."""
        if not self._own_engine:
            return []
        try:
            with contextlib.closing(client_of(self._own_engine, timeout_seconds=20)) as client:
                rows: list[dict[str, Any]] = client.containers(all=True, filters={"label": _FLEET_LABEL})
        except (docker.errors.DockerException, requests.exceptions.RequestException):
            return []
        return sorted(row["Names"][0].removeprefix("/") for row in rows)

    def _processes(self) -> list[psutil.Process]:
        """Those that live, but for the engine's own: it lets go of what keeps its containers."""
        found = []
        for process in psutil.Process(self._owner).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                line = [process, *process.parents()]
                if process.status() != psutil.STATUS_ZOMBIE and not any(map(self._is_spared, line)):
                    found.append(process)
        return found

    def _is_spared(self, process: psutil.Process) -> bool:
        if process.pid in self._spared:
            return True
        return any(self._is_of_engine(word) for word in process.cmdline())

    def _new_mounts(self) -> list[str]:
        return [path for path in _mounts() if path not in self._mounts and not self._is_of_engine(path)]

    def _is_of_engine(self, path: str) -> bool:
        """Below the directory in which our own engine keeps everything, its socket among it."""
        directory = Path(self._own_engine.removeprefix("unix://")).parent
        return bool(self._own_engine) and path.startswith((f"{directory}/exec/", f"{directory}/data/"))


def reap_until_end_of(process: subprocess.Popen[bytes]) -> int:
    """Its exit code. Meanwhile whatever else ends as a child of this process is collected, as an init does."""
    while True:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        if ended.si_pid == process.pid:
            return process.wait()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(ended.si_pid, 0)


def _words(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())[:300] or process.name()
    return "has ended meanwhile"


def _mounts() -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines]


def _name_of_mount(path: str) -> str:
    netns = path.removeprefix("/run/netns/")
    return f"network namespace {netns}" if netns != path else f"mount {path}"
