"""The blocking half of a start: creates the cell's folder, keeper, main process and record. Runs in a thread."""

import contextlib
import hashlib
import io
import marshal
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from galactica.agent.clock import boot_id
from galactica.agent.runtimes.logs import CellLog, last_lines
from galactica.agent.runtimes.port import StartFailed
from galactica.agent.runtimes.process import groups as process_groups
from galactica.agent.runtimes.process import limits as process_limits
from galactica.agent.runtimes.process import plan as process_plan
from galactica.agent.runtimes.process import record as process_record
from galactica.agent.runtimes.process import table as process_table
from galactica.agent.runtimes.process.leftovers import Leftovers
from galactica.agent.runtimes.process.limits import Limiter
from galactica.agent.runtimes.process.record import Record
from galactica.agent.runtimes.process.table import Process
from galactica.v1 import link_pb2

HANDSHAKE_SECONDS = 10.0
ANSWER_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Folder:
    """The folder of a cell. The cell itself uses only ``scratch``; the rest belongs to the agent."""

    path: Path

    @property
    def record(self) -> Path:
        return self.path / "record"

    @property
    def log(self) -> Path:
        return self.path / "log"

    @property
    def scratch(self) -> Path:
        return self.path / "scratch"

    @property
    def group_name(self) -> str:
        """A name that is unique on this machine: all its agents may create control groups in one place."""
        return f"{group_prefix(self.path.parent)}{_digest(self.path)}"


def group_prefix(home: Path) -> str:
    """How the names of the control groups of all cells in this folder begin."""
    return f"galactica-{_digest(home)}-"


def _digest(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]


def homes_of(directory: Path, fleet: str, fleet_id: str) -> tuple[Path, Path]:
    """The folders of that fleet's cells: the one from before fleets had an id, and the one of today."""
    name = folder_name(fleet)
    return directory.absolute() / name, directory.absolute() / f"{name}@{fleet_id}"


def folder_name(text: str) -> str:
    """A unique name for the text, safe as a file name and never hidden."""
    name = quote(text, safe="")
    return "%2E" + name[1:] if name.startswith(".") else name


def launch(
    order: link_pb2.Order,
    ports: dict[str, int],
    folder: Folder,
    limiter: Limiter,
    leftovers: Leftovers | None = None,
) -> Record:
    """Start the cell. Returns when its exec has succeeded. Raises StartFailed; then nothing of it is left."""
    leftovers = leftovers or Leftovers(())
    try:
        plan = process_plan.plan(order, ports, folder.scratch)
        _make(folder, leftovers)
        groups = limiter.make(folder.group_name, order.spec.resources)
        nobody = Process(0, 0)
        return _launch(Record(order, boot_id(), nobody, nobody, ports, groups, 0.0), plan, folder, limiter)
    except OSError as error:
        leftovers.discard(folder.path)
        raise StartFailed(f"cannot start {order.cell_id}: {error}") from error
    except StartFailed:
        leftovers.discard(folder.path)
        raise


def _make(folder: Folder, leftovers: Leftovers) -> None:
    if folder.path.exists():
        leftovers.discard(folder.path)
    for directory in (folder.path, folder.scratch, folder.scratch / "tmp"):
        directory.mkdir(mode=0o700, parents=True)


def _launch(draft: Record, plan: process_plan.Plan, folder: Folder, limiter: Limiter) -> Record:
    records = [draft]

    def prepare(reaper: Process, keeper: Process, main: Process) -> None:
        """Called between fork and exec: sets the limits and stores the record before the cell's program runs."""
        process_limits.limit_process(main.pid, draft.order.spec.resources, limiter)
        process_limits.join(draft.groups, main.pid)
        records.append(replace(draft, reaper=reaper, keeper=keeper, main=main, started_at=time.time()))
        process_record.write(folder.record, records[-1])

    try:
        _start_keeper(draft.order, plan, folder, prepare)
    except BaseException:
        process_groups.doom(draft.groups)
        process_table.kill_until_none(lambda: process_groups.members(draft.groups))
        process_groups.remove(draft.groups)
        raise
    return records[-1]


