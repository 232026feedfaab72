"""Placement: container cell to server, by filter and rank.

``Placer`` filters the servers once for each distinct need and then keeps them in a heap whose entries are checked when
they are taken (an entry is stale once a cell was placed since), so that a birth costs a logarithm and not a walk over
all servers. It is a cache and may live across turns: servers that became better since are told to ``touch``, and a heap
hears of them when it is used next, so that a touch costs nothing for the groups that place no cell.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable

from msgspec import Struct

from galactica.scheduler.core.model.fleet import Fleet, GroupState, Server
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.spec import Resources, RuntimeKind, Spec, Spread
from galactica.scheduler.core.sight.state import Sight
from galactica.scheduler.core.verdicts.blame import is_suspect

Rank = tuple[bool, int, float, int, str]

ENTRIES_KEPT = 500_000
"""Heap entries remembered across turns, of about 150 bytes each; the needs that were not used longest go first."""

TOUCHES_KEPT = 10_000
"""A heap that has missed more touches than are remembered is made anew."""

STALE_LOOKS = 32
"""After so many servers that grew heavier unnoticed, the best of those is good enough: how many cells of the group each
has is always known exactly, and only the load, which breaks ties, is not the least of all."""


class Unplaceable(Struct, frozen=True):
    """Why no server can carry the cell: filter to the number of servers that it excludes."""

    servers: int
    excluded: tuple[tuple[str, int], ...]

    def explain(self) -> str:
        if self.servers == 0:
            return "no server has joined"
        parts = ", ".join(f"{count} {why}" for why, count in self.excluded)
        return f"none of {self.servers} servers can take it: {parts}"


class _Need(Struct, frozen=True):
    """What cells of one spec ask of a server. Servers are filtered and heaped once for each."""

    group: str
    digest: str


class _Queue(Struct):
    """``heard``: how many touches, of all that there ever were, its heap has heard of."""

    heap: list[tuple[Rank, str]]
    heard: int


class Placer:
    """Chooses servers. ``begin`` each turn; dropping it loses nothing but time."""

    def __init__(self) -> None:
        self._queues: dict[_Need, _Queue] = {}
        self._touched: list[str] = []
        self._forgotten = 0
        """How many touches came before those in ``_touched``."""

    def begin(self, fleet: Callable[[], Fleet], sight: Sight, now: float, policy: Policy) -> None:
        """``fleet`` is asked anew at each placement, so that cells placed in this turn count at once."""
        self._fleet = fleet
        self._sight = sight
        self._now = now
        self._blame_window_seconds = policy.blame_window_seconds
        self._tempo = policy.tempo(len(fleet().servers))

    def touch(self, server_id: str) -> None:
        """The server has more room, other labels, or is heard again."""
        self._touched.append(server_id)
        if len(self._touched) > TOUCHES_KEPT:
            half = len(self._touched) // 2
            del self._touched[:half]
            self._forgotten += half

    def place(self, state: GroupState, spec: Spec) -> str | Unplaceable:
        """The best server's id, or why there is none."""
        queue = self._queue(state, spec)
        servers = self._fleet().servers
        best: tuple[Rank, str] | None = None
        stale = 0
        while queue.heap:
            rank, server_id = queue.heap[0]
            if best is not None and stale >= STALE_LOOKS and best[0][0] <= rank[0]:
                return best[1]
            server = servers.get(server_id)
            if server is None or self._exclude(server, state, spec) is not None:
                heapq.heappop(queue.heap)
                continue
            current = (self._rank(state, server, spec), server_id)
            if current[0] == rank:
                return server_id
            heapq.heapreplace(queue.heap, current)
            best = current if best is None else min(best, current)
            stale += 1
        return self._explain(state, spec)

    def _queue(self, state: GroupState, spec: Spec) -> _Queue:
        need = _Need(state.group.name, state.digest)
        queue = self._queues.pop(need, None)
        if queue is None or not self._catch_up(queue, state, spec):
            queue = self._new_queue(state, spec)
            self._make_room(len(queue.heap))
        self._queues[need] = queue  # to the end of the line
        return queue

    def _new_queue(self, state: GroupState, spec: Spec) -> _Queue:
        heap = [
            (self._rank(state, server, spec), server.id)
            for server in self._fleet().servers.values()
            if self._exclude(server, state, spec) is None
        ]
        heapq.heapify(heap)
        return _Queue(heap, self._forgotten + len(self._touched))

    def _make_room(self, entries: int) -> None:
        entries += sum(len(queue.heap) for queue in self._queues.values())
        while self._queues and entries > ENTRIES_KEPT:
            entries -= len(self._queues.pop(next(iter(self._queues))).heap)

    def _catch_up(self, queue: _Queue, state: GroupState, spec: Spec) -> bool:
        """Offer the servers that were touched since. False where making the heap anew is cheaper, or all there is."""
        missed = queue.heard - self._forgotten
        servers = self._fleet().servers
        if missed < 0 or len(queue.heap) > 4 * len(servers) + 64:
            return False
        for server_id in dict.fromkeys(self._touched[missed:]):
            server = servers.get(server_id)
            if server is not None and self._exclude(server, state, spec) is None:
                heapq.heappush(queue.heap, (self._rank(state, server, spec), server_id))
        queue.heard = self._forgotten + len(self._touched)
        return True

    def _explain(self, state: GroupState, spec: Spec) -> Unplaceable:
        servers = self._fleet().servers
        reasons = Counter(self._exclude(server, state, spec) or "refuse it" for server in servers.values())
        return Unplaceable(len(servers), tuple(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))))

    def _rank(self, state: GroupState, server: Server, spec: Spec) -> Rank:
        """Smallest first. Servers on which cells died, that ail or that are to go come last. Spread: fewest cells of
        the group, then the emptiest. Pack: the fullest that fits."""
        load = max(
            server.used.cpu_millis / server.capacity.cpu_millis if server.capacity.cpu_millis else 0.0,
            server.used.memory_bytes / server.capacity.memory_bytes if server.capacity.memory_bytes else 0.0,
        )
        cells = len(server.cells)
        suspect = self._is_doubtful(server)
        if spec.placement.spread == Spread.NONE:
            return (suspect, 0, -load, -cells, server.id)
        return (suspect, state.per_server.get(server.id) or 0, load, cells, server.id)

    def _is_doubtful(self, server: Server) -> bool:
        if server.deaths and is_suspect(server.deaths, self._now, self._blame_window_seconds):
            return True
        seen = self._sight.servers.get(server.id)
        if seen is not None and seen.ailing:
            return True
        cell = self._fleet().cell(server.id) if server.pool else None
        return cell is not None and cell.is_condemned

    def _exclude(self, server: Server, state: GroupState, spec: Spec) -> str | None:
        """The first filter that excludes the server, in words; None where it may carry the cell."""
        if not server.takes_cells:
            return "take no new cells (condemned or not attached)"
        seen = self._sight.servers.get(server.id)
        if seen is None or not self._sight.hears(server.id, self._now, self._tempo):
            return "are silent"
        if seen.is_leaving:
            return "are leaving"
        if spec.runtime not in server.runtimes:
            return f"lack the {spec.runtime} runtime"
        if spec.runtime is RuntimeKind.DOCKER and seen.vitals is not None and seen.vitals.engine_hangs:
            return "have an engine that does not answer"
        for key, value in spec.placement.require.items():
            if server.labels.get(key) != value:
                return f"lack the label {key}={value}"
        if _ports_taken(state, server, spec):
            return "have its fixed port in use by another cell of the group"
        if not _fits(server, spec.resources):
            return f"lack room for {_words(spec.resources)}"
        return None


def _fits(server: Server, need: Resources) -> bool:
    """A capacity of 0 was not stated and does not limit."""
    size, used = server.capacity, server.used
    return (size.cpu_millis == 0 or used.cpu_millis + need.cpu_millis <= size.cpu_millis) and (
        size.memory_bytes == 0 or used.memory_bytes + need.memory_bytes <= size.memory_bytes
    )


def _ports_taken(state: GroupState, server: Server, spec: Spec) -> bool:
    """Two processes cannot listen on one fixed port; containers have ports of their own."""
    if spec.runtime != "process" or not any(spec.ports.values()):
        return False
    return bool(state.per_server.get(server.id))


def _words(need: Resources) -> str:
    parts = []
    if need.cpu_millis:
        parts.append(f"{need.cpu_millis / 1000:g} cpu")
    if need.memory_bytes:
        parts.append(f"{need.memory_bytes / 2**20:g} MiB memory")
    return " and ".join(parts) or "another cell"
