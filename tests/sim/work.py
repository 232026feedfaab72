"""How much a simulated history may do: bounded work in each simulated second, and bounded time of the processor.

What multiplies (a timer that arms two, a message that is answered by two) breaks the first bound at once and is named.
What turns in a circle without arming anything breaks the second.
"""

from __future__ import annotations

import asyncio
import re
import signal
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STEPS_PER_SECOND = 5_000
"""What is run in one simulated second. The busiest second of the first 2,000 seeds needs an eighth of it."""
TIMERS_WAITING = 2_000
"""How many timers wait at once. The first 2,000 seeds need a tenth of it at most."""
PATIENCE_SECONDS = 20.0
"""The processor's time for one history, which is usually less than two seconds. It ends one that hangs."""


_TIMER = re.compile(r"<TimerHandle (cancelled )?when=[\d.e-]+ |\(.*| at .*|>$")
"""What of a timer's own words is not the name of its callback."""


class TooMuchWork(AssertionError):
    pass


class TookTooLong(KeyboardInterrupt):
    """Like Ctrl-C: asyncio hands any other exception of a callback to a handler, and the history would go on."""


class Work:
    """The books of one loop: what was scheduled in the current simulated second. ``timers``: those that wait."""

    def __init__(self, timers: Callable[[], Collection[asyncio.TimerHandle]]) -> None:
        self.busiest = 0
        self.most_waiting = 0
        self._timers = timers
        self._second = 0
        self._steps = 0
        self._names: Counter[str] = Counter()
        self._is_over = False

    def note(self, now: float, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        """A callback was scheduled."""
        if int(now) != self._second:
            self._next_second(int(now))
        self._steps += 1
        if self._steps > STEPS_PER_SECOND // 2:  # names cost more than numbers
            self._names[name_of(callback, args)] += 1
            self._is_over = self._steps > STEPS_PER_SECOND

    def _next_second(self, second: int) -> None:
        waiting = len(self._timers())
        self.busiest = max(self.busiest, self._steps)
        self.most_waiting = max(self.most_waiting, waiting)
        self._second, self._steps = second, 0
        self._names.clear()
        self._is_over = waiting > TIMERS_WAITING

    def check(self) -> None:
        """Raises TooMuchWork, once."""
        if not self._is_over:
            return
        second, steps, timers = self._second, self._steps, self._timers()
        names = self._names or Counter(_TIMER.sub("", repr(timer)) for timer in timers)
        most = ", ".join(f"{name} ({count} times)" for name, count in names.most_common(3))
        self._next_second(-1)  # what cleans up after this counts anew
        self._is_over = False
        raise TooMuchWork(
            f"second {second} of the simulation: {steps} steps (the limit is {STEPS_PER_SECOND}), {len(timers)} timers "
            f"wait (the limit is {TIMERS_WAITING}); what multiplies: {most}"
        )


def name_of(callback: Callable[..., object], args: tuple[Any, ...]) -> str:
    """What it will do: its name and that of the first function that it is given; where it wakes a task, the task's."""
    task = (
        asyncio.current_task() if getattr(callback, "__module__", "asyncio.").startswith("asyncio") else None
    )
    if task is not None:
        return getattr(task.get_coro(), "__qualname__", "a task")
    inner = next((one for one in args if callable(one)), None)
    names = [getattr(one, "__qualname__", type(one).__name__) for one in (callback, inner) if one is not None]
    return "/".join(names)


@contextmanager
def patience(seconds: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Raises TookTooLong when what runs inside has used that much of the processor's time. Main thread only."""

    def over(_: int, __: FrameType | None) -> None:
        raise TookTooLong(f"it took more than {seconds:g} s of the processor's time")

    before = signal.signal(signal.SIGPROF, over)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
