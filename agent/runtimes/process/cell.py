"""One process cell: watched while it lives, examined after its death, removed at the end."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import replace

from galactica.agent.clock import boot_id, now
from galactica.agent.core.model import Found, Running
from galactica.agent.runtimes.logs import CellLog, last_lines
from galactica.agent.runtimes.port import LAST_LINES, RuntimeFailure
from galactica.agent.runtimes.process import groups as process_groups
from galactica.agent.runtimes.process import memory as process_memory
from galactica.agent.runtimes.process import plan as process_plan
from galactica.agent.runtimes.process import record as process_record
from galactica.agent.runtimes.process import table as process_table
from galactica.agent.runtimes.process.launch import Folder
from galactica.agent.runtimes.process.leftovers import Leftovers
from galactica.agent.runtimes.process.record import Record
from galactica.agent.starved import lack_of
from galactica.v1 import cell_pb2

SIGNAL_EXIT_BASE = 128
"""Exit code after a signal: 128 + its number, as in shells and container engines."""

log = logging.getLogger(__name__)


class Cell:
    """Used by the event loop only; the functions below the class block and run in threads.

    ``died``: set as soon as its main process, its keeper or its reaper has ended. ``is_stopping``: the agent ends it,
    so its death is not reported. ``was_stopped``: it was found stopped by a signal, once or now.
    """

    def __init__(self, folder: Folder, record: Record, log_limit_bytes: int) -> None:
        self.folder = folder
        self.record = record
        self.log = CellLog(folder.log, log_limit_bytes)
        self.died = asyncio.Event()
        self.is_stopping = False
        self.is_gone = False
        self.was_stopped = False
        self._pidfds: list[int] = []
        self._examining = asyncio.Lock()

    @property
    def id(self) -> str:
        return self.record.order.cell_id

    def observe(self, on_death: Callable[["Cell"], None]) -> None:
        """Call ``on_death`` once: when the cell dies, or now if it is dead. Raises OSError; then call it again. Does
        nothing if the cell is observed, or has died."""
        if self.died.is_set() or self._pidfds:
            return

        def dead() -> None:
            if not self.died.is_set():
                self.unobserve()
                self.died.set()
                on_death(self)

        if self.record.autopsy is not None or not is_of_this_boot(self.record):
            dead()
            return
        for process in (self.record.main, *self.record.holders):
            try:
                descriptor = process_table.open_pidfd(process)
            except OSError:
                self.unobserve()
                raise
            if descriptor is None:
                dead()
                return
            self._pidfds.append(descriptor)
            asyncio.get_running_loop().add_reader(descriptor, dead)

    def unobserve(self) -> None:
        for descriptor in self._pidfds:
            asyncio.get_running_loop().remove_reader(descriptor)
            os.close(descriptor)
        self._pidfds.clear()

    def signal(self, name: str, on_death: Callable[["Cell"], None]) -> None:
        """Signal its main process's group, and let stopped processes hear of it. Raises OSError.

        No lack of descriptors keeps a cell alive: those by which it is observed are enough to end it."""
        try:
            _signal(self.record.main, name)
        except OSError as error:
            if not lack_of(error):
                raise
            self.unobserve()
            _signal(self.record.main, name)
            with contextlib.suppress(OSError):
                self.observe(on_death)

    async def examine(self) -> cell_pb2.Autopsy:
        """The autopsy. Kills the rest of the cell's processes first."""
        async with self._examining:
            if self.record.autopsy is not None:
                return self.record.autopsy
            autopsy = await asyncio.to_thread(post_mortem, self.record, self.folder, self.log)
            self.record = replace(self.record, autopsy=autopsy)
            return autopsy

    def running(self, host: str) -> Running:
        endpoints = {name: endpoint(host, number) for name, number in self.record.ports.items()}
        return Running(str(self.record.main.pid), endpoints, self.record.started_at, direct=endpoints)

    def found(self, host: str, doubt: str = "") -> Found:
        """``doubt``: why its state is unknown."""
        if doubt:
            return Found(self.record.order, None, doubt=doubt, runtime_id=str(self.record.main.pid))
        if self.record.autopsy is not None:
            return Found(self.record.order, None, self.record.autopsy)
        return Found(self.record.order, self.running(host))


def _signal(leader: process_table.Process, name: str) -> None:
    process_table.signal_group(leader, _number_of(name))
    # A stopped process hears of it only when it goes on.
    process_table.signal_group(leader, signal.SIGCONT)


def _number_of(name: str) -> int:
    """SIGTERM if the name is unknown: a misspelt signal must not keep a cell alive."""
    try:
        return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"]
    except KeyError:
        log.warning("unknown signal %r: sending SIGTERM instead", name)
        return signal.SIGTERM


