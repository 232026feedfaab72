"""Refuses servers that are shut out of the link, and says what they have to do."""

from __future__ import annotations

from galactica.scheduler.core.membership import ShutOut, shut_out_of_link, shut_out_of_renewal
from galactica.scheduler.core.model.fleet import Fleet
from galactica.scheduler.core.model.requests import Refused


def check_may_attach(fleet: Fleet, server: str) -> None:
    """Raises Refused."""
    _check(shut_out_of_link(fleet, server), server)


def check_may_renew(fleet: Fleet, server: str) -> None:
    """Raises Refused."""
    _check(shut_out_of_renewal(fleet, server), server)


def _check(shut_out: ShutOut | None, server: str) -> None:
    if shut_out is None:
        return
    reason = "is not in this fleet" if shut_out is ShutOut.UNKNOWN else "was drained"
    raise Refused(shut_out.value, f"server {server} {reason}: enrol it again with a new token")
