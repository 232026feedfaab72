"""Placement: chooses a server for a container cell, by filter and rank.

``Placer`` filters the servers once for each distinct need and keeps them in a heap, so that a birth costs a logarithm
instead of a walk over all servers. An entry becomes stale when another cell is placed on its server, so each entry is
checked when it is taken. The heaps are a cache and may live across turns: ``touch`` notes servers that became better,
and each heap reads these notes at its next use. So a touch costs nothing for groups that place no cell.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable

from msgspec import Struct

from galactica.scheduler.core.model.fleet import Cell, Fleet, GroupState, Server
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.spec import Resources, RuntimeKind, Spec, Spread, fixed_ports
from galactica.scheduler.core.sight.state import Sight
from galactica.scheduler.core.tallies import with_cell
from galactica.scheduler.core.verdicts.blame import is_suspect
from galactica.scheduler.core.verdicts.machines import is_known
from galactica.scheduler.units import format_bytes

Rank = tuple[bool, int, float, int, str]

ENTRIES_KEPT = 500_000
"""Heap entries kept across turns, about 150 bytes each. The least recently used needs are dropped first."""

TOUCHES_KEPT = 10_000
"""A heap that has missed more touches than this is built again."""

STALE_LOOKS = 32
"""After this many stale entries the best server so far is good enough. The number of the group's cells on each server
is always exact; only the load, which breaks ties, may not be the lowest."""


class Unplaceable(Struct, frozen=True):
    """Why no server can take the cell: each reason (``has too little memory ...``) with the number of servers that it
    excludes."""

    servers: int
    excluded: tuple[tuple[str, int], ...]

    def explain(self) -> str:
        if self.servers == 0:
            return "no server has joined"
        parts = ", ".join(_counted(count, reason) for reason, count in self.excluded)
        return f"no server can take it: {parts}"


_PLURALS = {"is": "are", "has": "have", "lacks": "lack", "accepts": "accept"}


def _counted(count: int, reason: str) -> str:
    """``1 server is silent``, ``2 servers are silent``."""
    if count == 1:
        return f"1 server {reason}"
    verb, _, rest = reason.partition(" ")
    return f"{count} servers {_PLURALS[verb]} {rest}"


class _Need(Struct, frozen=True):
    """The requirements of one spec's cells. There is one heap of servers for each."""

    group: str
    digest: str


class _Queue(Struct):
    """``touches_read``: how many of all touches so far the heap has taken in."""

    heap: list[tuple[Rank, str]]
    touches_read: int


