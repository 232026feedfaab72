"""Who watches whom: a random regular graph over the fleet, the same for the same servers and seed.

The servers stand on ``degree`` rings, each in an order of its own that a hash decides, and everyone watches the one
that follows on each ring. So everyone watches as many as watch it, one that comes or goes touches only those beside its
places, and one ring alone connects all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from hashlib import blake2b
from itertools import pairwise

DEGREE = 3

Watched = Mapping[str, tuple[str, ...]]
"""Watcher to those whom it watches."""


def draw(servers: Sequence[str], seed: int, degree: int = DEGREE) -> Watched:
    """Everyone's ``degree`` others, all distinct; where there are no more than that, all of them."""
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
    """A draw in which those who are ``absent`` keep those who watch them.

    They cannot be told of new ones, whose pings they would not answer; and just now it matters what is said of them.
    """
    drawn = draw(servers, seed, degree)
    known = set(servers)
    kept = {
        watcher: [one for one in before.get(watcher, ()) if one in absent and one in known]
        for watcher in drawn
    }
    had = {watched for others in before.values() for watched in others}
    pinned = absent & had
    return {
        watcher: tuple(dict.fromkeys((*(one for one in others if one not in pinned), *kept[watcher])))
        for watcher, others in drawn.items()
    }


def watchers_of(watched: Watched) -> Watched:
    """The same pairs the other way round: who is watched, to those who watch it."""
    watchers: dict[str, list[str]] = {}
    for watcher, others in watched.items():
        for one in others:
            watchers.setdefault(one, []).append(watcher)
    return {one: tuple(sorted(others)) for one, others in watchers.items()}


def _ring(names: Sequence[str], seed: int, ring: int) -> list[str]:
    key = f"{seed}/{ring}".encode()
    places = {name: blake2b(name.encode(), key=key, digest_size=8).digest() for name in names}
    return sorted(names, key=lambda name: (places[name], name))


def _matched(ring: Sequence[str], chosen: Mapping[str, Sequence[str]]) -> Mapping[str, str]:
    """Everyone's follower on the ring; who has chosen that one already swaps with as few others as it takes."""
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
    """The shortest chain of swaps that gives ``start`` somebody to watch, breadth first.

    There is one: who may watch whom is a regular bipartite graph, and each of those has a perfect matching (König).
    """
    reached_by: dict[str, str] = {}
    queue = deque([start])
    while queue:
        watcher = queue.popleft()
        for one in _others(watcher, ring, chosen, reached_by):
            reached_by[one] = watcher
            if one not in watchers:
                _swap(one, start, reached_by, watched, watchers)
                return
            queue.append(watchers[one])
    raise AssertionError(f"no server is left for {start} to watch on this ring")


def _others(
    watcher: str, ring: Sequence[str], chosen: Mapping[str, Sequence[str]], reached: Mapping[str, str]
) -> list[str]:
    return [one for one in ring if one != watcher and one not in chosen[watcher] and one not in reached]


def _swap(
    end: str, start: str, reached_by: Mapping[str, str], watched: dict[str, str], watchers: dict[str, str]
) -> None:
    one: str | None = end
    while one is not None:
        watcher = reached_by[one]
        before = watched.get(watcher) if watcher != start else None
        watched[watcher], watchers[one] = one, watcher
        one = before
