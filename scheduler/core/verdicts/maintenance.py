"""A server whose agent ended in order: whether its maintenance lease holds, and whether its host died meanwhile.

The agent is away, so that missing heartbeats and unanswered pings prove nothing. What is left is the host's kernel: it
refuses pings to a port that nobody listens on. A neighbour that was refused since the agent ended, and then gets no
answer of any kind, has seen the host fall silent. One that was never refused (a firewall drops the refusals) has seen
nothing.
"""

from __future__ import annotations

from typing import NamedTuple

from galactica.scheduler.core.model.fleet import Fleet, Maintenance, Server
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.verdict import Evidence
from galactica.scheduler.core.sight.state import Sight
from galactica.scheduler.core.verdicts.evidence import Witnesses, missing_at_of, witnesses_of

WITNESSES_LEAST = 2
"""A single neighbour that gets no answer may have lost its own way to the host, and the missing heartbeats do not count
as a second sign here."""


def maintenance_of(server: Server, sight: Sight, now: float) -> Maintenance | None:
    """The lease, if it holds now: it has not run out, and the agent has not attached again."""
    lease = server.maintenance
    if lease is None or now >= lease.until or is_back(lease, server.id, sight):
        return None
    return lease


def is_back(lease: Maintenance, server: str, sight: Sight) -> bool:
    """Whether the agent has another session than the one that asked for the lease."""
    seen = sight.servers.get(server)
    return seen is not None and seen.session != lease.session


class Silence(NamedTuple):
    """Who saw the host fall silent while its agent was away. ``since``: when the last of them did."""

    silent: int
    of: int
    since: float

    @property
    def is_death(self) -> bool:
        return self.silent >= WITNESSES_LEAST and self.silent * 2 > self.of


def silence_of(witnesses: Witnesses, missing_at: float | None, since: float) -> Silence:
    """``missing_at``: when the provider's newest list was asked for, where that leaves the server out. It counts as one
    more witness, if it is newer than ``since``, the beginning of the maintenance."""
    seen = [one.since for one in witnesses.said if one.after_refusal and one.since > since]
    alive = witnesses.answers + witnesses.refused
    if missing_at is not None and missing_at > since:
        seen.append(missing_at)
    return Silence(len(seen), len(seen) + alive, max(seen, default=0.0))


def host_silence(
    fleet: Fleet, server: Server, lease: Maintenance, sight: Sight, now: float, policy: Policy
) -> Silence:
    """What is seen of its host now, for those that have not looked at its witnesses yet."""
    witnesses = witnesses_of(server, sight, now, policy.tempo(len(fleet.servers)))
    return silence_of(witnesses, missing_at_of(fleet, server, sight), lease.since)


def goodbye_fact(server: str, lease: Maintenance) -> Evidence:
    return Evidence(f"agent {server}", "it ended in order and left its cells running", lease.since)
