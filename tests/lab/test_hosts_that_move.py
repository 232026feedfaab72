"""Hosts whose address changes while their agent runs on, and hosts whose agent ends in order."""

from __future__ import annotations

from deploy.lab.switch import run
from tests.support.lab import Lab, split
from tests.support.processes import pids

MOVED_BY = 100
"""Numbers of hosts are small: an address so far beyond is free."""


def test_neighbours_follow_a_host_whose_address_changes_and_nothing_on_it_is_replaced(lab: Lab) -> None:
    victim, _ = lab.pool("moves", lease="15s")
    before = lab.service("moves")
    position = lab.fleet.position()
    host = lab.host(victim)
    old, new = host.address, lab.switch.address(host.number + MOVED_BY)
    try:
        _readdress(host.namespace, f"{new}/{lab.switch.network.prefixlen}")
        place = lab.fleet.until(lambda: _place_of(lab, victim, new), "it tells its new address")
        lab.fleet.until(lambda: lab.neighbours_say(victim) == {"answers"}, "they ask there")
        lab.fleet.hear(victim, beats=3)
        assert _place_of(lab, victim, new) == place
        assert lab.judged(victim, "healthy", "its agent answers")
    finally:
        _readdress(host.namespace, f"{old}/{lab.switch.network.prefixlen}")
    lab.fleet.until(lambda: _place_of(lab, victim, old), "and back")
    lab.until_well("moves", 2)
    assert pids(lab.fleet.until_ready("moves-web", 2)) == pids(before)
    assert lab.alive(before) == list(pids(before))
    assert lab.condemned(position) == {}


def _readdress(namespace: str, address: str) -> None:
    run("ip", "-n", namespace, "address", "flush", "dev", "eth0")
    run("ip", "-n", namespace, "address", "add", address, "dev", "eth0")


def _place_of(lab: Lab, server: str, host: str) -> str:
    place = str(lab.fleet.server(server)["watch_address"])
    return place if place.startswith(f"{host}:") else ""


def test_cells_live_on_when_their_agent_is_away_in_order_for_longer_than_its_lease(lab: Lab) -> None:
    victim, _ = lab.pool("resting", lease="4s")
    before = lab.service("resting")
    position = lab.fleet.position()
    _end_agent(lab, victim)
    lab.fleet.until(lambda: lab.neighbours_say(victim) == {"refused"}, "its neighbours reach its kernel")
    lab.fleet.hear("bystander/0.1", beats=10)
    assert lab.fleet.server(victim)["maintenance_until"]
    assert lab.alive(before) == list(pids(before))
    lab.host(victim).begin_agent()
    lab.until_well("resting", 2)
    assert pids(lab.fleet.until_ready("resting-web", 2)) == pids(before)
    assert lab.condemned(position) == {}


def test_a_host_that_loses_power_while_its_agent_is_away_in_order_is_noticed_by_its_neighbours(
    lab: Lab,
) -> None:
    victim, other = lab.pool("dies-resting", lease="4s")
    doomed, _ = split(lab.service("dies-resting"), victim)
    _end_agent(lab, victim)
    lab.fleet.until(lambda: lab.neighbours_say(victim) == {"refused"}, "its neighbours reach its kernel")
    lab.host(victim).lose_power()
    after = lab.until_replaced("dies-resting", doomed)
    assert {cell["server"] for cell in after} == {other}
    certificate = lab.fleet.why(victim)
    assert certificate["rule"] in {"neighbours_silent", "provider_gone"}
    assert any("refused before" in fact["says"] for fact in certificate["evidence"])


def _end_agent(lab: Lab, server: str) -> None:
    """SIGTERM, as for a new package."""
    agent = lab.host(server).agent
    assert agent is not None
    agent.terminate()
    agent.wait(20.0)
    assert lab.fleet.server(server)["maintenance_until"]