class Placer:
    """Chooses servers. Call ``begin`` each turn. It is only a cache: a new one gives the same answers, slower."""

    def __init__(self) -> None:
        self._queues: dict[_Need, _Queue] = {}
        self._touched: list[str] = []
        self._forgotten = 0
        """How many touches were dropped from the front of ``_touched``."""

    def begin(self, fleet: Callable[[], Fleet], sight: Sight, now: float, policy: Policy) -> None:
        """``fleet`` is called again at each placement, so that cells placed in this turn count at once."""
        self._fleet = fleet
        self._sight = sight
        self._now = now
        self._blame_window_seconds = policy.blame_window_seconds
        self._tempo = policy.tempo(len(fleet().servers))

    def touch(self, server_id: str) -> None:
        """The server has more room or other labels, or its agent sends beats again."""
        self._touched.append(server_id)
        if len(self._touched) > TOUCHES_KEPT:
            half = len(self._touched) // 2
            del self._touched[:half]
            self._forgotten += half

    def place(self, state: GroupState, spec: Spec) -> str | Unplaceable:
        """The id of the best server, or why no server fits."""
        queue = self._queue(state, spec)
        servers = self._fleet().servers
        best: tuple[Rank, str] | None = None
        stale = 0
        while queue.heap:
            rank, server_id = queue.heap[0]
            if best is not None and stale >= STALE_LOOKS and best[0][0] <= rank[0]:
                return best[1]
            server = servers.get(server_id)
            if server is None or self._exclude(server, spec) is not None:
                heapq.heappop(queue.heap)
                continue
            current = (self._rank(state, server, spec), server_id)
            if current[0] == rank:
                return server_id
            heapq.heapreplace(queue.heap, current)
            best = current if best is None else min(best, current)
            stale += 1
        return self._explain(spec)

    def would_fit_without(self, cell: Cell, spec: Spec) -> bool:
        """Whether the cell's server could take a cell of the spec, if the cell itself were gone."""
        server = self._fleet().servers.get(cell.server)
        return server is not None and self._exclude(with_cell(server, cell, -1), spec) is None

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
            if self._exclude(server, spec) is None
        ]
        heapq.heapify(heap)
        return _Queue(heap, self._forgotten + len(self._touched))

    def _make_room(self, entries: int) -> None:
        entries += sum(len(queue.heap) for queue in self._queues.values())
        while self._queues and entries > ENTRIES_KEPT:
            entries -= len(self._queues.pop(next(iter(self._queues))).heap)

    def _catch_up(self, queue: _Queue, state: GroupState, spec: Spec) -> bool:
        """Push the servers touched since the last use. False when the heap must be built again: touches were dropped,
        or a new heap is cheaper."""
        start = queue.touches_read - self._forgotten
        servers = self._fleet().servers
        if start < 0 or len(queue.heap) > 4 * len(servers) + 64:
            return False
        for server_id in dict.fromkeys(self._touched[start:]):
            server = servers.get(server_id)
            if server is not None and self._exclude(server, spec) is None:
                heapq.heappush(queue.heap, (self._rank(state, server, spec), server_id))
        queue.touches_read = self._forgotten + len(self._touched)
        return True

    def _explain(self, spec: Spec) -> Unplaceable:
        servers = self._fleet().servers
        reasons = Counter(
            self._exclude(server, spec) or "is not considered yet" for server in servers.values()
        )
        return Unplaceable(len(servers), tuple(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))))

    def _rank(self, state: GroupState, server: Server, spec: Spec) -> Rank:
        """Smallest first. Doubtful servers come last: those with deaths, with bad vitals, or that are condemned.
        Spread: fewest cells of the group first, then the lowest load. Pack: the highest load that still fits."""
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

    def _exclude(self, server: Server, spec: Spec) -> str | None:
        """The first reason that excludes the server, as a verb phrase in the singular (see ``_PLURALS``); None if the
        server can take the cell."""
        if not server.takes_cells:
            return "accepts no new cells (condemned or not attached)"
        if server.maintenance is not None:
            return "is in maintenance"
        seen = self._sight.servers.get(server.id)
        if seen is None or not self._sight.hears(server.id, self._now, self._tempo):
            return "is silent"
        if not is_known(server, seen):
            return "has another machine in its place"
        if seen.is_leaving:
            return "is leaving"
        if spec.runtime not in server.runtimes:
            return f"lacks the {spec.runtime} runtime"
        if spec.runtime is RuntimeKind.DOCKER and seen.vitals is not None and seen.vitals.engine_hangs:
            return "has an engine that does not answer"
        for key, value in spec.placement.require.items():
            if server.labels.get(key) != value:
                return f"lacks the label {key}={value}"
        for port in fixed_ports(spec):
            if port in server.ports:
                return f"has port {port} in use by another cell"
        return _lacking(server, spec.resources)


def _lacking(server: Server, need: Resources) -> str | None:
    """Which resources do not suffice; None if all do. A capacity of 0 means unknown and sets no limit."""
    size, used = server.capacity, server.used
    parts = []
    if size.cpu_millis and used.cpu_millis + need.cpu_millis > size.cpu_millis:
        parts.append(f"too little CPU ({_cores(need)} needed)" if need.cpu_millis else "no CPU left")
    if size.memory_bytes and used.memory_bytes + need.memory_bytes > size.memory_bytes:
        amount = format_bytes(need.memory_bytes)
        parts.append(f"too little memory ({amount} needed)" if need.memory_bytes else "no memory left")
    return f"has {' and '.join(parts)}" if parts else None


def _cores(need: Resources) -> str:
    return f"{need.cpu_millis / 1000:g} {'core' if need.cpu_millis == 1000 else 'cores'}"
