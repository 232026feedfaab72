#!/usr/bin/env python3
"""A worked example of the exec provider's contract: each server is a galactica-agent that runs as a process here.

    processes.py --directory DIR [--agent PROGRAM] [--agent-argument WORD]…

It is an example to read and to copy: where it starts a process, your program calls Redfish, MAAS, Terraform or virsh.
The contract is in README.md in this directory. It needs only Python 3.11 and Linux.
"""

import argparse
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

EXIT_NOT_NOW = 1
EXIT_REFUSED = 65
STOP_SECONDS = 30


class Refused(Exception):
    """Another attempt would not help."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Create and delete servers for Galactica: processes of this machine."
    )
    parser.add_argument("--directory", type=Path, required=True, help="directory for the servers")
    parser.add_argument(
        "--agent", default="galactica-agent", help="program of a server (default: galactica-agent)"
    )
    parser.add_argument(
        "--agent-argument", action="append", default=[], help="first arguments of the agent; repeatable"
    )
    arguments = parser.parse_args()
    question = json.load(sys.stdin)
    try:
        if question["version"] != 1:
            raise Refused(
                f"unknown version {question['version']}: this program implements version 1 of the contract"
            )
        fleet = arguments.directory / question["fleet"]
        match question["action"]:
            case "create":
                answer = create(fleet, [arguments.agent, *arguments.agent_argument], question)
            case "delete":
                answer = delete(server_of(fleet, question["cell"]))
            case "list":
                answer = {"servers": [listed(path) for path in sorted(fleet.glob("*/cell"))]}
            case other:
                raise Refused(f"no such action: {other}")
    except Refused as error:
        print(error, file=sys.stderr)
        return EXIT_REFUSED
    except OSError as error:
        print(error, file=sys.stderr)
        return EXIT_NOT_NOW
    print(json.dumps(answer))
    return 0


def create(fleet: Path, agent: list[str], question: dict) -> dict:
    """Create a server. Idempotent: if this cell has a server already, answer with that one."""
    if unknown := set(question["body"]) - {"nice"}:
        raise Refused(f"unknown fields in the pool's server: {', '.join(sorted(unknown))}; known: nice")
    path = server_of(fleet, question["cell"])
    if not (path / "pid").exists():
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        (path / "cell").write_text(question["cell"])
        pid = begin(path, [*agent, *question["user_data"]["arguments"]], question)
        # Written last: without a pid the server does not exist yet, and the next attempt starts one.
        (path / "pid").write_text(f"{pid} {start_of(pid)}")
    return {"ref": ref_of(path)}


def begin(path: Path, command: list[str], question: dict) -> int:
    """Start a server. It outlives this program, so it gets its own session and none of our standard streams. The token
    is passed in the environment, because arguments are visible to everybody."""
    command = ["nice", "-n", str(int(question["body"].get("nice", 0))), *command]
    command += ["--data", str(path / "agent"), "--stop-cells"]
    environment = os.environ | {"GALACTICA_TOKEN": question["user_data"]["token"]}
    with (path / "log").open("ab") as log:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        ).pid


def delete(path: Path) -> dict:
    """Delete the server. Idempotent: does nothing if there is none. Answers when it is gone."""
    if is_alive(path):
        descriptor = os.pidfd_open(process_of(path)[0])
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
            if select.select([descriptor], [], [], STOP_SECONDS)[0]:
                break
        os.close(descriptor)
    clear(path)
    shutil.rmtree(path, ignore_errors=True)
    return {}


def listed(cell_file: Path) -> dict:
    path = cell_file.parent
    state = "running" if is_alive(path) else "gone"
    if state == "gone":
        clear(path)
    return {"cell": cell_file.read_text(), "ref": ref_of(path), "state": state}


def clear(path: Path) -> None:
    """Kill the processes that a killed agent has left: a server is "gone" only when nothing of it runs."""
    while left := [int(file.name) for file in Path("/proc").glob("[0-9]*") if belongs(int(file.name), path)]:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def belongs(pid: int, path: Path) -> bool:
    """Cells of the server, and the processes that they started, have a directory below the server's in their
    environment."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return f"={path.absolute()}/".encode() in environment and start_of(pid) != ""


def server_of(fleet: Path, cell: str) -> Path:
    return fleet / cell.replace("/", ".")


def ref_of(path: Path) -> str:
    return f"pid-{process_of(path)[0]}"


def process_of(path: Path) -> tuple[int, str]:
    """Pid and start time: another process may have the pid by now."""
    try:
        pid, start = (path / "pid").read_text().split()
    except FileNotFoundError:
        return 0, ""
    return int(pid), start


def is_alive(path: Path) -> bool:
    pid, start = process_of(path)
    return pid != 0 and start_of(pid) == start


def start_of(pid: int) -> str:
    """The start time of the process; empty if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


if __name__ == "__main__":
    sys.exit(main())
