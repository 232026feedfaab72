"""The core's memory between turns: fleet, sight, and the agenda of what to look at.

A *turn* takes what came in, decides, and hands out a ``Turn``: records to make durable, commands to send and
answers to give once they are. The driver then calls ``commit``, or ``abandon`` where the journal refused; nothing of
an abandoned turn was seen outside, and the same is decided again later. Still pure: no clock, no IO, no tasks.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from galactica.scheduler.admission import admit
from galactica.scheduler.commands import Command, ProviderCommand
from galactica.scheduler.draft import Draft
from galactica.scheduler.events import JournalResumed, Record, SchedulerStarted
from galactica.scheduler.health import BEATS_MISSED
from galactica.scheduler.model import Fleet, Hold, Key, LeakKey, OrphanKey, Policy, ServerKey, SlotKey, Storm
from galactica.scheduler.placement import Placer
from galactica.scheduler.ports import View
from galactica.scheduler.reconcile import Plan, finish
from galactica.scheduler.requests import Accepted, Refused, Request
from galactica.scheduler.servers import cells_of
from galactica.scheduler.sight import Attached, Observation, Reported, Sight, observe
from galactica.scheduler.storm import hears_anybody, is_calm, storm_of

KEYS_PER_TURN = 1_000
"""A turn stays short, so that beats and operators wait for no long plan; the rest is dealt with in the next one."""

WOKEN_PER_TURN = 64
"""How many held keys of a group are looked at again when something came free; more follow while that helps."""

ABANDONED_LOOK_SECONDS = 1.0
"""When to try again what the journal refused."""


class Asked(Struct, frozen=True):
    """A request with its ticket, by which its answer finds the asker. ``by``: "operator:NAME" or "server:ID"."""

    ticket: int
    request: Request
    by: str


class Start(Struct, frozen=True):
    """Which scheduler this is. Its first turn records it."""

    epoch: int
    version: str


class Turn(Struct, frozen=True):
    plan: Plan
    answers: tuple[tuple[int, Accepted | Refused], ...]
    at: float

    @property
    def records(self) -> tuple[Record, ...]:
        return self.plan.records

    @property
    def commands(self) -> tuple[Command, ...]:
        return self.plan.commands

    @property
    def provider_commands(self) -> tuple[ProviderCommand, ...]:
        return self.plan.provider_commands


class Core:
    """The one owner of the scheduler's state."""

    def __init__(
        self, fleet: Fleet, policy: Policy, now: float, start: Start, sight: Sight | None = None
    ) -> None:
        """A core that starts has seen nothing and looks at everything; one that is given a sight goes on from it."""
        self.fleet = fleet
        self.start = start
        self.policy = policy
        self.sight = sight or Sight(trusted_since=now)
        self.trouble = ""
        """Why the journal takes nothing at the moment; empty while it does."""
        self._trouble_since = 0.0
        self._try_again_at = 0.0
        self._placer = Placer()
        self._dirty: OrderedDict[Key, str] = OrderedDict()
        self._looks: list[tuple[float, int, Key]] = []
        self._look_at: dict[Key, float] = {}
        self._looks_made = 0
        self._holds: dict[Key, Hold] = {}
        self._held_in: dict[str, dict[Key, None]] = {}
        self._stormy: set[str] = set()
        """Pools in which silence was held, and that were not calm since."""
        self._is_blind = False
        """While there are such pools: nobody at all was heard at the last turn."""
        self._turned_at = now
        if sight is None:
            self._dirty_all("start")

    def _dirty_all(self, cause: str) -> None:
        for server in self.fleet.servers:
            self._dirty[ServerKey(server)] = cause
        for name, state in self.fleet.groups.items():
            numbers = set(range(state.wanted_slots)).union(state.slots)
            for number in sorted(numbers):
                self._dirty[SlotKey(name, number)] = cause

    # --- in -------------------------------------------------------------------------------------------------------

    def take(self, observation: Observation) -> None:
        """Fold one observation into the sight and note what to look at."""
        passed_by = self._passed_by(observation)
        observed = observe(self.sight, observation, self.policy.vitals)
        self.sight = observed.sight
        cause = f"report:{observed.server}" if observed.server else f"provider:{observed.provider}"
        for server_id in observed.servers:
            self._dirty.setdefault(ServerKey(server_id), cause)
            self._placer.touch(server_id)
        if (
            passed_by and passed_by in observed.servers
        ):  # it takes cells again, and some may wait for just that
            self._wake(self._held_in)
        if observed.everything:
            server = self.fleet.servers.get(observed.server)
            for key in cells_of(server, cause) if server else ():
                self._dirty.setdefault(key, cause)
        for cell_id in observed.cells:
            self._dirty.setdefault(self._key_of(observed.server, cell_id), cause)
        for cell_id in observed.made:
            self._dirty.setdefault(self._key_of_made(observed.provider, cell_id), cause)

    def _key_of_made(self, provider: str, cell_id: str) -> Key:
        cell = self.fleet.cell(cell_id)
        return LeakKey(provider, cell_id) if cell is None else SlotKey(cell.group, cell.slot)

    def _passed_by(self, observation: Observation) -> str:
        """The server that speaks, where placement passed it by until now: nothing was heard from it, or it ails."""
        if not isinstance(observation, Attached | Reported):
            return ""
        seen = self.sight.servers.get(observation.server)
        limit = BEATS_MISSED * self.policy.tempo(len(self.fleet.servers)).beat_seconds
        is_silent = seen is None or not seen.is_open or observation.at - seen.heard_at > limit
        return observation.server if is_silent or (seen and seen.ailing) else ""

    def _key_of(self, server_id: str, cell_id: str) -> Key:
        cell = self.fleet.cell(cell_id)
        if cell is None or cell.server != server_id:
            return OrphanKey(server_id, cell_id)
        return SlotKey(cell.group, cell.slot)

    # --- decide ---------------------------------------------------------------------------------------------------

    def turn(self, asked: Sequence[Asked], now: float) -> Turn:
        """Decide on what came in and on what is due at ``now``."""
        if now - self._turned_at > self.policy.stall_seconds:
            self.sight = replace(self.sight, trusted_since=now)
        self._turned_at = now
        if asked or self._is_due(now):
            self._see_calm(now)
        draft = Draft(self.fleet, self.sight, now, self.policy, self._placer)
        if self.fleet.epoch < self.start.epoch:
            draft.emit(SchedulerStarted(self.start.epoch, self.start.version), "start")
        if self.trouble and now >= self._try_again_at:
            # Something to write, so that the end of the trouble is noticed where nobody wants anything.
            draft.emit(JournalResumed(self._trouble_since, self.trouble), "look")
        answers: list[tuple[int, Accepted | Refused]] = []
        dirty: dict[Key, str] = {}
        for one in asked:
            try:
                admitted = admit(draft, one.request, one.by)
            except Refused as refused:
                answers.append((one.ticket, refused))
            else:
                answers.append((one.ticket, admitted.accepted))
                dirty.update(admitted.dirty)
        for key, cause in dirty.items():
            self._dirty[key] = cause
        return Turn(finish(draft, self._take_dirty(now)), tuple(answers), now)

    def _is_due(self, now: float) -> bool:
        """Whether anything is to be looked at. Most beats bring nothing, and to count who is silent takes long."""
        due = self.next_look_at()
        return due is not None and due <= now

    def _see_calm(self, now: float) -> None:
        """Where a storm is over because others are heard again, those who are late get the time that all get when the
        scheduler starts: it saw as little of them. So it is when the first one is heard after nobody was, for however
        long that was: what is left of the storm begins there."""
        is_blind = bool(self._stormy) and not hears_anybody(self.fleet, self.sight, now, self.policy)
        sees_again = self._is_blind and not is_blind
        self._is_blind = is_blind
        for pool in sorted(self._stormy):
            has_calmed = is_calm(self.fleet, self.sight, pool, now, self.policy)
            if has_calmed:
                self._stormy.discard(pool)
            if has_calmed or sees_again:
                calm_since = self.sight.calm_since.insert(pool, now)
                self.sight = replace(self.sight, calm_since=calm_since)

    def _take_dirty(self, now: float) -> Mapping[Key, str]:
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

    # --- out ------------------------------------------------------------------------------------------------------

    def commit(self, turn: Turn) -> None:
        """The turn's records are durable: it is so."""
        plan = turn.plan
        self.fleet = plan.fleet
        self.sight = plan.sight
        if turn.records:  # a turn that wrote nothing says nothing about the journal
            self.trouble = ""
        for server_id in plan.roomier:
            self._placer.touch(server_id)
        released = self._take_holds(plan)
        for at, key in plan.looks:
            self._schedule(key, at)
        self._wake(self._held_in if plan.roomier else plan.freed | released)

    def abandon(self, turn: Turn, reason: str) -> None:
        """The journal refused: nothing happened. Look at the same keys again soon."""
        if not self.trouble:
            self._trouble_since = turn.at
        self.trouble = reason
        self._try_again_at = turn.at + ABANDONED_LOOK_SECONDS
        self._placer = Placer()
        for key in turn.plan.looked:
            self._schedule(key, turn.at + ABANDONED_LOOK_SECONDS)

    def _take_holds(self, plan: Plan) -> set[str]:
        """Note what is held; groups of which a key is no longer held are returned."""
        released = set()
        for key in plan.looked:
            if key in plan.holds:
                self._holds[key] = plan.holds[key]
                if plan.holds[key].rule == "storm":
                    self._stormy.add(_pool_of(key, self.fleet))
                line = self._held_in.setdefault(_group_of(key), {})
                line.pop(key, None)  # to the end of the line, so that each held key gets its turn
                line[key] = None
            elif key in self._holds:
                del self._holds[key]
                group = _group_of(key)
                released.add(group)
                self._held_in[group].pop(key, None)
                if not self._held_in[group]:
                    del self._held_in[group]
        return released

    def _wake(self, groups: Iterable[str]) -> None:
        """Look again at the first of what is held in these groups."""
        for group in groups:
            for key in list(self._held_in.get(group, ()))[:WOKEN_PER_TURN]:
                self._dirty.setdefault(key, "look")

    def _schedule(self, key: Key, at: float) -> None:
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

    def view(self, now: float) -> View:
        holds = tuple(self._holds.values())
        return View(self.fleet, self.sight, holds, self.policy, now, self.trouble, self._storms(holds, now))

    def _storms(self, holds: tuple[Hold, ...], now: float) -> tuple[Storm, ...]:
        """The storms behind what is held."""
        pools = {_pool_of(hold.key, self.fleet) for hold in holds if hold.rule == "storm"}
        found = (storm_of(self.fleet, self.sight, pool, now, self.policy) for pool in sorted(pools))
        return tuple(storm for storm in found if storm is not None)


def _pool_of(key: Key, fleet: Fleet) -> str:
    if isinstance(key, SlotKey):
        return key.group
    server = fleet.servers.get(key.server) if isinstance(key, ServerKey) else None
    return server.pool if server else ""


def _group_of(key: Key) -> str:
    return key.group if isinstance(key, SlotKey) else ""
