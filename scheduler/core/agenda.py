"""What to look at, and when: the keys with news, the looks that are planned, and what is held back.

Work is in proportion to what changed. A key is looked at because there is news about it, because its
planned look is due, or because a hold on it may be over.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Mapping

from galactica.scheduler.core.model.fleet import Fleet
from galactica.scheduler.core.model.keys import Hold, Key, ServerKey, SlotKey, group_of
from galactica.scheduler.core.reconcile.plan import Plan

KEYS_PER_TURN = 1_000
"""A turn stays short, so that beats and operators never wait for a long plan. The next turn takes the rest."""

WOKEN_PER_TURN = 64
"""How many held keys of a group are looked at again when something came free; more follow while that helps."""


class Agenda:
    """Each key stands here at most once with its cause, and at most once with the time of its next look."""

    def __init__(self) -> None:
        self._dirty: OrderedDict[Key, str] = OrderedDict()
        self._looks: list[tuple[float, int, Key]] = []
        self._look_at: dict[Key, float] = {}
        self._looks_made = 0
        self._holds: dict[Key, Hold] = {}
        self._held_in: dict[str, dict[Key, None]] = {}

    @property
    def holds(self) -> tuple[Hold, ...]:
        return tuple(self._holds.values())

    def add_all(self, fleet: Fleet, cause: str) -> None:
        """Every server and every slot."""
        for server in fleet.servers:
            self._dirty[ServerKey(server)] = cause
        for name, state in fleet.groups.items():
            numbers = set(range(state.wanted_slots)).union(state.slots)
            for number in sorted(numbers):
                self._dirty[SlotKey(name, number)] = cause

    def add(self, key: Key, cause: str) -> None:
        """Look at ``key`` in the next turn. A cause that it has already stays."""
        self._dirty.setdefault(key, cause)

    def add_asked(self, keys: Mapping[Key, str]) -> None:
        """Somebody asked for it: that is the cause from now on."""
        for key, cause in keys.items():
            self._dirty[key] = cause

    def take(self, now: float) -> Mapping[Key, str]:
        """The keys of one turn, each with its cause."""
        while self._looks and self._looks[0][0] <= now:
            at, _, key = heapq.heappop(self._looks)
            if self._look_at.get(key) == at:
                del self._look_at[key]
                self._dirty.setdefault(key, "look")
        chosen: dict[Key, str] = {}
        while self._dirty and len(chosen) < KEYS_PER_TURN:
            key, cause = self._dirty.popitem(last=False)
            chosen[key] = cause
        return chosen

    def schedule(self, key: Key, at: float) -> None:
        """Look at ``key`` not later than ``at``."""
        known = self._look_at.get(key)
        if known is not None and known <= at:
            return
        self._look_at[key] = at
        self._looks_made += 1
        heapq.heappush(self._looks, (at, self._looks_made, key))

    def next_look_at(self) -> float | None:
        """When the next turn is due without news; 0 where work is left."""
        if self._dirty:
            return 0.0
        while self._looks and self._look_at.get(self._looks[0][2]) != self._looks[0][0]:
            heapq.heappop(self._looks)
        return self._looks[0][0] if self._looks else None

    def commit(self, plan: Plan) -> None:
        """Note what the plan holds back and when it wants to look again; wake what it may have set free."""
        released = self._take_holds(plan)
        for at, key in plan.looks:
            self.schedule(key, at)
        if plan.roomier:
            self.wake_all()
        else:
            self._wake(plan.freed | released)

    def wake_all(self) -> None:
        """Look again at the first of what is held in each group."""
        self._wake(self._held_in)

    def _take_holds(self, plan: Plan) -> set[str]:
        """Answers the groups in which a key is no longer held."""
        released = set()
        for key in plan.looked:
            if key in plan.holds:
                self._holds[key] = plan.holds[key]
                line = self._held_in.setdefault(group_of(key), {})
                line.pop(key, None)  # to the end of the line, so that each held key gets its turn
                line[key] = None
            elif key in self._holds:
                del self._holds[key]
                group = group_of(key)
                released.add(group)
                self._held_in[group].pop(key, None)
                if not self._held_in[group]:
                    del self._held_in[group]
        return released

    def _wake(self, groups: Iterable[str]) -> None:
        for group in groups:
            for key in list(self._held_in.get(group, ()))[:WOKEN_PER_TURN]:
                self._dirty.setdefault(key, "look")
