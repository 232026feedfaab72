"""The pauses between the link's attempts to open a stream. They grow until a stream has served for a while.

A welcome alone proves little: a scheduler that this agent's state refuses, or one that ends each session at once, would
be asked without a pause for ever.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

PAUSE_FIRST_SECONDS = 0.1
PAUSE_LIMIT_SECONDS = 5.0
SERVED_SECONDS = 5.0
"""A stream that lived this long after its welcome has served."""


@dataclass(slots=True)
class Pauses:
    """Has jitter, so that the agents of a fleet do not come back all at once."""

    count: int = 0
    """Number of pauses since the last stream that served."""
    _seconds: float = PAUSE_FIRST_SECONDS

    def ended(self, served_seconds: float) -> None:
        """A stream ended that long after its welcome; 0: without one."""
        if served_seconds >= SERVED_SECONDS:
            self.count, self._seconds = 0, PAUSE_FIRST_SECONDS

    def next_seconds(self) -> float:
        self.count += 1
        seconds = self._seconds
        self._seconds = min(PAUSE_LIMIT_SECONDS, 2 * seconds)
        return seconds * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
