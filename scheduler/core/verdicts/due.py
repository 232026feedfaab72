"""Why a healthy cell must go all the same: nobody wants it, or it is outdated, on a drained server, touched or old."""

from __future__ import annotations

import zlib
from enum import Enum, auto

from msgspec import Struct

from galactica.scheduler.core.model.fleet import Cell, Fleet, GroupState, Phase
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.rules import Rule
from galactica.scheduler.core.model.verdict import Evidence, Health
from galactica.scheduler.core.sight.state import Sight
from galactica.scheduler.core.verdicts.machines import is_other_machine

AGE_JITTER = 0.1
"""Cells of one wave do not all come of age at the same moment."""

A_SHELL_WAS_OPENED = "a shell was opened in it"


class Urgency(Enum):
    """Which budget a doom needs."""

    LOW = auto()
    """It is well, and only outdated or old."""
    HIGH = auto()
    """It is touched, or its server is drained."""
    UNWANTED = auto()
    """Nobody misses it: no budget, and no successor."""


class Doom(Struct, frozen=True):
    """Why a cell that is well must go all the same. ``cause``: what brought it about; empty: the look itself."""

    rule: Rule
    reason: str
    urgency: Urgency
    cause: str = ""
    evidence: tuple[Evidence, ...] = ()
    """What it rests on, beside the verdict."""


def doom_of(
    fleet: Fleet, state: GroupState, cell: Cell, sight: Sight, now: float, policy: Policy
) -> Doom | None:
    """The first reason that applies now."""
    if cell.slot >= state.wanted_slots:
        if state.deleted:
            return Doom(Rule.DELETED, "its group was deleted", Urgency.UNWANTED)
        return Doom(Rule.SCALED_DOWN, "its slot is gone", Urgency.UNWANTED)
    if cell.digest != state.digest:
        reason = f"revision {cell.revision}; the group is at {state.revision}"
        return Doom(Rule.OUTDATED, reason, Urgency.LOW, f"event:{state.last_position}")
    server = fleet.servers.get(cell.server)
    if server is not None and server.phase is Phase.CONDEMNED:
        reason = f"its server {server.id} is drained"
        return Doom(Rule.SERVER_DRAINED, reason, Urgency.HIGH, f"event:{server.last_position}")
    if cell.dies_at is not None:
        cause = f"event:{cell.last_position}"
        return Doom(
            Rule.TOUCHED, A_SHELL_WAS_OPENED, Urgency.HIGH, cause, (shell_fact(cell.dies_at, policy),)
        )
    facts = () if is_other_machine(server, sight) else touched_facts(cell, sight, now)
    if facts and state.group.replace_touched:
        return Doom(Rule.TOUCHED, touched_words(facts), Urgency.HIGH, evidence=facts)
    due_at = due_of(state, cell)
    if due_at is not None and now >= due_at:
        reason = f"older than {state.group.max_age_seconds:g} s, give or take a tenth"
        return Doom(Rule.OLD, reason, Urgency.LOW)
    return None


def next_doom_at(state: GroupState, cell: Cell, now: float) -> float | None:
    """When time alone will bring a doom; None where none is to come."""
    due_at = due_of(state, cell)
    return due_at if due_at is not None and due_at > now else None


def due_of(state: GroupState, cell: Cell) -> float | None:
    """When a cell is too old; None where cells of its group never are, or it is not READY yet."""
    if not state.group.max_age_seconds or cell.ready_at is None:
        return None
    share = zlib.crc32(cell.id.encode()) / 0xFFFFFFFF
    return cell.ready_at + state.group.max_age_seconds * (1 - AGE_JITTER + 2 * AGE_JITTER * share)


def shell_fact(dies_at: float, policy: Policy) -> Evidence:
    return Evidence("scheduler", A_SHELL_WAS_OPENED, dies_at - policy.shell_seconds)


def shell_keeps(cell: Cell, sight: Sight, now: float) -> bool:
    """Whether a cell that is to go stays for the person who has a shell in it: until ``dies_at`` at the latest, and not
    where somebody wants it to go or where it is ill."""
    return (
        cell.dies_at is not None
        and now < cell.dies_at
        and cell.id in sight.shells
        and cell.condemned_health not in (Health.SICK, Health.DEAD)
        and cell.condemned_by in (Rule.TOUCHED, Rule.OUTDATED, Rule.OLD)
    )


def touched_facts(cell: Cell, sight: Sight, now: float) -> tuple[Evidence, ...]:
    """How the cell differs from its spec, one fact for each difference."""
    report = sight.report_of(cell.server, cell.id)
    if report is None or not report.touched:
        return ()
    seen = sight.servers.get(cell.server)
    at = seen.heard_at if seen else now
    return tuple(Evidence(f"agent {cell.server}", difference, at) for difference in report.touched)


def touched_words(facts: tuple[Evidence, ...]) -> str:
    return f"touched: {'; '.join(fact.says for fact in facts)}"
