"""Whose word counts where two machines have one identity, as after a disk was copied: that of the machine that the
journal knows for the server.

Another one that attaches as the server may know nothing of the cells there, while the known one is away for a moment
with all of them alive. What it says of them proves nothing until the known machine has had one lease to come back.
"""

from __future__ import annotations

from galactica.scheduler.core.model.fleet import Fleet, Server
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.sight.state import ServerSight, Sight
from galactica.scheduler.core.verdicts.evidence import terms_of, trusted_since_of


def is_known(server: Server, seen: ServerSight) -> bool:
    """Whether it is the server's own machine that is heard, as far as the journal can tell."""
    return server.machine in ("", seen.machine)


def is_other_machine(server: Server | None, sight: Sight) -> bool:
    """Whether what is heard as the server comes from another machine than the journal knows."""
    seen = sight.servers.get(server.id) if server is not None else None
    return server is not None and seen is not None and not is_known(server, seen)


def has_better_claim(server: Server, newcomer: str, holder: str) -> bool:
    """Whether the machine that wants the server's session is the known one, and the one that has the session is not."""
    return server.machine != "" and newcomer == server.machine != holder


def known_from(fleet: Fleet, server: Server, seen: ServerSight, sight: Sight, policy: Policy) -> float:
    """From when on the machine that is heard now is the server, if it stays: the known one has not come back.

    At once if it is the known one's own disk, booted since the known one could be heard last: then its cells ended with
    its last boot. (A clone of that disk that was booted only now looks the same.)"""
    heard_at = max(seen.elsewhere_heard_at, trusted_since_of(server, sight))
    booted_at = seen.booted_at
    if booted_at is not None and booted_at > heard_at and _is_reboot(server.machine, seen.machine):
        return 0.0
    terms = terms_of(fleet, server, policy)
    return heard_at + terms.lease_seconds + terms.tempo.beat_seconds


def _is_reboot(before: str, now: str) -> bool:
    """Two boots of one place. A machine's name is BOOT/PLACE, as its agent tells it."""
    (boot_before, _, place_before), (boot_now, _, place_now) = before.partition("/"), now.partition("/")
    return place_before == place_now != "" and boot_before != boot_now
