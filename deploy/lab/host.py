"""One host of the lab: namespaces, an address, its first process, and what that started (see ``boot``).

A host has process ids of its own, so that it dies as a machine does: with its first process everything ends at once.
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
    """``path``: its directory, which holds its number, its log and its agent's data."""

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
        """None where nothing of the host lives any more."""
        return remembered(self.path / "pid")

    @property
    def is_on(self) -> bool:
        return self.first_process is not None

    @property
    def agent(self) -> psutil.Process | None:
        """Its agent, if that runs."""
        return self._child(lambda process: "--id" in process.cmdline())

    @property
    def engine_process(self) -> psutil.Process | None:
        """Its Docker Engine, if it has one and that runs."""
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
        """Its filesystem as seen from here, its processes among it: ``root/proc/PID``."""
        first = self.first_process
        if first is None:
            raise LabError(f"the host {self.cell} is dead")
        return Path(f"/proc/{first.pid}/root")

    @property
    def engine(self) -> str:
        """Where its engine is found from here, as DOCKER_HOST has it."""
        return f"unix://{self.root}{SOCKET}"

    # --- life -----------------------------------------------------------------------------------------------------

    def create(self, cell: str, agent: Sequence[str], token: str, body: dict[str, object]) -> None:
        """Idempotent: one that was born is left as it is, dead or alive. Raises LabError."""
        if self.was_born:
            return
        self.delete()  # what an attempt that was ended half-way has left
        self.path.mkdir(mode=0o700, parents=True)
        (self.path / "cell").write_text(cell)
        with self.switch.locked():
            (self.path / "number").write_text(str(_next_number(self.switch)))
        self.switch.plug_in(self.number)
        command = [*agent, "--host", self.address, "--data", str(self.path / "agent")]
        pid = self._boot({"agent": command, "token": token, "group": f"/{self.namespace}", **body})
        # Written last: without it there is no host yet, and the next try begins anew.
        remember(psutil.Process(pid), self.path / "pid")

    def _boot(self, plan: dict[str, object]) -> int:
        """Its first process. The plan goes by standard input, since everybody can see arguments and it has a token."""
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
        raise LabError(f"the host {self.cell} does not come up: {log}")

    def _give_groups_to(self, pid: int) -> None:
        """Control groups of its own, so that those of its cells go with it; where the machine lets us make some."""
        hierarchies = [path for path in CONTROL_GROUPS.glob("*") if (path / "cgroup.procs").exists()]
        if (CONTROL_GROUPS / "cgroup.procs").exists():
            hierarchies = [CONTROL_GROUPS]
        for hierarchy in hierarchies:
            if (
                hierarchy.is_symlink() or hierarchy.name == "cpuset"
            ):  # a new cpuset takes nobody before it is set up
                continue
            with contextlib.suppress(OSError):
                group = hierarchy / self.namespace
                group.mkdir(exist_ok=True)
                (group / "cgroup.procs").write_text(str(pid))

    def delete(self) -> None:
        """The host and all that belongs to it. Fine where there is none."""
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

    # --- what may happen to it ------------------------------------------------------------------------------------

    def lose_power(self) -> None:
        """All at once: no process of it lives on, and no connection says goodbye."""
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
        """Where it has ended: as a machine's init does it."""
        first = self.first_process
        if first is None:
            raise LabError(f"the host {self.cell} is dead")
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
        """As an administrator ends it, and its containers with it."""
        engine = self.engine_process
        if engine is None:
            raise LabError(f"no engine runs on {self.cell}")
        engine.terminate()
        engine.wait(END_SECONDS)

    def fill_disk(self) -> None:
        """Not a byte is left where the agent keeps its data. Of use where the pool says ``disk``."""
        with (self.root / str(self.path / "agent").lstrip("/") / "ballast").open("ab", buffering=0) as file:
            for size in (65_536, 4_096, 1):
                with contextlib.suppress(OSError):
                    while file.write(b"\0" * size):
                        pass

    def lives(self, pid: int) -> bool:
        """Whether a process of that id, as the host counts, lives there."""
        try:
            status = (self.root / "proc" / str(pid) / "stat").read_text()
        except (OSError, LabError):
            return False
        return status.rpartition(")")[2].split()[0] not in "ZX"


def hosts_of(switch: Switch, fleet: str = "*") -> list[Host]:
    """All there are, dead ones too."""
    found = (switch.directory / "hosts").glob(f"{fleet}/*/cell")
    return [Host(switch, file.parent) for file in sorted(found)]


def host_of(switch: Switch, fleet: str, cell: str) -> Host:
    return Host(switch, switch.directory / "hosts" / fleet / cell.replace("/", "."))


def _next_number(switch: Switch) -> int:
    """Not the one that was free last: neighbours remember for a while whose address it was."""
    last = switch.directory / "last-number"
    before = int(last.read_text()) if last.exists() else FIRST_HOST - 1
    taken = {int(file.read_text()) for file in (switch.directory / "hosts").glob("*/*/number")}
    order = [*range(before + 1, LAST_HOST + 1), *range(FIRST_HOST, before + 1)]
    number = next((number for number in order if number not in taken), None)
    if number is None:
        raise LabError(f"the lab is full: {len(taken)} hosts")
    last.write_text(str(number))
    return number


def environment_of(root: Path) -> dict[str, str]:
    """What ``python -m deploy.lab…`` needs, wherever it runs."""
    return {"PYTHONPATH": str(root), "PATH": os.environ["PATH"]}
