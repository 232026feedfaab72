"""The neighbours' watch: small keyed pings by UDP. The agent pings the neighbours that the scheduler named, and answers
those that use a key from the scheduler.

Every neighbour has its own connected socket, so that the kernel reports a closed port. A packet is ``version, kind,
key id, sequence, seal``: 30 bytes. An answer is as long as its ping, so that nobody can use the agent to amplify an
attack. A packet without an accepted key is dropped silently. The reads and answers in each second are bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import logging
import math
import secrets
import socket
import struct
from dataclasses import dataclass
from hashlib import blake2s
from typing import TYPE_CHECKING

from galactica.agent import clock
from galactica.agent.core.events import Testified
from galactica.agent.neighbours.state import (
    Answered,
    Assigned,
    Elapsed,
    NotSent,
    Ping,
    Tell,
    WasRefused,
    WatchEvent,
    WatchState,
    all_testimonies,
    next_look,
    step,
)
from galactica.agent.starved import Lacks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from galactica.agent.core.model import Neighbour

VERSION = 1
PING = 1
ANSWER = 2
_HEAD = struct.Struct("!BB4sQ")
SEAL_BYTES = 16
PACKET_BYTES = _HEAD.size + SEAL_BYTES
READ_BYTES = PACKET_BYTES + 1
"""Enough to notice that a packet is too long."""

WINDOW_SECONDS = 1.0
READS_A_WINDOW = 2_000
"""A read takes about 5 µs, so that a flood costs a hundredth of a core. The kernel drops packets beyond its buffer."""
READS_AT_ONCE = 32
ANSWERS_A_WINDOW = 8
"""Limit for one key. A watcher sends at most three pings a second, but somebody may replay them with a forged
address."""
READS_A_LOOK = 64
"""Limit for the packets that are read from one neighbour's socket at each look."""
RECEIVE_BUFFER_BYTES = 64 * 1024
KEY_BYTES = 16
KEYS_LIMIT = 256
NEIGHBOURS_LIMIT = 256

log = logging.getLogger(__name__)


def key_id(key: bytes) -> bytes:
    """Identifies a key in a packet without revealing it."""
    return blake2s(b"id", key=key, digest_size=4).digest()


def packet(kind: int, key: bytes, sequence: int) -> bytes:
    """A ping or its answer. The seal covers the kind, so that a reflected ping is not an answer."""
    head = _HEAD.pack(VERSION, kind, key_id(key), sequence)
    return head + _seal(key, head)


def _seal(key: bytes, head: bytes) -> bytes:
    return blake2s(head, key=key, digest_size=SEAL_BYTES).digest()


def opened(data: bytes, kind: int, keys: Mapping[bytes, bytes]) -> tuple[bytes, int] | None:
    """Key and sequence of a valid packet of that kind with one of the keys (by id); None for anything else."""
    if len(data) != PACKET_BYTES:
        return None
    version, packet_kind, packet_key_id, sequence = _HEAD.unpack_from(data)
    key = keys.get(packet_key_id)
    if key is None or version != VERSION or packet_kind != kind:
        return None
    if not hmac.compare_digest(data[_HEAD.size :], _seal(key, data[: _HEAD.size])):
        return None
    return key, sequence


def split_address(text: str) -> tuple[str, int]:
    """Raises ValueError if it is not a numeric ADDRESS:PORT."""
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or not 0 <= int(port) < 65_536:
        raise ValueError(f"'{text}' is not ADDRESS:PORT")
    return str(ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))), int(port)


def _is_address(text: str) -> bool:
    try:
        return split_address(text)[1] > 0
    except ValueError:
        return False


def joined_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listen(host: str, port: int) -> socket.socket:
    """The socket on which neighbours reach this agent. Port 0: any free port. Raises OSError."""
    listening = _udp_socket(host)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        listening.bind((host, port))
    except OSError:
        listening.close()
        raise
    return listening


def address_towards(host: str, port: int) -> str:
    """This server's own address on the way to that host. Raises OSError. Resolves names, so it may block."""
    family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(where)  # sends nothing
        return str(probe.getsockname()[0])