def _start_keeper(
    order: link_pb2.Order,
    plan: process_plan.Plan,
    folder: Folder,
    prepare: Callable[[Process, Process, Process], None],
) -> None:
    """Raises StartFailed if the cell does not run; then its processes are gone."""
    sleep = shutil.which("sleep", path=process_plan.DEFAULT_PATH)
    if sleep is None:
        raise StartFailed(
            "this server has no sleep command, which is needed to keep a cell's exit status: install coreutils"
        )
    keeper = [sleep, "infinity"]
    orders = marshal.dumps((str(plan.scratch), plan.executable, plan.command, plan.environment, keeper))
    orders_read, orders_write = _pipe()
    replies_read, replies_write = _pipe()
    with orders_read, orders_write, replies_read, replies_write:
        deadline = time.monotonic() + HANDSHAKE_SECONDS
        reaper = process_table.identify(_spawn(order, folder, orders_read, replies_write))
        orders_read.close()
        replies_write.close()
        try:
            _send(orders_write, orders)
            first = _receive(replies_read, deadline, until=b"\n")
            main = _forked_pid(first, folder)
            prepare(reaper, process_table.parent_of(main), process_table.identify(main))
            _send(orders_write, b"!")
            _check_exec(plan, _receive(replies_read, deadline))
        except BaseException:
            process_table.kill_until_none(lambda: process_table.descendants([reaper]))
            process_table.kill_and_reap(reaper)
            raise


def _pipe() -> tuple[io.FileIO, io.FileIO]:
    read, write = os.pipe()
    return io.FileIO(read, "r"), io.FileIO(write, "w")


def _spawn(order: link_pb2.Order, folder: Folder, orders: io.FileIO, replies: io.FileIO) -> int:
    """Start the launcher and return its pid. It leads its own session, so that signals to the agent do not reach it."""
    launcher = Path(__file__).with_name("launcher.py")
    replies_to = 3
    appended = os.open(folder.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", str(launcher), str(replies_to)],
            process_plan.keeper_environment(order, folder.scratch),
            file_actions=[
                (os.POSIX_SPAWN_DUP2, orders.fileno(), 0),
                (os.POSIX_SPAWN_DUP2, appended, 1),
                (os.POSIX_SPAWN_DUP2, appended, 2),
                (os.POSIX_SPAWN_DUP2, replies.fileno(), replies_to),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
        )
    finally:
        os.close(appended)


def _send(pipe: io.FileIO, data: bytes) -> None:
    # If the launcher has ended, reading its replies shows that.
    with contextlib.suppress(BrokenPipeError):
        while data:
            data = data[pipe.write(data) or 0 :]


def _receive(pipe: io.FileIO, deadline: float, until: bytes = b"") -> bytes:
    """The launcher's output up to ``until`` or its end. Raises StartFailed after the deadline."""
    data = b""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    while not (until and data.endswith(until)):
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1_000):
            raise StartFailed(
                f"the cell did not start within {HANDSHAKE_SECONDS:.0f} s; this server may be overloaded"
            )
        chunk = pipe.read(ANSWER_BYTES)
        if not chunk:
            break
        data += chunk
    return data


def _forked_pid(line: bytes, folder: Folder) -> int:
    if line.endswith(b"\n"):
        return int(line)
    lines = last_lines(CellLog(folder.log).tail(1))
    raise StartFailed(f"the cell's launcher failed: {lines[-1] if lines else 'it wrote no error'}")


def _check_exec(plan: process_plan.Plan, answer: bytes) -> None:
    if answer != b"ok":
        raise StartFailed(f"cannot run {plan.executable}: {answer.decode(errors='replace')}")
