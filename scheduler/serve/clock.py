"""The scheduler's clock: wall time at its start, and from there on monotonic."""

from __future__ import annotations

import time


class DisciplinedClock:
    """Implements ``ports.Clock``. ``not_before``: the journal's last time, below which it never begins, so that
    time goes on in the journal even where the machine's wall clock was set back between two lives."""

    def __init__(self, not_before: float = 0.0) -> None:
        self._began_at = max(time.time(), not_before)
        self._began = time.monotonic()

    def now(self) -> float:
        """Unix seconds."""
        return self._began_at + time.monotonic() - self._began
