"""A network of one-way pipes between agents and scheduler: delay, loss, duplication, reordering, cuts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any


@dataclass
class Weather:
    """How bad the network is at the moment; fractions are per message."""

    delay_seconds: float = 0.002
    jitter_seconds: float = 0.0
    lost: float = 0.0
    repeated: float = 0.0


@dataclass
class Network:
    random: Random
    weather: Weather = field(default_factory=Weather)
    cut_to: set[str] = field(default_factory=set)
    """Hosts to which nothing gets through."""
    cut_from: set[str] = field(default_factory=set)
    """Hosts from which nothing gets through."""

    def to_host(self, host: str, deliver: Callable[..., None], *args: Any) -> None:
        self._send(self.cut_to, host, deliver, args)

    def from_host(self, host: str, deliver: Callable[..., None], *args: Any) -> None:
        self._send(self.cut_from, host, deliver, args)

    def _send(self, cut: set[str], host: str, deliver: Callable[..., None], args: tuple[Any, ...]) -> None:
        copies = 2 if self.random.random() < self.weather.repeated else 1
        for _ in range(copies):
            if host in cut or self.random.random() < self.weather.lost:
                continue
            delay = self.weather.delay_seconds + self.random.random() * self.weather.jitter_seconds
            asyncio.get_running_loop().call_later(delay, self._arrive, cut, host, deliver, args)

    @staticmethod
    def _arrive(cut: set[str], host: str, deliver: Callable[..., None], args: tuple[Any, ...]) -> None:
        """A cut also takes what is on its way."""
        if host not in cut:
            deliver(*args)
