"""``make demo``: a fleet of nine cells on three agents of this machine, about half a minute of murder, and the bill.

It starts what a user would start (`galactica scheduler`, `galactica-agent`, `galactica apply`), then kills cells from
outside with kill -9, and at last one whole agent together with its cells. It ends everything that it started. Exit
code 0: each death was answered and the fleet is whole.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from galactica.v1 import operator_pb2
from rich.console import Console, ConsoleDimensions, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from scheduler.cli.client import Client, connect
from scheduler.cli.top_view import Picture, draw

AGENTS = ("earth", "mars", "venus")
CELLS = 9
CALM_SECONDS = 6.0
"""A cell that dies before it was READY for 5 s died early; the demo shows healing, not backoff."""
MURDERS = 6
MURDER_EVERY_SECONDS = 2.0
PATIENCE_SECONDS = 60.0
DRAW_EVERY_SECONDS = 0.25
PICTURE_SIZE = ConsoleDimensions(120, 26)
IMAGE = "galactica-demo:1"
BUSYBOX = Path("/bin/busybox")
BIN = Path(sys.executable).parent
_REMOTE_FONT = re.compile(r"@font-face \{.*?\}|<!-- Generated with Rich.*?-->", re.DOTALL)

PROCESS_COMMAND = [sys.executable, "-m", "http.server", "{port.http}", "--bind", "127.0.0.1"]
DOCKER_COMMAND = ["httpd", "-f", "-p", "8080", "-h", "/"]


class DemoFailed(Exception):
    """The message is for people."""


class Runtime(NamedTuple):
    name: str
    kill: Callable[[operator_pb2.Cell], None]
    service: dict[str, object]


@dataclass
class Murder:
    """Times are Unix seconds; those that are still to come are None."""

    victim: str
    how: str
    at: float
    seen_at: float | None = None
    ordered_at: float | None = None
    ready_at: float | None = None


@dataclass
class Demo:
    directory: Path
    runtime: Runtime
    console: Console
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    murders: list[Murder] = field(default_factory=list)
    events: list[operator_pb2.Event] = field(default_factory=list)
    says: str = ""
    most_dramatic: tuple[int, RenderableType] = (-1, "")
    """The frame with the most cells that are not READY."""

    # --- starting and ending -----------------------------------------------------------------------------------

    def start(self) -> None:
        port, enrol_port = _free_ports(2)
        self._spawn(
            "scheduler",
            [BIN / "galactica", "scheduler", "--data", self.directory / "scheduler", "--fleet", "demo"],
            ["--listen", f"127.0.0.1:{port}", "--enrol-listen", f"127.0.0.1:{enrol_port}"],
        )
        self._wait(lambda: self._galactica("status") is not None, "the scheduler to answer")
        token = json.loads(
            self._galactica("token", "create", "--uses", str(len(AGENTS)), "-o", "json") or "{}"
        )
        for name in AGENTS:
            command = [
                BIN / "galactica-agent",
                "--scheduler",
                f"127.0.0.1:{port}",
                "--id",
                name,
                "--stop-cells",
            ]
            command += ["--enrol", f"127.0.0.1:{enrol_port}", "--data", self.directory / name]
            command += ["--runtime", self.runtime.name, "--label", f"planet={name}"]
            self._spawn(name, command, GALACTICA_TOKEN=token["token"])
        self._wait(lambda: self._servers_ready() == len(AGENTS), "three agents to join")
        manifest = self.directory / "web.yaml"
        manifest.write_text(json.dumps(self.runtime.service))  # JSON is YAML
        if self._galactica("apply", str(manifest)) is None:
            raise DemoFailed(f"the manifest was refused; the logs are in {self.directory}")

    def _spawn(self, name: str, *command: list[object], **environment: str) -> None:
        with (self.directory / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [str(word) for words in command for word in words],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.processes[name] = process

    def _galactica(self, *words: str) -> str | None:
        """What the command line prints; None where it failed."""
        done = subprocess.run([BIN / "galactica", *words], capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else None

    def _servers_ready(self) -> int:
        servers = json.loads(self._galactica("servers", "-o", "json") or "[]")
        return sum(server["phase"] == "READY" for server in servers)

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            self._check_processes()
            if time.monotonic() > end:
                raise DemoFailed(f"waited {PATIENCE_SECONDS:g} s in vain for {what}")
            time.sleep(0.2)

    def _check_processes(self) -> None:
        for name, process in self.processes.items():
            if process.poll() not in (None, -signal.SIGKILL):
                raise DemoFailed(f"{name} ended by itself with exit code {process.returncode}")

    def stop(self) -> None:
        """Agents first, so that they end their cells; then the scheduler."""
        for process in reversed(self.processes.values()):
            if process.poll() is None:
                process.terminate()
        for process in reversed(self.processes.values()):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    # --- the show ----------------------------------------------------------------------------------------------

    def run(self, client: Client) -> None:
        self.says = "nine cells are ordered"
        with self._screen() as show:
            self._until(client, show, self._is_whole, "nine cells to be ready")
            self.says = "all is well; murder begins in a moment"
            self._for(client, show, CALM_SECONDS)
            for number in range(MURDERS):
                self._murder_cell(client, number)
                self._for(client, show, MURDER_EVERY_SECONDS)
            self._until(client, show, self._is_healed, "the fleet to be whole again")
            self._murder_agent(client)
            self._until(client, show, self._is_healed, "the fleet to be whole without an agent")
            self.says = "healed"
            self._for(client, show, 1.0)

    @contextlib.contextmanager
    def _screen(self) -> Iterator[Callable[[RenderableType], None]]:
        if not self.console.is_terminal:
            said = ""

            def tell(_: RenderableType) -> None:
                nonlocal said
                if self.says != said:
                    said = self.says
                    self.console.print(f"{time.strftime('%H:%M:%S')}  {said}", highlight=False)

            yield tell
            return
        with Live(console=self.console, auto_refresh=False, transient=True) as live:
            yield lambda picture: live.update(picture, refresh=True)

    def _for(self, client: Client, show: Callable[[RenderableType], None], seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            show(self._frame(self._look(client)))
            time.sleep(DRAW_EVERY_SECONDS)

    def _until(
        self,
        client: Client,
        show: Callable[[RenderableType], None],
        condition: Callable[[Picture], bool],
        what: str,
    ) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            picture = self._look(client)
            show(self._frame(picture))
            if condition(picture):
                return
            self._check_processes()
            if time.monotonic() > end:
                raise DemoFailed(f"waited {PATIENCE_SECONDS:g} s in vain for {what}")
            time.sleep(DRAW_EVERY_SECONDS)

    def _look(self, client: Client) -> Picture:
        stub = client.stub
        status = client.ask(stub.GetStatus, operator_pb2.GetStatusRequest())
        servers = client.ask(stub.ListServers, operator_pb2.ListServersRequest()).servers
        cells = client.ask(stub.ListCells, operator_pb2.ListCellsRequest()).cells
        self._read_events(client)
        return Picture(time.time(), status, tuple(servers), tuple(cells), tuple(self.events))

    def _read_events(self, client: Client) -> None:
        after = self.events[-1].position if self.events else 0
        request = operator_pb2.WatchEventsRequest(from_position=after + 1)
        for answer in client.stream(client.stub.WatchEvents, request, timeout_seconds=5.0):
            for event in answer.events:
                self.events.append(event)
                self._note(event)

    def _note(self, event: operator_pb2.Event) -> None:
        """Fill in the times of the murder that the event belongs to."""
        for murder in self.murders:
            if event.type == "CellCondemned" and event.cell == murder.victim:
                murder.seen_at = event.at
            elif event.type == "CellOrdered" and _replaces(event) == murder.victim:
                murder.ordered_at = event.at
            elif event.type == "CellReady" and event.cell == _successor(murder.victim):
                murder.ready_at = event.at

    def _frame(self, picture: Picture) -> RenderableType:
        words = Text(f"{self.says}\n", style="bold yellow")
        frame = Group(words, draw(picture, "", self.console.size))
        drama = sum(cell.phase != "READY" for cell in picture.cells) if self.murders else 0
        if drama > self.most_dramatic[0]:
            self.most_dramatic = (drama, Group(words, draw(picture, "", PICTURE_SIZE)))
        return frame

    @staticmethod
    def _is_whole(picture: Picture) -> bool:
        return picture.status.healthy and sum(group.ready for group in picture.status.groups) == CELLS

    def _is_healed(self, picture: Picture) -> bool:
        return self._is_whole(picture) and all(murder.ready_at for murder in self.murders)

    # --- murder -------------------------------------------------------------------------------------------------

    def _murder_cell(self, client: Client, number: int) -> None:
        cells = client.ask(client.stub.ListCells, operator_pb2.ListCellsRequest()).cells
        agent = AGENTS[number % len(AGENTS)]
        mine = [cell for cell in cells if cell.server == agent and cell.phase == "READY"]
        victim = min(mine, key=lambda cell: cell.ready_at)
        self._kill(
            victim, f"murder {number + 1} of {MURDERS}: kill -9 {victim.id} on {victim.server}", "cell"
        )

    def _murder_agent(self, client: Client) -> None:
        name = AGENTS[1]
        cells = client.ask(client.stub.ListCells, operator_pb2.ListCellsRequest()).cells
        mine = [cell for cell in cells if cell.server == name and cell.phase == "READY"]
        words = f"the whole agent {name} dies, and its {len(mine)} cells with it; its lease is 5 s"
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes[name].wait()
        for cell in mine:
            self._kill(cell, words, f"agent {name}")

    def _kill(self, victim: operator_pb2.Cell, words: str, how: str) -> None:
        self.says = words
        self.murders.append(Murder(victim.id, how, time.time()))
        self.runtime.kill(victim)

    def bill(self) -> RenderableType:
        """What each death took, in ms after the kill."""
        table = Table(title="how long each heal took, in ms after the kill", title_justify="left")
        for column, justify in (
            ("killed", "left"),
            ("how", "left"),
            ("seen", "right"),
            ("ordered", "right"),
            ("ready", "right"),
        ):
            table.add_column(column, justify=justify)  # type: ignore[arg-type]
        for murder in self.murders:
            table.add_row(murder.victim, murder.how, *(_ms(murder, at) for at in _stages(murder)))
        for name, pick in (("median", statistics.median), ("worst", max)):
            table.add_section()
            for how, murders in (
                ("cell", [m for m in self.murders if m.how == "cell"]),
                ("agent", [m for m in self.murders if m.how != "cell"]),
            ):
                columns = zip(*(_stages(m, m.at) for m in murders), strict=True)
                table.add_row(name, how, *(f"{pick(column) * 1e3:,.0f}" for column in columns))
        return table


def _stages(murder: Murder, since: float = 0.0) -> tuple[float, float, float]:
    return tuple((at or 0.0) - since for at in (murder.seen_at, murder.ordered_at, murder.ready_at))  # type: ignore[return-value]


def _ms(murder: Murder, at: float) -> str:
    return f"{(at - murder.at) * 1e3:,.0f}" if at else "-"


def _replaces(event: operator_pb2.Event) -> str:
    return str(json.loads(event.details_json or "{}").get("replaces", ""))


def _successor(cell_id: str) -> str:
    slot, _, generation = cell_id.rpartition(".")
    return f"{slot}.{int(generation) + 1}"


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _service(**changes: object) -> dict[str, object]:
    health = {"http": {"port": "http", "path": "/"}, "every": "250ms", "timeout": "2s", "boot_within": "30s"}
    return {"kind": "service", "name": "web", "replicas": CELLS, "health": health, **changes}


def _kill_process(cell: operator_pb2.Cell) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(cell.runtime_id), signal.SIGKILL)


def _kill_container(cell: operator_pb2.Cell) -> None:
    subprocess.run(["docker", "kill", cell.runtime_id], capture_output=True, check=False)


def choose_runtime(console: Console) -> Runtime:
    """Docker where an engine answers and the demo's image can be had without a registry, else processes."""
    processes = Runtime(
        "process",
        _kill_process,
        _service(runtime="process", command=PROCESS_COMMAND, ports={"http": "auto"}, stop={"grace": "2s"}),
    )
    if shutil.which("docker") is None or _docker("version") is None:
        console.print("no Docker Engine answers: the cells are processes", style="dim")
        return processes
    if _docker("image", "inspect", IMAGE) is None and not _import_image():
        console.print(
            f"no image for cells: {BUSYBOX} is not there (busybox-static); they are processes", style="dim"
        )
        return processes
    service = _service(
        runtime="docker", image=IMAGE, command=DOCKER_COMMAND, ports={"http": 8080}, stop={"grace": "1s"}
    )
    return Runtime("docker", _kill_container, service)


