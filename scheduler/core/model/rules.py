"""The names of rules: what ``why`` prints for a verdict, and ``status`` for what is held back.

Events keep a rule as plain text: a journal may hold names that this version does not know.
"""

from __future__ import annotations

from enum import StrEnum


class Rule(StrEnum):
    """Why a cell or server is judged as it is, or why it was condemned."""

    # containers
    SERVER_LOST = "server_lost"
    OTHER_MACHINE = "other_machine"
    FENCED = "fenced"
    EXITED = "exited"
    START_FAILED = "start_failed"
    VANISHED = "vanished"
    BOOT_TIMEOUT = "boot_timeout"
    PROBE_FAILED = "probe_failed"
    SERVER_SILENT = "server_silent"
    LEASE_OVER = "lease_over"
    DOUBTFUL = "doubtful"
    SERVER_AILING = "server_ailing"
    PROBE_FAILING = "probe_failing"
    BOOTING = "booting"
    RUNNING = "running"

    # servers
    ENROLLED = "enrolled"
    PROVIDER_GONE = "provider_gone"
    PROVIDER_CONTRADICTED = "provider_contradicted"
    LEFT = "left"
    LEAVING = "leaving"
    MAINTENANCE = "maintenance"
    GRACE = "grace"
    FALLING_SILENT = "falling_silent"
    NEIGHBOURS_SILENT = "neighbours_silent"
    CUT_OFF = "cut_off"
    CUT_OFF_TOO_LONG = "cut_off_too_long"
    AGENT_AWAY = "agent_away"
    AGENT_GONE = "agent_gone"
    UNLISTED = "unlisted"
    LEASE_EXPIRED = "lease_expired"
    BLAMED = "blamed"
    STREAM_CLOSED = "stream_closed"
    BEATS_MISSED = "beats_missed"
    BEATING = "beating"
    ORDERED = "ordered"

    # vitals
    DISK_FULL = "disk_full"
    DISK_READ_ONLY = "disk_read_only"
    ENGINE_HUNG = "engine_hung"
    CLOCK_OFF = "clock_off"
    MEMORY_PRESSURE = "memory_pressure"
    KERNEL_ERRORS = "kernel_errors"
    AGENT_STARVED = "agent_starved"

    # healthy, and must go all the same
    DELETED = "deleted"
    SCALED_DOWN = "scaled_down"
    OUTDATED = "outdated"
    SERVER_DRAINED = "server_drained"
    TOUCHED = "touched"
    OLD = "old"
    UNNEEDED = "unneeded"
    OPERATOR = "operator"


class HoldRule(StrEnum):
    """What holds something back. A bad vital that keeps a server from joining again is told by its ``Rule``."""

    SURGE = "surge"
    UNAVAILABLE = "unavailable"
    SLOT_BY_SLOT = "slot_by_slot"
    PER = "per"
    UNPROVEN = "unproven"
    BACKOFF = "backoff"
    SPEC_BLAMED = "spec_blamed"
    EXCLUSIVE = "exclusive"
    NO_CAPACITY = "no_capacity"
    STORM = "storm"
    ONE_BY_ONE = "one_by_one"
    UNKNOWN_SERVER = "unknown_server"
    UNKNOWN_CELL = "unknown_cell"
    LISTENING = "listening"
    OTHER_MACHINE = "other_machine"
    REGROWING = "regrowing"
    NOBODY_ATTACHED = "nobody_attached"
    JOURNAL = "journal"


SILENCE_RULES: frozenset[str] = frozenset(
    {
        Rule.NEIGHBOURS_SILENT,
        Rule.AGENT_GONE,
        Rule.UNLISTED,
        Rule.CUT_OFF_TOO_LONG,
        Rule.LEASE_EXPIRED,
    }
)
"""Verdicts that rest on hearing nothing: those that the scheduler's own blindness could bring about."""

OWN_DEATHS: frozenset[str] = frozenset(
    {Rule.EXITED, Rule.START_FAILED, Rule.VANISHED, Rule.BOOT_TIMEOUT, Rule.PROBE_FAILED}
)
"""Rules that speak about a container's spec and about its server's fitness. All others are somebody's decision, or
the fate of the whole server."""

NOT_ITS_OWN: frozenset[str] = frozenset(
    {Rule.SERVER_LOST, Rule.TOUCHED, Rule.FENCED, Rule.LEASE_OVER, Rule.DOUBTFUL, Rule.SERVER_AILING}
)
"""Rules that speak neither about a cell's spec nor about its server's fitness."""

KEEP_FROM_STARTING: frozenset[str] = frozenset(
    {Rule.DISK_FULL, Rule.DISK_READ_ONLY, Rule.ENGINE_HUNG, Rule.AGENT_STARVED}
)
"""What ails a server such that nothing starts there: that a cell does not start says nothing about its spec."""

UNWANTED: frozenset[str] = frozenset({Rule.SCALED_DOWN, Rule.DELETED, Rule.UNNEEDED})
"""Rules by which a cell goes that nothing replaces."""
