"""Who may use the link, as the journal knows it. Pure."""

from __future__ import annotations

from galactica.scheduler.core.model.fleet import Fleet, Phase
from galactica.scheduler.core.model.requests import Refused


def check_may_attach(fleet: Fleet, server: str) -> None:
    """A drained server may attach: it gets no cells, but cells that it still runs have to be removed. And so may
    everybody who has a certificate of our CA, while this scheduler is being grown anew. Raises Refused."""
    if server not in fleet.servers and fleet.regrowth is None:
        raise Refused(
            "unknown_server", f"server {server} is not in this fleet: enrol it again with a new token"
        )


def check_may_renew(fleet: Fleet, server: str) -> None:
    """Raises Refused."""
    check_may_attach(fleet, server)
    record = fleet.servers.get(server)
    if record is not None and record.phase is Phase.DECOMMISSIONED and record.is_drained:
        raise Refused("drained", f"server {server} was drained: enrol it again with a new token")


def is_member(fleet: Fleet, server: str) -> bool:
    record = fleet.servers.get(server)
    return record is not None and record.phase is not Phase.DECOMMISSIONED