def _docker(*words: str) -> str | None:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=False, timeout=60)
    return done.stdout if done.returncode == 0 else None


def _import_image() -> bool:
    """An image of nothing but a static busybox: no registry is needed."""
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


def _paint(file: Path, *parts: RenderableType) -> None:
    """The README's picture."""
    canvas = Console(record=True, width=PICTURE_SIZE.width, file=io.StringIO(), highlight=False)
    for part in parts:
        canvas.print(part)
    picture = canvas.export_svg(title="make demo")
    file.write_text(_REMOTE_FONT.sub("", picture))  # a picture asks no other host for anything


def main() -> int:
    parser = argparse.ArgumentParser(description="Watch a fleet of nine cells replace its dead.")
    parser.add_argument(
        "--svg", type=Path, metavar="FILE", help="also draw the most dramatic moment and the bill"
    )
    arguments = parser.parse_args()
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="galactica-demo-") as directory:
        os.environ["GALACTICA_CONTEXT"] = str(Path(directory) / "context.json")
        os.environ.pop("GALACTICA_SCHEDULER", None)
        demo = Demo(Path(directory), choose_runtime(console), console)
        try:
            console.print("starting a scheduler and three agents …", style="dim")
            demo.start()
            with connect(None) as client:
                demo.run(client)
        except DemoFailed as failed:
            console.print(f"the demo failed: {failed}", style="bold red")
            _show_logs(demo)
            return 1
        except KeyboardInterrupt:
            console.print("ended by hand", style="dim")
            return 130
        finally:
            demo.stop()
        console.print(demo.bill())
        if arguments.svg:
            _paint(arguments.svg, demo.most_dramatic[1], demo.bill())
        console.print(
            f"the fleet healed completely: {len(demo.murders)} cells died, {CELLS} are ready",
            style="bold green",
        )
    return 0


def _show_logs(demo: Demo) -> None:
    for log in sorted(demo.directory.glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()[-8:]
        demo.console.print(Text("\n".join([f"--- {log.name}", *lines]), style="dim"))


if __name__ == "__main__":
    sys.exit(main())
