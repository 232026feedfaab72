"""A Docker Engine for the tests: the one that runs, or one of our own; and the images that cells are made from.

Our own engine leaves nothing behind: it lives in a temporary directory, has a bridge of its own and sets neither
packet filter rules nor kernel parameters (published ports go through the engine's own proxy). It can stand
beside other engines on the machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import ipaddress
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker
import docker.errors
import psutil
import requests.exceptions

from tests.support.processes import below

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_HOST = "unix:///var/run/docker.sock"
HELLO_1 = "galactica-test/hello:1"
HELLO_2 = "galactica-test/hello:2"
HOW_TO_GET_AN_ENGINE = (
    "start one (apt-get install docker.io; systemctl start docker) or set DOCKER_HOST, "
    "or run the tests as root with `make test`, which starts an engine of its own and stops it"
)

_START_SECONDS = 60.0
_STOP_SECONDS = 30.0
_PROGRAMS = {"dockerd": "docker.io", "ip": "iproute2", "iptables": "iptables", "setpriv": "util-linux"}
# One second into the epoch: the same content gives the same archive.
_MTIME = 1


class NoEngine(Exception):
    """No engine answers and none can be started; the message says what is missing and how to get it."""


def configured_host() -> str:
    """Where an engine is looked for: ``DOCKER_HOST``, else Docker's default socket."""
    return os.environ.get("DOCKER_HOST") or DEFAULT_HOST


def client_of(host: str, timeout_seconds: int = 60) -> Any:
    """Raises docker.errors.DockerException where no engine answers."""
    return docker.APIClient(host, version="auto", timeout=timeout_seconds)


def answers(host: str) -> bool:
    try:
        client_of(host, timeout_seconds=5).close()
    except (docker.errors.DockerException, requests.exceptions.RequestException):
        return False
    return True


