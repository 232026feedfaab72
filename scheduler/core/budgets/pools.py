"""A pool's own budget for change (``replace`` in its manifest): what may go, what may be ordered, and how fast.

- ``surge``: how many servers there may be beyond the wanted number. Successors stand beside their predecessors.
- ``unavailable``: how many wanted servers may be missing at once. If ``surge`` is 0, the old server goes first.
- ``per``: how many replacements each time window may have, for any reason. It limits a pool that keeps losing servers.

A dead server needs no surge, since it is already gone. No function counts cells: ``tallies`` are kept current.
"""

from __future__ import annotations

from galactica.scheduler.core.budgets.services import Allowed, Held
from galactica.scheduler.core.model.fleet import GroupState, Slot, is_there
from galactica.scheduler.core.model.rules import HoldRule


def may_order_beside(state: GroupState, slot: Slot) -> Allowed | Held:
    """May a server be ordered for the slot, although those in it may still be there?"""
    limit = state.group.replace.surge
    there = [cell for cell in slot.cells if is_there(cell)]
    if not there or state.tally.extra < limit:
        return Allowed(f"surge: {state.tally.extra} of {limit} servers extra")
    if not limit:
        return Held(HoldRule.SURGE, f"no server may be extra, and {there[-1].id} is still there")
    return Held(HoldRule.SURGE, f"{state.tally.extra} of at most {limit} servers are extra already")


def may_order_another(state: GroupState, now: float) -> Allowed | Held:
    """May one more server be ordered in place of another?"""
    return _within_rate(state, now, 0)


def may_condemn_server(state: GroupState, now: float) -> Allowed | Held:
    """May one more server that serves be replaced, because it is ill or does not belong there any more?"""
    replace = state.group.replace
    owed = state.tally.replacing - state.tally.surging
    allowed = _within_rate(state, now, owed)
    if isinstance(allowed, Held):
        return allowed
    if not replace.surge:
        return may_go_first(state)
    used = max(state.tally.replacing, state.tally.extra)
    if used >= replace.surge:
        return Held(HoldRule.SURGE, f"{used} of at most {replace.surge} servers at once are being replaced")
    return Allowed(f"surge: {used} of {replace.surge} servers being replaced")


def may_condemn_due_server(state: GroupState, now: float) -> Allowed | Held:
    """The same for one that is well and merely outdated or old: never out of a pool that is too thin."""
    missing, limit = missing_servers(state), state.group.replace.unavailable
    if state.group.replace.surge and missing > limit:
        return Held(
            HoldRule.UNAVAILABLE,
            f"{missing} of {state.wanted_slots} servers are missing, at most {limit} may be",
        )
    return may_condemn_server(state, now)


def may_go_first(state: GroupState) -> Allowed | Held:
    """May a server that serves go before its successor is there?"""
    missing, limit = missing_servers(state), state.group.replace.unavailable
    if missing >= limit:
        reason = f"{missing} of at most {limit} servers that may be missing at once are so already"
        return Held(HoldRule.UNAVAILABLE, reason)
    return Allowed(f"unavailable: {missing} of {limit} servers missing")


def goes_first(state: GroupState) -> bool:
    """Whether servers of this pool go before their successors come."""
    return state.group.replace.surge == 0


def missing_servers(state: GroupState) -> int:
    """Wanted slots in which nothing serves."""
    return max(0, state.wanted_slots - state.tally.ready - state.tally.replacing)


def _within_rate(state: GroupState, now: float, owed: int) -> Allowed | Held:
    """``owed``: servers that are condemned and whose successors are not ordered yet."""
    replace = state.group.replace
    if not replace.count:
        return Allowed("no limit to replacements")
    recent = [at for at in state.replaced_at if now - at < replace.window_seconds]
    if len(recent) + owed < replace.count:
        return Allowed(f"per: {len(recent)} of {replace.count} replacements in {replace.window_seconds:g} s")
    reason = f"{len(recent)} of at most {replace.count} servers in {replace.window_seconds:g} s were replaced"
    over_at = recent[-replace.count] if len(recent) >= replace.count else recent[0] if recent else None
    return Held(HoldRule.PER, reason, None if over_at is None else over_at + replace.window_seconds)
