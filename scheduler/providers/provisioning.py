"""Sits between the core and the providers: adds a join token to each order of a server. Only that server can use it.

A secret needs randomness, and its hash must be recorded in the journal. So the token is created here and not in the
core, whose order names only the cell.
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
"""A server's token is valid this much longer than its boot may take."""

QUEUE_LIMIT = 10_000

log = structlog.get_logger("scheduler.provisioning")


class Providers(Protocol):
    """Carries out commands."""

    def send(self, commands: Sequence[ProviderCommand]) -> None: ...


class Provisioner:
    """Implements ``ports.ProviderOutbox``."""

    def __init__(self, mind: Mind, providers: Providers, ca_digest: str) -> None:
        self._mind = mind
        self._providers = providers
        self._ca_digest = ca_digest
        self._orders: asyncio.Queue[OrderServer] = asyncio.Queue(QUEUE_LIMIT)

    def send(self, commands: Sequence[ProviderCommand]) -> None:
        """Never waits. If the queue is full the order is dropped: the core sends it again."""
        self._providers.send([command for command in commands if not isinstance(command, OrderServer)])
        for command in commands:
            if isinstance(command, OrderServer) and not self._orders.full():
                self._orders.put_nowait(command)

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            order = await self._orders.get()
            text, token_id, secret_sha256 = new_token(self._ca_digest)
            valid_seconds = order.spec.health.boot_within_seconds + TOKEN_SECONDS_AFTER_BOOT
            expires_at = self._mind.now() + valid_seconds
            request = CreateToken(token_id, secret_sha256, 1, expires_at, order.cell)
            try:
                await self._mind.ask(request, by=Asker(AskerKind.SCHEDULER))
            except Refused as refused:
                log.warning("no_token_for_server", server=order.cell, reason=str(refused))
                continue
            self._providers.send([replace(order, token=text)])
