"""The first process of a host: prepares the host's filesystems, starts its engine and its agent, and reaps processes.

    boot.py DIRECTORY < plan

The plan is one JSON object: ``agent`` (its command), ``token``, ``group`` (its control group), and the fields of the
pool's ``server``: ``engine``, ``disk``. This process lives as long as the host. SIGUSR1 makes it start an agent.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Never

ENGINE_SECONDS = 60.0
SOCKET = Path("/run/docker.sock")


def main() -> Never:
    path = Path(sys.argv[1])
    plan = json.load(sys.stdin)
    mount("tmpfs", Path("/run"), "mode=755")
    if disk := plan.get("disk"):
        mount("tmpfs", path / "agent", f"mode=700,size={disk}")
    environment = dict(os.environ)
    if plan.get("engine"):
        environment["DOCKER_HOST"] = f"unix://{SOCKET}"
        start_engine(path, plan["group"])
    begin_agent(path, plan, environment | {"GALACTICA_TOKEN": plan["token"]})
    # Blocked only now: children inherit the signal mask.
    signals = {signal.SIGCHLD, signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    while True:
        reap()
        if signal.sigwait(signals) is signal.SIGUSR1:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals - {signal.SIGUSR1})
            begin_agent(path, plan, environment)
            signal.pthread_sigmask(signal.SIG_BLOCK, signals)


def mount(kind: str, at: Path, options: str) -> None:
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", kind, "-o", options, kind, str(at)], check=True)


def begin_agent(path: Path, plan: dict[str, Any], environment: dict[str, str]) -> None:
    with (path / "agent.log").open("ab") as log:
        subprocess.Popen(
            plan["agent"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def start_engine(path: Path, group: str) -> None:
    """Start dockerd. Returns when it answers."""
    command = ["dockerd", "--host", f"unix://{SOCKET}", "--pidfile", "/run/dockerd.pid"]
    command += ["--data-root", str(path / "engine"), "--exec-root", "/run/docker", "--cgroup-parent", group]
    with (path / "engine.log").open("ab") as log:
        engine = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    deadline = time.monotonic() + ENGINE_SECONDS
    while not is_listening():
        if engine.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"dockerd failed to start; its log is {path / 'engine.log'}")
        time.sleep(0.05)


def is_listening() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(SOCKET))
        return True
    return False


def reap() -> None:
    """Reap ended children: orphaned processes become children of the first process."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


if __name__ == "__main__":
    main()
