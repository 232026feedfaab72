"""``make demo``: nine cells on a pool of three servers on this machine, half a minute of killing, and the bill.

It starts the same things as a user: `galactica scheduler`, and `galactica apply` of a pool and a service. The pool's
servers are agents, started by the scheduler's own ``local`` provider. Then it kills cells from outside with kill -9,
and in the middle a whole server: its agent and everything that runs on it. At the end it removes everything that it
started. Exit code 0: each dead cell and the dead server were replaced, and the fleet is complete. Else 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TextIO, cast

os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from demo_bill import PICTURE_SIZE, Bill, Murder, paint
from demo_cells import CELLS, POOL, SERVERS, SERVICE, NoSuchRuntime, Runtime, choose_runtime, pool
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from galactica.scheduler.cli.client import Client, connect
from galactica.scheduler.cli.top_view import Picture, draw
from galactica.scheduler.providers.local import containers, processes
from galactica.scheduler.settings.context import context_path, read_context
from galactica.scheduler.settings.errors import CommandFailed
from galactica.scheduler.settings.streams import LossyStream, open_standard_streams
from galactica.v1 import operator_pb2

DRAW_EVERY_SECONDS = 0.25
STOP_SECONDS = 20.0
BIN = Path(sys.executable).parent


class DemoFailed(Exception):
    """The message is for people."""


class Tempo(NamedTuple):
    """Seconds. ``calm`` is longer than 5 s: a cell that dies within 5 s of being READY causes backoff, which the demo
    does not show."""

    calm: float
    every: float
    patience: float
    murders: int


@dataclass
class Demo:
    directory: Path
    runtime: Runtime
    tempo: Tempo
    console: Console
    fleet: str = f"demo-{os.getpid()}"
    scheduler: subprocess.Popen[bytes] | None = None
    bill: Bill = field(default_factory=Bill)
    events: list[operator_pb2.Event] = field(default_factory=list)
    says: str = ""
    most_dramatic: tuple[int, RenderableType] = (-1, "")
    """The frame with the most cells and servers that are not READY."""

    # --- starting and ending -----------------------------------------------------------------------------------

    def start(self) -> None:
        port, enrol_port = _free_ports(2)
        command: list[str | Path] = [
            BIN / "galactica",
            "scheduler",
            "--data",
            self.directory / "scheduler",
            "--fleet",
            self.fleet,
        ]
        command += ["--listen", f"127.0.0.1:{port}", "--enrol-listen", f"127.0.0.1:{enrol_port}"]
        with (self.directory / "scheduler.log").open("wb") as log:
            self.scheduler = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._wait_for_answer()
        # The service needs servers: wait for them first.
        self._apply(pool(self.runtime.name))
        self._galactica("wait", f"pool/{POOL}", "--ready", "--timeout", f"{self.tempo.patience:g}s")
        self._apply(self.runtime.service)

    def _apply(self, manifest: dict[str, object]) -> None:
        path = self.directory / f"{manifest['name']}.yaml"
        path.write_text(json.dumps(manifest))  # JSON is YAML
        self._galactica("apply", str(path))

    def _galactica(self, *words: str) -> None:
        """Run a command like a user. Raises DemoFailed."""
        done = subprocess.run([BIN / "galactica", *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise DemoFailed(f"galactica {' '.join(words)}: {done.stderr.strip()}")

    def _wait_for_answer(self) -> None:
        end = time.monotonic() + self.tempo.patience
        while True:
            with contextlib.suppress(DemoFailed):
                self._galactica("events", "-n", "0")
                return
            self._check(end, "the scheduler to answer")
            time.sleep(0.2)

    def _check(self, end: float, what: str) -> None:
        if self.scheduler is not None and self.scheduler.poll() is not None:
            raise DemoFailed(f"the scheduler ended by itself with exit code {self.scheduler.returncode}")
        if time.monotonic() > end:
            raise DemoFailed(f"timeout: waited {self.tempo.patience:g} s for {what}")

    def stop(self) -> None:
        """End the scheduler first, so that it orders nothing more; then its servers, which outlive it, with their
        cells."""
        if self.scheduler is not None:
            self.scheduler.terminate()
            try:
                self.scheduler.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.scheduler.kill()
                self.scheduler.wait()
        homes = sorted((self.directory / "scheduler" / "providers" / "local").glob(f"{POOL}.*"))
        _end_agents(homes)
        for home in homes:
            processes.kill_all_of(home)
            if self.runtime.name == "docker":
                containers.remove_all_of(self.fleet, self._fleet_id(), home.name.replace(".", "/", 1))

    def _fleet_id(self) -> str:
        try:
            return read_context(context_path(), self.fleet).fleet_id
        except CommandFailed:  # the scheduler never came up, so there are no containers
            return ""

    # --- the show ----------------------------------------------------------------------------------------------

    def run(self, client: Client) -> None:
        before = self.tempo.murders // 2
        self.says = f"{SERVERS} servers are ready, {CELLS} cells are ordered"
        with self._screen() as show:
            self._until(client, show, self._is_whole, "nine cells to be ready")
            self.says = "everything is ready; the murders begin in a moment"
            self._for(client, show, self.tempo.calm)
            self._murder_cells(client, show, range(before))
            dead = self._murder_server(client)
            self._until(client, show, self._has_recovered, "a new server, and all cells to be ready again")
            self.says = f"a new server has replaced the dead one: {dead.successor}"
            self._for(client, show, self.tempo.every)
            self._murder_cells(client, show, range(before, self.tempo.murders))
            self.says = "everything is ready again"
            self._for(client, show, self.tempo.every / 2)

    def _murder_cells(self, client: Client, show: Callable[[RenderableType], None], numbers: range) -> None:
        self._until(client, show, self._has_recovered, "the fleet to be complete before a murder")
        for number in numbers:
            self._murder_cell(client, number)
            self._for(client, show, self.tempo.every)
        self._until(client, show, self._has_recovered, "the fleet to be complete again")

    @contextlib.contextmanager
    def _screen(self) -> Iterator[Callable[[RenderableType], None]]:
        if not self.console.is_terminal:
            printed = ""

            def print_news(_: RenderableType) -> None:
                nonlocal printed
                if self.says != printed:
                    printed = self.says
                    self.console.print(
                        f"{time.strftime('%H:%M:%S')}  {printed}", highlight=False, soft_wrap=True
                    )

            yield print_news
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
        end = time.monotonic() + self.tempo.patience
        while True:
            picture = self._look(client)
            show(self._frame(picture))
            if condition(picture):
                return
            self._check(end, what)
            time.sleep(DRAW_EVERY_SECONDS)

    def _look(self, client: Client) -> Picture:
        stub = client.stub
        status = client.ask(stub.GetStatus, operator_pb2.GetStatusRequest())
        servers = client.ask(stub.ListServers, operator_pb2.ListServersRequest()).servers
        self._read_events(client)
        return Picture(time.time(), status, tuple(servers), tuple(_cells(client)), tuple(self.events))

    def _read_events(self, client: Client) -> None:
        after = self.events[-1].position if self.events else 0
        request = operator_pb2.WatchEventsRequest(from_position=after + 1)
        for answer in client.stream(client.stub.WatchEvents, request, timeout_seconds=5.0):
            for event in answer.events:
                self.events.append(event)
                self.bill.note(event)

    def _frame(self, picture: Picture) -> RenderableType:
        words = Text(f"{self.says}\n", style="bold yellow")
        frame = Group(words, draw(picture, "", self.console.size))
        drama = sum(cell.phase != "READY" for cell in picture.cells) if self.bill.server else 0
        if drama > self.most_dramatic[0]:
            self.most_dramatic = (drama, Group(words, draw(picture, "", PICTURE_SIZE)))
        return frame

    @staticmethod
    def _is_whole(picture: Picture) -> bool:
        ready = {group.name: group.ready for group in picture.status.groups}
        return picture.status.healthy and ready == {POOL: SERVERS, SERVICE: CELLS}

    def _has_recovered(self, picture: Picture) -> bool:
        return self._is_whole(picture) and self.bill.is_settled

    # --- murder -------------------------------------------------------------------------------------------------

    def _murder_cell(self, client: Client, number: int) -> None:
        """Kill a cell that was ready for long enough, on the server that has lost the fewest cells."""
        ready = [cell for cell in _cells(client) if cell.group == SERVICE and cell.phase == "READY"]
        if not ready:
            raise DemoFailed(f"no cell to kill: no cell of {SERVICE} is ready")
        old = [cell for cell in ready if cell.ready_at < time.time() - self.tempo.calm] or ready
        lost = Counter(murder.on for murder in self.bill.cells)
        victim = min(old, key=lambda cell: (lost[cell.server], cell.ready_at))
        self.says = f"murder {number + 1} of {self.tempo.murders}: kill -9 {victim.id} on {victim.server}"
        self.bill.cells.append(Murder(victim.id, victim.server, time.time()))
        self.runtime.kill([victim])

    def _murder_server(self, client: Client) -> Murder:
        """Kill a server's agent and cells at once, like a loss of power."""
        servers = client.ask(client.stub.ListServers, operator_pb2.ListServersRequest()).servers
        victim = sorted(servers, key=lambda server: server.id)[len(servers) // 2]
        cells = [cell for cell in _cells(client) if cell.server == victim.id]
        self.says = f"kill -9 of the whole server {victim.id}: its agent and its {len(cells)} cells"
        at = time.time()
        self.bill.server = Murder(victim.id, "", at)
        self.bill.its_cells = [Murder(cell.id, victim.id, at) for cell in cells]
        os.kill(_pid_of(victim), signal.SIGKILL)
        self.runtime.kill(cells)
        return self.bill.server


def _cells(client: Client) -> list[operator_pb2.Cell]:
    return list(client.ask(client.stub.ListCells, operator_pb2.ListCellsRequest()).cells)


def _pid_of(server: operator_pb2.Server) -> int:
    return int(server.provider_ref.removeprefix("pid:"))


def _end_agents(homes: list[Path]) -> None:
    """Ask the agents to end, with their cells, and wait for a while."""
    living = [process for home in homes if (process := processes.find(home))]
    descriptors = [pidfd for process in living if (pidfd := processes.open_pidfd(process)) is not None]
    for descriptor in descriptors:
        processes.send_signal(descriptor, signal.SIGTERM)
    end = time.monotonic() + STOP_SECONDS
    for descriptor in descriptors:
        select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
        os.close(descriptor)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for candidate in sockets:
            candidate.bind(("127.0.0.1", 0))
        return [candidate.getsockname()[1] for candidate in sockets]


# --- from the command line ---------------------------------------------------------------------------------------


def main() -> int:
    arguments = _arguments()
    console = _console()
    tempo = Tempo(arguments.calm, arguments.every, arguments.patience, arguments.murders)
    with tempfile.TemporaryDirectory(prefix="galactica-demo-") as directory:
        os.environ["GALACTICA_CONTEXT"] = str(Path(directory) / "context.json")
        os.environ.pop("GALACTICA_SCHEDULER", None)
        try:
            demo = Demo(Path(directory), choose_runtime(console, arguments.runtime), tempo, console)
        except NoSuchRuntime as failed:
            console.print(f"the demo cannot start: {failed}", style="bold red")
            return 1
        return _play(demo, arguments.svg)


def _console() -> Console:
    """Without a terminal its reader may go and its disk may be full; the demo plays on."""
    open_standard_streams()
    if sys.stdout.isatty():
        return Console(highlight=False)
    told = "({} lines could not be written)".format
    return Console(highlight=False, file=cast("TextIO", LossyStream(sys.stdout.fileno(), told)))


def _play(demo: Demo, svg: Path | None) -> int:
    console = demo.console
    try:
        console.print(f"starting a scheduler and a pool of {SERVERS} servers …", style="dim")
        demo.start()
        with connect(None) as client:
            demo.run(client)
    except (DemoFailed, CommandFailed) as failed:
        console.print(f"the demo failed: {failed}", style="bold red", soft_wrap=True)
        _show_logs(demo)
        return 1
    except KeyboardInterrupt:
        console.print("interrupted", style="dim")
        return 130
    finally:
        demo.stop()
    tables = list(demo.bill.tables())
    for table in tables:
        console.print(table)
    if svg:
        paint(svg, demo.most_dramatic[1], *tables)
    dead = len(demo.bill.cells) + len(demo.bill.its_cells)
    outcome = f"{dead} cells and 1 server died; {CELLS} cells on {SERVERS} servers are ready"
    console.print(f"the fleet replaced all its dead: {outcome}", style="bold green", soft_wrap=True)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Watch a fleet of nine cells on three servers replace its dead cells and servers."
    )
    parser.add_argument(
        "--svg", type=Path, metavar="FILE", help="draw the most dramatic moment and the bill into this file"
    )
    parser.add_argument(
        "--runtime",
        choices=("auto", "process", "docker"),
        default="auto",
        help="runtime of the cells (default: auto, which is docker if an engine answers)",
    )
    parser.add_argument("--murders", type=int, default=6, help="number of single cells to kill (default: 6)")
    parser.add_argument(
        "--every", type=float, default=2.0, metavar="SECONDS", help="pause between murders (default: 2)"
    )
    parser.add_argument(
        "--calm",
        type=float,
        default=6.0,
        metavar="SECONDS",
        help="pause before the first murder (default: 6)",
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="maximum time to wait for replacements (default: 60)",
    )
    return parser.parse_args()


def _show_logs(demo: Demo) -> None:
    logs = [
        demo.directory / "scheduler.log",
        *sorted(demo.directory.glob("scheduler/providers/local/*/agent.log")),
    ]
    for log in filter(Path.exists, logs):
        lines = log.read_text(errors="replace").splitlines()[-8:]
        demo.console.print(Text("\n".join([f"--- {log.parent.name}/{log.name}", *lines]), style="dim"))


if __name__ == "__main__":
    sys.exit(main())
