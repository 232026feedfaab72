"""The pauses between the link's attempts to open a stream. They grow until a stream has served for a while.

A welcome alone proves little: a scheduler that this agent's state refuses, or one that ends each session at once, would
be asked without a pause for ever. An agent that was turned away as the second machine with one identity waits longer:
when the scheduler comes back after an outage, the first machine should be there before it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

PAUSE_FIRST_SECONDS = 0.1
PAUSE_LIMIT_SECONDS = 5.0
TURNED_AWAY_LIMIT_SECONDS = 60.0
SERVED_SECONDS = 5.0
"""A stream that lived this long after its welcome has served."""


@dataclass(slots=True)
class Pauses:
    """Has jitter, so that the agents of a fleet do not come back all at once."""

    _seconds: float = PAUSE_FIRST_SECONDS
    _limit_seconds: float = PAUSE_LIMIT_SECONDS

    def ended(self, served_seconds: float, *, was_turned_away: bool = False) -> None:
        """A stream ended that long after its welcome; 0: without one."""
        if was_turned_away:
            self._limit_seconds = TURNED_AWAY_LIMIT_SECONDS
        elif served_seconds >= SERVED_SECONDS:
            self._seconds, self._limit_seconds = PAUSE_FIRST_SECONDS, PAUSE_LIMIT_SECONDS

    def next_seconds(self) -> float:
        seconds = self._seconds
        self._seconds = min(self._limit_seconds, 2 * seconds)
        return seconds * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
