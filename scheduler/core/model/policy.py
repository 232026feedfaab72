"""The numbers behind the rules, and how often agents beat."""

from __future__ import annotations

from msgspec import Struct


class VitalLimits(Struct, frozen=True):
    """From which value a vital is bad, and how long it must stay bad to make a server sick."""

    disk_fraction: float = 0.97
    memory_fraction: float = 0.98
    memory_pressure_percent: float = 60.0
    clock_offset_ms: float = 5_000.0
    kernel_errors_per_minute: int = 10
    ailing_seconds: float = 15.0
    ailing_reports: int = 3
    """In how many reports in a row, since several reports may repeat one old reading."""
    stale_seconds: float = 60.0
    """Bad readings further apart than this are separate ailments."""
    common_fraction: float = 0.2
    """What ails more than this share of the servers (and more than one) is not the fault of each, where another cause
    is likely: of wrong clocks the scheduler's own clock, of starved agents the cells that they all run."""


USUAL_LIMITS = VitalLimits()


MAX_DOUBLINGS = 32
"""More would be too large a number."""


def growing_pause(first_seconds: float, repeats: int, limit_seconds: float) -> float:
    """A pause that doubles with each repetition, up to a limit."""
    return min(first_seconds * 2.0 ** min(repeats, MAX_DOUBLINGS), limit_seconds)


SILENT_BEATS = 2.0
MISSED_BEATS = 2.5


class Tempo(Struct, frozen=True):
    """How often agents beat, and how long their silence is tolerated."""

    beat_seconds: float
    lease_seconds: float

    @property
    def silent_seconds(self) -> float:
        """Longer silence is more than one late beat. It may condemn, with evidence beside it."""
        return SILENT_BEATS * self.beat_seconds

    @property
    def missed_seconds(self) -> float:
        """Longer silence makes a server suspect: one beat may be lost and the next one late. Until the server is heard
        again it gets no new cells, and its word about others does not count."""
        return MISSED_BEATS * self.beat_seconds

    def is_silent(self, heard_at: float, now: float) -> bool:
        return now - heard_at > self.silent_seconds

    def has_missed(self, heard_at: float, now: float) -> bool:
        return now - heard_at > self.missed_seconds


class Policy(Struct, frozen=True):
    """The numbers behind the rules. One value for the whole fleet."""

    beat_seconds: float = 1.0
    lease_seconds: float = 5.0
    stall_seconds: float = 2.0
    """A scheduler that did not run a turn for this long was itself stalled. It ignores all silence from before."""
    servers_per_beat_second: int = 1_000
    """The time between beats grows with the fleet, so that about this many beats come in each second at most."""
    early_seconds: float = 5.0
    """A cell that dies before it was READY for this long died early."""
    young_death_seconds: float = 60.0
    """A death of a cell that was never proven is fresh for this long. Until then no healthy cell makes room for others
    of its revision."""
    waits_for_proof: bool = True
    """False in a preview, which imagines that each new cell stays well."""
    backoff_first_seconds: float = 1.0
    backoff_limit_seconds: float = 60.0
    backoff_reset_seconds: float = 600.0
    resend_seconds: float = 3.0
    """A command that an attached agent does not act on is sent again after this time."""
    shell_seconds: float = 900.0
    """How long a cell lives after somebody opened a shell in it."""
    relook_seconds: float = 60.0
    """What is held until news comes is looked at again after this time in any case."""
    provider_resend_seconds: float = 60.0
    """The same as ``resend_seconds`` for providers, which take longer. Each further pause is twice as long."""
    provider_resend_limit_seconds: float = 900.0
    """The longest of these pauses."""
    storm_fraction: float = 0.2
    """If more than this share of a pool (and more than one server) falls silent within the window, it is a storm."""
    storm_window_seconds: float = 60.0
    storm_hold_seconds: float = 900.0
    """How long a storm is held if nobody releases it."""
    cut_off_after_seconds: float = 300.0
    """How long a server of no pool keeps its cells while only its neighbours reach it."""
    overtaken_seconds: float = 30.0
    """After agents showed that the journal is older than its fleet, no cell is ordered for this long, or until every
    server was heard: one of them may run a cell that the journal does not know."""
    maintenance_limit_seconds: float = 3600.0
    """The longest maintenance lease that an agent gets when it ends in order."""
    regrow_seconds: float = 10.0
    """A scheduler that is grown anew listens for so long, after it heard the first agent, before it takes the newest
    genome. Agents that are on their way back try every 5 s at least."""
    fence_margin_seconds: float = 5.0
    """How much longer than lease and grace an exclusive cell may take to end: an unnoticed stall of the scheduler
    (stall_seconds), one second until the watchdog looks, and one until a kill takes effect."""
    blame_window_seconds: float = 60.0
    vitals: VitalLimits = VitalLimits()
    drain_margin_seconds: float = 30.0
    """How much longer than their grace a server waits for its cells to end. Then it goes together with them."""
    sick_surge_fraction: float = 0.25
    """Share of a group's replicas (at least 1) that may be replaced at once while the old cell still runs."""
    outdated_surge: int = 1
    """How many cells of a group are replaced at once because they are outdated or on a draining server."""

    def tempo(self, servers: int) -> Tempo:
        """Beat and lease for a fleet of that many servers."""
        beat = max(self.beat_seconds, servers / self.servers_per_beat_second)
        return Tempo(beat, beat * self.lease_seconds / self.beat_seconds)
