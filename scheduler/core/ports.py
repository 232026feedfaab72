"""What the core's driver needs from the world, and what it offers to its adapters."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from msgspec import Struct

from galactica.scheduler.core.model.commands import Command, ProviderCommand
from galactica.scheduler.core.model.events import Record
from galactica.scheduler.core.model.fleet import Fleet
from galactica.scheduler.core.model.keys import Hold, Storm
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.requests import Accepted, Asker, Request
from galactica.scheduler.core.sight.observations import Observation
from galactica.scheduler.core.sight.state import Sight


class Clock(Protocol):
    def now(self) -> float:
        """Unix seconds; never goes back, and does not jump with the wall clock."""


class Outbox(Protocol):
    def send(self, commands: Sequence[Command]) -> None:
        """Hand commands to their agents' sessions. Never waits; what finds no open session is dropped,
        since it is derived anew when the agent attaches."""


class ProviderOutbox(Protocol):
    def send(self, commands: Sequence[ProviderCommand]) -> None:
        """Hand commands to their providers. Never waits; what is dropped is told again later."""


class View(Struct, frozen=True):
    """One consistent picture for readers: all of it durable, plus what is seen at ``now``."""

    fleet: Fleet
    sight: Sight
    holds: tuple[Hold, ...]
    policy: Policy
    now: float
    trouble: str = ""
    """Why the journal takes nothing at the moment; empty while it does."""
    storms: tuple[Storm, ...] = ()


class Mind(Protocol):
    """The controller as the adapters know it."""

    def view(self) -> View: ...

    def fleet(self) -> Fleet:
        """That part of the view which costs nothing."""

    def now(self) -> float: ...

    async def observe(self, observation: Observation) -> None:
        """Take one observation; waits while the inbox is full."""

    async def ask(self, request: Request, by: Asker) -> Accepted:
        """Answers when it is done and durable. Raises Refused."""

    def feed(self, from_position: int) -> AsyncIterator[tuple[Record, ...]]:
        """Durable records from a position on, then each batch as it becomes durable. Never ends by itself."""
