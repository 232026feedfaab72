"""Pulls images: one pull for all starts that wait for the image, with progress for people."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker.auth
import docker.errors
import docker.utils
import requests

from galactica.agent.runtimes.docker.engine import Abandoned, Engine
from galactica.agent.runtimes.docker.lanes import FairThreads
from galactica.agent.runtimes.port import Progress, RuntimeFailure, RuntimeUnavailable, StartFailed

SILENCE_SECONDS = 300.0
"""After this time without data from the registry the pull fails."""
LIMIT_SECONDS = 3_600.0
ERROR_CHARACTERS = 500


@dataclass(slots=True)
class _Pull:
    """A pull under way. ``text``: its newest progress, for listeners that join later."""

    text: str
    done: asyncio.Future[None]
    listeners: list[Progress] = field(default_factory=list)
    abandoned: threading.Event = field(default_factory=threading.Event)

    def tell(self, text: str) -> None:
        self.text = text
        for listener in self.listeners:
            listener(text)


class Puller:
    """Used by the event loop; the pulls run in ``threads``, where each registry has its few.

    ``credentials``: a file like ~/.docker/config.json, which it takes precedence over. Both are read at each pull, so
    that credentials can be replaced while the agent runs."""

    def __init__(self, engine: Engine, threads: FairThreads, credentials: Path | None) -> None:
        self._engine = engine
        self._threads = threads
        self._credentials = credentials
        self._pulls: dict[str, _Pull] = {}

    async def pull(self, image: str, progress: Progress) -> None:
        """Returns when the image is on this server. Raises StartFailed, RuntimeUnavailable. A pull is cancelled when
        nobody waits for it."""
        pull = self._pulls.get(image) or self._begin(image)
        pull.listeners.append(progress)
        progress(pull.text)
        try:
            await asyncio.shield(pull.done)
        finally:
            pull.listeners.remove(progress)
            if not pull.listeners:
                pull.abandoned.set()
                pull.done.cancel()  # one that still waits for its turn leaves the queue
                self._forget(image, pull)

    def _begin(self, image: str) -> _Pull:
        loop = asyncio.get_running_loop()
        pull = _Pull(text=f"pulling {image}", done=loop.create_future())
        self._pulls[image] = pull

        def tell(text: str) -> None:
            with contextlib.suppress(RuntimeError):  # the event loop has ended, so nobody listens
                loop.call_soon_threadsafe(pull.tell, text)

        args = (image, tell, pull.abandoned)
        pull.done = asyncio.wrap_future(self._threads.submit(registry_of(image), self._carry_out, *args))
        pull.done.add_done_callback(lambda done: self._ended(image, pull, done))
        return pull

    def _ended(self, image: str, pull: _Pull, done: asyncio.Future[None]) -> None:
        self._forget(image, pull)
        if not done.cancelled():
            done.exception()  # retrieved, because nobody may wait for it any more

    def _forget(self, image: str, pull: _Pull) -> None:
        if self._pulls.get(image) is pull:
            del self._pulls[image]

    def _carry_out(self, image: str, tell: Callable[[str], None], abandoned: threading.Event) -> None:
        try:
            header = _credentials_header(image, self._credentials)
            with self._engine.errors(f"pull {image}"):
                pull_image(self._engine.client(), image, header, tell, abandoned)
        except RuntimeUnavailable as error:
            raise RuntimeUnavailable(str(error)) from error
        except RuntimeFailure as error:
            why = str(error)[:ERROR_CHARACTERS]
            raise StartFailed(f"image {image} is not on this server and cannot be pulled: {why}") from error


def registry_of(image: str) -> str:
    """The host, with its port, from which an image is pulled. Raises StartFailed for a name that has none."""
    try:
        return str(docker.auth.resolve_repository_name(docker.utils.parse_repository_tag(image)[0])[0])
    except docker.errors.DockerException as error:
        raise StartFailed(f"cannot pull the image {image}: {error}") from error


def _credentials_header(image: str, credentials: Path | None) -> str | None:
    """The X-Registry-Auth header for the image's registry; None without credentials for it."""
    registry = registry_of(image)
    for path in (credentials, None):
        if path is None or path.exists():
            try:
                found = docker.auth.load_config(str(path) if path else None).resolve_authconfig(registry)
            except docker.errors.DockerException as error:
                where = path or "the docker configuration"
                raise RuntimeFailure(f"cannot read the registry credentials in {where}: {error}") from error
            if found:
                return str(docker.auth.encode_header(found).decode())
    return None


def pull_image(
    client: Any, image: str, auth_header: str | None, tell: Callable[[str], None], abandoned: threading.Event
) -> None:
    """Blocking. Raises RuntimeFailure with the error of the engine or the registry, Abandoned, and the errors of
    requests."""
    repository, tag = docker.utils.parse_repository_tag(image)
    # The SDK's own call has no time limit for a silent registry.
    answer = client.post(
        f"{client.base_url}/v{client.api_version}/images/create",
        params={"fromImage": repository, "tag": tag or "latest"},
        headers={"X-Registry-Auth": auth_header} if auth_header else {},
        stream=True,
        timeout=SILENCE_SECONDS,
    )
    with contextlib.closing(answer):
        if not answer.ok:
            raise RuntimeFailure(_message(answer))
        deadline = time.monotonic() + LIMIT_SECONDS
        layers = Layers()
        shown = -1
        for line in _lines(answer):
            if abandoned.is_set():
                raise Abandoned
            if time.monotonic() > deadline:
                raise RuntimeFailure(f"the pull took longer than {LIMIT_SECONDS / 60:.0f} min")
            if "error" in line:
                raise RuntimeFailure(line["error"])
            percent = layers.see(line)
            if percent > shown:
                shown = percent
                tell(f"pulling {image}, {percent} %")


def _lines(answer: requests.Response) -> Iterator[dict[str, Any]]:
    for line in answer.iter_lines():
        if line.strip():
            yield json.loads(line)


def _message(answer: requests.Response) -> str:
    try:
        return str(answer.json()["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {answer.status_code}"


class Layers:
    """Adds up the layers of a pull. The percentage never goes back, although the layers are found one by one."""

    def __init__(self) -> None:
        self._sizes: dict[str, tuple[int, int]] = {}
        self._percent = 0

    def see(self, line: dict[str, Any]) -> int:
        """Take one progress line of the engine. Returns the percentage of the whole pull."""
        layer, status = line.get("id", ""), line.get("status", "")
        detail = line.get("progressDetail") or {}
        if status == "Downloading" and detail.get("total"):
            self._sizes[layer] = (detail.get("current", 0), detail["total"])
        elif status in {"Download complete", "Pull complete", "Already exists"} and layer:
            _, total = self._sizes.get(layer, (0, 1))
            self._sizes[layer] = (total, total)
        elif status == "Pulling fs layer":
            self._sizes.setdefault(layer, (0, 1))
        total = sum(total for _, total in self._sizes.values())
        if total:
            self._percent = max(self._percent, 100 * sum(now for now, _ in self._sizes.values()) // total)
        return self._percent
