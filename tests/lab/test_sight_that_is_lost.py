"""A scheduler that is cut off from all hosts at once doubts its own sight, and not them."""

from __future__ import annotations

import pytest

from deploy.lab.switch import cut_scheduler_off
from tests.support.fleet import pids
from tests.support.lab import Lab

BLIND_SECONDS = 15.0
"""Three leases."""


@pytest.mark.parametrize("scheduler", ["stays", "dies-too"])
def test_a_scheduler_that_hears_nobody_condemns_nobody(lab: Lab, scheduler: str) -> None:
    pool = f"blind-{scheduler}"
    lab.pool(pool)
    before = lab.service(pool)
    position = lab.fleet.position()
    with lab.dropping(*cut_scheduler_off()):
        lab.fleet.until(lambda: storms(lab) >= {pool, "bystander"}, "its blindness is seen")
        if scheduler == "dies-too":
            lab.begin_scheduler_anew()
            lab.fleet.until(lambda: storms(lab) >= {pool, "bystander"}, "its blindness is seen again")
        assert not lab.fleet.status()["healthy"]
        lab.while_watching(
            BLIND_SECONDS,
            lambda: storms(lab) >= {pool, "bystander"} and lab.condemned(position) == {},
            "the storm is held, and nothing is condemned",
        )
        assert lab.alive(before) == list(pids(before))
    lab.fleet.until(lambda: storms(lab) == set(), "it sees again")
    lab.until_well(pool, 2)
    lab.until_well("bystander", 4)
    assert pids(lab.fleet.until_ready(f"{pool}-web", 2)) == pids(before)
    assert lab.alive(before) == list(pids(before))
    assert lab.condemned(position) == {}
    assert lab.fleet.events("CellOrdered", "ServerJoined", after=position) == []


def storms(lab: Lab) -> set[str]:
    """The pools in which silence is not believed at the moment."""
    return {storm["pool"] for storm in lab.fleet.status()["storms"]}
