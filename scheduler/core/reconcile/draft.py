"""The working copy of one reconciliation. Each decision is applied at once, so that the next one sees it.

Nothing leaves a draft before its records are durable. A draft that the journal refuses is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping

from galactica.scheduler.core.model.commands import Command, ProviderCommand, Verb
from galactica.scheduler.core.model.events import AnyEvent, Record
from galactica.scheduler.core.model.fleet import Cell, Fleet, parse_cell_id
from galactica.scheduler.core.model.keys import Hold, Key, SlotKey, Storm
from galactica.scheduler.core.model.policy import Policy, growing_pause
from galactica.scheduler.core.placement import Placer
from galactica.scheduler.core.sight.state import (
    Sight,
    doubt,
    forget,
    forget_place,
    forget_server,
    listen,
    tell,
    tell_provider,
)
from galactica.scheduler.core.transitions import apply
from galactica.scheduler.core.verdicts.proof import server_that_speaks_for
from galactica.scheduler.core.verdicts.storm import storm_of


class Draft:
    """Collects records, commands, holds and next looks on top of a fleet and a sight."""

    def __init__(
        self, fleet: Fleet, sight: Sight, now: float, policy: Policy, placer: Placer | None = None
    ) -> None:
        self.fleet = fleet
        self.sight = sight
        self.now = now
        self.policy = policy
        self.records: list[Record] = []
        self.commands: list[Command] = []
        self.provider_commands: list[ProviderCommand] = []
        self.holds: dict[Key, Hold] = {}
        self.looks: list[tuple[float, Key]] = []
        self.newly_dirty: dict[Key, str] = {}
        """Keys that became dirty during this reconciliation, each with its cause."""
        self.freed: set[str] = set()
        """Groups in which something that was held may go on now."""
        self.servers_with_room: set[str] = set()
        """Servers that have room again, or that are new."""
        self._storms: dict[str, Storm | None] = {}
        self._released = fleet.released
        self.cause = "look"
        self.placer = placer or Placer()
        self.placer.begin(lambda: self.fleet, sight, now, policy)

    def emit(self, event: AnyEvent, cause: str = "") -> Record:
        """Record a decision. ``cause`` defaults to what made the current key dirty."""
        record = Record(self.fleet.position + 1, self.now, cause or self.cause, event)
        self.fleet = apply(self.fleet, record)
        self.records.append(record)
        return record

    def command(self, command: Command) -> None:
        """Send a command, and remember when, so that it is not sent again at once."""
        self.commands.append(command)
        self.sight = tell(self.sight, command.server, command.cell, command.verb, self.now)

    def command_provider(self, command: ProviderCommand) -> None:
        self.provider_commands.append(command)
        self.sight = tell_provider(self.sight, command.provider, command.cell, command.verb, self.now)

    def provider_was_told(self, command: ProviderCommand) -> float | None:
        """When the provider was told just that; None if it was not."""
        known = self.sight.providers.get(command.provider)
        told = known.told.get(command.cell) if known else None
        return told.at if told is not None and told.verb == command.verb else None

    def deletes_taken(self, command: ProviderCommand) -> int:
        """How often the provider took the delete of that server."""
        known = self.sight.providers.get(command.provider)
        going = known.going.get(command.cell) if known else None
        return going.times if going else 0

    def forget_server(self, provider: str, cell: str) -> None:
        self.sight = forget_server(self.sight, provider, cell)

    def forget_place(self, server: str) -> None:
        self.sight = forget_place(self.sight, server)

    def storm(self, pool: str) -> Storm | None:
        """The pool's storm, computed once a turn, since every silent server of the pool asks for it."""
        if self.fleet.released is not self._released:
            self._storms, self._released = {}, self.fleet.released
        if pool not in self._storms:
            self._storms[pool] = storm_of(self.fleet, self.sight, pool, self.now, self.policy)
        return self._storms[pool]

    def listen(self, cell: Cell) -> None:
        """Look at the cell's slot when its server is heard next. Most beats are no news otherwise."""
        self.sight = listen(self.sight, server_that_speaks_for(cell), cell.id)

    def doubt(self, server: str) -> None:
        self.sight = doubt(self.sight, server)

    def was_told(self, server: str, cell: str, verb: Verb) -> float | None:
        """When the agent was sent this command in the current session; None if it was not."""
        seen = self.sight.servers.get(server)
        told = seen.told.get(cell) if seen else None
        return told.at if told is not None and told.verb == verb else None

    def forget(self, server: str, cell: str) -> None:
        self.sight = forget(self.sight, server, cell)

    def hold(self, key: Key, rule: str, reason: str, next_look_at: float | None = None) -> None:
        at = next_look_at if next_look_at is not None else self.now + self.policy.relook_seconds
        self.holds[key] = Hold(key, rule, reason, at)
        self.look(key, at)

    def look(self, key: Key, at: float | None) -> None:
        if at is not None:
            self.looks.append((at, key))

    def look_at_slot_of(self, cell_id: str) -> None:
        """A cell that held its slot holds it no longer."""
        parsed = parse_cell_id(cell_id)
        if parsed is not None:
            self.look(SlotKey(parsed.group, parsed.slot), self.now)

    def dirty(self, keys: Mapping[Key, str]) -> None:
        for key, cause in keys.items():
            self.newly_dirty.setdefault(key, cause)


def resend(draft: Draft, key: Key, command: Command) -> None:
    """Send a command, again after a while. Not into a closed session: when the agent attaches, commands are derived
    anew."""
    seen = draft.sight.servers.get(command.server)
    if seen is None or not seen.is_open:
        return
    told_at = draft.was_told(command.server, command.cell, command.verb)
    if told_at is None or draft.now >= told_at + draft.policy.resend_seconds:
        draft.command(command)
        told_at = draft.now
    draft.look(key, told_at + draft.policy.resend_seconds)


def resend_to_provider(draft: Draft, key: Key, command: ProviderCommand) -> None:
    """Ask a provider, and again while nothing comes of it. The pauses grow for a delete that it takes each time."""
    told_at = draft.provider_was_told(command)
    pause = draft.policy.provider_resend_seconds
    if command.verb is Verb.DECOMMISSION:
        repeats = max(0, draft.deletes_taken(command) - 1)
        pause = growing_pause(pause, repeats, draft.policy.provider_resend_limit_seconds)
    if told_at is None or draft.now >= told_at + pause:
        draft.command_provider(command)
        told_at = draft.now
    draft.look(key, told_at + pause)
