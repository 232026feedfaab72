"""``reconcile``: bring what is decided closer to what is wanted, for the keys that are news.

It looks at levels, never at edges: whatever got lost (a message, a process, a batch that the journal refused) is
decided again from what is wanted and what is seen. It does not read a clock, and a second call at the same
``now`` decides nothing new.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from galactica.scheduler.core.model.commands import Command, ProviderCommand
from galactica.scheduler.core.model.events import Record
from galactica.scheduler.core.model.fleet import Fleet
from galactica.scheduler.core.model.keys import Hold, Key, LeakKey, OrphanKey, ServerKey, SlotKey
from galactica.scheduler.core.reconcile.draft import Draft
from galactica.scheduler.core.reconcile.leftovers import look_leak, look_orphan
from galactica.scheduler.core.reconcile.servers import look_server
from galactica.scheduler.core.reconcile.slots import look_slot
from galactica.scheduler.core.sight.state import Sight


class Plan(Struct, frozen=True):
    """What a reconciliation decided. ``looked``: the keys it dealt with; those that it holds are in ``holds``."""

    fleet: Fleet
    sight: Sight
    records: tuple[Record, ...]
    commands: tuple[Command, ...]
    provider_commands: tuple[ProviderCommand, ...]
    holds: Mapping[Key, Hold]
    looks: tuple[tuple[float, Key], ...]
    looked: tuple[Key, ...]
    freed: frozenset[str]
    """Groups in which something that is held may go on now."""
    roomier: frozenset[str]
    """Servers that have room that they had not before, or that changed."""


def finish(draft: Draft, dirty: Mapping[Key, str]) -> Plan:
    """Decide for the dirty keys (each with the cause that made it dirty), and for those that become dirty by that.
    The draft may hold earlier decisions."""
    looked: dict[Key, None] = {}
    pending = dict(dirty)
    while pending:
        for key in sorted(pending, key=_order_of_looks):
            draft.cause = pending[key]
            look(draft, key)
            looked[key] = None
        pending = {key: cause for key, cause in draft.newly_dirty.items() if key not in looked}
        for key in draft.newly_dirty.keys() & looked.keys():
            draft.look(key, draft.now)  # news about what was dealt with already: the next turn's business
        draft.newly_dirty = {}
    return Plan(
        draft.fleet,
        draft.sight,
        tuple(draft.records),
        tuple(draft.commands),
        tuple(draft.provider_commands),
        draft.holds,
        tuple(draft.looks),
        tuple(looked),
        frozenset(draft.freed),
        frozenset(draft.servers_with_room),
    )


def _order_of_looks(key: Key) -> tuple[int, Key]:
    """Servers first, since their fate decides that of their cells; the rest in a stable order."""
    ranks = {ServerKey: 0, OrphanKey: 1, LeakKey: 2, SlotKey: 3}
    return (ranks[type(key)], key)


def look(draft: Draft, key: Key) -> None:
    match key:
        case ServerKey():
            look_server(draft, key)
        case OrphanKey():
            look_orphan(draft, key)
        case LeakKey():
            look_leak(draft, key)
        case SlotKey():
            look_slot(draft, key)
