"""A mind that only listens, and what an order for a server needs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence

from galactica.scheduler.core.model.commands import Command
from galactica.scheduler.core.model.spec import ServerBody
from galactica.scheduler.core.sight.observations import ProviderListed, ProviderServer
from galactica.scheduler.providers.configuration import Supplier
from galactica.scheduler.providers.lane import RunnerLimits
from galactica.scheduler.providers.port import UserData
from galactica.scheduler.providers.runner import ProviderRunner

FLEET = "testfleet"
DEADLINE_SECONDS = 20.0
CELL = "pool/0.1"


class ListeningMind:
    """The part of ``ports.Mind`` that the runner uses."""

    def __init__(self) -> None:
        self.observed: list = []
        self._news = asyncio.Event()

    def now(self) -> float:
        return time.time()

    async def observe(self, observation) -> None:
        self.observed.append(observation)
        self._news.set()

    def of(self, kind: type) -> list:
        return [one for one in self.observed if isinstance(one, kind)]

    @property
    def listed(self) -> tuple[ProviderServer, ...] | None:
        """What the newest list has; None where there was none yet."""
        lists = self.of(ProviderListed)
        return lists[-1].servers if lists else None

    async def until(self, condition: Callable[[], object], seconds: float = DEADLINE_SECONDS):
        """Wait for the condition to hold after some news; its value."""
        try:
            async with asyncio.timeout(seconds):
                while not (value := condition()):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"not within {seconds} s; observed: {self.observed[-5:]}") from None
        return value


def user_data(**changes) -> UserData:
    plain = {
        "cell_id": CELL,
        "fleet": FLEET,
        "scheduler": "127.0.0.1:7400",
        "enrolment": "127.0.0.1:7401",
        "token": "gal1.secret",
        "labels": {"zone": "a"},
    }
    return UserData(**{**plain, **changes})


def body(text: str = "{}", provider: str = "it") -> ServerBody:
    return ServerBody(provider, text, {"zone": "a"})


@contextlib.asynccontextmanager
async def runner_with(
    provider,
    mind: ListeningMind,
    commands: Sequence[Command] = (),
    limits: RunnerLimits | None = None,
    more: tuple[str, ...] = (),
    **addresses,
) -> AsyncIterator[ProviderRunner]:
    """A runner at work with one provider called "it"."""
    addresses = {"scheduler": "127.0.0.1:7400", "enrolment": "127.0.0.1:7401", **addresses}
    runner = ProviderRunner(
        {"it": Supplier(provider, arguments=more)}, mind, fleet=FLEET, limits=limits, **addresses
    )
    runner.send(commands)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(runner.run())
        try:
            yield runner
        finally:
            running.cancel()