class OwnEngine:
    """A dockerd in a temporary directory: ``start``, use ``host``, ``stop``. Needs root.

    ``stop`` may be called at any moment, also when ``start`` has failed half-way, and more than once.
    """

    def __init__(self) -> None:
        # Short, since a socket's path must fit into 108 characters.
        self.directory = Path(tempfile.mkdtemp(prefix="galactica-engine-", dir="/tmp"))
        self.host = f"unix://{self.directory}/sock"
        # The kernel takes 15 characters.
        self._bridge = f"gal{self.directory.name[-8:]}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when the engine answers. Raises NoEngine with the end of its log."""
        self._make_bridge()
        with (self.directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + _START_SECONDS
        while not answers(self.host):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise NoEngine(f"dockerd does not come up; the end of its log:\n{self._log_tail()}")
            time.sleep(0.05)

    def stop(self) -> None:
        with contextlib.suppress(docker.errors.DockerException, requests.exceptions.RequestException):
            self._remove_containers()
        if self._process is not None:
            _end(self._process)
        self._kill_what_is_left()
        for mount in self._mounts():
            subprocess.run(["umount", "-l", mount], check=False, stderr=subprocess.DEVNULL)
        subprocess.run(["ip", "link", "delete", self._bridge], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _command(self) -> list[str]:
        at = str(self.directory)
        return [
            # It ends with us, even when we are killed.
            *("setpriv", "--pdeathsig", "TERM"),
            *("dockerd", "--host", self.host, "--pidfile", f"{at}/pid"),
            *("--data-root", f"{at}/data", "--exec-root", f"{at}/exec"),
            *("--bridge", self._bridge, "--iptables=false", "--ip-masq=false", "--ip-forward=false"),
            *("--config-file", f"{at}/daemon.json", "--log-level", "warn"),
        ]

    def _make_bridge(self) -> None:
        (self.directory / "daemon.json").write_text("{}")
        network = _free_network()
        gateway = f"{network[1]}/{network.prefixlen}"
        _run("ip", "link", "add", self._bridge, "type", "bridge")
        _run("ip", "address", "add", gateway, "dev", self._bridge)
        _run("ip", "link", "set", self._bridge, "up")

    def _remove_containers(self) -> None:
        with contextlib.closing(client_of(self.host)) as client:
            for container in client.containers(all=True):
                with contextlib.suppress(docker.errors.NotFound):
                    client.remove_container(container["Id"], force=True, v=True)

    def _kill_what_is_left(self) -> None:
        """A dockerd that had to be killed leaves its containerd and shims, which name our directory, and the cells."""
        needle = f"{self.directory}/"
        ours: set[psutil.Process] = set()
        for process in psutil.process_iter(["cmdline"]):
            if process.pid != os.getpid() and any(needle in word for word in process.info["cmdline"] or ()):
                with contextlib.suppress(psutil.NoSuchProcess):
                    ours |= {process, *process.children(recursive=True)}
        for process in ours:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(ours, _STOP_SECONDS)
        for container in (self.directory / "data" / "containers").glob("*"):
            for group in below(Path("/sys/fs/cgroup")):
                if container.name in group.name:
                    with contextlib.suppress(OSError):  # a file, or not empty
                        group.rmdir()

    def _mounts(self) -> list[str]:
        """Mount points below our directory, the innermost first."""
        mounted = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
        return sorted((path for path in mounted if path.startswith(f"{self.directory}/")), reverse=True)

    def _log_tail(self) -> str:
        return (self.directory / "log").read_text(errors="replace")[-3_000:]


@contextlib.contextmanager
def an_engine() -> Iterator[str]:
    """The host of the engine that runs, else of one of our own that ends with the block. Raises NoEngine."""
    if answers(configured_host()):
        yield configured_host()
        return
    _check_that_one_can_be_started()
    own = OwnEngine()
    try:
        own.start()
        yield own.host
    finally:
        own.stop()


def remove_fleet(host: str, fleet: str) -> None:
    """All containers of that fleet. Raises docker.errors.DockerException where no engine answers."""
    with contextlib.closing(client_of(host)) as client:
        for row in client.containers(all=True, filters={"label": f"galactica.fleet={fleet}"}):
            with contextlib.suppress(docker.errors.NotFound):
                client.remove_container(row["Id"], force=True, v=True)


def import_hello_images(host: str) -> None:
    """Make ``HELLO_1`` and ``HELLO_2`` where the engine lacks them. Raises NoEngine where busybox is missing.

    Each is a busybox whose httpd serves ``/srv``, with "hello 1" or "hello 2" in its index.html, and with that as
    its own command, on port 8080. They stay on the engine for the next run.
    """
    with contextlib.closing(client_of(host)) as client:
        for image in (HELLO_1, HELLO_2):
            _import_hello(client, image)


def _import_hello(client: Any, image: str) -> None:
    repository, version = image.split(":")
    archive = _hello_archive(version)
    digest = hashlib.sha256(archive).hexdigest()
    with contextlib.suppress(docker.errors.ImageNotFound):
        if (client.inspect_image(image)["Config"]["Labels"] or {}).get("galactica.test.content") == digest:
            return
    client.import_image_from_data(
        archive,
        repository=repository,
        tag=version,
        changes=[
            f"LABEL galactica.test.content={digest}",
            "ENV PATH=/bin",
            "WORKDIR /srv",
            f"CMD {json.dumps(['httpd', '-f', '-p', '8080'])}",
        ],
    )


def _hello_archive(version: str) -> bytes:
    busybox = _static_busybox()
    applets = set(_run(str(busybox), "--list").split()) - {"busybox"}
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, mode in (("bin", 0o755), ("etc", 0o755), ("srv", 0o755), ("tmp", 0o1777)):
            tar.addfile(_entry(name, tarfile.DIRTYPE, mode))
        for applet in sorted(applets):
            link = _entry(f"bin/{applet}", tarfile.SYMTYPE, 0o777)
            link.linkname = "busybox"
            tar.addfile(link)
        _add_file(tar, "bin/busybox", busybox.read_bytes(), 0o755)
        _add_file(tar, "etc/passwd", b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n", 0o644)
        _add_file(tar, "srv/index.html", f"hello {version}\n".encode(), 0o644)
    return archive.getvalue()


def _add_file(tar: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    entry = _entry(name, tarfile.REGTYPE, mode)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def _entry(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.mtime = kind, mode, _MTIME
    return entry


def _static_busybox() -> Path:
    path = shutil.which("busybox")
    # A program that needs the dynamic loader names it.
    if path is None or b"/ld-linux" in Path(path).read_bytes():
        raise NoEngine("no static busybox to make images from: apt-get install busybox-static")
    return Path(path)


def _check_that_one_can_be_started() -> None:
    nobody = f"no Docker Engine answers at {configured_host()}"
    if os.geteuid() != 0:
        raise NoEngine(f"{nobody}, and only root can start one: {HOW_TO_GET_AN_ENGINE}")
    missing = [package for program, package in _PROGRAMS.items() if shutil.which(program) is None]
    if missing:
        raise NoEngine(f"{nobody}, and one cannot be started: apt-get install {' '.join(missing)}")


def _free_network() -> ipaddress.IPv4Network:
    """A /24 that no route of this machine touches. Raises NoEngine."""
    routes = json.loads(_run("ip", "-json", "-4", "route", "show", "table", "all"))
    taken = [
        ipaddress.ip_network(route["dst"], strict=False) for route in routes if route["dst"] != "default"
    ]
    # From a random place on, so that two engines that start at once do not choose the same.
    first = int.from_bytes(os.urandom(1))
    for offset in range(256):
        network = ipaddress.IPv4Network((f"10.213.{(first + offset) % 256}.0", 24))
        if not any(network.overlaps(other) for other in taken if other.prefixlen > 0):
            return network
    raise NoEngine("no free network for a bridge in 10.213.0.0/16: remove a route from it")


def _run(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise NoEngine(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
