"""Watches that no two cells of an exclusive slot run at once, wherever they are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from tests.sim.host import Host
from tests.sim.laws import Laws

LOOK_SECONDS = 0.05
WAKE_SECONDS = 0.3
"""What a frozen host may take to notice, when it goes on, that a lease ended meanwhile."""


class Rivals:
    """Looks when an exclusive cell begins, and on while more than one of its slot is there."""

    def __init__(self, laws: Laws, hosts: Callable[[], Iterable[Host]]) -> None:
        self._laws = laws
        self._hosts = hosts
        self._timer: asyncio.TimerHandle | None = None

    def began(self) -> None:
        """An exclusive cell is about to begin."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(0.0, self._look)

    def _look(self) -> None:
        hosts = list(self._hosts())
        there = [slot_of(cell) for host in hosts for cell in host.exclusive()]
        self._timer = None
        if len(set(there)) == len(there):
            return
        self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)
        now = asyncio.get_running_loop().time()
        awake = (host for host in hosts if now >= host.troubles.frozen_until + WAKE_SECONDS)
        self._laws.alone(sorted(cell for host in awake for cell in host.exclusive()))


def slot_of(cell: str) -> str:
    return cell.rpartition(".")[0]
