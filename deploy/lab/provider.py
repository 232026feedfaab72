"""The exec provider's program for the lab: each server is a host with its own namespaces, address and agent.

    python -m deploy.lab.provider --directory DIR [--agent PROGRAM] [--agent-argument WORD]…

The contract is in ``deploy/providers/README.md``. A pool's ``server`` may have ``engine: true`` (the host has its own
Docker Engine, and its cells are containers) and ``disk: 64MiB`` (the agent's data has a filesystem of that size).
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
    """Another attempt would not help."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Create and delete servers for Galactica: hosts of the lab.")
    parser.add_argument(
        "--directory", type=Path, required=True, help="directory of the lab, which must be up"
    )
    parser.add_argument(
        "--agent",
        default=str(Path(sys.executable).with_name("galactica-agent")),
        help="the agent's program (default: galactica-agent beside this Python)",
    )
    parser.add_argument(
        "--agent-argument", action="append", default=[], help="first arguments of the agent; repeatable"
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
        raise Refused(
            f"unknown version {question['version']}: this program implements version 1 of the contract"
        )
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
            return {"servers": list(all_listed(hosts_of(switch, fleet)))}
        case other:
            raise Refused(f"no such action: {other}")


def create(host: Host, question: dict[str, Any], agent: list[str]) -> None:
    body, user_data = plan_of(question["body"]), question["user_data"]
    words = user_data["arguments"]
    if not user_data["runtimes"]:
        words = [*words, "--runtime", "docker" if body.get("engine") else "process"]
    host.create(question["cell"], [*agent, *words], user_data["token"], body)


def plan_of(body: dict[str, Any]) -> dict[str, object]:
    """The pool's part of the plan for ``boot``. Raises Refused."""
    if unknown := set(body) - {"engine", "disk"}:
        raise Refused(
            f"unknown fields in the pool's server: {', '.join(sorted(unknown))}; known: engine, disk"
        )
    if not isinstance(body.get("engine", False), bool):
        raise Refused("engine: use true or false")
    if "disk" not in body:
        return body
    size = _SIZE.fullmatch(str(body["disk"]))
    if size is None:
        raise Refused(f"disk: invalid size '{body['disk']}'; use for example 64MiB")
    return body | {"disk": f"{size[1]}{size[2][0].lower()}"}


def all_listed(hosts: list[Host]) -> Iterator[dict[str, str]]:
    for host in hosts:
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
            if host.was_born:
                yield listed(host)


def listed(host: Host) -> dict[str, str]:
    state = "running" if host.is_on else "gone"
    return {"cell": host.cell, "ref": host.namespace, "state": state}


if __name__ == "__main__":
    sys.exit(main())
