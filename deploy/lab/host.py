"""One host of the lab: namespaces, an address, its first process (see ``boot``), and the processes that this started.

A host has its own process ids, so that it dies like a machine: with its first process everything ends at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import psutil

from deploy.lab.switch import (
    CONTROL_GROUPS,
    END_SECONDS,
    FIRST_HOST,
    LAST_HOST,
    NAMESPACES,
    LabError,
    Switch,
    remember,
    remembered,
)

BOOT = Path(__file__).with_name("boot.py")
BOOT_SECONDS = 10.0
SOCKET = "/run/docker.sock"


@dataclass(frozen=True, slots=True)
class Host:
    """``path``: its directory, with its number, its log and its agent's data."""

    switch: Switch
    path: Path

    @property
    def cell(self) -> str:
        return (self.path / "cell").read_text()

    @property
    def number(self) -> int:
        """The last part of its address."""
        return int((self.path / "number").read_text())

    @property
    def address(self) -> str:
        return self.switch.address(self.number)

    @property
    def namespace(self) -> str:
        return self.switch.host_namespace(self.number)

    @property
    def was_born(self) -> bool:
        return (self.path / "pid").exists()

    @property
    def first_process(self) -> psutil.Process | None:
        """None if nothing of the host lives any more."""
        return remembered(self.path / "pid")

    @property
    def is_on(self) -> bool:
        return self.first_process is not None

    @property
    def agent(self) -> psutil.Process | None:
        """Its agent; None if none runs."""
        return self._child(lambda process: "--id" in process.cmdline())

    @property
    def engine_process(self) -> psutil.Process | None:
        """Its Docker Engine; None if none runs."""
        return self._child(lambda process: process.name() == "dockerd")

    def _child(self, is_it: Callable[[psutil.Process], bool]) -> psutil.Process | None:
        first = self.first_process
        for process in first.children() if first else ():
            with contextlib.suppress(psutil.NoSuchProcess):
                if is_it(process):
                    return process
        return None

    @property
    def root(self) -> Path:
        """Its filesystem as seen from this machine, with its processes: ``root/proc/PID``."""
        first = self.first_process
        if first is None:
            raise LabError(f"host {self.cell} is dead")
        return Path(f"/proc/{first.pid}/root")

    @property
    def engine(self) -> str:
        """The address of its engine from this machine, in the form of DOCKER_HOST."""
        return f"unix://{self.root}{SOCKET}"

    # --- life -----------------------------------------------------------------------------------------------------

    def create(self, cell: str, agent: Sequence[str], token: str, body: dict[str, object]) -> None:
        """Create the host. Idempotent: does nothing if it exists already, dead or alive. Raises LabError."""
        if self.was_born:
            return
        self.delete()  # the remains of an attempt that was interrupted
        self.path.mkdir(mode=0o700, parents=True)
        (self.path / "cell").write_text(cell)
        with self.switch.locked():
            (self.path / "number").write_text(str(_next_number(self.switch)))
        self.switch.plug_in(self.number)
        command = [*agent, "--host", self.address, "--data", str(self.path / "agent")]
        pid = self._boot({"agent": command, "token": token, "group": f"/{self.namespace}", **body})
        # Written last: without this file the host does not exist yet, and the next attempt starts from scratch.
        remember(psutil.Process(pid), self.path / "pid")

    def _boot(self, plan: dict[str, object]) -> int:
        """Start its first process. The plan goes through standard input: it has a token, and arguments are visible to
        everybody."""
        command = ["nsenter", f"--net={NAMESPACES / self.namespace}"]
        command += ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command += [sys.executable, str(BOOT), str(self.path)]
        with (self.path / "host.log").open("ab") as log:
            outer = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )
        first = self._child_of(outer)
        self._give_groups_to(first)
        with cast("IO[bytes]", outer.stdin) as plan_of_first:
            plan_of_first.write(
                json.dumps(plan).encode()
            )  # it waits for this, so what it starts is in the groups
        return first

    def _child_of(self, outer: subprocess.Popen[bytes]) -> int:
        deadline = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < deadline and outer.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                if children := psutil.Process(outer.pid).children():
                    return children[0].pid
            time.sleep(0.01)
        log = (self.path / "host.log").read_text(errors="replace")[-1_000:]
        raise LabError(f"host {self.cell} failed to start: {log}")

    def _give_groups_to(self, pid: int) -> None:
        """Give the host its own control groups, if this machine allows it, so that those of its cells are removed with
        it."""
        hierarchies = [path for path in CONTROL_GROUPS.glob("*") if (path / "cgroup.procs").exists()]
        if (CONTROL_GROUPS / "cgroup.controllers").exists():  # only one hierarchy has it: that of version 2
            hierarchies = [CONTROL_GROUPS]
        for hierarchy in hierarchies:
            if (
                hierarchy.is_symlink() or hierarchy.name == "cpuset"
            ):  # a new cpuset accepts no process before it is configured
                continue
            with contextlib.suppress(OSError):
                group = hierarchy / self.namespace
                group.mkdir(exist_ok=True)
                (group / "cgroup.procs").write_text(str(pid))

    def delete(self) -> None:
        """Delete the host and everything that belongs to it. Does nothing if it does not exist."""
        self._end()
        with contextlib.suppress(FileNotFoundError, LabError):
            self.switch.unplug(self.number)
        shutil.rmtree(self.path, ignore_errors=True)

    def _end(self) -> None:
        first = self.first_process
        if first is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                first.kill()
                first.wait(END_SECONDS)

    # --- faults ---------------------------------------------------------------------------------------------------

    def lose_power(self) -> None:
        """End all its processes at once; no connection is closed properly."""
        self.switch.pull_cable(self.number)
        self._end()
        self.switch.unplug(self.number)

    def kill_agent(self) -> None:
        agent = self.agent
        if agent is None:
            raise LabError(f"no agent runs on {self.cell}")
        agent.kill()
        agent.wait(END_SECONDS)

    def begin_agent(self) -> None:
        """Start an agent after the earlier one has ended, as a machine's init does."""
        first = self.first_process
        if first is None:
            raise LabError(f"host {self.cell} is dead")
        first.send_signal(signal.SIGUSR1)

    def freeze_agent(self) -> None:
        self._signal_agent(signal.SIGSTOP)

    def wake_agent(self) -> None:
        self._signal_agent(signal.SIGCONT)

    def _signal_agent(self, number: signal.Signals) -> None:
        agent = self.agent
        if agent is None:
            raise LabError(f"no agent runs on {self.cell}")
        agent.send_signal(number)

    def end_engine(self) -> None:
        """End the engine as an administrator does; its containers end too."""
        engine = self.engine_process
        if engine is None:
            raise LabError(f"no engine runs on {self.cell}")
        engine.terminate()
        engine.wait(END_SECONDS)

    def fill_disk(self) -> None:
        """Fill the filesystem of the agent's data completely. Useful if the pool's server has ``disk``."""
        with (self.root / str(self.path / "agent").lstrip("/") / "ballast").open("ab", buffering=0) as file:
            for size in (65_536, 4_096, 1):
                with contextlib.suppress(OSError):
                    while file.write(b"\0" * size):
                        pass

    def lives(self, pid: int) -> bool:
        """Whether a process with that id, in the host's own count, lives on the host."""
        try:
            status = (self.root / "proc" / str(pid) / "stat").read_text()
        except (OSError, LabError):
            return False
        return status.rpartition(")")[2].split()[0] not in "ZX"


def hosts_of(switch: Switch, fleet: str = "*") -> list[Host]:
    """All hosts, dead ones too."""
    files = (switch.directory / "hosts").glob(f"{fleet}/*/cell")
    return [Host(switch, file.parent) for file in sorted(files)]


def host_of(switch: Switch, fleet: str, cell: str) -> Host:
    return Host(switch, switch.directory / "hosts" / fleet / cell.replace("/", "."))


def _next_number(switch: Switch) -> int:
    """The next free number in order, not one that was used recently: other hosts still remember its old address."""
    last = switch.directory / "last-number"
    before = int(last.read_text()) if last.exists() else FIRST_HOST - 1
    taken = {int(file.read_text()) for file in (switch.directory / "hosts").glob("*/*/number")}
    order = [*range(before + 1, LAST_HOST + 1), *range(FIRST_HOST, before + 1)]
    number = next((number for number in order if number not in taken), None)
    if number is None:
        raise LabError(f"the lab is full: it has {len(taken)} hosts")
    last.write_text(str(number))
    return number


def environment_of(root: Path) -> dict[str, str]:
    """The environment that ``python -m deploy.lab…`` needs in any directory."""
    return {"PYTHONPATH": str(root), "PATH": os.environ["PATH"]}
