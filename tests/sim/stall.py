"""A scheduler that stands still for a while, as after SIGSTOP: it reads nothing and decides nothing, and its kernel
keeps what comes in. Then it reads all of that at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from galactica.scheduler.controller import Controller
from galactica.scheduler.core.turns import Asked


class Standstill:
    """Whether one life of the scheduler stands still, and what it has yet to read."""

    def __init__(self) -> None:
        self._goes_on = asyncio.Event()
        self._goes_on.set()
        self._unread: list[Callable[[], object]] = []

    def begin(self) -> None:
        self._goes_on.clear()

    def end(self) -> None:
        """What came in meanwhile is read in order, all at the same time."""
        unread, self._unread = self._unread, []
        self._goes_on.set()
        for read in unread:
            read()

    async def over(self) -> None:
        await self._goes_on.wait()

    def read(self, what: Callable[..., object], *about: Any) -> None:
        """Now, or when it goes on."""
        if self._goes_on.is_set():
            what(*about)
        else:
            self._unread.append(lambda: what(*about))


class SleepyController(Controller):
    """The real one, which may stand still between what it took in and what it decides on that."""

    standstill: Standstill

    async def _collect(self) -> list[Asked]:
        asked = await super()._collect()
        await self.standstill.over()
        return asked
