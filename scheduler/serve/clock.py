"""The scheduler's clock for durations and leases, and for the journal.

It begins with the wall clock and then counts the seconds since the host booted. So it goes on while the host sleeps,
and does not care when somebody sets the wall clock. What concerns others' clocks (certificates, echoes) goes by the
wall clock.
"""

from __future__ import annotations

import time


class SteadyClock:
    """Implements ``ports.Clock``. ``not_before``: the journal's last time. The clock never starts below it, so times
    in the journal never decrease, even if the machine's wall clock was set back between two runs."""

    def __init__(self, not_before: float = 0.0) -> None:
        self._began_at = max(time.time(), not_before)
        self._began = _since_boot()

    def now(self) -> float:
        """Unix seconds."""
        return self._began_at + _since_boot() - self._began


def _since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
