"""The dispatcher's part in the neighbours' watch: who takes part, the pairs' keys, whom to tell, and whom to believe.

Servers that come and go are gathered for a moment, then pairs are drawn anew. Pairs that stay keep their key. A server
that went away without being decommissioned stays in, watched by the same neighbours: now it matters what they say.
It stays in for the next scheduler too, which knows nothing of it: its neighbours say whom they watch when they attach.
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
"""A draw takes a hundredth of a millisecond per server: together they stay below a twentieth of one core."""
ABSENT_LOOK_SECONDS = 1.0
"""How often to see whether servers that went away were decommissioned."""
KEY_BYTES = 16

log = structlog.get_logger("scheduler.watch")


class _Role(Struct, frozen=True):
    """What one server is told: those whom it watches (id, address, key), and the keys of those who watch it."""

    neighbours: tuple[tuple[str, str, bytes], ...]
    accepted_keys: tuple[bytes, ...]


class Heard(Struct, frozen=True):
    """What a report says of others, as far as it may. ``withdrawn``: of these its sender says nothing any more."""

    testimonies: tuple[Testimony, ...] = ()
    withdrawn: tuple[str, ...] = ()


class Watch:
    """``is_member``: the server is in the fleet. ``tell`` hands a server its neighbours, and must not block.
    ``secret``: 32 bytes from which the pairs' keys are made, the same for every scheduler of the fleet."""

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
        self._said: dict[str, set[str]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    def attached(self, server: str, address: str, watching: Sequence[WatchedServer] = ()) -> None:
        """A session began. ``address``: where its neighbours reach it; empty where it takes no part. ``watching``: whom
        it was told to watch, by whichever scheduler."""
        self._told.pop(server, None)
        if address:
            self._addresses[server] = address
            self._present.add(server)
            self._learn(server, watching)
        elif server in self._addresses:
            self._forget(server)
        self._draw_soon()

    def _learn(self, watcher: str, watching: Sequence[WatchedServer]) -> None:
        """Pairs from before this scheduler: it says of them now what it will not say again. Of those who were not
        heard yet it alone knows where they are. The key proves that a scheduler of this fleet made the pair."""
        for one in watching:
            if not self._is_member(one.server):
                continue
            if not hmac.compare_digest(one.key, self._key(watcher, one.server, one.address)):
                continue
            given = self._watched.get(watcher, ())
            if self._addresses.setdefault(one.server, one.address) == one.address and one.server not in given:
                self._watched = {**self._watched, watcher: (*given, one.server)}

    def detached(self, server: str) -> None:
        """Its session ended, and no other took its place."""
        if server in self._present:
            self._present.discard(server)
            self._draw_soon()

    def heard(self, server: str, testimonies: Sequence[Testimony], *, is_whole: bool) -> Heard:
        """What of it counts. ``is_whole``: of those who are left out its sender has nothing to say."""
        given = self._watched.get(server, ())
        said = self._said.get(server)
        if not said and not (given and testimonies):
            return Heard()
        before = said or set()
        # Of one that it watched until a moment ago it may still speak: that is late, and no lie.
        counted = tuple({one.server: one for one in testimonies if one.server in given}.values())
        now = {one.server for one in counted}
        kept = now if is_whole else {one for one in before if one in given} | now
        self._said[server] = kept
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
        for server in [
            one for one in self._addresses if one not in self._present and not self._is_member(one)
        ]:
            self._forget(server)
        absent = self._addresses.keys() - self._present
        self._watched = redraw(self._watched, tuple(self._addresses), absent, self._seed)
        pairs = [
            (watcher, one, self._addresses[one])
            for watcher, others in self._watched.items()
            for one in others
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
            addresses = [(one, self._addresses[one]) for one in sorted(others)]
            neighbours = tuple((one, address, self._keys[server, one, address]) for one, address in addresses)
            own = self._addresses[server]
            keys = tuple(self._keys[watcher, server, own] for watcher in watchers.get(server, ()))
            yield server, _Role(neighbours, keys)

    def _key(self, watcher: str, watched: str, address: str) -> bytes:
        """No id and no address has a line break."""
        pair = f"{watcher}\n{watched}\n{address}".encode()
        return blake2s(pair, key=self._secret, digest_size=KEY_BYTES).digest()

    def _forget(self, server: str) -> None:
        del self._addresses[server]
        self._present.discard(server)
        self._told.pop(server, None)
        self._said.pop(server, None)


def _neighbours(role: _Role) -> link_pb2.Neighbours:
    return link_pb2.Neighbours(
        neighbours=[
            link_pb2.Neighbour(server_id=server, address=address, key=key)
            for server, address, key in role.neighbours
        ],
        accepted_keys=role.accepted_keys,
    )
