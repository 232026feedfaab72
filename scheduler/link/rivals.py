"""Two machines that claim to be one server: which of them gets its session, and what the other is told."""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple

from galactica.scheduler.core.ports import View
from galactica.scheduler.core.verdicts.evidence import terms_of
from galactica.scheduler.core.verdicts.machines import has_better_claim


class Claimant(NamedTuple):
    """Who wants a session. ``instance``: the run of the agent, and ``machine``: its machine, as its Hello names them;
    empty if it does not. ``address``: from where."""

    instance: str
    machine: str
    address: str


class Claim(Enum):
    """What comes of a newcomer while another session of its server is open."""

    SUCCEEDS = auto()
    """It is the server: an instance whose stream broke may be anywhere."""
    OUSTS = auto()
    """It is the server's own machine, and the holder another one, which loses the session."""
    SECOND = auto()
    """It is a second machine and gets no session: the holder lives, no beat of it is missing."""


def claim_of(view: View, server: str, newcomer: Claimant, holder: Claimant, heard_at: float) -> Claim:
    """The same instance may always come back, also while its old stream seems open. ``heard_at``: when the holder was
    heard last."""
    record = view.fleet.servers[server]
    if has_better_claim(record, newcomer.machine, holder.machine):
        return Claim.OUSTS
    if holder.instance == newcomer.instance:
        return Claim.SUCCEEDS
    tempo = terms_of(view.fleet, record, view.policy).tempo
    is_silent = tempo.has_missed(max(heard_at, view.sight.trusted_since), view.now)
    return Claim.SUCCEEDS if is_silent else Claim.SECOND


def words_for(server: str) -> str:
    """What the one of the two that gets no session is told."""
    return (
        f"another live machine is attached as server {server}: two machines have its identity, as after a disk was "
        "copied. If this one is the copy, stop its agent, remove its data directory, and enrol it under an id of "
        "its own (--id, with a new token)"
    )
