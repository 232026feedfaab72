"""Keeps the parts of the daemon at work: one that fails begins anew after a pause, and ends no other."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from galactica.agent.seldom import Seldom

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from galactica.agent.starved import Lacks

PAUSE_FIRST_SECONDS = 0.5
PAUSE_LIMIT_SECONDS = 30.0

log = logging.getLogger(__name__)


async def steadily(name: str, part: Callable[[], Awaitable[None]], lacks: Lacks) -> None:
    """Run the part, and again whenever it ends with an error, until cancelled. Pauses grow until it has run for the
    longest of them. ``lacks`` takes what the agent itself lacked for it."""
    seldom, pause_seconds = Seldom(), PAUSE_FIRST_SECONDS
    while True:
        began = time.monotonic()
        try:
            return await part()
        except Exception as error:
            if not lacks.note_if(error, name) and seldom.is_time(type(error).__name__):
                log.exception("part failed, begins anew part=%s", name)
        if time.monotonic() - began > PAUSE_LIMIT_SECONDS:
            pause_seconds = PAUSE_FIRST_SECONDS
        await asyncio.sleep(pause_seconds)
        pause_seconds = min(PAUSE_LIMIT_SECONDS, 2 * pause_seconds)
