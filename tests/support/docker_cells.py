"""Cells on a real Docker Engine: orders, runtimes that clean up, engines and registries of a test's own."""

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import docker
import psutil
import pytest

from galactica.agent.runtimes.docker.runtime import DockerRuntime
from galactica.v1 import cell_pb2, link_pb2
from tests.support.engine import remove_fleet

Files = Literal["readable", "hidden"]

SERVER = "one"
WAIT_SECONDS = 30.0

REGISTRY_USER, REGISTRY_PASSWORD = "galactica", "phoenix"
_HTPASSWD = "galactica:$2y$05$1NL1kkWR/Q..e6V0Cyaaiej/bDGXLwCAV/BRyEKFx7nQDU6Qw25ji\n"


def order(cell_id: str, image: str, *command: str, **spec: Any) -> link_pb2.Order:
    """``spec``: further fields of the spec. Digest and stop have values that a scheduler would give."""
    return link_pb2.Order(
        cell_id=cell_id,
        digest="d" * 64,
        spec=cell_pb2.Spec(
            runtime=cell_pb2.RUNTIME_KIND_DOCKER,
            image=image,
            command=command,
            stop=spec.pop("stop", cell_pb2.Stop(signal="SIGTERM", grace_ms=10_000)),
            **spec,
        ),
    )


def web(cell_id: str, image: str, **spec: Any) -> link_pb2.Order:
    """A cell that answers HTTP on its port ``http`` with its own id."""
    serve = 'echo "$CELL_ID" > /tmp/index.html && exec httpd -f -p {port.http} -h /tmp'
    return order(cell_id, image, "sh", "-c", serve, ports={"http": 8080}, **spec)


def new_fleet() -> str:
    return f"test-{uuid.uuid4().hex[:12]}"


def id_of(fleet: str) -> str:
    """A fleet's id, another one for each name: tests that run beside each other must not take each other's cells."""
    return hashlib.sha256(fleet.encode()).hexdigest()[:16]


def client_of(engine: str) -> Any:
    return docker.APIClient(engine, version="auto", timeout=60)


@contextlib.asynccontextmanager
async def a_runtime(
    engine: str, *, fleet: str = "", fleet_id: str = "", **settings: Any
) -> AsyncIterator[DockerRuntime]:
    """A runtime with a fleet of its own, whose containers are removed at the end. Where the test failed, an engine that
    is away then does not hide why."""
    fleet = fleet or new_fleet()
    runtime = DockerRuntime(
        fleet, fleet_id or id_of(fleet), engine, server=settings.pop("server", SERVER), **settings
    )
    tolerated: tuple[type[Exception], ...] = (docker.errors.DockerException,)
    try:
        yield runtime
        tolerated = ()
    finally:
        await runtime.close()
        with contextlib.suppress(*tolerated):
            await asyncio.to_thread(remove_fleet, engine, fleet)


async def news(watch: Any, seconds: float = WAIT_SECONDS) -> Any:
    return await asyncio.wait_for(anext(watch), seconds)


def ignore_progress(_text: str, /) -> None:
    pass


