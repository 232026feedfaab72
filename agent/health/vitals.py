"""The vitals of this server: a few cheap readings from /proc, one small file written, and one ping of each engine."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from galactica.agent.health.disk import DiskTrial
from galactica.agent.health.kernel_log import KernelLog
from galactica.agent.runtimes.port import RuntimeUnavailable
from galactica.v1 import cell_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from galactica.agent.runtimes.port import Runtime

PING_SECONDS = 2.0
PRESSURE = Path("/proc/pressure")


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
    """``clock_offset_ms`` returns the link's newest measurement; None: not measured yet."""

    data: Path
    runtimes: Iterable[Runtime]
    clock_offset_ms: Callable[[], float | None]
    pressure: Path = PRESSURE
    kernel_log: KernelLog = field(default_factory=KernelLog)
    _trial: DiskTrial = field(init=False)
    _busy_and_all: tuple[float, float] = field(default_factory=_cpu_seconds)

    def __post_init__(self) -> None:
        self._trial = DiskTrial(self.data)

    async def take(self) -> cell_pb2.Vitals:
        """Take the vitals now. The cpu fraction covers the time since the previous call."""
        latency_ms = await self._latency_ms()
        disk_error = await self._trial.error()
        return cell_pb2.Vitals(
            cpu_fraction=self._cpu_fraction(),
            memory_fraction=psutil.virtual_memory().percent / 100,
            disk_fraction=_disk_fraction(self.data),
            load_1m=os.getloadavg()[0],
            pressure_cpu=pressure_avg10(self.pressure / "cpu"),
            pressure_memory=pressure_avg10(self.pressure / "memory"),
            pressure_io=pressure_avg10(self.pressure / "io"),
            engine_latency_ms=latency_ms,
            clock_offset_ms=self.clock_offset_ms(),
            disk_error=disk_error,
            kernel_errors=self.kernel_log.count(time.monotonic()),
            foreign_cells=sum(runtime.foreign for runtime in self.runtimes),
        )

    def _cpu_fraction(self) -> float:
        busy_before, all_before = self._busy_and_all
        busy, total = self._busy_and_all = _cpu_seconds()
        return min(1.0, max(0.0, (busy - busy_before) / (total - all_before))) if total > all_before else 0.0

    async def _latency_ms(self) -> float | None:
        """The slowest engine's latency; negative if an engine does not answer, None if there is no engine."""
        slowest: float | None = None
        for runtime in self.runtimes:
            try:
                async with asyncio.timeout(PING_SECONDS):
                    seconds = await runtime.ping()
            except (RuntimeUnavailable, TimeoutError):
                return -1.0
            if seconds is not None:
                slowest = max(slowest or 0.0, seconds * 1_000)
        return slowest


def _disk_fraction(data: Path) -> float:
    """0 if the disk does not say how full it is; the disk check reports that error."""
    try:
        return psutil.disk_usage(str(data)).percent / 100
    except OSError:
        return 0.0


def pressure_avg10(path: Path) -> float | None:
    """The "some avg10" value of PSI in percent; None if the kernel does not offer it."""
    try:
        line = path.read_text("ascii").partition("\n")[0]
    except OSError:
        return None
    for word in line.split():
        name, _, value = word.partition("=")
        if name == "avg10":
            return float(value)
    return None
