"""Agents and whole hosts that die, on hosts of their own: what becomes of server, cells and everybody else's."""

from __future__ import annotations

import pytest

from tests.support.lab import Lab, seconds, split
from tests.support.processes import pids

KERNEL_ALONE = "its kernel answers, but its agent does not"


def test_a_killed_agent_that_returns_within_its_lease_has_the_same_cells(lab: Lab) -> None:
    """Although the scheduler is another one by then."""
    victim, _ = lab.pool("quick", lease="15s")
    before = lab.service("quick")
    position = lab.fleet.position()
    lab.host(victim).kill_agent()
    lab.fleet.until(
        lambda: lab.neighbours_say(victim) == {"refused"}, "its neighbours reach its kernel alone"
    )
    assert lab.judged(victim, "suspect", KERNEL_ALONE)
    assert pids(lab.fleet.ready("quick-web")) == pids(before), "its cells keep their traffic"
    assert lab.alive(before) == list(pids(before))
    lab.begin_scheduler_anew()
    lab.host(victim).begin_agent()
    lab.until_well("quick", 2)
    assert pids(lab.fleet.until_ready("quick-web", 2)) == pids(before)
    assert lab.alive(before) == list(pids(before))
    assert lab.condemned(position) == {}


def test_an_agent_that_stays_away_for_longer_than_its_lease_costs_the_server(lab: Lab) -> None:
    victim, other = lab.pool("away", lease="4s")
    doomed, spared = split(lab.service("away"), victim)
    heard_until, position = lab.fleet.server(victim)["last_beat_at"], lab.fleet.position()
    lab.host(victim).kill_agent()
    after = lab.until_replaced("away", doomed)
    assert {cell["server"] for cell in after} == {other}
    assert pids(spared).items() <= pids(after).items()
    assert lab.alive(spared) == list(pids(spared))
    certificate = lab.fleet.why(victim)
    assert certificate["rule"] == "agent_gone"
    assert KERNEL_ALONE in {fact["says"] for fact in certificate["evidence"]}
    assert seconds(heard_until, certificate["condemned_at"]) >= 4.0, "not before its lease had ended"
    assert lab.until_well("away", 2, without=(victim,)) == ["away/0.2", other]
    lab.fleet.until(lambda: victim not in lab.hosts(), "the host with the dead agent is deleted")
    assert lab.condemned(position) == {victim: "agent_gone", doomed[0]["id"]: "server_lost"}


@pytest.mark.parametrize("scheduler", ["stays", "dies-too"])
def test_a_host_that_loses_power_is_replaced_with_its_cells(lab: Lab, scheduler: str) -> None:
    pool = f"dark-{scheduler}"
    victim, other = lab.pool(pool)
    doomed, spared = split(lab.service(pool), victim)
    position = lab.fleet.position()
    lab.host(victim).lose_power()
    if scheduler == "dies-too":
        lab.begin_scheduler_anew()
    after = lab.until_replaced(pool, doomed)
    assert victim not in {cell["server"] for cell in after}
    assert pids(spared).items() <= pids(after).items()
    assert lab.until_well(pool, 2, without=(victim,)) == [f"{pool}/0.2", other]
    rule = lab.fleet.why(victim)["rule"]
    assert rule in {"neighbours_silent", "provider_gone"}
    assert lab.condemned(position) == {victim: rule, doomed[0]["id"]: "server_lost"}