def answer_of(endpoint: str) -> str:
    """What an HTTP server says; waits until it listens."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"http://{endpoint}/", timeout=2) as answer:
                return answer.read().decode()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


async def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not await asyncio.to_thread(holds):
        assert time.monotonic() < deadline, f"not within {WAIT_SECONDS:.0f} s: {what}"
        await asyncio.sleep(0.02)


def need(program: str, package: str) -> str:
    """The program's path. Where it is missing the test is skipped, in CI it fails."""
    path = shutil.which(program)
    if path is None:
        complain = pytest.fail if os.environ.get("CI") else pytest.skip
        complain(f"{program} is missing; install it with: apt-get install {package}")
    return path


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    """Short, since an engine's sockets must fit into 108 characters."""
    path = Path(tempfile.mkdtemp(prefix="gt-", dir="/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class OwnEngine:
    """A Docker Engine of a test's own, to be killed and frozen at will. Its containers have no network."""

    def __init__(self, directory: Path, options: Sequence[str], files: Files = "readable") -> None:
        self.url = f"unix://{directory}/s"
        self._directory = directory
        self._options = options
        self._files = files
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, as a host does: again where it ends at once, for what the engine before it left behind."""
        for is_last in (False, False, True):
            if self._began(must_live=is_last):
                return

    def _began(self, *, must_live: bool) -> bool:
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *self._place(),
                    *(need("dockerd", "docker.io"), "-H", self.url),
                    *("--data-root", f"{self._directory}/d", "--exec-root", f"{self._directory}/e"),
                    *("--pidfile", f"{self._directory}/p", "--bridge", "none", "--iptables=false"),
                    *self._options,
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 2 * WAIT_SECONDS
        while True:
            try:
                client_of(self.url).close()
            except docker.errors.DockerException:
                told = (self._directory / "log").read_text()[-2000:]
                assert time.monotonic() < deadline, told
                if self._process.poll() is not None:
                    assert not must_live, told
                    return False
                time.sleep(0.05)
            else:
                return True

    def _place(self) -> list[str]:
        """What comes before its command."""
        # In a network namespace of its own: without a bridge it would remove another engine's.
        if self._files == "readable":
            return ["unshare", "--net"]
        data = self._directory / "d"
        data.mkdir(exist_ok=True)
        mount = 'mount -t tmpfs tmpfs "$0" && exec "$@"'
        return ["unshare", "--net", "--mount", "sh", "-c", mount, str(data)]

    def kill(self) -> None:
        """SIGKILL for the engine; the containerd that it keeps goes with it, the containers stay."""
        self._process.kill()
        self._process.wait()
        pid_file = self._directory / "e/containerd/containerd.pid"
        _wait_for_end(int(pid_file.read_text()))
        # Where nobody collects the dead, the next engine would take containerd for alive and wait for it.
        pid_file.unlink()

    def freeze(self) -> None:
        """Returns when none of its threads runs any more."""
        self._process.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + WAIT_SECONDS
        while any(_state_of(task) != "T" for task in Path(f"/proc/{self._process.pid}/task").iterdir()):
            assert time.monotonic() < deadline, "the engine does not stop"
            time.sleep(0.01)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        self.thaw()
        if self._process.poll() is not None:
            self.start()
        with contextlib.closing(client_of(self.url)) as client:
            for row in client.containers(all=True):
                client.remove_container(row["Id"], force=True, v=True)
        self._process.terminate()
        try:
            self._process.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        for mount in (f"{self._directory}/e/netns/default", f"{self._directory}/d"):
            subprocess.run(["umount", "-l", mount], capture_output=True, check=False)


def _state_of(task: Path) -> str:
    """Of a thread: T where it is stopped."""
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


def _wait_for_end(process_id: int) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, f"process {process_id} does not end"
            time.sleep(0.01)


@contextlib.contextmanager
def own_engine(engine: str, image: str, *options: str, files: Files = "readable") -> Iterator[OwnEngine]:
    """An engine of one's own that has the image, copied from ``engine``. ``files``: whether this process can read
    those that it keeps; hidden ones are on a mount of its own, and end with it."""
    with _directory() as directory:
        own = OwnEngine(directory, options, files)
        own.start()
        try:
            with (
                contextlib.closing(client_of(engine)) as source,
                contextlib.closing(client_of(own.url)) as target,
            ):
                target.load_image(b"".join(source.get_image(image)))
            yield own
        finally:
            own.end()


@dataclass(frozen=True)
class Registry:
    """An image registry on loopback; ``address`` is "host:port"."""

    address: str
    directory: Path

    def credentials(self, password: str = REGISTRY_PASSWORD) -> Path:
        """A file as ``docker login`` writes it."""
        path = self.directory / f"{password}.json"
        secret = base64.b64encode(f"{REGISTRY_USER}:{password}".encode()).decode()
        path.write_text(json.dumps({"auths": {self.address: {"auth": secret}}}))
        return path


@contextlib.contextmanager
def a_registry(*, with_password: bool) -> Iterator[Registry]:
    program = need("docker-registry", "docker-registry")
    with _directory() as directory:
        address = f"127.0.0.1:{_free_port()}"
        auth = f"auth: {{htpasswd: {{realm: test, path: {directory}/htpasswd}}}}\n" if with_password else ""
        (directory / "htpasswd").write_text(_HTPASSWD)
        (directory / "config.yml").write_text(
            "version: 0.1\n"
            f"storage: {{filesystem: {{rootdirectory: {directory}/images}}}}\n"
            f"http: {{addr: '{address}'}}\n{auth}"
        )
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [program, "serve", str(directory / "config.yml")], stdout=log, stderr=log
            )
        try:
            _wait_for_listener(address, process)
            yield Registry(address, directory)
        finally:
            process.kill()
            process.wait()


def _wait_for_listener(address: str, process: subprocess.Popen[bytes]) -> None:
    host, _, port = address.partition(":")
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            assert process.poll() is None, "the registry ended"
            assert time.monotonic() < deadline, "the registry does not listen"
            time.sleep(0.02)
        else:
            return