def _udp_socket(host: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


@dataclass(slots=True)
class _Peer:
    """A neighbour's socket. ``keys``: the key of its answers, by its id."""

    socket: socket.socket
    keys: Mapping[bytes, bytes]

    @property
    def key(self) -> bytes:
        return next(iter(self.keys.values()))


class NeighbourWatch:
    """Owns ``listening`` (None: no address yet) and a socket for each neighbour; cancelling ``run`` closes them.

    ``deliver`` gets ``Testified`` after each change. ``lacks`` takes what the agent itself lacked for a ping. The watch
    goes on without a session.
    """

    def __init__(
        self,
        listening: socket.socket | None,
        deliver: Callable[[Testified], Awaitable[None]],
        lacks: Lacks | None = None,
    ) -> None:
        self._listening = listening
        self._deliver = deliver
        self._lacks = lacks or Lacks()
        self._state = WatchState(sequence=secrets.randbits(64))
        self._peers: dict[str, _Peer] = {}
        self._accepted: dict[bytes, bytes] = {}
        self._answered: dict[bytes, int] = {}
        self._reads = 0
        self._is_running = False
        self._timers: dict[Callable[[], None], asyncio.TimerHandle] = {}
        self._look_at = math.inf
        self._window_ends_at = 0.0
        self._changed = asyncio.Event()

    @property
    def address(self) -> str:
        """Where neighbours reach this agent; empty: nowhere."""
        if self._listening is None:
            return ""
        return joined_address(*self._listening.getsockname()[:2])

    @property
    def watching(self) -> tuple[Neighbour, ...]:
        """The neighbours of the newest assignment."""
        return tuple(watched.neighbour for watched in self._state.watched.values())

    async def run(self) -> None:
        """Answer, ping and testify until cancelled."""
        self._is_running = True
        self._resume_reading()
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                await self._deliver(Testified(all_testimonies(self._state), clock.now()))
        finally:
            for timer in self._timers.values():
                timer.cancel()
            for server_id in tuple(self._peers):
                self._close(server_id)
            self._is_running = False
            self._stop_listening()

    def move(self, listening: socket.socket | None) -> None:
        """From now on neighbours reach this agent there; None: nowhere. The sockets to neighbours are made anew, since
        they are bound to the address from before."""
        for server_id in tuple(self._peers):
            self._close(server_id)
        self._stop_listening()
        self._listening = listening
        self._resume_reading()

    def _stop_listening(self) -> None:
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening)
            self._listening.close()
            self._listening = None

    def watch(self, neighbours: Sequence[Neighbour], accepted_keys: Sequence[bytes]) -> None:
        """Take the neighbours to watch and the keys to answer from now on."""
        accepted = [key for key in accepted_keys if len(key) == KEY_BYTES]
        self._accepted = {key_id(key): key for key in accepted[:KEYS_LIMIT]}
        before = self._state.watched
        reachable = [
            neighbour
            for neighbour in neighbours
            if len(neighbour.key) == KEY_BYTES and _is_address(neighbour.address)
        ]
        wanted = {neighbour.server_id: neighbour for neighbour in reachable[:NEIGHBOURS_LIMIT]}
        for server_id, watched in before.items():
            if wanted.get(server_id) != watched.neighbour:
                self._close(server_id)
        self._step(Assigned(tuple(wanted.values()), clock.now()))
        self._arm()

    # Answering the pings of others.

    def _read_pings(self) -> None:
        listening = self._listening
        if listening is None:
            return
        self._collect()
        self._arm()
        now = clock.now()
        if now >= self._window_ends_at:
            self._window_ends_at, self._reads = now + WINDOW_SECONDS, 0
            self._answered.clear()
        for _ in range(READS_AT_ONCE):
            try:
                data, sender = listening.recvfrom(READ_BYTES)
            except OSError:  # nothing more to read, or the error of an earlier answer
                return
            self._reads += 1
            self._answer(listening, data, sender)
            if self._reads >= READS_A_WINDOW:
                self._pause_reading()
                return

    def _answer(self, listening: socket.socket, data: bytes, sender: tuple[object, ...]) -> None:
        ping = opened(data, PING, self._accepted)
        if ping is None:
            return
        key, sequence = ping
        answered = self._answered.get(key, 0)
        if answered >= ANSWERS_A_WINDOW:
            return
        self._answered[key] = answered + 1
        with contextlib.suppress(OSError):  # full buffer or no route: as if the answer were lost
            listening.sendto(packet(ANSWER, key, sequence), sender)

    def _pause_reading(self) -> None:
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening)
        self._call_at(self._window_ends_at, self._resume_reading)

    def _resume_reading(self) -> None:
        if self._listening is not None and self._is_running:
            asyncio.get_running_loop().add_reader(self._listening, self._read_pings)

    # Pinging neighbours.

    def _step(self, event: WatchEvent) -> None:
        self._state, instructions = step(self._state, event)
        for instruction in instructions:
            if isinstance(instruction, Ping):
                self._ping(instruction)
            elif isinstance(instruction, Tell):
                self._changed.set()

    def _arm(self) -> None:
        look_at = next_look(self._state)
        if look_at != self._look_at:
            self._look_at = look_at
            self._call_at(look_at, self._look)

    def _look(self) -> None:
        self._look_at = math.inf
        self._collect()
        self._step(Elapsed(clock.now()))
        self._arm()

    def _collect(self) -> None:
        """Read the answers. They wait in their sockets until the agent is awake anyway, because waking up is costly."""
        for server_id, peer in self._peers.items():
            if self._state.watched[server_id].awaited:
                self._read_answers(server_id, peer)

    def _call_at(self, at: float, act: Callable[[], None]) -> None:
        """Plan ``act``; replaces its earlier plan. At infinity: never."""
        if timer := self._timers.pop(act, None):
            timer.cancel()
        if at < math.inf:
            self._timers[act] = asyncio.get_running_loop().call_later(max(0.0, at - clock.now()), act)

    def _ping(self, ping: Ping) -> None:
        soon = asyncio.get_running_loop().call_soon
        try:
            peer = self._peers.get(ping.server_id) or self._open(
                self._state.watched[ping.server_id].neighbour
            )
            peer.socket.send(packet(PING, peer.key, ping.sequence))
        except ConnectionRefusedError:  # belongs to an earlier ping
            soon(self._refused, ping.server_id)
        except OSError as error:
            if self._lacks.note_if(error, f"ping {ping.server_id}"):
                soon(self._not_sent, ping.server_id)
            else:  # no route to it: the missing answer counts
                log.debug("ping not sent server=%s reason=%r", ping.server_id, str(error))

    def _read_answers(self, server_id: str, peer: _Peer) -> None:
        for _ in range(READS_A_LOOK):
            try:
                data = peer.socket.recv(READ_BYTES)
            except BlockingIOError:
                return
            except ConnectionRefusedError:
                self._refused(server_id)
                continue
            except OSError:  # no route: the missing answer counts
                continue
            answer = opened(data, ANSWER, peer.keys)
            if answer is not None:
                self._step(Answered(server_id, answer[1], clock.now()))

    def _refused(self, server_id: str) -> None:
        self._step(WasRefused(server_id, clock.now()))

    def _not_sent(self, server_id: str) -> None:
        self._step(NotSent(server_id))

    def _open(self, neighbour: Neighbour) -> _Peer:
        """Raises OSError."""
        host, port = split_address(neighbour.address)
        opened_socket = _udp_socket(host)
        try:
            opened_socket.connect((host, port))
        except OSError:
            opened_socket.close()
            raise
        peer = _Peer(opened_socket, {key_id(neighbour.key): neighbour.key})
        self._peers[neighbour.server_id] = peer
        return peer

    def _close(self, server_id: str) -> None:
        peer = self._peers.pop(server_id, None)
        if peer is not None:
            peer.socket.close()
