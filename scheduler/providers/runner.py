"""The adapter between the core's commands for servers and the providers that carry them out.

``send`` takes commands and never waits. The results go back through ``Mind.observe``. The core decides whether it
believes an answer, for example an empty list; only invalid answers are rejected here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence

import structlog

from galactica.scheduler.core.model.commands import OrderServer, ProviderCommand
from galactica.scheduler.core.ports import Mind
from galactica.scheduler.core.sight.observations import ProviderNews, ProviderSilent, ServerNotMade
from galactica.scheduler.providers.configuration import Supplier
from galactica.scheduler.providers.lane import Lane, RunnerLimits
from galactica.scheduler.providers.port import ProviderError, UserData

STRAYS_LIMIT = 1_000

log = structlog.get_logger("scheduler.providers")


class ProviderRunner:
    """Owns the providers. ``scheduler``, ``enrolment``: "HOST:PORT" for new servers, unless a supplier has its own."""

    def __init__(
        self,
        suppliers: Mapping[str, Supplier],
        mind: Mind,
        *,
        fleet: str,
        scheduler: str,
        enrolment: str,
        limits: RunnerLimits | None = None,
    ) -> None:
        self._suppliers = dict(suppliers)
        self._mind = mind
        self._fleet = fleet
        self._scheduler = scheduler
        self._enrolment = enrolment
        limits = limits or RunnerLimits()
        self._lanes = {
            name: Lane(name, supplier.provider, mind, self._user_data, limits)
            for name, supplier in self._suppliers.items()
        }
        self._strays: deque[ProviderCommand] = deque(maxlen=STRAYS_LIMIT)
        self._stray_came = asyncio.Event()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._lanes))

    def send(self, commands: Sequence[ProviderCommand]) -> None:
        """Never waits. May be called before ``run``."""
        for command in commands:
            lane = self._lanes.get(command.provider)
            if lane is not None:
                lane.take(command)
            else:
                self._strays.append(command)
                self._stray_came.set()

    async def run(self) -> None:
        """Run until cancelled. Servers live on. The next scheduler repeats the commands that were under way."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for name, lane in self._lanes.items():
                    tasks.create_task(lane.run(), name=f"provider {name}")
                tasks.create_task(self._answer_strays(), name="providers that are not there")
        finally:
            await self._close()

    async def _answer_strays(self) -> None:
        while True:
            await self._stray_came.wait()
            self._stray_came.clear()
            while self._strays:
                await self._mind.observe(self._no_such_provider(self._strays.popleft()))

    def _no_such_provider(self, command: ProviderCommand) -> ProviderNews:
        names = ", ".join(self.names) or "none"
        reason = f"the provider '{command.provider}' is not configured (configured: {names})"
        if isinstance(command, OrderServer):
            return ServerNotMade(command.provider, command.cell, reason, self._mind.now())
        return ProviderSilent(command.provider, reason, self._mind.now())

    def _user_data(self, command: OrderServer) -> UserData:
        supplier = self._suppliers[command.provider]
        body = command.spec.server
        return UserData(
            cell_id=command.cell,
            fleet=self._fleet,
            scheduler=supplier.scheduler or self._scheduler,
            enrolment=supplier.enrolment or self._enrolment,
            token=command.token,
            labels={} if body is None else body.labels,
            runtimes=supplier.runtimes,
            more=supplier.arguments,
        )

    async def _close(self) -> None:
        for name, supplier in self._suppliers.items():
            try:
                await supplier.provider.close()
            except ProviderError as error:
                log.warning("close_failed", provider=name, reason=str(error))
