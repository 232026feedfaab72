"""Checks that a created container has its command. The engine can stat paths inside the container."""

import base64
import json
import posixpath
from collections.abc import Mapping
from typing import Any

import docker
import requests

from galactica.agent.runtimes.port import StartFailed

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""The engine's own default, if neither image nor spec sets PATH."""
STAT_SECONDS = 10.0

_GO_DIRECTORY = 1 << 31
_GO_SYMLINK = 1 << 27
"""Bits of Go's fs.FileMode."""
_EXECUTABLE = 0o111


def check_command(client: docker.APIClient, inspected: Mapping[str, Any]) -> None:
    """``inspected``: the inspection of the container. Raises StartFailed if its program is missing or not
    executable."""
    container_id = inspected["Id"]
    program, image = inspected["Path"], inspected["Config"]["Image"]
    stats = [
        stat for path in candidates(inspected) if (stat := _stat(client, container_id, path)) is not None
    ]
    if not stats:
        raise StartFailed(f"command not found: {program} is not in image {image}")
    if not any(_may_run(stat["mode"]) for stat in stats):
        raise StartFailed(f"command not executable: {program} in image {image}")


def candidates(inspected: Mapping[str, Any]) -> list[str]:
    """The paths at which execvp looks for the program."""
    program = inspected["Path"]
    working_directory = inspected["Config"]["WorkingDir"] or "/"
    if "/" in program:
        return [posixpath.join(working_directory, program)]
    environment = dict(entry.partition("=")[::2] for entry in inspected["Config"]["Env"] or [])
    directories = environment.get("PATH", DEFAULT_PATH).split(":")
    return [posixpath.join(working_directory, directory, program) for directory in directories]


def _stat(client: docker.APIClient, container_id: str, path: str) -> dict[str, Any] | None:
    """The engine's stat of a path; None if there is no such file. A final symbolic link is not followed."""
    url = f"{client.base_url}/v{client.api_version}/containers/{container_id}/archive"
    answer = client.head(url, params={"path": path}, timeout=STAT_SECONDS)
    if answer.status_code == requests.codes.not_found:
        return None
    answer.raise_for_status()
    stat: dict[str, Any] = json.loads(base64.b64decode(answer.headers["X-Docker-Container-Path-Stat"]))
    return stat


def _may_run(mode: int) -> bool:
    if mode & _GO_SYMLINK:
        return True  # its target is checked when the container starts
    return not mode & _GO_DIRECTORY and bool(mode & _EXECUTABLE)
