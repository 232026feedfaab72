"""A pool's budget for change (``replace`` in its manifest): what may go, what may be ordered, and how fast.

- ``surge``: how many servers may exist beyond the wanted number. Successors run beside the servers that must go.
- ``unavailable``: how many wanted servers may be missing at once. If ``surge`` is 0, the old server goes first.
- ``per``: the number of replacements in each window, for any reason. It limits a pool that keeps losing servers.

A dead server needs no surge, because it is already gone. Nothing here counts cells: ``tallies`` does.
"""

from __future__ import annotations

from galactica.scheduler.core.budgets.services import Allowed, Held, unproven_hold
from galactica.scheduler.core.model.fleet import GroupState, Slot
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.rules import HoldRule
from galactica.scheduler.core.model.succession import is_there


def may_order_beside(state: GroupState, slot: Slot) -> Allowed | Held:
    """May a server be ordered for the slot while older servers of the slot may still exist?"""
    limit = state.group.replace.surge
    present = [cell for cell in slot.cells if not cell.is_condemned or is_there(cell)]
    if not present or state.tally.extra < limit:
        return Allowed(f"surge: {state.tally.extra} of {limit} extra servers")
    if not limit:
        return Held(HoldRule.SURGE, f"surge is 0, and the old server {present[-1].id} still exists")
    return Held(HoldRule.SURGE, f"{state.tally.extra} of {limit} allowed extra servers already exist")


def may_order_another(state: GroupState, now: float) -> Allowed | Held:
    """May one more server be ordered to replace another?"""
    return _within_rate(state, now, 0)


def may_condemn_server(state: GroupState, now: float) -> Allowed | Held:
    """May one more serving server be replaced, because it is sick or no longer wanted?"""
    replace = state.group.replace
    owed = state.tally.replacing - state.tally.surging
    allowed = _within_rate(state, now, owed)
    if isinstance(allowed, Held):
        return allowed
    if not replace.surge:
        return may_go_first(state)
    used = max(state.tally.replacing, state.tally.extra)
    if used >= replace.surge:
        return Held(HoldRule.SURGE, f"{used} of {replace.surge} allowed replacements are in progress")
    return Allowed(f"surge: {used} of {replace.surge} servers being replaced")


def may_renew_server(state: GroupState, now: float) -> Allowed | Held:
    """May a candidate be ordered beside one more healthy server that is only outdated or old? Not while too many
    servers are missing."""
    missing, limit = missing_servers(state), state.group.replace.unavailable
    if state.group.replace.surge and missing > limit:
        return Held(
            HoldRule.UNAVAILABLE,
            f"{missing} of {state.wanted_slots} servers are missing; the limit is {limit}",
        )
    return may_condemn_server(state, now)


def may_condemn_due_server(
    state: GroupState, now: float, policy: Policy, trusted_since: float
) -> Allowed | Held:
    """The same where the server goes first: not while the revision that takes its place is not proven."""
    return unproven_hold(state, now, policy, trusted_since) or may_renew_server(state, now)


def may_go_first(state: GroupState) -> Allowed | Held:
    """May a serving server go before its successor exists?"""
    missing, limit = missing_servers(state), state.group.replace.unavailable
    if missing >= limit:
        reason = f"{missing} of {state.wanted_slots} servers are missing; the limit is {limit}"
        return Held(HoldRule.UNAVAILABLE, reason)
    return Allowed(f"unavailable: {missing} of {limit} servers missing")


def goes_first(state: GroupState) -> bool:
    """Whether servers of this pool go before their successors exist."""
    return state.group.replace.surge == 0


def missing_servers(state: GroupState) -> int:
    """The number of wanted slots without a serving server."""
    return max(0, state.wanted_slots - state.tally.manned)


def _within_rate(state: GroupState, now: float, owed: int) -> Allowed | Held:
    """``owed``: condemned servers whose successors are not ordered yet."""
    replace = state.group.replace
    if not replace.count:
        return Allowed("no limit to replacements")
    recent = [at for at in state.replaced_at if now - at < replace.window_seconds]
    if len(recent) + owed < replace.count:
        return Allowed(f"per: {len(recent)} of {replace.count} replacements in {replace.window_seconds:g} s")
    pending = f", {owed} pending" if owed else ""
    reason = f"{len(recent)} of {replace.count} allowed replacements in {replace.window_seconds:g} s are used{pending}"
    over_at = recent[-replace.count] if len(recent) >= replace.count else recent[0] if recent else None
    return Held(HoldRule.PER, reason, None if over_at is None else over_at + replace.window_seconds)
