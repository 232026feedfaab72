"""An agent that has no free file descriptor: its server's illness, and no fault of what runs there."""

from __future__ import annotations

import resource

import pytest

from tests.support.fleet import a_fleet
from tests.support.processes import pids

pytestmark = pytest.mark.xdist_group("e2e-agents")

HTTP = {
    "command": ["python3", "-m", "http.server", "{port.http}"],
    "ports": {"http": "auto"},
    "health": {"http": {"port": "http", "path": "/"}, "every": "1s", "sick_after": 2},
}


@pytest.fixture
def fleet():
    with a_fleet() as fleet:
        yield fleet


def test_agent_without_a_free_descriptor_says_so_and_no_cell_and_no_spec_is_blamed(fleet):
    fleet.start_agent("one")
    before = fleet.apply("web", 2, **HTTP)
    position = fleet.position()
    pid = fleet.agents["one"].pid
    usual = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, usual[1]))
    fleet.done("apply", str(fleet.service("web", 3, **HTTP)))
    fleet.until(lambda: fleet.server("one")["verdict"] == "suspect", "the server is suspect")
    says = [evidence["says"] for evidence in fleet.server("one")["evidence"]]
    assert "its agent lacks what it needs (EMFILE)" in says
    assert "cpu_fraction" in fleet.server("one")["vitals"]["unread"]
    fleet.hear("one", beats=4)  # probes fail by then, if they count
    assert [cell["verdict"] for cell in fleet.ready("web")] == ["healthy"] * 2
    resource.prlimit(pid, resource.RLIMIT_NOFILE, usual)
    after = fleet.until_ready("web", 3)
    fleet.until(lambda: fleet.server("one")["verdict"] == "healthy", "the server is well again")
    assert fleet.agents["one"].poll() is None
    assert pids(before).items() <= pids(after).items()
    assert fleet.events("CellCondemned", "ServerCondemned", after=position) == []
