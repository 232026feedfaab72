"""Two machines that claim to be one server: which of them gets its session, and what the other is told."""

from __future__ import annotations

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


def is_second(view: View, server: str, newcomer: Claimant, holder: Claimant, heard_at: float) -> bool:
    """Whether the newcomer gets no session, since another instance of this server has it and lives: no beat of it is
    missing.

    The same instance may always come back, also while its old stream seems open. The machine that the journal knows
    takes the session from one that it does not know."""
    if holder.instance == newcomer.instance or is_ousted(view, server, newcomer, holder):
        return False
    tempo = terms_of(view.fleet, view.fleet.servers[server], view.policy).tempo
    return not tempo.has_missed(max(heard_at, view.sight.trusted_since), view.now)


def is_ousted(view: View, server: str, newcomer: Claimant, holder: Claimant) -> bool:
    """Whether the one that has the session loses it to the newcomer, which is the server's own machine."""
    return has_better_claim(view.fleet.servers[server], newcomer.machine, holder.machine)


def words_for(server: str) -> str:
    """What the one of the two that gets no session is told."""
    return (
        f"another live machine is attached as server {server}: two machines have its identity, as after a disk was "
        "copied. If this one is the copy, stop its agent, remove its data directory, and enrol it under an id of "
        "its own (--id, with a new token)"
    )