def endpoint(host: str, number: int) -> str:
    return f"[{host}]:{number}" if ":" in host else f"{host}:{number}"


def post_mortem(record: Record, folder: Folder, written: CellLog) -> cell_pb2.Autopsy:
    """The autopsy of a dead cell. It is stored before the kernel's record of the exit is released.

    Blocks. Errors are logged; the autopsy is returned all the same. Only of an exclusive cell no death is told while
    something of it runs, since its successor may begin at once: raises RuntimeFailure.
    """
    cell_id, lived_seconds = record.order.cell_id, _lived_seconds(record)
    # Read before the rest is killed, so that this kill is not taken for the cause of death.
    main = process_table.look_at(record.main) if is_of_this_boot(record) else None
    autopsy = _how_it_ended(main) if is_of_this_boot(record) else _with_the_server()
    has_died_of_it = autopsy.signal == "SIGKILL" and process_memory.was_killed_for_it(
        record.main, record.groups
    )
    try:
        kill_all(record, folder)
    except RuntimeFailure as error:
        if record.order.spec.exclusive:
            raise
        log.warning("cannot kill all processes of the dead cell %s: %s", cell_id, error)
    if has_died_of_it:
        autopsy.oom_killed = True
        autopsy.reason = f"out of memory: {autopsy.reason}"
    autopsy.lived_seconds = lived_seconds
    autopsy.last_lines.extend(last_lines(_tail(written)))
    try:
        process_record.write(folder.record, replace(record, autopsy=autopsy))
    except OSError as error:
        # The keeper stays, so that the next agent can examine the death again.
        log.warning("cannot store the autopsy of %s: %s", cell_id, error)
        return autopsy
    end_holders(record)
    return autopsy


def _lived_seconds(record: Record) -> float:
    """0.0 if it is not known: nobody saw when its server went down."""
    if not is_of_this_boot(record):
        return 0.0
    return max(0.0, now() - record.main.start_ticks / os.sysconf("SC_CLK_TCK"))


def is_of_this_boot(record: Record) -> bool:
    return record.boot_id == boot_id()


def end_holders(record: Record) -> None:
    if is_of_this_boot(record):
        for process in record.holders:
            process_table.kill_and_reap(process)
        process_table.wait_until_reaped(record.main)


def _tail(written: CellLog) -> bytes:
    try:
        return written.tail(LAST_LINES)
    except OSError as error:
        return f"(cannot read the log: {error})".encode()


def _with_the_server() -> cell_pb2.Autopsy:
    return cell_pb2.Autopsy(reason="ended when its server went down")


def _how_it_ended(main: process_table.Stat | None) -> cell_pb2.Autopsy:
    if main is None:
        return cell_pb2.Autopsy(reason="ended together with its keeper process; the cause is unknown")
    if not main.has_ended:
        reason = "killed by SIGKILL, because somebody ended its keeper process"
        return _killed(signal.SIGKILL, reason)
    number = main.status & 0x7F
    if number:
        return _killed(number, f"killed by {signal_name(number)}")
    code = main.status >> 8
    return cell_pb2.Autopsy(reason=f"exited with {code}", exit_code=code)


def _killed(number: int, reason: str) -> cell_pb2.Autopsy:
    return cell_pb2.Autopsy(reason=reason, exit_code=SIGNAL_EXIT_BASE + number, signal=signal_name(number))


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def kill_all(record: Record, folder: Folder) -> None:
    """Kill all processes of the cell except its keeper and reaper. Blocks. Raises RuntimeFailure if a process does not
    end.

    They are all below the reaper, wherever they have moved: the kernel gives it every process whose parent has ended.
    If somebody has ended the reaper, control groups and the environment still tell most of them."""
    is_alive = is_of_this_boot(record)
    holders = record.holders if is_alive else ()
    has_reaper = is_alive and record.reaper is not None and process_table.look_at(record.reaper) is not None
    # Without control groups the children of commands that ran beside it are below no reaper.
    is_searched = is_alive and (not has_reaper or not record.groups)
    marker = process_plan.marker_of(folder.scratch)

    def find() -> set[int]:
        found = process_groups.members(record.groups)
        if holders:
            found |= process_table.descendants(holders)
        if is_searched:
            found |= process_table.marked(record.main, marker)
        return found

    process_groups.doom(record.groups)
    process_table.kill_until_none(find)


def sweep(record: Record, folder: Folder, leftovers: Leftovers) -> None:
    """End all processes of the cell, and remove its control groups and files. Blocks. Raises RuntimeFailure if a
    process does not end."""
    kill_all(record, folder)
    leftovers.discard_groups(record.groups)
    end_holders(record)
    leftovers.discard(folder.path)
