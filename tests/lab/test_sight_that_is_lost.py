"""A scheduler that is cut off from all hosts at once suspects its own network, and not them."""

from __future__ import annotations

import pytest

from deploy.lab.switch import cut_scheduler_off
from tests.support.lab import Lab
from tests.support.processes import pids

BLIND_SECONDS = 15.0
"""Of each scheduler: three leases, and half a minute in all."""


@pytest.mark.timeout(240)
def test_a_scheduler_that_hears_nobody_condemns_nobody(lab: Lab) -> None:
    """Nor does the next one, which has not heard anybody ever."""
    lab.pool("blind")
    before = lab.service("blind")
    position = lab.fleet.position()

    def is_held() -> bool:
        return storms(lab) >= {"blind", "bystander"} and lab.condemned(position) == {}

    with lab.dropping(*cut_scheduler_off()):
        for is_first in (True, False):
            if not is_first:
                lab.begin_scheduler_anew()
            lab.fleet.until(lambda: storms(lab) >= {"blind", "bystander"}, "its blindness is seen")
            assert not lab.fleet.status()["healthy"]
            assert "suspects its own network" in lab.fleet.done("storms")
            lab.while_watching(BLIND_SECONDS, is_held, "the storm is held, and nothing is condemned")
        assert lab.alive(before) == list(pids(before))
    lab.until_well("blind", 2)
    lab.until_well("bystander", 4)
    assert storms(lab) == set()
    assert pids(lab.fleet.until_ready("blind-web", 2)) == pids(before)
    assert lab.alive(before) == list(pids(before))
    assert lab.condemned(position) == {}
    assert lab.fleet.events("CellOrdered", "ServerJoined", after=position) == []


def storms(lab: Lab) -> set[str]:
    """The pools in which silence is not believed at the moment."""
    return {storm["pool"] for storm in lab.fleet.status()["storms"]}
