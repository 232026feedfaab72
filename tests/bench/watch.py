"""What watching costs: the neighbours' watch in each agent, and a thousand quiet agents in the scheduler.

*Neighbours*: eight real agents without cells in network namespaces, four of which watch each other and four of which
do not (``--watch off``). What the kernel counts of their threads' processor time differs by what the watch costs; what
it counts of UDP datagrams in their networks is the watch's.
*Scheduler*: the real one, with mTLS streams of a thousand agents that one other process plays; see ``crowd``. A server
of the same library that only reads these streams and drops what it reads needs 19 % of a core on two AMD EPYC cores.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.bench.fleet import is_watched, operator_of, servers_of, start_agents, until
from tests.bench.hosts import some_hosts, udp_datagrams
from tests.bench.table import Row
from tests.support.fleet import Fleet, a_fleet
from tests.support.processes import ROOT

SERVERS = 8
AGENTS = 1_000
DATAGRAM_BYTES = 20 + 8 + 30
"""IPv4 and UDP headers, and the packet."""
SETTLE_SECONDS = 10.0


def run(seconds: float = 60.0) -> list[Row]:
    """``seconds``: how long each is watched."""
    return [*_neighbours(seconds), _scheduler(seconds)]


def _neighbours(seconds: float) -> list[Row]:
    with some_hosts(SERVERS) as hosts, a_fleet(host=hosts.address) as fleet:
        half = SERVERS // 2
        watching = start_agents(fleet, {host.name: host.prefix for host in hosts.all[:half]})
        others = {host.name: host.prefix for host in hosts.all[half:]}
        plain = start_agents(fleet, others, "--watch", "off")
        with operator_of(fleet) as client:
            until(lambda: sum(is_watched(one) for one in servers_of(client)) == half, "them to be watched")
        time.sleep(SETTLE_SECONDS)
        pids = [*watching.values(), *plain.values()]
        before = {pid: (_cpu_seconds(pid), udp_datagrams(pid)) for pid in pids}
        time.sleep(seconds)
        cpu = {pid: (_cpu_seconds(pid) - before[pid][0]) / seconds for pid in pids}
        sent = [(udp_datagrams(pid) - before[pid][1]) * DATAGRAM_BYTES / seconds for pid in watching.values()]
    with_watch = statistics.mean(cpu[pid] for pid in watching.values())
    without = statistics.mean(cpu[pid] for pid in plain.values())
    return [
        Row(
            "neighbours' watch in an agent, three watched and watched by three: processor",
            f"{with_watch - without:.3%} of a core over {seconds:.0f} s",
            "≤ 0.1 %",
            f"an idle agent with it {with_watch:.3%}, without it {without:.3%}",
        ),
        Row(
            "the same: traffic, sent and received, with IP and UDP headers",
            f"{max(sent):.0f} B/s",
            "≤ 1 KiB/s",
        ),
    ]


def _scheduler(seconds: float) -> Row:
    with a_fleet() as fleet:
        scheduler = psutil.Process(fleet.pid)
        crowd = _crowd(fleet)
        try:
            time.sleep(SETTLE_SECONDS)
            before = scheduler.cpu_times()
            time.sleep(seconds)
            after = scheduler.cpu_times()
            with operator_of(fleet) as client:
                healthy = sum(one.verdict == "healthy" for one in servers_of(client))
            assert (crowd.poll(), healthy) == (None, AGENTS)
        finally:
            crowd.terminate()
            crowd.wait()
    share = (after.user - before.user + after.system - before.system) / seconds
    return Row(
        f"scheduler with {AGENTS:,} quiet agents (real mTLS streams, a beat a second each)",
        f"{share:.1%} of a core over {seconds:.0f} s",
        "≤ 10 %",
        f"{share / AGENTS * 1e6:.0f} µs for each beat",
    )


def _crowd(fleet: Fleet) -> subprocess.Popen[str]:
    ca = fleet.directory / "ca.pem"
    ca.write_text(json.loads(fleet.context.read_text())["ca_pem"])
    words = [fleet.address, fleet.enrol_address, str(ca), fleet.token("--uses", str(AGENTS)), str(AGENTS)]
    crowd = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.crowd", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert crowd.stdout is not None
    assert crowd.stdout.readline() == "attached\n"
    return crowd


def _cpu_seconds(pid: int) -> float:
    """Of all its threads that live, to the nanosecond (proc(5), schedstat)."""
    stats = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(stat.read_text().split()[0]) for stat in stats) / 1e9
