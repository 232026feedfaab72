"""Who belongs to the fleet, and who is shut out of the link and of a new certificate."""

import pytest
from rpds import HashTrieMap

from galactica.scheduler.core.membership import ShutOut, is_member, shut_out_of_link, shut_out_of_renewal
from galactica.scheduler.core.model.fleet import Fleet, Phase, Regrowth, Server
from galactica.scheduler.core.model.rules import Rule
from galactica.scheduler.core.model.verdict import Health

REGROWING = Regrowth(since=1.0)
READY = Server("a", 1, Phase.READY)
DRAINING = Server("a", 1, Phase.CONDEMNED, condemned_by=Rule.OPERATOR)
DRAINED = Server("a", 1, Phase.DECOMMISSIONED, condemned_by=Rule.OPERATOR)
LOST = Server("a", 1, Phase.DECOMMISSIONED, condemned_by=Rule.SERVER_SILENT, condemned_health=Health.DEAD)


@pytest.mark.parametrize(
    ("record", "regrowth", "member", "link", "renewal"),
    [
        (None, None, False, ShutOut.UNKNOWN, ShutOut.UNKNOWN),
        (None, REGROWING, False, None, None),
        (Server("a", 1, Phase.ORDERED), None, True, None, None),
        (READY, None, True, None, None),
        (DRAINING, None, True, None, None),
        (DRAINED, None, False, None, ShutOut.DRAINED),
        (DRAINED, REGROWING, False, None, ShutOut.DRAINED),
        (LOST, None, False, None, None),
    ],
)
def test_who_is_shut_out(record, regrowth, member, link, renewal) -> None:
    servers = HashTrieMap({"a": record} if record else {})
    fleet = Fleet(servers=servers, regrowth=regrowth)
    assert (is_member(fleet, "a"), shut_out_of_link(fleet, "a"), shut_out_of_renewal(fleet, "a")) == (
        member,
        link,
        renewal,
    )
