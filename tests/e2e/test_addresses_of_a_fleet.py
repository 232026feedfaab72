"""A scheduler at an IPv6 address, and one whose name nobody knows yet."""

import pytest

from tests.support.fleet import a_fleet
from tests.support.processes import pids

NAME = "scheduler.galactica.test"


def test_a_fleet_works_over_ipv6_literals():
    with a_fleet(host="[::1]") as fleet:
        fleet.start_agents(["six", "seven"])
        cells = fleet.apply("web", 2, env={})
        assert len(pids(cells)) == 2
        for name, other in (("six", "seven"), ("seven", "six")):
            says = [{"server": other, "answer": "answers"}]
            fleet.until(lambda n=name, s=says: fleet.server(n)["neighbours"] == s, f"{name} is watched")
            assert fleet.server(name)["watch_address"].startswith("[::1]:")
        assert "six" in fleet.done("servers", "--scheduler", fleet.address)
        assert fleet.end_agent("six") == 0
        fleet.start_agents(["six"])
        assert pids(fleet.until_ready("web", 2)) == pids(cells)


@pytest.mark.root
def test_an_agent_waits_for_the_name_of_its_scheduler(tmp_path):
    """Before it has enrolled and after, with a hosts file of its own."""
    hosts = tmp_path / "hosts"

    def know(*lines):
        hosts.write_text("\n".join(("127.0.0.1 localhost", *lines, "")))

    own_file = ("unshare", "--mount", "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$@"', "sh")
    with a_fleet() as fleet:
        ports = [address.rpartition(":")[2] for address in (fleet.address, fleet.enrol_address)]
        words = ("--scheduler", f"{NAME}:{ports[0]}", "--enrol", f"{NAME}:{ports[1]}")
        know()
        fleet.begin_agent("late", *words, before=own_file, GALACTICA_TOKEN=fleet.token())
        fleet.until(lambda: f"no address of {NAME} yet" in fleet.log("late"), "it says what it waits for")
        assert fleet.agents["late"].poll() is None
        know(f"127.0.0.1 {NAME}")
        fleet.until(lambda: fleet.is_attached("late"), "it enrols")
        assert fleet.server("late")["watch_address"].startswith("127.0.0.1:")

        assert fleet.end_agent("late") == 0
        know()
        fleet.begin_agent("late", *words, before=own_file)
        fleet.until(
            lambda: fleet.log("late").rpartition("event=started")[2].count("detached") > 1, "it tries"
        )
        assert fleet.agents["late"].poll() is None
        know(f"127.0.0.1 {NAME}")
        fleet.until(lambda: fleet.is_attached("late"), "it attaches")
        fleet.until(lambda: fleet.server("late")["watch_address"], "neighbours reach it")
