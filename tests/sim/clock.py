"""A virtual clock for asyncio: time passes only when nothing is left to do, and then at once."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar

from tests.sim.work import Work

T = TypeVar("T")


class _Selector(selectors.SelectSelector):
    """Never waits: what would have been waited is added to the clock."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.time = 0.0
        self._work = work

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._work.check()
        if timeout is None:
            raise RuntimeError("the simulation waits for something that will never come")
        self.time += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time, which counts its work. No file, socket, thread or signal works in it."""

    def __init__(self) -> None:
        self.work = Work(lambda: self._scheduled)
        self._virtual = _Selector(self.work)
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.time

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        self.work.note(self._virtual.time, callback, args)
        return super().call_at(when, callback, *args, context=context)

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        self.work.note(self._virtual.time, callback, args)
        return super().call_soon(callback, *args, context=context)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run to the end in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


class VirtualClock:
    """The scheduler's clock, as Unix seconds: it begins with what the wall shows, not before the journal's last time,
    and then goes on evenly, whatever the wall does."""

    START = 1_700_000_000.0

    def __init__(self, wall_step: float = 0.0, not_before: float = 0.0) -> None:
        self._began = asyncio.get_running_loop().time()
        self._began_at = max(self.START + self._began + wall_step, not_before)

    def now(self) -> float:
        return self._began_at + asyncio.get_running_loop().time() - self._began

    @property
    def ahead_seconds(self) -> float:
        """How far it is ahead of the time that it really is."""
        return self._began_at - self.START - self._began
