"""Which servers belong to the fleet, as the journal knows it, and which are shut out of the link or of a renewal."""

from __future__ import annotations

from enum import StrEnum

from galactica.scheduler.core.model.fleet import Fleet, Phase


class ShutOut(StrEnum):
    """Why a server is; the rule that the agent is told."""

    UNKNOWN = "unknown_server"
    DRAINED = "drained"


def is_member(fleet: Fleet, server: str) -> bool:
    record = fleet.servers.get(server)
    return record is not None and record.phase is not Phase.DECOMMISSIONED


def shut_out_of_link(fleet: Fleet, server: str) -> ShutOut | None:
    """A drained server may attach: it gets no cells, but cells that it still runs have to be removed. And so may
    everybody who has a certificate of our CA, while this scheduler is being grown anew: the certificate itself proves
    that the server enrolled."""
    if server not in fleet.servers and fleet.regrowth is None:
        return ShutOut.UNKNOWN
    return None


def shut_out_of_renewal(fleet: Fleet, server: str) -> ShutOut | None:
    """Whoever may attach gets a new certificate, unless an operator drained it. A lost server may join again."""
    record = fleet.servers.get(server)
    if record is not None and record.phase is Phase.DECOMMISSIONED and record.is_drained:
        return ShutOut.DRAINED
    return shut_out_of_link(fleet, server)
