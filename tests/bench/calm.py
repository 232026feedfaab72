"""Wrong condemnations: how many servers are condemned that only had a bad network and moments of their own.

Eight hosts in network namespaces, each packet lost with 5 %, and every agent is frozen for 2 s (SIGSTOP, SIGCONT) at
random moments, twice a minute on average. Then nobody reaches the scheduler for a minute. At the end one cable is
pulled for good: a fleet that condemns nobody because it sees nothing has proven nothing.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator

from galactica.scheduler.cli.client import Client
from galactica.v1 import operator_pb2
from tests.bench.death import SERVERS
from tests.bench.fleet import apply, cells, is_watched, operator_of, ready, servers_of, start_agents, until
from tests.bench.hosts import Hosts, some_hosts
from tests.bench.observer import Observer, watching
from tests.bench.table import Row
from tests.support.fleet import a_fleet

REPLICAS = 16
LOSS = 0.05
STALL_SECONDS = 2.0
STALL_EVERY_SECONDS = 30.0
"""Of one agent, on average."""
CUT_OFF_SECONDS = 60.0
GRACE_SECONDS = 6.0
DEATHS = ("ServerCondemned", "CellCondemned")


def run(calm_seconds: float = 180.0) -> list[Row]:
    """``calm_seconds``: how long loss and stalls last."""
    with some_hosts(SERVERS) as hosts, a_fleet(host=hosts.address) as fleet:
        pids = start_agents(fleet, hosts.prefixes)
        apply(fleet, name="web", replicas=REPLICAS, runtime="process", command=["sleep", "100000"])
        with operator_of(fleet) as client, watching(client) as observer:
            before = {cell.id for cell in ready(client, REPLICAS)}
            until(lambda: all(is_watched(one) for one in servers_of(client)), "all to be watched")
            time.sleep(GRACE_SECONDS)
            hosts.lose(LOSS)
            stalls = _stall(list(pids.values()), calm_seconds)
            after_stalls = _wrong(observer)
            hosts.cut_scheduler_off()
            time.sleep(CUT_OFF_SECONDS)
            hosts.let_scheduler_in()
            _all_beat_again(client)
            after_cut = _wrong(observer)
            same = len(before & {cell.id for cell in cells(client)})
            _a_real_death(hosts, observer)
    return [
        Row(
            f"wrong condemnations in {_duration(calm_seconds)} of {LOSS:.0%} packet loss and "
            f"{STALL_SECONDS:g} s stalls, fleet of {SERVERS}",
            _told(after_stalls),
            "0",
            f"{stalls} stalls; a cable pulled afterwards was a death",
        ),
        Row(
            f"the same when nobody reaches the scheduler for {CUT_OFF_SECONDS:g} s",
            _told(after_cut[len(after_stalls) :]),
            "0",
            f"all {SERVERS} beat again, with {same} of their {REPLICAS} cells",
        ),
    ]


def _stall(pids: list[int], seconds: float) -> int:
    """Freeze each for a moment, again and again, on its own; how many times that was."""
    began = time.monotonic()
    plan = sorted((at, pid) for pid in pids for at in _moments(seconds))
    thaws: list[tuple[float, int]] = []
    try:
        for at, pid in plan:
            while thaws and thaws[0][0] <= at:
                _thaw(began, *thaws.pop(0))
            _sleep_until(began + at)
            os.kill(pid, signal.SIGSTOP)
            thaws.append((time.monotonic() - began + STALL_SECONDS, pid))
    finally:
        for thaw in thaws:
            _thaw(began, *thaw)
    _sleep_until(began + seconds)
    return len(plan)


def _moments(seconds: float) -> Iterator[float]:
    """Random, and far enough from each other and from the end that one stall is over before the next."""
    at = random.expovariate(1 / STALL_EVERY_SECONDS)
    while at < seconds - 2 * STALL_SECONDS:
        yield at
        at += 2 * STALL_SECONDS + random.expovariate(1 / STALL_EVERY_SECONDS)


def _thaw(began: float, at: float, pid: int) -> None:
    _sleep_until(began + at)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def _sleep_until(at: float) -> None:
    time.sleep(max(0.0, at - time.monotonic()))


def _wrong(observer: Observer) -> list[str]:
    seen = observer.all(*DEATHS)
    return [f"{one.server or one.cell} by {one.more['rule']}: {one.more['reason']}" for one in seen]


def _told(wrong: list[str]) -> str:
    return "; ".join([str(len(wrong)), *wrong[:3]])


def _all_beat_again(client: Client) -> None:
    def beats(server: operator_pb2.Server) -> bool:
        return (server.phase, server.verdict) == ("READY", "healthy")

    until(lambda: all(beats(one) for one in servers_of(client)), "all servers to beat again")


def _a_real_death(hosts: Hosts, observer: Observer) -> None:
    """In spite of the storm guard: a minute without silence is over by then."""
    time.sleep(GRACE_SECONDS)
    victim = hosts.all[0]
    hosts.cut(victim)
    observer.wait(lambda one: (one.type, one.server) == ("ServerCondemned", victim.name), "a real death")


def _duration(seconds: float) -> str:
    return f"{seconds / 60:g} min" if seconds < 3_600 else f"{seconds / 3_600:g} h"
