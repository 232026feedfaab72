"""Who watches whom: a random regular graph over the fleet. It depends only on the servers and the seed.

The servers form ``degree`` rings. A hash gives each ring its own order, and each server watches its successor on each
ring. So each server watches as many servers as watch it. A server that comes or goes changes only its neighbours on
the rings, and one ring alone connects all servers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from hashlib import blake2b
from itertools import pairwise

DEGREE = 3

Watched = Mapping[str, tuple[str, ...]]
"""Watcher to the servers that it watches."""


def draw(servers: Sequence[str], seed: int, degree: int = DEGREE) -> Watched:
    """For each server ``degree`` other servers, all distinct; in a smaller fleet all others."""
    names = sorted(set(servers))
    if len(names) <= degree + 1:
        return {name: tuple(other for other in names if other != name) for name in names}
    chosen: dict[str, list[str]] = {name: [] for name in names}
    for ring in range(degree):
        for watcher, watched in _matched(_ring(names, seed, ring), chosen).items():
            chosen[watcher].append(watched)
    return {name: tuple(others) for name, others in chosen.items()}


def redraw(
    before: Watched, servers: Sequence[str], absent: AbstractSet[str], seed: int, degree: int = DEGREE
) -> Watched:
    """A draw in which ``absent`` servers keep their watchers.

    An absent server cannot learn the keys of new watchers, so it would not answer their pings. And its watchers'
    testimonies are needed just then.
    """
    drawn = draw(servers, seed, degree)
    present = set(servers)
    kept = {
        watcher: [watched for watched in before.get(watcher, ()) if watched in absent and watched in present]
        for watcher in drawn
    }
    had_watchers = {watched for others in before.values() for watched in others}
    pinned = absent & had_watchers
    return {
        watcher: tuple(
            dict.fromkeys((*(watched for watched in others if watched not in pinned), *kept[watcher]))
        )
        for watcher, others in drawn.items()
    }


def watchers_of(watched: Watched) -> Watched:
    """The same pairs the other way round: each watched server to its watchers."""
    watchers: dict[str, list[str]] = {}
    for watcher, others in watched.items():
        for server in others:
            watchers.setdefault(server, []).append(watcher)
    return {server: tuple(sorted(others)) for server, others in watchers.items()}


def _ring(names: Sequence[str], seed: int, ring: int) -> list[str]:
    key = f"{seed}/{ring}".encode()
    places = {name: blake2b(name.encode(), key=key, digest_size=8).digest() for name in names}
    return sorted(names, key=lambda name: (places[name], name))


def _matched(ring: Sequence[str], chosen: Mapping[str, Sequence[str]]) -> Mapping[str, str]:
    """Each server's successor on the ring. A server that watches its successor already swaps with as few others as
    possible."""
    watched: dict[str, str] = {}
    leftover: list[str] = []
    for watcher, follower in (*pairwise(ring), (ring[-1], ring[0])):
        if follower in chosen[watcher]:
            leftover.append(watcher)
        else:
            watched[watcher] = follower
    watchers = {follower: watcher for watcher, follower in watched.items()}
    for watcher in leftover:
        _augment(watcher, ring, chosen, watched, watchers)
    return watched


def _augment(
    start: str,
    ring: Sequence[str],
    chosen: Mapping[str, Sequence[str]],
    watched: dict[str, str],
    watchers: dict[str, str],
) -> None:
    """The shortest chain of swaps that gives ``start`` a server to watch, breadth first.

    There always is such a chain: watchers and possible targets form a regular bipartite graph, and each of those has a
    perfect matching (König).
    """
    reached_by: dict[str, str] = {}
    queue = deque([start])
    while queue:
        watcher = queue.popleft()
        for server in _others(watcher, ring, chosen, reached_by):
            reached_by[server] = watcher
            if server not in watchers:
                _swap(server, start, reached_by, watched, watchers)
                return
            queue.append(watchers[server])
    raise AssertionError(f"no server is left on this ring that {start} could watch")


def _others(
    watcher: str, ring: Sequence[str], chosen: Mapping[str, Sequence[str]], reached: Mapping[str, str]
) -> list[str]:
    return [
        server
        for server in ring
        if server != watcher and server not in chosen[watcher] and server not in reached
    ]


def _swap(
    end: str, start: str, reached_by: Mapping[str, str], watched: dict[str, str], watchers: dict[str, str]
) -> None:
    server: str | None = end
    while server is not None:
        watcher = reached_by[server]
        before = watched.get(watcher) if watcher != start else None
        watched[watcher], watchers[server] = server, watcher
        server = before
