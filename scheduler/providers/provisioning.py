"""Between the core and the providers: each new server gets a join token of its own, which nobody else can use.

Making a secret takes chance and admitting its hash takes the journal, so it is done here, on the way out; the core's
order names only the cell.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import structlog
from msgspec.structs import replace

from galactica.scheduler.core.model.commands import OrderServer, ProviderCommand
from galactica.scheduler.core.model.requests import Asker, AskerKind, CreateToken, Refused
from galactica.scheduler.core.ports import Mind
from galactica.scheduler.security.tokens import new_token

TOKEN_SECONDS_AFTER_BOOT = 300.0
"""How much longer than its boot may take a server's token holds."""

QUEUE_LIMIT = 10_000

log = structlog.get_logger("scheduler.provisioning")


class Providers(Protocol):
    """What carries commands out."""

    def send(self, commands: Sequence[ProviderCommand]) -> None: ...


class Provisioner:
    """Implements ``ports.ProviderOutbox``."""

    def __init__(self, mind: Mind, providers: Providers, ca_digest: str) -> None:
        self._mind = mind
        self._providers = providers
        self._ca_digest = ca_digest
        self._orders: asyncio.Queue[OrderServer] = asyncio.Queue(QUEUE_LIMIT)

    def send(self, commands: Sequence[ProviderCommand]) -> None:
        """Never waits. An order that finds no room is dropped: the core tells it again."""
        self._providers.send([command for command in commands if not isinstance(command, OrderServer)])
        for command in commands:
            if isinstance(command, OrderServer) and not self._orders.full():
                self._orders.put_nowait(command)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            order = await self._orders.get()
            text, token_id, secret_sha256 = new_token(self._ca_digest)
            holds_for = order.spec.health.boot_within_seconds + TOKEN_SECONDS_AFTER_BOOT
            expires_at = self._mind.now() + holds_for
            request = CreateToken(token_id, secret_sha256, 1, expires_at, order.cell)
            try:
                await self._mind.ask(request, by=Asker(AskerKind.SCHEDULER))
            except Refused as refused:
                log.warning("no_token_for_server", server=order.cell, reason=str(refused))
                continue
            self._providers.send([replace(order, token=text)])
