"""The exec provider's program for the lab: each server is a host with namespaces, an address and an agent of its own.

    python -m deploy.lab.provider --directory DIR [--agent PROGRAM] [--agent-argument WORD]…

The contract is in ``deploy/providers/README.md``. A pool's ``server`` may say ``engine: true`` (the host has a Docker
Engine of its own, and its cells are containers) and ``disk: 64MiB`` (the agent's data have a filesystem of that size).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy.lab.host import Host, host_of, hosts_of
from deploy.lab.switch import LabError, Switch

EXIT_NOT_NOW = 1
EXIT_REFUSED = 65
_SIZE = re.compile(r"([1-9][0-9]{0,9})(KiB|MiB|GiB)")


class Refused(Exception):
    """Trying again would not help."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Servers for Galactica, each a host of the lab.")
    parser.add_argument("--directory", type=Path, required=True, help="the lab's; it has to be up")
    parser.add_argument(
        "--agent", default=str(Path(sys.executable).with_name("galactica-agent")), help="its program"
    )
    parser.add_argument(
        "--agent-argument", action="append", default=[], help="its first arguments; repeatable"
    )
    arguments = parser.parse_args()
    question = json.load(sys.stdin)
    try:
        answer = answer_to(
            question, Switch(arguments.directory), [arguments.agent, *arguments.agent_argument]
        )
    except Refused as error:
        print(error, file=sys.stderr)
        return EXIT_REFUSED
    except (LabError, OSError) as error:
        print(error, file=sys.stderr)
        return EXIT_NOT_NOW
    print(json.dumps(answer))
    return 0


def answer_to(question: dict[str, Any], switch: Switch, agent: list[str]) -> dict[str, Any]:
    if question["version"] != 1:
        raise Refused(f"this program speaks version 1 of the contract, not {question['version']}")
    fleet = question["fleet"]
    match question["action"]:
        case "create":
            host = host_of(switch, fleet, question["cell"])
            with switch.in_use():
                create(host, question, agent)
                return {"ref": host.namespace}
        case "delete":
            with switch.in_use():
                host_of(switch, fleet, question["cell"]).delete()
                return {}
        case "list":
            return {"servers": list(all_seen(hosts_of(switch, fleet)))}
        case other:
            raise Refused(f"no such action: {other}")


def create(host: Host, question: dict[str, Any], agent: list[str]) -> None:
    body, told = plan_of(question["body"]), question["user_data"]
    runtime = "docker" if body.get("engine") else "process"
    words = told["arguments"] if told["runtimes"] else [*told["arguments"], "--runtime", runtime]
    host.create(question["cell"], [*agent, *words], told["token"], body)


def plan_of(body: dict[str, Any]) -> dict[str, object]:
    """What ``boot`` is told. Raises Refused."""
    if unknown := set(body) - {"engine", "disk"}:
        raise Refused(f"the pool's server may say: engine, disk; not {', '.join(sorted(unknown))}")
    if not isinstance(body.get("engine", False), bool):
        raise Refused("engine: say true or false")
    if "disk" not in body:
        return body
    size = _SIZE.fullmatch(str(body["disk"]))
    if size is None:
        raise Refused(f"disk: '{body['disk']}' is no size; say 64MiB, for example")
    return body | {"disk": f"{size[1]}{size[2][0].lower()}"}


def all_seen(hosts: list[Host]) -> Iterator[dict[str, str]]:
    for host in hosts:
        with contextlib.suppress(FileNotFoundError):  # deleted while we look
            if host.was_born:
                yield seen(host)


def seen(host: Host) -> dict[str, str]:
    state = "running" if host.is_on else "gone"
    return {"cell": host.cell, "ref": host.namespace, "state": state}


if __name__ == "__main__":
    sys.exit(main())
