"""Links that are cut, both ways and one way, between a host and everybody or the scheduler alone; agents that freeze;
networks that lose packets."""

from __future__ import annotations

import time

import pytest

from deploy.lab.switch import Drop, cut, cut_from_scheduler, cut_in, cut_out, lose
from tests.support.lab import Lab, seconds, split
from tests.support.processes import pids

BEYOND_LEASE_SECONDS = 7.0
FREEZE_SECONDS = 1.5
LOSS_SECONDS = 10.0
ANSWERS = "its agent answers"


def drops_of(lab: Lab, server: str, how: str) -> tuple[Drop, ...]:
    return {"both-ways": cut, "inwards": cut_in, "outwards": cut_out}[how](lab.host(server).number)


@pytest.mark.parametrize("how", ["both-ways", "inwards", "outwards"])
def test_a_host_whose_link_is_cut_is_dead_by_its_neighbours_word(lab: Lab, how: str) -> None:
    pool = f"cut-{how}"
    victim, other = lab.pool(pool)
    doomed, spared = split(lab.service(pool), victim)
    position = lab.fleet.position()
    lab.switch.drop(*drops_of(lab, victim, how))
    after = lab.until_replaced(pool, doomed)
    assert {cell["server"] for cell in after} == {other}
    assert pids(spared).items() <= pids(after).items()
    certificate = lab.fleet.why(victim)
    assert certificate["rule"] == "neighbours_silent"
    heard = {fact["says"]: fact["at"] for fact in certificate["evidence"]}
    assert "no answer to pings" in heard
    assert seconds(heard["last heard"], certificate["condemned_at"]) < 4.0
    assert lab.until_well(pool, 2, without=(victim,)) == [f"{pool}/0.2", other]
    lab.fleet.until(lambda: victim not in lab.hosts(), "nothing runs on that is not reached")
    assert lab.condemned(position) == {victim: "neighbours_silent", doomed[0]["id"]: "server_lost"}


def test_a_host_whose_link_was_cut_before_the_scheduler_began_is_dead_by_its_neighbours_word(
    lab: Lab,
) -> None:
    victim, other = lab.pool("cut-anew")
    doomed, spared = split(lab.service("cut-anew"), victim)
    position = lab.fleet.position()
    lab.switch.drop(*drops_of(lab, victim, "both-ways"))
    lab.begin_scheduler_anew()
    after = lab.until_replaced("cut-anew", doomed)
    assert {cell["server"] for cell in after} == {other}
    assert pids(spared).items() <= pids(after).items()
    assert lab.until_well("cut-anew", 2, without=(victim,)) == ["cut-anew/0.2", other]
    rule = lab.fleet.why(victim)["rule"]
    assert rule in {"neighbours_silent", "lease_expired"}, "as its neighbours attached in time or not"
    assert lab.condemned(position) == {victim: rule, doomed[0]["id"]: "server_lost"}


def test_a_host_that_only_the_scheduler_does_not_reach_keeps_its_cells(lab: Lab) -> None:
    """The next scheduler, which never heard of it, does not reach it either."""
    victim, _ = lab.pool("apart")
    before = lab.service("apart")
    position = lab.fleet.position()

    def is_spared() -> bool:
        return lab.condemned(position) == {} and pids(lab.fleet.ready("apart-web")) == pids(before)

    reason = f"{victim}: no heartbeat, but"

    with lab.dropping(*cut_from_scheduler(lab.host(victim).number)):
        for is_first in (True, False):
            if not is_first:
                lab.begin_scheduler_anew()
            # A scheduler that has just begun may say so of others too, until they have attached.
            lab.fleet.until(
                lambda: why_held(lab, "apart", "cut_off").startswith(reason), "it is said to be cut off"
            )
            assert reason in lab.fleet.run("status").out
            lab.while_watching(BEYOND_LEASE_SECONDS, is_spared, "its cells are ready, nothing is condemned")
        assert lab.judged(victim, "suspect", ANSWERS)
        assert lab.alive(before) == list(pids(before))
    lab.until_well("apart", 2)
    assert lab.fleet.status()["held"] == []
    assert pids(lab.fleet.until_ready("apart-web", 2)) == pids(before)
    assert lab.alive(before) == list(pids(before))
    assert lab.condemned(position) == {}


def test_an_agent_that_freezes_for_a_moment_loses_nothing(lab: Lab) -> None:
    victim, _ = lab.pool("frozen")
    before = lab.service("frozen")
    position = lab.fleet.position()
    for is_known in (True, True, False):
        lab.host(victim).freeze_agent()
        if not is_known:
            lab.begin_scheduler_anew()
        time.sleep(FREEZE_SECONDS)
        lab.host(victim).wake_agent()
        lab.until_well("frozen", 2)
    assert pids(lab.fleet.until_ready("frozen-web", 2)) == pids(before)
    assert lab.alive(before) == list(pids(before))
    assert lab.condemned(position) == {}


def test_a_network_that_loses_a_fifth_of_its_packets_costs_nobody(lab: Lab) -> None:
    """By iptables' statistic match, not tc netem: not every kernel has that."""
    lab.pool("lossy")
    before = lab.service("lossy")
    position = lab.fleet.position()
    with lab.dropping(*lose(0.2)):
        for is_first in (True, False):
            if not is_first:
                lab.begin_scheduler_anew()
            lab.while_watching(LOSS_SECONDS, lambda: lab.condemned(position) == {}, "nothing is condemned")
        assert lab.switch.dropped() > 100
    lab.until_well("lossy", 2)
    assert pids(lab.fleet.until_ready("lossy-web", 2)) == pids(before)
    assert lab.alive(before) == list(pids(before))
    assert lab.condemned(position) == {}


def why_held(lab: Lab, pool: str, rule: str) -> str:
    """The reason of the pool's hold by that rule; empty if there is none."""
    held = lab.fleet.held(pool).get(rule)
    return str(held["reason"]) if held else ""
