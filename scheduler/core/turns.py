"""The core's memory between turns: fleet, sight and agenda.

A *turn* takes what came in, decides, and hands out a ``Turn``: records to make durable, commands to send and
answers to give once they are. The driver then calls ``commit``, or ``abandon`` where the journal refused; nothing of
an abandoned turn was seen outside, and the same is decided again later. Still pure: no clock, no IO, no tasks.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from galactica.scheduler.core.admission import admit
from galactica.scheduler.core.agenda import Agenda
from galactica.scheduler.core.model.commands import Command, ProviderCommand
from galactica.scheduler.core.model.events import (
    JournalResumed,
    Record,
    RegrowthBegan,
    RegrowthEnded,
    SchedulerStarted,
)
from galactica.scheduler.core.model.fleet import Fleet
from galactica.scheduler.core.model.keys import (
    Hold,
    Key,
    LeakKey,
    OrphanKey,
    ServerKey,
    SlotKey,
    Storm,
    cells_of,
    pool_of,
)
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.requests import Accepted, Asker, Refused, Request
from galactica.scheduler.core.model.rules import HoldRule
from galactica.scheduler.core.placement import Placer
from galactica.scheduler.core.ports import View
from galactica.scheduler.core.reconcile.draft import Draft
from galactica.scheduler.core.reconcile.plan import Plan, finish
from galactica.scheduler.core.regrowing import everything, has_settled
from galactica.scheduler.core.sight.observations import Attached, Observation, Reported
from galactica.scheduler.core.sight.observe import observe
from galactica.scheduler.core.sight.state import Sight
from galactica.scheduler.core.unknown import unknown_on
from galactica.scheduler.core.verdicts.storm import hears_anybody, is_calm, storm_of

ABANDONED_LOOK_SECONDS = 1.0
"""When to try again what the journal refused."""


class Asked(Struct, frozen=True):
    """A request with its ticket, by which its answer finds the way back."""

    ticket: int
    request: Request
    by: Asker


class Start(Struct, frozen=True):
    """Which scheduler this is. Its first turn records it."""

    epoch: int
    version: str
    id: str = ""
    regrows: bool = False
    """It has lost all but its CA and is to be grown anew from its fleet."""


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
        self.sight = sight or Sight(trusted_since=now, began_at=now)
        self.trouble = ""
        """Why the journal takes nothing at the moment; empty while it does."""
        self._trouble_since = 0.0
        self._try_again_at = 0.0
        self._placer = Placer()
        self._agenda = Agenda()
        self._stormy: set[str] = set()
        """Pools in which silence was held, and that were not calm since."""
        self._is_blind = False
        """While there are such pools: nobody at all was heard at the last turn."""
        self._turned_at = now
        if sight is None:
            self._agenda.add_all(self.fleet, "start")

    # --- in -------------------------------------------------------------------------------------------------------

    def take(self, observation: Observation) -> None:
        """Fold one observation into the sight and note what to look at."""
        passed_by = self._passed_by(observation)
        tempo = self.policy.tempo(len(self.fleet.servers))
        observed = observe(self.sight, observation, self.policy.vitals, tempo.missed_seconds)
        self.sight = observed.sight
        cause = f"report:{observed.server}" if observed.server else f"provider:{observed.provider}"
        for server_id in observed.servers:
            self._agenda.add(ServerKey(server_id), cause)
            self._placer.touch(server_id)
        if passed_by and passed_by in observed.servers:
            self._agenda.wake_all()  # it takes cells again, and some may wait for just that
        if observed.everything:
            server = self.fleet.servers.get(observed.server)
            for key in cells_of(server, cause) if server else ():
                self._agenda.add(key, cause)
            for cell_id in unknown_on(self.fleet, observed.server):
                self._agenda.add(OrphanKey(observed.server, cell_id), cause)
        for cell_id in observed.cells:
            self._agenda.add(self._key_of(observed.server, cell_id), cause)
        for cell_id in observed.awaited:
            cell = self.fleet.cell(cell_id)
            if cell is not None:
                self._agenda.add(SlotKey(cell.group, cell.slot), cause)
        for cell_id in observed.made:
            self._agenda.add(self._key_of_made(observed.provider, cell_id), cause)

    def _key_of_made(self, provider: str, cell_id: str) -> Key:
        cell = self.fleet.cell(cell_id)
        return LeakKey(provider, cell_id) if cell is None else SlotKey(cell.group, cell.slot)

    def _passed_by(self, observation: Observation) -> str:
        """The server that speaks, where placement passed it by until now: nothing was heard from it, or it ails."""
        if not isinstance(observation, Attached | Reported):
            return ""
        server = observation.server
        tempo = self.policy.tempo(len(self.fleet.servers))
        if not self.sight.hears(server, observation.at, tempo):
            return server
        return server if self.sight.servers[server].ailing else ""

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
            draft.emit(SchedulerStarted(self.start.epoch, self.start.version, self.start.id), "start")
            if self.start.regrows and self.fleet.regrowth is None:
                draft.emit(RegrowthBegan(), "start")
        if has_settled(self.fleet, self.sight, now, self.policy):
            draft.emit(RegrowthEnded("every server was heard for one lease"), "look")
            self._agenda.add_asked(everything(draft.fleet, draft.sight, "look"))
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
        self._agenda.add_asked(dirty)
        return Turn(finish(draft, self._agenda.take(now)), tuple(answers), now)

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
        self._stormy.update(
            pool_of(key, self.fleet) for key, hold in plan.holds.items() if hold.rule == HoldRule.STORM
        )
        self._agenda.commit(plan)

    def abandon(self, turn: Turn, reason: str) -> None:
        """The journal refused: nothing happened. Look at the same keys again soon."""
        if not self.trouble:
            self._trouble_since = turn.at
        self.trouble = reason
        self._try_again_at = turn.at + ABANDONED_LOOK_SECONDS
        self._placer = Placer()
        for key in turn.plan.looked:
            self._agenda.schedule(key, turn.at + ABANDONED_LOOK_SECONDS)

    def next_look_at(self) -> float | None:
        """When the next turn is due without news; 0 where work is left."""
        return self._agenda.next_look_at()

    def view(self, now: float) -> View:
        holds = self._agenda.holds
        return View(self.fleet, self.sight, holds, self.policy, now, self.trouble, self._storms(holds, now))

    def _storms(self, holds: tuple[Hold, ...], now: float) -> tuple[Storm, ...]:
        """The storms behind what is held."""
        pools = {pool_of(hold.key, self.fleet) for hold in holds if hold.rule == HoldRule.STORM}
        found = (storm_of(self.fleet, self.sight, pool, now, self.policy) for pool in sorted(pools))
        return tuple(storm for storm in found if storm is not None)
