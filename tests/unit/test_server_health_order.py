"""Verdicts on servers where two rules match, and what becomes of a lost one."""

import pytest
from msgspec.structs import replace

from galactica.scheduler.core.model.fleet import Maintenance, Phase
from galactica.scheduler.core.sight.observations import ProviderState
from tests.support.server_cases import CLOSED, DEATHS, MADE, Case, ailing
from tests.support.world import World

AT_REST = replace(MADE, maintenance=Maintenance("s1", 999.5, 1_299.5))
SICK = replace(MADE, deaths=DEATHS)

PAIRS: dict[str, Case] = {
    "enrolled before provider_gone": Case(server=replace(MADE, phase=Phase.ORDERED), made=ProviderState.GONE),
    "provider_gone before neighbours_silent": Case(3.0, "--", server=MADE, made=ProviderState.GONE),
    "provider_gone before cut_off": Case(3.0, "++", server=MADE, made=ProviderState.GONE),
    "neighbours_silent before lease_expired": Case(60.0, "--"),
    "neighbours_silent before stream_closed": Case(3.0, "--", seen=CLOSED),
    "neighbours_silent before blamed": Case(3.0, "--", server=SICK),
    "cut_off before lease_expired": Case(60.0, "++"),
    "cut_off before stream_closed": Case(3.0, "++", seen=CLOSED),
    "provider_gone before maintenance": Case(3.0, server=AT_REST, made=ProviderState.GONE, seen=CLOSED),
    "maintenance before neighbours_silent": Case(60.0, "--", server=AT_REST, seen=CLOSED),
    "maintenance before agent_gone": Case(60.0, "xx", server=AT_REST, seen=CLOSED),
    "maintenance before lease_expired": Case(60.0, server=AT_REST, seen=CLOSED),
    "maintenance before blamed": Case(1.0, server=replace(AT_REST, deaths=DEATHS), seen=CLOSED),
    "agent_gone before lease_expired": Case(60.0, "xx"),
    "agent_away before stream_closed": Case(1.0, "xx", seen=CLOSED),
    "lease_expired before blamed": Case(9.0, server=SICK),
    "lease_expired before stream_closed": Case(60.0, seen=CLOSED),
    "blamed before stream_closed": Case(1.0, server=SICK, seen=CLOSED),
    "stream_closed before beats_missed": Case(4.0, seen=CLOSED),
    "stream_closed before disk_full": Case(1.0, server=MADE, seen=ailing(3, CLOSED)),
    "beats_missed before disk_full": Case(3.0, server=MADE, seen=ailing(3)),
    "blamed before disk_full": Case(server=SICK, seen=ailing(3)),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_where_two_rules_on_servers_match_the_first_one_is_told(pair: str) -> None:
    assert PAIRS[pair].verdict().rule == pair.partition(" ")[0]


def test_a_lost_server_that_carried_no_cell_is_decommissioned_like_any_other() -> None:
    world = World()
    world.join("a")
    world.detach("a")
    world.advance(6)
    assert world.core.fleet.servers["a"].phase is Phase.DECOMMISSIONED
