"""Blocking conversation with a Docker Engine. Everything here is called from worker threads.

Each call is bounded by the client's time limit, and every error leaves as one of the port's.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import docker
import docker.errors
import docker.utils
import requests.exceptions
import urllib3.exceptions

from galactica.agent.core.model import Found, Running
from galactica.agent.runtimes.docker.autopsy import Life, autopsy_of, unix_seconds
from galactica.agent.runtimes.docker.command import check_command
from galactica.agent.runtimes.docker.differences import OwnExecs
from galactica.agent.runtimes.docker.spec import CELL_LABEL, Scope, body_of, endpoints_of, order_of
from galactica.agent.runtimes.port import LAST_LINES, RuntimeFailure, RuntimeUnavailable, StartFailed
from galactica.v1 import link_pb2

PING_SECONDS = 2.0
CONNECTIONS = 32
CREATE_ATTEMPTS = 3
SEEN_COMMANDS = 1_024
DEFAULT_URL = "unix:///var/run/docker.sock"

_log = logging.getLogger(__name__)


class ImageMissing(RuntimeFailure):
    """The image is not on this server; a pull may bring it."""


class Abandoned(RuntimeFailure):
    """The caller of a start is gone; what was made has been removed."""


class Engine:
    """One engine and the containers of one scope in it.

    ``alive`` holds the containers whose death is news, by their ids. It is shared between threads
    and changed only by single dictionary operations, which are atomic.
    """

    def __init__(self, scope: Scope, base_url: str | None, timeout_seconds: int) -> None:
        self.scope = scope
        self.url = base_url or os.environ.get("DOCKER_HOST") or DEFAULT_URL
        self.alive: dict[str, Life] = {}
        self.execs = OwnExecs()
        self._base_url = base_url
        self._timeout_seconds = timeout_seconds
        self._connecting = threading.Lock()
        self._client: docker.APIClient | None = None
        self._init = False
        self._seen_commands: set[tuple[str, tuple[str, ...]]] = set()

    def client(self) -> docker.APIClient:
        """The connected client. Raises RuntimeUnavailable."""
        with self._connecting:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def forget_client(self) -> None:
        """The engine went away: what comes back may be another version, so that its API is agreed anew."""
        with self._connecting:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _connect(self) -> docker.APIClient:
        settings = docker.utils.kwargs_from_env() if self._base_url is None else {"base_url": self._base_url}
        with self.errors("connect"):
            client = docker.APIClient(
                **settings, version="auto", timeout=self._timeout_seconds, max_pool_size=CONNECTIONS
            )
            # Proxies and .netrc are for the world outside, and are read anew with each request.
            client.trust_env = False
            components = client.version().get("Components") or []
        versions = {component["Name"]: component["Version"] for component in components}
        self._init = versions.get("docker-init", "N/A") not in {"", "N/A"}
        return client

    @contextlib.contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """Translate what the SDK and everything under it raises. APIError is an answer (5xx: the
        engine itself is in trouble), the others are silence."""
        try:
            yield
        except docker.errors.APIError as error:
            failure = RuntimeUnavailable if error.is_server_error() else RuntimeFailure
            raise failure(f"the Docker engine cannot {doing}: {explained(error)}") from error
        except (
            docker.errors.DockerException,
            requests.exceptions.RequestException,
            urllib3.exceptions.HTTPError,
            OSError,
        ) as error:
            raise RuntimeUnavailable(
                f"the Docker engine at {self.url} does not answer ({doing}): {error}; is it running, "
                "and may this user reach it?"
            ) from error

    def ping(self) -> float:
        """Seconds of a round trip."""
        client = self.client()
        with self.errors("ping"):
            began = time.perf_counter()
            client.get(f"{client.base_url}/_ping", timeout=PING_SECONDS).raise_for_status()
            return time.perf_counter() - began

    def make(self, order: link_pb2.Order, abandoned: threading.Event) -> Running:
        """Create and start. Three round trips where nothing is in the way.

        Raises ImageMissing, StartFailed, RuntimeUnavailable, Abandoned."""
        if abandoned.is_set():
            raise Abandoned
        for _ in range(CREATE_ATTEMPTS):
            container_id = self._create(order)
            if container_id is not None:
                return self._start(container_id, order, abandoned)
            running = self._running_already(order)
            if running is not None:
                return running
        raise StartFailed(
            f"the name {self.scope.name_of(order.cell_id)} is being taken again and again on this engine"
        )

    def _create(self, order: link_pb2.Order) -> str | None:
        """The new container's id, None where its name is taken."""
        body = body_of(self.scope, order, init=self._init_of())
        create: Any = self.client().create_container_from_config  # untyped in the SDK's stubs
        with self.errors("create a container"):
            try:
                created = create(body, self.scope.name_of(order.cell_id))
            except docker.errors.ImageNotFound as error:
                raise ImageMissing(order.spec.image) from error
            except docker.errors.APIError as error:
                if error.status_code == requests.codes.conflict:
                    return None
                if _is_away(error):
                    raise
                raise StartFailed(f"the engine cannot make it: {explained(error)}") from error
        return str(created["Id"])

    def _init_of(self) -> bool:
        self.client()
        return self._init

    def _start(self, container_id: str, order: link_pb2.Order, abandoned: threading.Event) -> Running:
        # From here on its death is news; it must be known before it can happen.
        life = self.alive[container_id] = Life(order.cell_id)
        try:
            return self._started(container_id, order, life, abandoned)
        except (StartFailed, Abandoned):
            self.alive.pop(container_id, None)
            self.remove(container_id)
            raise

    def _started(
        self, container_id: str, order: link_pb2.Order, life: Life, abandoned: threading.Event
    ) -> Running:
        client = self.client()
        with self.errors("start a container"):
            self._check_command(client, container_id, order)
            try:
                client.start(container_id)
            except docker.errors.APIError as error:
                if _is_away(error):
                    raise
                raise StartFailed(f"the engine cannot start it: {explained(error)}") from error
            inspected = client.inspect_container(container_id)
        life.learn(inspected)
        if abandoned.is_set():
            raise Abandoned
        return self._running(order, inspected)

    def _check_command(self, client: docker.APIClient, container_id: str, order: link_pb2.Order) -> None:
        """With the engine's init as process 1 the engine itself does not notice that the command is missing.
        Looked at once for each image and command, so that later cells of a spec do not pay for it."""
        seen = (order.spec.image, tuple(order.spec.command[:1]))
        if not self._init or seen in self._seen_commands:
            return
        check_command(client, container_id)
        if len(self._seen_commands) >= SEEN_COMMANDS:
            self._seen_commands.clear()
        self._seen_commands.add(seen)

    def _running_already(self, order: link_pb2.Order) -> Running | None:
        """Who has the name: this very cell, running, or a leftover of it that was removed now (None).

        Raises StartFailed where it is a stranger, or where the cell has had its life."""
        client = self.client()
        name = self.scope.name_of(order.cell_id)
        with self.errors("inspect a container"):
            try:
                inspected = client.inspect_container(name)
            except docker.errors.NotFound:
                return None
        labels = inspected["Config"]["Labels"] or {}
        if not self.scope.owns(labels) or labels.get(CELL_LABEL) != order.cell_id:
            raise StartFailed(f"a container that is not of this server's fleet is named {name}; remove it")
        if inspected["State"]["Running"]:
            self.alive.setdefault(inspected["Id"], Life(order.cell_id)).learn(inspected)
            return self._running(order, inspected)
        autopsy = self._autopsy(client, inspected)
        self.remove(inspected["Id"])
        if unix_seconds(inspected["State"]["StartedAt"]):
            raise StartFailed(f"it has run here before and ended ({autopsy.reason}); a cell lives once")
        return None

    def _running(self, order: link_pb2.Order, inspected: dict[str, Any]) -> Running:
        return Running(
            runtime_id=inspected["Id"],
            endpoints=endpoints_of(self.scope, order.spec, inspected),
            started_at=unix_seconds(inspected["State"]["StartedAt"]),
        )

    def containers_of(self, cell_id: str) -> list[str]:
        """Ids of the cell's containers, whatever their state and name."""
        client = self.client()
        with self.errors("list containers"):
            rows = client.containers(all=True, filters=self.scope.filters(f"{CELL_LABEL}={cell_id}"))
        return [row["Id"] for row in rows]

    def found(self) -> list[Found]:
        """Every container of the scope; the running ones are in ``alive`` before they are looked at closely,
        so that no death falls between this list and the event stream."""
        client = self.client()
        with self.errors("list containers"):
            rows = client.containers(all=True, filters=self.scope.filters())
        seen = [
            self._look_at(client, row["Id"], row["Labels"]) for row in rows if CELL_LABEL in row["Labels"]
        ]
        return [found for found in seen if found is not None]

    def _look_at(self, client: docker.APIClient, container_id: str, labels: dict[str, str]) -> Found | None:
        order = order_of(labels)
        life = self.alive.setdefault(container_id, Life(order.cell_id))
        with self.errors("inspect a container"):
            try:
                inspected = client.inspect_container(container_id)
            except docker.errors.NotFound:
                self.alive.pop(container_id, None)
                return None
        if inspected["State"]["Running"]:
            life.learn(inspected)
            return Found(order, self._running(order, inspected))
        self.alive.pop(container_id, None)
        return Found(order, None, self._autopsy(client, inspected))

    def examine(self, container_id: str) -> Any:
        """The autopsy of a container that ended; None where it is gone or runs again."""
        client = self.client()
        with self.errors("inspect a container"):
            try:
                inspected = client.inspect_container(container_id)
            except docker.errors.NotFound:
                return None
        return None if inspected["State"]["Running"] else self._autopsy(client, inspected)

    def _autopsy(self, client: docker.APIClient, inspected: dict[str, Any]) -> Any:
        return autopsy_of(inspected, self._raw_log(client, inspected["Id"]))

    def _raw_log(self, client: docker.APIClient, container_id: str) -> bytes:
        """The newest output; empty where the engine has none to give. (The SDK's own call would inspect once
        more.)"""
        url = f"{client.base_url}/v{client.api_version}/containers/{container_id}/logs"
        with self.errors("read a log"):
            answer = client.get(
                url,
                params={"stdout": "1", "stderr": "1", "tail": str(LAST_LINES)},
                timeout=self._timeout_seconds,
            )
        return answer.content if answer.ok else b""

    def kill(self, container_id: str, signal: str) -> bool:
        """Send the signal; False where there is nothing that takes it (ended, gone, or no such signal)."""
        client = self.client()
        with self.errors("signal a container"):
            try:
                client.kill(container_id, signal)
            except docker.errors.APIError as error:
                if error.is_client_error():
                    _log.debug("no %s for %s: %s", signal, container_id, explained(error))
                    return False
                raise
        return True

    def remove(self, container_id: str) -> None:
        """End it if it runs, and remove it with its volumes; fine where it is gone or another removes it."""
        client = self.client()
        with self.errors("remove a container"), contextlib.suppress(docker.errors.NotFound):
            try:
                client.remove_container(container_id, v=True, force=True)
            except docker.errors.APIError as error:
                if error.status_code != requests.codes.conflict:
                    raise


def _is_away(error: docker.errors.APIError) -> bool:
    """The engine is starting or ending: that says nothing about the cell."""
    return bool(error.status_code == requests.codes.service_unavailable)


def explained(error: docker.errors.APIError) -> str:
    """The engine's own words."""
    return str(error.explanation or error)
