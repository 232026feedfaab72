"""The demo's manifests: a pool of local servers, and a service whose cells are containers or processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from galactica.v1 import operator_pb2

POOL, SERVICE = "rack", "web"
SERVERS = 3
CELLS = 9
IMAGE = "galactica-demo:1"
BUSYBOX = Path("/bin/busybox")
PROCESS_COMMAND = [sys.executable, "-m", "http.server", "{port.http}", "--bind", "127.0.0.1"]
DOCKER_COMMAND = ["httpd", "-f", "-p", "8080", "-h", "/"]


class NoSuchRuntime(Exception):
    """The message is for people."""


class Runtime(NamedTuple):
    name: str
    kill: Callable[[list[operator_pb2.Cell]], None]
    service: dict[str, object]


def pool(runtime: str) -> dict[str, object]:
    return {
        "kind": "pool",
        "name": POOL,
        "size": SERVERS,
        "provider": "local",
        "server": {"runtime": runtime},
    }


def _service(**changes: object) -> dict[str, object]:
    health = {"http": {"port": "http", "path": "/"}, "every": "250ms", "timeout": "2s", "boot_within": "30s"}
    return {"kind": "service", "name": SERVICE, "replicas": CELLS, "health": health, **changes}


def _kill_processes(cells: list[operator_pb2.Cell]) -> None:
    for cell in cells:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(cell.runtime_id), signal.SIGKILL)


def _kill_containers(cells: list[operator_pb2.Cell]) -> None:
    subprocess.run(["docker", "kill", *(cell.runtime_id for cell in cells)], capture_output=True, check=False)


def choose_runtime(console: Console, wanted: str) -> Runtime:
    """Docker if an engine answers and the demo's image can be created without a registry; else processes. ``wanted``:
    auto, process or docker. Raises NoSuchRuntime."""
    trouble = "" if wanted == "process" else _trouble_with_docker()
    if trouble and wanted == "docker":
        raise NoSuchRuntime(trouble)
    if trouble:
        console.print(f"{trouble}; so the cells are processes", style="dim")
    if trouble or wanted == "process":
        service = _service(
            runtime="process", command=PROCESS_COMMAND, ports={"http": "auto"}, stop={"grace": "2s"}
        )
        return Runtime("process", _kill_processes, service)
    service = _service(
        runtime="docker", image=IMAGE, command=DOCKER_COMMAND, ports={"http": 8080}, stop={"grace": "1s"}
    )
    return Runtime("docker", _kill_containers, service)


def _trouble_with_docker() -> str:
    """Why docker cannot be used; empty if it can."""
    if shutil.which("docker") is None or _docker("version") is None:
        return "no Docker Engine answers"
    if _docker("image", "inspect", IMAGE) is None and not _import_image():
        return f"no image for cells: {BUSYBOX} is missing (install busybox-static)"
    return ""


def _docker(*words: str) -> str | None:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=False, timeout=60)
    return done.stdout if done.returncode == 0 else None


def _import_image() -> bool:
    """Create an image with only a static busybox, without a registry."""
    if not BUSYBOX.is_file():
        return False
    with tempfile.TemporaryDirectory() as root:
        binaries = Path(root) / "bin"
        binaries.mkdir()
        shutil.copy(BUSYBOX, binaries / "busybox")
        for applet in ("sh", "httpd", "sleep"):
            (binaries / applet).symlink_to("busybox")
        (Path(root) / "index.html").write_text("one cell of many\n")
        with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as tar:
            done = subprocess.run(
                ["docker", "import", "-", IMAGE], stdin=tar.stdout, capture_output=True, check=False
            )
    return done.returncode == 0
