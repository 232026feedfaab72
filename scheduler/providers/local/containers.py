"""Removes the containers that a local server left in this machine's engine when its agent was killed.

They have the labels of the agent's docker runtime. Blocks: call it in a thread.
"""

from __future__ import annotations

ENGINE_SECONDS = 10


class EngineUnavailable(Exception):
    """The engine does not answer, so it is unknown which containers are left."""


def remove_all_of(fleet: str, fleet_id: str, server: str) -> None:
    """Kill and remove all containers of this server. A container with the id of another fleet stays, even if that fleet
    has the same name. Raises EngineUnavailable."""
    try:
        import docker  # noqa: PLC0415 - large, and installed only where agents run containers
    except ModuleNotFoundError as error:
        raise EngineUnavailable(
            "the docker library is not installed: pip install 'galactica[docker]'"
        ) from error
    labels = [f"galactica.fleet={fleet}", f"galactica.server={server}"]
    try:
        client = docker.from_env(timeout=ENGINE_SECONDS)
        try:
            for container in client.containers.list(all=True, filters={"label": labels}, ignore_removed=True):
                if container.labels.get("galactica.fleet-id", fleet_id) == fleet_id:
                    container.remove(force=True, v=True)
        finally:
            client.close()
    except (docker.errors.DockerException, OSError) as error:
        raise EngineUnavailable(f"the engine does not answer: {error}") from error
