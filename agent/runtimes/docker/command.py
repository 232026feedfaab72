"""Is the command of a created container there? Asked of the engine, which can stat paths inside a
container."""

import base64
import json
import posixpath
from typing import Any

import docker
import requests

from galactica.agent.runtimes.port import StartFailed

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""The engine's own, where neither image nor spec says."""
STAT_SECONDS = 10.0

_GO_DIRECTORY = 1 << 31
_GO_SYMLINK = 1 << 27
"""Bits of Go's fs.FileMode."""
_EXECUTABLE = 0o111


def check_command(client: docker.APIClient, container_id: str) -> None:
    """Raises StartFailed where the container's program is missing or cannot be executed."""
    inspected = client.inspect_container(container_id)
    program, image = inspected["Path"], inspected["Config"]["Image"]
    stats = [
        stat for path in _candidates(inspected) if (stat := _stat(client, container_id, path)) is not None
    ]
    if not stats:
        raise StartFailed(f"command not found: there is no {program} in image {image}")
    if not any(_may_run(stat["mode"]) for stat in stats):
        raise StartFailed(f"command not executable: {program} in image {image}")


def _candidates(inspected: dict[str, Any]) -> list[str]:
    """Where the program may be, by execvp's rule."""
    program = inspected["Path"]
    working_directory = inspected["Config"]["WorkingDir"] or "/"
    if "/" in program:
        return [posixpath.join(working_directory, program)]
    environment = dict(entry.partition("=")[::2] for entry in inspected["Config"]["Env"] or [])
    directories = environment.get("PATH", DEFAULT_PATH).split(":")
    return [posixpath.join(working_directory, directory, program) for directory in directories]


def _stat(client: docker.APIClient, container_id: str, path: str) -> dict[str, Any] | None:
    """The engine's stat of a path; symbolic links in the last place are not followed."""
    url = f"{client.base_url}/v{client.api_version}/containers/{container_id}/archive"
    answer = client.head(url, params={"path": path}, timeout=STAT_SECONDS)
    if answer.status_code == requests.codes.not_found:
        return None
    answer.raise_for_status()
    stat: dict[str, Any] = json.loads(base64.b64decode(answer.headers["X-Docker-Container-Path-Stat"]))
    return stat


def _may_run(mode: int) -> bool:
    if mode & _GO_SYMLINK:
        return True  # what it points to shows when it runs
    return not mode & _GO_DIRECTORY and bool(mode & _EXECUTABLE)
