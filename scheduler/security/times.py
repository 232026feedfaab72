"""Times in certificates, and whether the clock that they come from can be right."""

from __future__ import annotations

from datetime import UTC, datetime

EARLIEST = 1_767_225_600.0
"""2026-01-01 00:00 UTC: this release was made later, so a clock that shows less is wrong. A machine whose clock has no
battery begins in 1970, or with the day on which its firmware was made."""


def moment(at: float) -> datetime:
    """Rounded down to whole seconds, as certificates are."""
    return datetime.fromtimestamp(int(at), UTC)


def words(at: float) -> str:
    return moment(at).strftime("%Y-%m-%d %H:%M:%S UTC")


def doubt_of(now: float) -> str:
    """Why a clock that shows ``now`` must not date anything that lasts; empty if it may be right."""
    if now >= EARLIEST:
        return ""
    return (
        f"the clock of the scheduler's machine shows {words(now)}, which cannot be right: a certificate that is made "
        "now would have expired when the clock is set"
    )
