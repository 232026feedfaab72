#!/usr/bin/env python3
"""A worked example of the exec provider's contract: each server is a galactica-agent that runs as a process here.

    processes.py --directory DIR [--agent PROGRAM] [--agent-argument WORD]…

It is made to be read, and to be copied for something better: where this begins a process, yours calls Redfish, MAAS,
Terraform or virsh. README.md beside it has the contract. Needs Python 3.11 and Linux, nothing else.
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
    """Trying again would not help."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Servers for Galactica, each a process of this machine.")
    parser.add_argument("--directory", type=Path, required=True, help="where the servers are kept")
    parser.add_argument("--agent", default="galactica-agent", help="the program that is a server")
    parser.add_argument(
        "--agent-argument", action="append", default=[], help="its first arguments; repeatable"
    )
    arguments = parser.parse_args()
    question = json.load(sys.stdin)
    try:
        if question["version"] != 1:
            raise Refused(f"this program speaks version 1 of the contract, not {question['version']}")
        fleet = arguments.directory / question["fleet"]
        match question["action"]:
            case "create":
                answer = create(fleet, [arguments.agent, *arguments.agent_argument], question)
            case "delete":
                answer = delete(server_of(fleet, question["cell"]))
            case "list":
                answer = {"servers": [seen(path) for path in sorted(fleet.glob("*/cell"))]}
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
    """Idempotent: a server of this cell that is there already is the answer."""
    if unknown := set(question["body"]) - {"nice"}:
        raise Refused(f"the pool's server may say: nice; not {', '.join(sorted(unknown))}")
    path = server_of(fleet, question["cell"])
    if not (path / "pid").exists():
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        (path / "cell").write_text(question["cell"])
        pid = begin(path, [*agent, *question["user_data"]["arguments"]], question)
        # Written last: without a pid there is no server yet, and the next try begins one.
        (path / "pid").write_text(f"{pid} {start_of(pid)}")
    return {"ref": ref_of(path)}


def begin(path: Path, command: list[str], question: dict) -> int:
    """A server outlives this program: it has a session of its own, and none of our standard streams. The token goes
    by environment, since everybody can see arguments."""
    command = ["nice", "-n", str(int(question["body"].get("nice", 0))), *command]
    command += ["--data", str(path / "agent"), "--stop-cells"]
    environment = os.environ | {"GALACTICA_TOKEN": question["user_data"]["token"]}
    with (path / "log").open("ab") as log:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        ).pid


def delete(path: Path) -> dict:
    """Idempotent: fine where there is none. Answers when it is gone."""
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


def seen(cell_file: Path) -> dict:
    path = cell_file.parent
    state = "running" if is_alive(path) else "gone"
    if state == "gone":
        clear(path)
    return {"cell": cell_file.read_text(), "ref": ref_of(path), "state": state}


def clear(path: Path) -> None:
    """End what an agent that was killed has left behind: gone is said only when nothing of the server runs."""
    while left := [int(one.name) for one in Path("/proc").glob("[0-9]*") if belongs(int(one.name), path)]:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def belongs(pid: int, path: Path) -> bool:
    """Its cells, and whatever they began, have a directory below the server's in their environment."""
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
    """Pid and start time: a pid alone may be somebody else's by now."""
    try:
        pid, start = (path / "pid").read_text().split()
    except FileNotFoundError:
        return 0, ""
    return int(pid), start


def is_alive(path: Path) -> bool:
    pid, start = process_of(path)
    return pid != 0 and start_of(pid) == start


def start_of(pid: int) -> str:
    """Empty where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


if __name__ == "__main__":
    sys.exit(main())
