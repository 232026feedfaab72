"""A service's limits: how many cells may be replaced at once, and how long to wait after repeated early deaths.

Every function returns an ``Allowed`` (its text goes on the death certificate) or a ``Held`` (the operator sees its
text). None of them counts cells: they use the tallies that ``tallies`` keeps.
"""

from __future__ import annotations

from math import ceil

from msgspec import Struct

from galactica.scheduler.core.model.fleet import Backoff, GroupState
from galactica.scheduler.core.model.policy import Policy, growing_pause
from galactica.scheduler.core.model.rules import HoldRule


class Allowed(Struct, frozen=True):
    budget: str


class Held(Struct, frozen=True):
    rule: str
    reason: str
    next_look_at: float | None = None


def sick_surge(state: GroupState, policy: Policy) -> int:
    """How many cells of a group may be replaced beside their running predecessors at once."""
    return max(1, ceil(state.group.replicas * policy.sick_surge_fraction))


def may_surge(state: GroupState, policy: Policy) -> Allowed | Held:
    """May one more successor be ordered beside a condemned cell that still runs?"""
    limit = sick_surge(state, policy)
    used = state.tally.surging
    if used < limit:
        return Allowed(f"surge: {used} of {limit} cells being replaced beside running ones")
    return Held(
        HoldRule.SURGE, f"{used} of {limit} allowed replacements boot or have yet to prove themselves"
    )


def young_death_hold(state: GroupState, now: float, policy: Policy) -> Held | None:
    """Why no healthy cell makes room for the group's revision at the moment: a cell of it died young. None if none did,
    or long enough ago."""
    backoff = state.backoff
    until = backoff.last_at + policy.young_death_seconds
    if backoff.digest != state.digest or not backoff.early_deaths or now >= until:
        return None
    reason = f"a cell of revision {state.revision} died young less than {policy.young_death_seconds:g} s ago"
    return Held(HoldRule.UNPROVEN, reason, until)


def unproven_hold(state: GroupState, now: float, policy: Policy, trusted_since: float) -> Held | None:
    """What the group's revision has yet to prove before one more healthy cell goes whose successor does not exist yet;
    None if nothing.

    A cell of it became READY a moment ago, or one died young a moment ago. ``trusted_since``: a scheduler that could
    not hear before this time knows of no death before it either."""
    return young_death_hold(state, now, policy) or _newest_unproven(state, now, policy, trusted_since)


def _newest_unproven(state: GroupState, now: float, policy: Policy, trusted_since: float) -> Held | None:
    until = max(state.newest_ready_at, trusted_since) + state.group.healthy_for_seconds
    if state.newest_ready_at and policy.waits_for_proof and now < until:
        reason = (
            f"the newest cell of revision {state.revision} has yet to stay well for "
            f"{state.group.healthy_for_seconds:g} s"
        )
        return Held(HoldRule.UNPROVEN, reason, until)
    return None


def may_go_before(state: GroupState, now: float, policy: Policy, trusted_since: float) -> Allowed | Held:
    """May a sick cell go before its successor is there, because there is room for one of them only? One at a time, only
    while no other cell of the group is missing, and not before the newest one is proven: one that dies a moment later
    would have cost the next."""
    unproven = _newest_unproven(state, now, policy, trusted_since)
    if unproven is not None:
        return unproven
    tally = state.tally
    if tally.manned < state.wanted_slots:
        return Held(HoldRule.UNAVAILABLE, f"only {tally.manned} of {state.wanted_slots} cells are there")
    return Allowed("it goes first: no other cell is missing")


def may_renew(state: GroupState, policy: Policy) -> Allowed | Held:
    """May a candidate be ordered beside one more cell that is outdated or old? Slot by slot, and only while no other
    cell is missing."""
    limit = policy.outdated_surge
    tally = state.tally
    if tally.replacing >= limit:
        return Held(
            HoldRule.SLOT_BY_SLOT, f"{tally.replacing} of {limit} allowed replacements are in progress"
        )
    if tally.manned < state.wanted_slots:
        return Held(HoldRule.UNAVAILABLE, f"only {tally.manned} of {state.wanted_slots} cells are ready")
    return Allowed(f"slot by slot: {tally.replacing} of {limit} cells being replaced")


def may_condemn_outdated(
    state: GroupState, now: float, policy: Policy, trusted_since: float
) -> Allowed | Held:
    """The same where the cell goes first: not while the revision that takes its place is not proven."""
    return unproven_hold(state, now, policy, trusted_since) or may_renew(state, policy)


def may_condemn_drained(state: GroupState, policy: Policy) -> Allowed | Held:
    """May one more READY cell be condemned because its server is drained?"""
    limit = sick_surge(state, policy)
    if state.tally.replacing >= limit:
        return Held(
            HoldRule.SURGE, f"{state.tally.replacing} of {limit} allowed replacements are in progress"
        )
    return Allowed(f"surge: {state.tally.replacing} of {limit} cells being replaced")


def backoff_hold(state: GroupState, now: float) -> Held | None:
    """The hold on orders of the group's current spec while its cells keep dying early; None if there is none."""
    backoff = state.backoff
    if backoff.digest != state.digest or now >= backoff.not_before:
        return None
    reason = f"{backoff.early_deaths} cells of revision {state.revision} died early"
    return Held(HoldRule.BACKOFF, reason, backoff.not_before)


def next_backoff(state: GroupState, digest: str, now: float, policy: Policy) -> Backoff:
    """The backoff after one more early death.

    The first early death causes no wait; each further *round* doubles the wait. Deaths during a hold belong to the
    round that caused it. Otherwise nine cells of one bad spec would reach the limit within a second.
    """
    before = state.backoff
    if before.digest != digest or now - before.last_at > policy.backoff_reset_seconds:
        return Backoff(digest=digest, early_deaths=1, level=0, last_at=now, not_before=0.0)
    early_deaths = before.early_deaths + 1
    if now < before.not_before:
        return Backoff(digest, early_deaths, before.level, now, before.not_before)
    wait = growing_pause(policy.backoff_first_seconds, before.level, policy.backoff_limit_seconds)
    return Backoff(digest, early_deaths, before.level + 1, now, now + wait)
