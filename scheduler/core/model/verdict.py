"""Judgements: the health of a cell, the evidence it rests on, and the sets of rules that others ask for by name."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

SILENCE_RULES = frozenset(
    {"neighbours_silent", "agent_gone", "unlisted", "cut_off_too_long", "lease_expired"}
)
"""Verdicts that rest on hearing nothing: those that the scheduler's own blindness could bring about."""


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
    reason: str
    evidence: tuple[Evidence, ...] = ()
    next_look_at: float | None = None


CUT_OFF = "cut_off"
"""The rule of a server that is silent and that its neighbours reach."""


OWN_DEATHS = frozenset({"exited", "start_failed", "vanished", "boot_timeout", "probe_failed"})
"""Rules that speak about a container's spec and about its server's fitness; all others are somebody's decision, or the
fate of the whole server."""

UNWANTED = frozenset({"scaled_down", "deleted"})
"""Rules by which a cell goes that nothing replaces."""

NOT_ITS_OWN = frozenset({"server_lost", "touched", "fenced"})
"""Rules that speak neither about a cell's spec nor about its server's fitness."""
