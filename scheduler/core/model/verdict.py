"""Judgements: the health of a cell, the evidence for it, and the autopsy of a dead one."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class Health(StrEnum):
    """What a verdict says. Derived from evidence at a moment, never recorded as a phase."""

    HEALTHY = "healthy"
    SUSPECT = "suspect"
    SICK = "sick"
    DEAD = "dead"


class Evidence(Struct, frozen=True):
    """One observed fact: who says it, what, and when it was so."""

    source: str
    says: str
    at: float


class Autopsy(Struct, frozen=True, omit_defaults=True):
    """How a cell died. ``lived_seconds`` counts from its start."""

    reason: str
    exit_code: int | None = None
    signal: str = ""
    oom_killed: bool = False
    last_lines: tuple[str, ...] = ()
    lived_seconds: float = 0.0
    fenced: bool = False
    """Its agent ended it because no scheduler was known to hear the server."""


class Verdict(Struct, frozen=True):
    """A judgement: the name of the rule that matched, what it rests on, and when to look again (None: on news)."""

    health: Health
    rule: str
    """A ``Rule``; of a cell that was condemned long ago perhaps one that this version does not know."""
    reason: str
    evidence: tuple[Evidence, ...] = ()
    next_look_at: float | None = None
