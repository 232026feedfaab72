"""Blocking calls to a Docker Engine. Everything here is called from worker threads.

The client's time limit bounds each call. Every error is translated to one of the port's errors.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import docker
import docker.errors
import docker.utils
import requests.exceptions
import urllib3.exceptions

from galactica.agent.core.model import Running
from galactica.agent.runtimes.docker import addresses
from galactica.agent.runtimes.docker.autopsy import Life, autopsy_of, unix_seconds
from galactica.agent.runtimes.docker.command import candidates, check_command
from galactica.agent.runtimes.docker.differences import OwnExecs
from galactica.agent.runtimes.docker.spec import CELL_LABEL, SERVER_LABEL, Scope, body_of
from galactica.agent.runtimes.docker.writable import hand_over
from galactica.agent.runtimes.port import (
    LAST_LINES,
    RuntimeFailure,
    RuntimeUnavailable,
    StartFailed,
    StartUncertain,
)
from galactica.v1 import cell_pb2, link_pb2

PING_SECONDS = 2.0
CONNECTIONS = 32
CREATE_ATTEMPTS = 3
REMOVAL_SECONDS = 10.0
REMOVAL_PAUSE_SECONDS = 0.05
CHECKED_COMMANDS = 1_024
DEFAULT_URL = "unix:///var/run/docker.sock"

_log = logging.getLogger(__name__)


class ImageMissing(RuntimeFailure):
    """The image is not on this server; it may be pulled."""


class Abandoned(RuntimeFailure):
    """The caller of a start has cancelled it; the new container was removed."""


class Engine:
    """One engine and the containers of one scope in it.

    ``alive`` has the containers whose death will be reported, by id. Threads share it and change it only by single
    dictionary operations, which are atomic. ``foreign``: how many cells of other fleets the newest list had.
    """

    def __init__(self, scope: Scope, base_url: str | None, timeout_seconds: int) -> None:
        self.scope = scope
        self.url = base_url or os.environ.get("DOCKER_HOST") or DEFAULT_URL
        self.alive: dict[str, Life] = {}
        self.foreign = 0
        self.execs = OwnExecs()
        self._base_url = base_url
        self._timeout_seconds = timeout_seconds
        self._connecting = threading.Lock()
        self._client: docker.APIClient | None = None
        self._init = False
        self._is_rootless = False
        self._is_near = False
        self._checked_commands: set[tuple[str, ...]] = set()

    def client(self) -> docker.APIClient:
        """The connected client. Raises RuntimeUnavailable."""
        with self._connecting:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def forget_client(self) -> None:
        """Disconnect after the engine was away: it may come back as another version, so the API version is negotiated
        again."""
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
            # Without this, requests would read proxy settings and .netrc at each request.
            client.trust_env = False
            components = client.version().get("Components") or []
            security = client.info().get("SecurityOptions") or []
        self._is_rootless = any("rootless" in option for option in security)
        self._is_near = addresses.shares_network(self.url)
        versions = {component["Name"]: component["Version"] for component in components}
        self._init = versions.get("docker-init", "N/A") not in {"", "N/A"}
        return client

    @contextlib.contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """Translate the errors of the SDK and its libraries. An APIError is an answer (5xx: the engine itself has a
        problem); with the others there was no answer."""
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
                f"the Docker engine at {self.url} does not answer ({doing}): {error}; check that it runs "
                "and that this user may use it"
            ) from error

    def ping(self) -> float:
        """Seconds of a round trip."""
        client = self.client()
        with self.errors("ping"):
            began = time.perf_counter()
            client.get(f"{client.base_url}/_ping", timeout=PING_SECONDS).raise_for_status()
            return time.perf_counter() - began

    def make(self, order: link_pb2.Order, abandoned: threading.Event) -> Running:
        """Create and start the container. Three round trips in the usual case.

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
            f"the container name {self.scope.name_of(order.cell_id)} is still in use on this engine after "
            f"{CREATE_ATTEMPTS} attempts"
        )

    def _create(self, order: link_pb2.Order) -> str | None:
        """The new container's id; None if its name is in use."""
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
                if is_away(error):
                    raise
                raise StartFailed(f"the engine cannot create the container: {explained(error)}") from error
        return str(created["Id"])

    def _init_of(self) -> bool:
        self.client()
        return self._init

    def _start(self, container_id: str, order: link_pb2.Order, abandoned: threading.Event) -> Running:
        # Register the container before it starts, so that its death is reported.
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
            if self._init or order.spec.writable:
                made = client.inspect_container(container_id)
                self._check_command(client, made)
                hand_over(client, made, order.spec.writable)
            try:
                client.start(container_id)
            except docker.errors.APIError as error:
                if is_away(error):
                    raise
                raise StartFailed(f"the engine cannot start the container: {explained(error)}") from error
            with _uncertain(order.cell_id):
                inspected = client.inspect_container(container_id)
        life.learn(inspected)
        if abandoned.is_set():
            raise Abandoned
        return self.running_of(order, inspected)

    def _check_command(self, client: docker.APIClient, inspected: Mapping[str, Any]) -> None:
        """If the engine's init is process 1, the engine does not notice a missing command. Looked for once in each
        image, so that later cells of a spec start faster. A name may mean another image by then: its id counts."""
        command = (str(inspected["Image"]), *candidates(inspected))
        if not self._init or command in self._checked_commands:
            return
        check_command(client, inspected)
        if len(self._checked_commands) >= CHECKED_COMMANDS:
            self._checked_commands.clear()
        self._checked_commands.add(command)

    def _running_already(self, order: link_pb2.Order) -> Running | None:
        """The cell that already has the name, if it runs. None: there was only a leftover without a life, which is
        removed now.

        Raises StartFailed if another container has the name, or if the cell has lived and ended."""
        client = self.client()
        name = self.scope.name_of(order.cell_id)
        with self.errors("inspect a container"):
            try:
                with _uncertain(order.cell_id):
                    inspected = client.inspect_container(name)
            except docker.errors.NotFound:
                return None
        labels = inspected["Config"]["Labels"] or {}
        if not self.scope.owns(labels) or labels.get(CELL_LABEL) != order.cell_id:
            raise StartFailed(
                f"the container {name} does not belong to this server's fleet; remove or rename it"
            )
        if inspected["State"]["Running"]:
            self.alive.setdefault(inspected["Id"], Life(order.cell_id)).learn(inspected)
            return self.running_of(order, inspected)
        autopsy = self.autopsy(inspected)
        self.remove(inspected["Id"])
        if unix_seconds(inspected["State"]["StartedAt"]):
            raise StartFailed(
                f"the cell has already run here and ended ({autopsy.reason}); a cell runs only once"
            )
        return None

    def running_of(self, order: link_pb2.Order, inspected: Mapping[str, Any]) -> Running:
        return Running(
            runtime_id=inspected["Id"],
            endpoints=addresses.published(self.scope.host, order.spec, inspected),
            direct=addresses.direct(order.spec, inspected, self._is_own),
            started_at=unix_seconds(inspected["State"]["StartedAt"]),
        )

    def _is_own(self, gateway: str) -> bool:
        """A rootless engine, and one elsewhere, has its networks to itself, and their addresses may be in use on this
        host as well."""
        return self._is_near and not self._is_rootless and addresses.is_own_address(gateway)

    def containers_of(self, cell_id: str) -> list[str]:
        """Ids of the cell's containers, in any state and with any name."""
        client = self.client()
        return [row["Id"] for row in self._rows(client, f"{CELL_LABEL}={cell_id}")]

    def _rows(self, client: docker.APIClient, *labels: str) -> list[dict[str, Any]]:
        """The containers of the scope with these labels. The engine cannot be asked for a label's absence, so the fleet
        is checked here."""
        wanted = [f"{SERVER_LABEL}={self.scope.server}", *labels]
        with self.errors("list containers"):
            rows = client.containers(all=True, filters={"label": wanted})
        return [row for row in rows if self.scope.owns(row["Labels"])]

    def rows(self) -> list[dict[str, Any]]:
        """The engine's list of all containers of the scope, in any state. Raises RuntimeUnavailable."""
        client = self.client()
        with self.errors("list containers"):
            rows = list(client.containers(all=True, filters={"label": [CELL_LABEL]}))
        labels = [row.get("Labels") or {} for row in rows]
        self.foreign = sum(not self.scope.is_of_fleet(one) for one in labels)
        return [row for row, one in zip(rows, labels, strict=True) if self.scope.owns(one)]

    def inspect(self, container_id: str, timeout_seconds: float) -> Any:
        """None if it is gone. (The SDK's own call has no time limit of its own.)"""
        client = self.client()
        url = f"{client.base_url}/v{client.api_version}/containers/{container_id}/json"
        with self.errors("inspect a container"):
            answer = client.get(url, timeout=timeout_seconds)
            if answer.status_code == requests.codes.not_found:
                return None
            try:
                answer.raise_for_status()
            except requests.exceptions.HTTPError as error:
                docker.errors.create_api_error_from_http_exception(error)
            return answer.json()

    def examine(self, container_id: str) -> Any:
        """The autopsy of a container that has ended; None if it is gone or running."""
        client = self.client()
        with self.errors("inspect a container"):
            try:
                inspected = client.inspect_container(container_id)
            except docker.errors.NotFound:
                return None
        return None if inspected["State"]["Running"] else self.autopsy(inspected)

    def autopsy(self, inspected: Mapping[str, Any]) -> cell_pb2.Autopsy:
        """Of a container that is not running. Raises RuntimeUnavailable if its log cannot be read."""
        return autopsy_of(inspected, self._raw_log(self.client(), inspected["Id"]))

    def _raw_log(self, client: docker.APIClient, container_id: str) -> bytes:
        """The newest output; empty if the engine returns none. (The SDK's own call would inspect the container
        again.)"""
        url = f"{client.base_url}/v{client.api_version}/containers/{container_id}/logs"
        with self.errors("read a log"):
            answer = client.get(
                url,
                params={"stdout": "1", "stderr": "1", "tail": str(LAST_LINES)},
                timeout=self._timeout_seconds,
            )
        return answer.content if answer.ok else b""

    def kill(self, container_id: str, signal: str) -> bool:
        """Send the signal. Returns False if that is not possible (the container has ended or is gone, or there is no
        such signal)."""
        client = self.client()
        with self.errors("signal a container"):
            try:
                client.kill(container_id, signal)
            except docker.errors.APIError as error:
                if error.is_client_error():
                    _log.debug("%s not sent to %s: %s", signal, container_id, explained(error))
                    return False
                raise
        return True

    def remove(self, container_id: str) -> None:
        """Kill it if it runs, and remove it with its volumes. Does nothing if it is gone. Somebody else's removal that
        is under way is waited for. Raises RuntimeUnavailable."""
        client = self.client()
        with self.errors("remove a container"), contextlib.suppress(docker.errors.NotFound):
            try:
                client.remove_container(container_id, v=True, force=True)
            except docker.errors.APIError as error:
                if error.status_code != requests.codes.conflict:
                    raise
                deadline = time.monotonic() + REMOVAL_SECONDS
                while time.monotonic() < deadline:
                    client.inspect_container(container_id)
                    time.sleep(REMOVAL_PAUSE_SECONDS)
                raise RuntimeUnavailable(
                    f"the Docker engine takes long to remove it: {explained(error)}"
                ) from error


@contextlib.contextmanager
def _uncertain(cell_id: str) -> Iterator[None]:
    """Around the inspection of a container that was created, and may run."""
    try:
        yield
    except docker.errors.NotFound:
        raise
    except (
        docker.errors.DockerException,
        requests.exceptions.RequestException,
        urllib3.exceptions.HTTPError,
        OSError,
    ) as error:
        said = explained(error) if isinstance(error, docker.errors.APIError) else error
        raise StartUncertain(
            f"the container of {cell_id} exists, but the Docker engine cannot inspect it: {said}"
        ) from error


def is_away(error: docker.errors.APIError) -> bool:
    """Whether the engine is starting or shutting down, which says nothing about the cell."""
    return bool(error.status_code == requests.codes.service_unavailable)


def explained(error: docker.errors.APIError) -> str:
    """The engine's own explanation."""
    return str(error.explanation or error)
