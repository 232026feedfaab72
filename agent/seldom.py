"""Says what comes again and again only once in a while."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

EVERY_SECONDS = 60.0
KINDS = 256
"""Limit for the kinds that are remembered."""


@dataclass(slots=True)
class Seldom:
    """``is_time`` holds once a minute for each kind."""

    _said_at: dict[str, float] = field(default_factory=dict)

    def is_time(self, kind: str) -> bool:
        now = time.monotonic()
        if now - self._said_at.get(kind, -EVERY_SECONDS) < EVERY_SECONDS:
            return False
        if len(self._said_at) >= KINDS:
            self._said_at.clear()
        self._said_at[kind] = now
        return True
