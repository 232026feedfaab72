"""Work that may never end, since a disk may hang."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")

ANSWER_SECONDS = 0.5


class Patience(Generic[T]):
    """``begin`` begins the work. At most one is under way; who asks for its result waits for a moment only, and only
    where it has just begun."""

    def __init__(self, begin: Callable[[], Coroutine[None, None, T]]) -> None:
        self._begin = begin
        self._work: asyncio.Task[T] | None = None

    async def result(self) -> T | None:
        """Of the work that has ended; the next call begins another. None: it is still under way. Raises what the work
        raised."""
        patience_seconds = 0.0
        if self._work is None:
            self._work = asyncio.create_task(self._begin())
            patience_seconds = ANSWER_SECONDS
        done, _ = await asyncio.wait({self._work}, timeout=patience_seconds)
        if not done:
            return None
        ended, self._work = self._work, None
        return ended.result()
