"""The vitals of this server: a few cheap readings from /proc, one small file written, and one ping of each engine."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from galactica.agent.health.disk import DiskTrial
from galactica.agent.health.kernel_log import KernelLog
from galactica.agent.runtimes.port import RuntimeUnavailable
from galactica.agent.seldom import Seldom
from galactica.agent.starved import LACKS, Lacks, lack_of
from galactica.v1 import cell_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from galactica.agent.runtimes.port import Runtime

PING_SECONDS = 2.0
PRESSURE = Path("/proc/pressure")
NOT_THE_DISK = {errno.errorcode[number] for number in LACKS - {errno.ENOSPC, errno.EDQUOT}}

log = logging.getLogger(__name__)


def capacity(data: Path) -> cell_pb2.Capacity:
    """The size of this server. Its disk is the one with the directory ``data``."""
    return cell_pb2.Capacity(
        cpu_millis=(os.cpu_count() or 1) * 1_000,
        memory_bytes=psutil.virtual_memory().total,
        disk_bytes=psutil.disk_usage(str(data)).total,
    )


def _cpu_seconds() -> tuple[float, float]:
    times = psutil.cpu_times()
    total = float(sum(times[:8]))  # user time already includes guest time
    return total - float(times.idle) - float(getattr(times, "iowait", 0.0)), total


@dataclass(slots=True)
class VitalsTaker:
    """``clock_offset_ms`` returns the link's newest measurement; None: not measured yet. ``lacks``: what the agent
    itself lacked, from all its parts."""

    data: Path
    runtimes: Iterable[Runtime]
    clock_offset_ms: Callable[[], float | None]
    pressure: Path = PRESSURE
    kernel_log: KernelLog = field(default_factory=KernelLog)
    lacks: Lacks = field(default_factory=Lacks)
    seldom: Seldom = field(default_factory=Seldom)
    _trial: DiskTrial = field(init=False)
    _busy_and_all: tuple[float, float] = field(default_factory=_cpu_seconds)

    def __post_init__(self) -> None:
        self._trial = DiskTrial(self.data)

    async def take(self) -> cell_pb2.Vitals:
        """Take the vitals now. The cpu fraction covers the time since the previous call.

        Each reading is apart from the others: one that fails is told as unread, neither as good nor as bad."""
        vitals = cell_pb2.Vitals()
        latency_ms = await self._latency_ms(vitals)
        if latency_ms is not None:
            vitals.engine_latency_ms = latency_ms
        disk_answers = await self._try_disk(vitals)
        readings: tuple[tuple[str, Callable[[], float | None]], ...] = (
            ("cpu_fraction", self._cpu_fraction),
            ("memory_fraction", lambda: psutil.virtual_memory().percent / 100),
            ("disk_fraction", lambda: self._disk_fraction(disk_answers=disk_answers)),
            ("load_1m", lambda: os.getloadavg()[0]),
            ("pressure_cpu", lambda: pressure_avg10(self.pressure / "cpu")),
            ("pressure_memory", lambda: pressure_avg10(self.pressure / "memory")),
            ("pressure_io", lambda: pressure_avg10(self.pressure / "io")),
            ("clock_offset_ms", self.clock_offset_ms),
            ("kernel_errors", lambda: self.kernel_log.count(time.monotonic())),
            ("foreign_cells", lambda: sum(runtime.foreign for runtime in self.runtimes)),
        )
        for name, reading in readings:
            try:
                value = reading()
            except Exception as error:  # noqa: BLE001 - the outermost edge of one reading: the others go on
                self._failed(vitals, name, error)
            else:
                if value is not None:
                    setattr(vitals, name, value)
        vitals.agent_lacks = self.lacks.take()
        return vitals

    def _failed(self, vitals: cell_pb2.Vitals, name: str, error: Exception) -> None:
        vitals.unread.append(name)
        if not self.lacks.note_if(error, f"read {name}") and self.seldom.is_time(name):
            log.error("vital not read name=%s", name, exc_info=error)

    async def _try_disk(self, vitals: cell_pb2.Vitals) -> bool:
        """Whether the disk answers. That the agent has no free file descriptor is no fault of the disk."""
        try:
            error = await self._trial.error()
        except Exception as failure:  # noqa: BLE001 - as above
            self._failed(vitals, "disk_error", failure)
            return True
        if error in NOT_THE_DISK:
            vitals.unread.append("disk_error")
            self.lacks.note(error, "write to the disk")
        else:
            vitals.disk_error = error
        return error != errno.errorcode[errno.ETIMEDOUT]

    def _disk_fraction(self, *, disk_answers: bool) -> float:
        """A disk that hangs is not asked: who asks would wait for ever, and the whole agent with it."""
        if not disk_answers:
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        return float(psutil.disk_usage(str(self.data)).percent / 100)

    def _cpu_fraction(self) -> float:
        busy_before, all_before = self._busy_and_all
        busy, total = self._busy_and_all = _cpu_seconds()
        return min(1.0, max(0.0, (busy - busy_before) / (total - all_before))) if total > all_before else 0.0

    async def _latency_ms(self, vitals: cell_pb2.Vitals) -> float | None:
        """The slowest engine's latency; negative if an engine does not answer, None if there is no engine or it cannot
        be asked."""
        slowest: float | None = None
        for runtime in self.runtimes:
            try:
                async with asyncio.timeout(PING_SECONDS):
                    seconds = await runtime.ping()
            except Exception as error:  # noqa: BLE001 - as above
                if isinstance(error, RuntimeUnavailable | TimeoutError) and not lack_of(error):
                    return -1.0
                self._failed(vitals, "engine_latency_ms", error)
                return None
            if seconds is not None:
                slowest = max(slowest or 0.0, seconds * 1_000)
        return slowest


def pressure_avg10(path: Path) -> float | None:
    """The "some avg10" value of PSI in percent; None if the kernel does not offer it. Raises OSError if the agent
    lacks a file descriptor for it."""
    try:
        line = path.read_text("ascii").partition("\n")[0]
    except OSError as error:
        if lack_of(error):
            raise
        return None
    for word in line.split():
        name, _, value = word.partition("=")
        if name == "avg10":
            return float(value)
    return None
