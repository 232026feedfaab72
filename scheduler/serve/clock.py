"""The scheduler's clock: it starts with the wall time and then advances monotonically."""

from __future__ import annotations

import time


class DisciplinedClock:
    """Implements ``ports.Clock``. ``not_before``: the journal's last time. The clock never starts below it, so times
    in the journal never decrease, even if the machine's wall clock was set back between two runs."""

    def __init__(self, not_before: float = 0.0) -> None:
        self._began_at = max(time.time(), not_before)
        self._began = time.monotonic()

    def now(self) -> float:
        """Unix seconds."""
        return self._began_at + time.monotonic() - self._began
