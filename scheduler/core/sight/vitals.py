"""What a server says of itself, and which of that is bad. Pure.

One bad reading is noise: an *ailment* remembers since when its vital has been bad in every report, so that a verdict
can ask for trouble that lasts.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from galactica.scheduler.core.model.policy import VitalLimits
from galactica.scheduler.core.model.rules import Rule

OUT_OF_SPACE = frozenset({"ENOSPC", "EDQUOT"})
"""Errors of a disk that is full in a way that its fraction does not tell: of inodes, or of a quota."""


class Vitals(Struct, frozen=True):
    """Fractions are 0..1, pressures PSI's "some avg10" in percent; None where it cannot be known."""

    cpu_fraction: float = 0.0
    memory_fraction: float = 0.0
    disk_fraction: float = 0.0
    load_1m: float = 0.0
    pressure_cpu: float | None = None
    pressure_memory: float | None = None
    pressure_io: float | None = None
    engine_latency_ms: float | None = None
    """Negative: an engine does not answer."""
    clock_offset_ms: float | None = None
    disk_error: str | None = None
    """Why the agent could not write a small file below its data directory ("EROFS"); empty: it could."""
    kernel_errors: int | None = None
    """Lines about failing hardware in the kernel's log, in the last minute."""
    foreign_cells: int = 0
    """Cells of other fleets on the server."""
    agent_lacks: str = ""
    """What the agent itself lacked since its reading before ("EMFILE"); empty: nothing."""
    unread: tuple[str, ...] = ()
    """Names of vitals that could not be read; their values say nothing."""

    @property
    def engine_hangs(self) -> bool:
        return self.engine_latency_ms is not None and self.engine_latency_ms < 0


class Ailment(Struct, frozen=True):
    """One vital that has been bad in ``reports`` reports, from ``since`` to ``at``. ``says``: its newest value."""

    rule: str
    says: str
    since: float
    at: float
    reports: int = 1

    def lasts(self, now: float, limits: VitalLimits) -> bool:
        return self.reports >= limits.ailing_reports and now - self.since >= limits.ailing_seconds


def _disk_full(vitals: Vitals, limits: VitalLimits) -> str:
    if vitals.disk_error in OUT_OF_SPACE:
        return f"its disk takes no new files ({vitals.disk_error})"
    if vitals.disk_fraction < limits.disk_fraction:
        return ""
    return f"its disk is {vitals.disk_fraction:.1%} full, {limits.disk_fraction:.0%} is the limit"


def _disk_read_only(vitals: Vitals, _: VitalLimits) -> str:
    if not vitals.disk_error or vitals.disk_error in OUT_OF_SPACE:
        return ""
    return f"its disk is not writable ({vitals.disk_error})"


def _engine_hung(vitals: Vitals, _: VitalLimits) -> str:
    return "its engine does not answer" if vitals.engine_hangs else ""


def _clock_off(vitals: Vitals, limits: VitalLimits) -> str:
    offset_ms = vitals.clock_offset_ms
    if offset_ms is None or abs(offset_ms) <= limits.clock_offset_ms:
        return ""
    return (
        f"its clock is off by {offset_ms / 1_000:+.1f} s, {limits.clock_offset_ms / 1_000:g} s is the limit"
    )


def _memory_pressure(vitals: Vitals, limits: VitalLimits) -> str:
    pressure = vitals.pressure_memory
    if pressure is not None and pressure >= limits.memory_pressure_percent:
        return (
            f"its tasks wait for memory {pressure:.0f} % of the time, "
            f"{limits.memory_pressure_percent:g} % is the limit"
        )
    if vitals.memory_fraction < limits.memory_fraction:
        return ""
    return f"its memory is {vitals.memory_fraction:.1%} full, {limits.memory_fraction:.0%} is the limit"


def _kernel_errors(vitals: Vitals, limits: VitalLimits) -> str:
    count = vitals.kernel_errors
    if count is None or count < limits.kernel_errors_per_minute:
        return ""
    return (
        f"its kernel logged {count} hardware errors within a minute, "
        f"{limits.kernel_errors_per_minute} is the limit"
    )


def _agent_starved(vitals: Vitals, _: VitalLimits) -> str:
    return f"its agent lacks what it needs ({vitals.agent_lacks})" if vitals.agent_lacks else ""


AILMENT_RULES: dict[str, Callable[[Vitals, VitalLimits], str]] = {
    Rule.DISK_FULL: _disk_full,
    Rule.DISK_READ_ONLY: _disk_read_only,
    Rule.ENGINE_HUNG: _engine_hung,
    Rule.CLOCK_OFF: _clock_off,
    Rule.MEMORY_PRESSURE: _memory_pressure,
    Rule.KERNEL_ERRORS: _kernel_errors,
    Rule.AGENT_STARVED: _agent_starved,
}
"""In the order in which they are told: rule to the words for a bad value, empty where it is good."""


def ailments(
    before: tuple[Ailment, ...], vitals: Vitals, limits: VitalLimits, at: float
) -> tuple[Ailment, ...]:
    """Fold one reading in. One that has gaps shows what is bad, but not that anything is good again."""
    known = {one.rule: one for one in before if at - one.at <= limits.stale_seconds}
    after = []
    for rule, words in AILMENT_RULES.items():
        says = words(vitals, limits)
        old = known.get(rule)
        if not says:
            if old and vitals.unread:
                after.append(old)
            continue
        after.append(
            Ailment(rule, says, old.since, at, old.reports + 1) if old else Ailment(rule, says, at, at)
        )
    return tuple(after)
