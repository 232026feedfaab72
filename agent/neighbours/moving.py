"""Where neighbours reach this agent, over time: an address may go, come or change while the agent runs.

The kernel says when a link, an address or a route changes (rtnetlink(7)). Then, and at each new stream to the
scheduler, the agent looks again which address it has. As long as it has none, it looks again by itself.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from galactica.agent.neighbours.watch import listen, split_address
from galactica.agent.starved import lack_of

if TYPE_CHECKING:
    from galactica.agent.neighbours.watch import NeighbourWatch

SETTLE_SECONDS = 0.5
"""One change brings several messages of the kernel."""
WITHOUT_SECONDS = 10.0
"""How often to look again without news, while there is no address. The scheduler's name may not be known yet."""
DEAF_SECONDS = 30.0
"""The same where the kernel tells nothing."""
READ_BYTES = 65_536
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
"""RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE of linux/rtnetlink.h."""

log = logging.getLogger(__name__)


class Mover:
    """``place`` returns the address and port to listen on (port 0: any), or raises OSError; it may block. ``moved`` is
    called after each change, ``left`` after one by which this machine lost the address from before: then no connection
    from there works any more."""

    def __init__(
        self,
        watch: NeighbourWatch,
        place: Callable[[], tuple[str, int]],
        moved: Callable[[], None],
        left: Callable[[], None],
    ) -> None:
        self._watch = watch
        self._place = place
        self._moved = moved
        self._left = left
        self._news = asyncio.Event()
        self._is_unsure = False
        """The last look showed nothing: this agent lacked what it needs to look."""
        self.trouble = ""
        """Why neighbours cannot reach this agent; empty if they can."""

    def stir(self) -> None:
        """Look again soon."""
        self._news.set()

    async def run(self) -> None:
        news = _kernel_news()
        loop = asyncio.get_running_loop()
        if news is not None:
            loop.add_reader(news, self._read, news)
        try:
            while True:
                await self._look()
                await self._until_news(is_deaf=news is None)
        finally:
            if news is not None:
                loop.remove_reader(news)
                news.close()

    async def _until_news(self, *, is_deaf: bool) -> None:
        is_without = self._is_unsure or not self._watch.address
        pause = WITHOUT_SECONDS if is_without else DEAF_SECONDS if is_deaf else None
        try:
            async with asyncio.timeout(pause):
                await self._news.wait()
        except TimeoutError:
            return
        await asyncio.sleep(SETTLE_SECONDS)
        self._news.clear()

    async def _look(self) -> None:
        before = self._watch.address
        had = split_address(before)[0] if before else ""
        self._is_unsure = False
        try:
            has_it = bool(had) and is_own(had)
            host, port = await asyncio.to_thread(self._place)
            if host != had or not has_it:
                self._watch.move(listen(host, port))
            self.trouble = ""
        except OSError as error:
            self._is_unsure = bool(lack_of(error))  # that says nothing about addresses
            if self._is_unsure or has_it:  # what failed may be the way to the scheduler
                return
            self._lose(error.strerror or str(error))
        address = self._watch.address
        if address != before:
            log.info("watched at address=%s before=%s", address or "none", before or "none")
        if address != before or not address:
            self._moved()
        if had and not has_it:
            self._left()

    def _lose(self, reason: str) -> None:
        self._watch.move(None)
        if reason != self.trouble:
            self.trouble = reason
            log.warning("neighbours cannot watch this server reason=%r hint='--watch ADDRESS:PORT'", reason)

    def _read(self, news: socket.socket) -> None:
        """What has changed does not matter. A buffer that ran over is news too."""
        try:
            while news.recv(READ_BYTES):
                pass
        except OSError:
            pass
        self._news.set()


def is_own(host: str) -> bool:
    """Whether this machine has the address now. Raises OSError where that cannot be seen."""
    try:
        listen(host, 0).close()
    except OSError as error:
        if lack_of(error):
            raise
        return False
    return True


def _kernel_news() -> socket.socket | None:
    """Readable when a link, an address or a route has changed; None where the kernel does not tell it."""
    try:
        news = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
            socket.NETLINK_ROUTE,
        )
    except OSError:
        return None
    try:
        news.bind((0, _GROUPS))
    except OSError:
        news.close()
        return None
    return news
