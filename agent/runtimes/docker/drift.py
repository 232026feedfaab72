"""Compares containers with their orders. Blocking; called from one worker thread.

One comparison is an inspection and a list of changed files. An image is inspected once for all its cells, and again
after ``IMAGE_SECONDS`` or for a cell that is younger than the inspection: its start may have pulled another image.
"""

import time
from typing import Any

import docker
import docker.errors

from galactica.agent.runtimes.docker.differences import OURS_MARK, differences, ran
from galactica.agent.runtimes.docker.engine import Engine
from galactica.v1 import link_pb2

IMAGE_SECONDS = 30.0
IMAGES_KEPT = 256


class Comparer:
    """Not thread-safe: use it from one thread at a time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._images: dict[str, tuple[float, Any]] = {}

    def compare(self, order: link_pb2.Order, container_id: str) -> tuple[str, ...]:
        """All differences found so far in the container's life; empty if there are none, or if it has ended.

        Raises RuntimeUnavailable, RuntimeFailure."""
        life = self._engine.alive.get(container_id)
        if life is None:
            return ()
        client = self._engine.client()
        with self._engine.errors(f"compare {order.cell_id} with its spec"):
            try:
                inspected = client.inspect_container(container_id)
                if not inspected["State"]["Running"]:
                    return ()
                changes = client.diff(container_id) or []
            except docker.errors.NotFound:
                return ()
            image_now = self._image(client, order.spec.image, life.known_at)
            image = self._image(client, inspected["Image"], life.known_at)
            life.touches.add(self._foreign_commands(client, inspected))
        environment = None if image is None else (image["Config"] or {}).get("Env") or []
        life.touches.add(differences(self._engine.scope, order, inspected, changes, image_now, environment))
        return tuple(life.touches)

    def _image(self, client: docker.APIClient, name: str, since: float) -> Any:
        """As it was at some moment after ``since``. None if there is no image of that name: it may have been removed
        while cells still use it."""
        now = time.monotonic()
        cached = self._images.get(name)
        if cached is not None and since <= cached[0] and now - cached[0] < IMAGE_SECONDS:
            return cached[1]
        inspect: Any = client.inspect_image  # untyped in the SDK's stubs
        try:
            image = inspect(name)
        except docker.errors.NotFound:
            image = None
        if len(self._images) >= IMAGES_KEPT:
            self._images.clear()
        self._images[name] = now, image
        return image

    def _foreign_commands(self, client: docker.APIClient, inspected: Any) -> list[str]:
        """Commands in the container that the agent did not start, even those from a time without an agent."""
        lines = []
        for exec_id in inspected.get("ExecIDs") or []:
            if exec_id in self._engine.execs:
                continue
            try:
                command = client.exec_inspect(exec_id)
            except docker.errors.NotFound:
                continue
            if command["Running"] and command.get("DetachKeys") != OURS_MARK:
                lines.append(ran(command["ProcessConfig"].get("entrypoint", "")))
        return lines
