"""The scheduler's part in the neighbours' watch: it decides who takes part, creates the pairs' keys, tells agents their
neighbours, and decides which testimonies count.

Changes are collected for a moment, then the pairs are drawn again. Pairs that stay keep their key. A server that
detached without being decommissioned stays in the watch, with the same watchers: their testimonies are needed now. The
next scheduler keeps it too: when its watchers attach, they say whom they watch.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2s

import structlog
from msgspec import Struct

from galactica.scheduler.core.sight.observations import Testimony
from galactica.scheduler.link.neighbourhood import Watched, redraw, watchers_of
from galactica.scheduler.wire.link import WatchedServer
from galactica.v1 import link_pb2

DRAW_AFTER_SECONDS = 0.2
DRAW_AFTER_SECONDS_PER_SERVER = 0.0002
"""A draw takes 0.01 ms for each server; with this pause draws take less than 5 % of a core."""
ABSENT_LOOK_SECONDS = 1.0
"""How often to check whether absent servers were decommissioned."""
KEY_BYTES = 16

log = structlog.get_logger("scheduler.watch")


class _Role(Struct, frozen=True):
    """The instructions for one server: the servers that it watches (id, address, key), and its watchers' keys."""

    neighbours: tuple[tuple[str, str, bytes], ...]
    accepted_keys: tuple[bytes, ...]


class Heard(Struct, frozen=True):
    """The valid testimonies of a report. ``withdrawn``: servers about which the sender no longer testifies."""

    testimonies: tuple[Testimony, ...] = ()
    withdrawn: tuple[str, ...] = ()


class Watch:
    """``is_member``: whether a server is in the fleet. ``tell`` sends a server its neighbours and must not block.
    ``secret``: 32 bytes from which the pairs' keys are derived, the same for every scheduler of the fleet."""

    def __init__(
        self,
        seed: int,
        secret: bytes,
        is_member: Callable[[str], bool],
        tell: Callable[[str, link_pb2.Neighbours], None],
    ) -> None:
        self._seed = seed
        self._secret = secret
        self._is_member = is_member
        self._tell = tell
        self._addresses: dict[str, str] = {}
        self._present: set[str] = set()
        self._watched: Watched = {}
        self._keys: dict[tuple[str, str, str], bytes] = {}
        self._told: dict[str, _Role] = {}
        self._subjects: dict[str, set[str]] = {}
        """Witness to the servers about which it testifies now."""
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    def attached(self, server: str, address: str, watching: Sequence[WatchedServer] = ()) -> None:
        """A session began. ``address``: where neighbours reach the server; empty: it takes no part. ``watching``: the
        servers that this or an earlier scheduler told it to watch."""
        self._told.pop(server, None)
        self.moved(server, address)
        if address:
            self._learn(server, watching)

    def moved(self, server: str, address: str) -> None:
        """From now on neighbours reach the server there; empty: nowhere. Its pairs get new keys."""
        if address:
            self._addresses[server] = address
            self._present.add(server)
        elif server in self._addresses:
            self._forget(server)
        self._draw_soon()

    def _learn(self, watcher: str, watching: Sequence[WatchedServer]) -> None:
        """Take over pairs from an earlier scheduler: the agent reports its testimonies about them only once, and it may
        be the only one that knows the address of a server that has not attached yet. The key proves that a scheduler of
        this fleet created the pair."""
        for watched in watching:
            server, address = watched.server, watched.address
            if not self._is_member(server):
                continue
            if not hmac.compare_digest(watched.key, self._key(watcher, server, address)):
                continue
            others = self._watched.get(watcher, ())
            if self._addresses.setdefault(server, address) == address and server not in others:
                self._watched = {**self._watched, watcher: (*others, server)}

    def detached(self, server: str) -> None:
        """The server's session ended, and no new session has replaced it."""
        if server in self._present:
            self._present.discard(server)
            self._draw_soon()

    def heard(self, server: str, testimonies: Sequence[Testimony], *, is_whole: bool) -> Heard:
        """The testimonies that count. ``is_whole``: the sender has no testimony about servers that it leaves out."""
        watched = self._watched.get(server, ())
        before = self._subjects.get(server, set())
        if not before and not (watched and testimonies):
            return Heard()
        # A late testimony about a server that it no longer watches is ignored; it is not an error.
        counted = tuple(
            {testimony.server: testimony for testimony in testimonies if testimony.server in watched}.values()
        )
        now = {testimony.server for testimony in counted}
        kept = now if is_whole else {subject for subject in before if subject in watched} | now
        self._subjects[server] = kept
        return Heard(counted, tuple(sorted(before - kept)))

    def close(self) -> None:
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()

    # --- drawing --------------------------------------------------------------------------------------------------

    def _draw_soon(self) -> None:
        delay = DRAW_AFTER_SECONDS + DRAW_AFTER_SECONDS_PER_SERVER * len(self._addresses)
        self._draw_in(delay)

    def _draw_in(self, seconds: float) -> None:
        if self._is_closed:
            return
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            if self._timer.when() <= loop.time() + seconds:
                return
            self._timer.cancel()
        self._timer = loop.call_later(seconds, self._draw)

    def _draw(self) -> None:
        self._timer = None
        gone = [
            server
            for server in self._addresses
            if server not in self._present and not self._is_member(server)
        ]
        for server in gone:
            self._forget(server)
        absent = self._addresses.keys() - self._present
        self._watched = redraw(self._watched, tuple(self._addresses), absent, self._seed)
        pairs = [
            (watcher, watched, self._addresses[watched])
            for watcher, others in self._watched.items()
            for watched in others
        ]
        self._keys = {pair: self._keys.get(pair) or self._key(*pair) for pair in pairs}
        told = 0
        for server, role in self._roles():
            if server in self._present and self._told.get(server) != role:
                self._told[server] = role
                self._tell(server, _neighbours(role))
                told += 1
        log.debug("neighbours_drawn", servers=len(self._addresses), absent=len(absent), told=told)
        if absent:
            self._draw_in(ABSENT_LOOK_SECONDS)

    def _roles(self) -> Iterator[tuple[str, _Role]]:
        watchers = watchers_of(self._watched)
        for server, others in self._watched.items():
            addresses = [(other, self._addresses[other]) for other in sorted(others)]
            neighbours = tuple(
                (other, address, self._keys[server, other, address]) for other, address in addresses
            )
            own = self._addresses[server]
            keys = tuple(self._keys[watcher, server, own] for watcher in watchers.get(server, ()))
            yield server, _Role(neighbours, keys)

    def _key(self, watcher: str, watched: str, address: str) -> bytes:
        """The pair's key. Ids and addresses contain no line break, so the text is unambiguous."""
        pair = f"{watcher}\n{watched}\n{address}".encode()
        return blake2s(pair, key=self._secret, digest_size=KEY_BYTES).digest()

    def _forget(self, server: str) -> None:
        del self._addresses[server]
        self._present.discard(server)
        self._told.pop(server, None)
        self._subjects.pop(server, None)


def _neighbours(role: _Role) -> link_pb2.Neighbours:
    return link_pb2.Neighbours(
        neighbours=[
            link_pb2.Neighbour(server_id=server, address=address, key=key)
            for server, address, key in role.neighbours
        ],
        accepted_keys=role.accepted_keys,
    )
