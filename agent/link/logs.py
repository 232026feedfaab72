"""Sends the output of cells to operators. Streams are limited in number, size and rate; reports go first."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from galactica.agent.link import wire
from galactica.agent.runtimes.port import RuntimeFailure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from galactica.agent.core.instructions import FetchLogs
    from galactica.agent.link.session import Link
    from galactica.agent.runtimes.port import Runtime

STREAMS_LIMIT = 16
CHUNK_BYTES = 32 * 1024
BYTES_PER_SECOND = 1024 * 1024
"""Limit for one stream."""
TAIL_LIMIT = 10_000

log = logging.getLogger(__name__)


@dataclass(slots=True)
class LogStreams:
    """The open log streams. ``tasks`` owns their tasks."""

    runtimes: Mapping[int, Runtime]
    link: Link
    tasks: asyncio.TaskGroup
    _streams: dict[tuple[int, int], asyncio.Task[None]] = field(default_factory=dict)

    def fetch(self, request: FetchLogs) -> None:
        """Send the cell's output in chunks. The last chunk is marked as the end."""
        if len(self._streams) >= STREAMS_LIMIT:
            reason = f"this server already sends {STREAMS_LIMIT} logs, its limit; close one of them"
            self.refuse(request.link, request.stream, reason)
            return
        key = (request.link, request.stream)
        if key not in self._streams:
            task = self._streams[key] = self.tasks.create_task(self._pump(request))
            task.add_done_callback(lambda _: self._streams.pop(key, None))

    def stop(self, link: int, stream: int) -> None:
        if task := self._streams.get((link, stream)):
            task.cancel()

    def stop_all_of(self, link: int) -> None:
        for (of_link, _), task in self._streams.items():
            if of_link == link:
                task.cancel()

    def stop_all(self) -> None:
        for task in self._streams.values():
            task.cancel()

    def refuse(self, link: int, stream: int, reason: str) -> None:
        self.link.send(link, wire.log_chunk(stream, end=True, error=reason))

    async def _pump(self, request: FetchLogs) -> None:
        error = ""
        runtime = self.runtimes[request.kind]
        try:
            lines = runtime.logs(request.cell_id, min(request.tail, TAIL_LIMIT), follow=request.follow)
            await self._send(request, lines)
        except RuntimeFailure as failure:
            error = str(failure)
        except Exception as unexpected:
            log.exception("output not sent: unexpected error cell=%s", request.cell_id)
            error = f"unexpected error in the agent: {unexpected!r}"
        await self.link.send_log(request.link, wire.log_chunk(request.stream, end=True, error=error))

    async def _send(self, request: FetchLogs, source: AsyncIterator[bytes]) -> None:
        async for data in source:
            for start in range(0, len(data), CHUNK_BYTES):
                chunk = data[start : start + CHUNK_BYTES]
                if not await self.link.send_log(request.link, wire.log_chunk(request.stream, chunk)):
                    return
                await asyncio.sleep(len(chunk) / BYTES_PER_SECOND)
