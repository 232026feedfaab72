"""A fleet whose servers are hosts of their own: namespaces on a switch, ordered through the exec provider.

``deploy/lab`` has the hosts; the scheduler and the command line beside them are those of ``tests.support.fleet``. All
of it ends with the block, however the test ended.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from deploy.lab.host import Host, environment_of, host_of, hosts_of
from deploy.lab.switch import Drop, Switch
from tests.support.fleet import Fleet
from tests.support.processes import ROOT, Json

PROVIDER = "lab"
WITNESSES = 3
BOOT_SECONDS = 60.0


@dataclass
class Lab:
    """``fleet``: the scheduler, and whoever looks."""

    fleet: Fleet
    switch: Switch
    pools: list[str] = field(default_factory=list)

    # --- what there is --------------------------------------------------------------------------------------------

    def pool(self, name: str, size: int = 2, *, lease: str = "5s", **server: object) -> list[str]:
        """A new pool whose servers carry its name as a label. Returns their ids when all are READY and watched by
        neighbours that hear them."""
        wanted = {"kind": "pool", "name": name, "size": size, "provider": PROVIDER, "server": server}
        file = self.fleet.directory / f"pool-{name}.yaml"
        file.write_text(json.dumps({**wanted, "labels": {"for": name}, "lease": lease}))
        self.fleet.done("apply", str(file))
        self.pools.append(name)
        return self.until_well(name, size)

    def let_go(self, *pools: str) -> None:
        """Delete these pools and their services. Returns when their hosts are gone."""
        for pool in pools:
            if self.fleet.cells(f"{pool}-web"):
                self.fleet.done("delete", f"service/{pool}-web")
            self.fleet.done("delete", f"pool/{pool}")
            self.pools.remove(pool)
        self.fleet.until(
            lambda: not [one for one in self.hosts() if one.partition("/")[0] in pools],
            f"the hosts of {pools} are gone",
        )

    def until_well(self, pool: str, size: int, *, without: tuple[str, ...] = ()) -> list[str]:
        """So many of its servers are READY and healthy, neighbours hear them, and none of these is left; their ids."""

        def look() -> list[str]:
            there = [one for one in self.fleet.servers() if one["pool"] == pool and is_there(one)]
            whole = len(there) == size and all(map(is_well, there))
            return (
                [one["id"] for one in there]
                if whole and not {one["id"] for one in there} & set(without)
                else []
            )

        return self.fleet.until(look, f"{size} servers of {pool} are well without {without}", BOOT_SECONDS)

    def service(self, pool: str, replicas: int = 2, **spec: object) -> list[Json]:
        """A new one on the pool's servers alone, called POOL-web; its cells when they are ready."""
        place = {"require": {"for": pool}}
        return self.fleet.apply(f"{pool}-web", replicas, placement=place, **spec)

    def until_replaced(self, pool: str, cells: list[Json]) -> list[Json]:
        """The pool's service is whole again and has none of these cells; its cells."""
        return self.fleet.until_ready(f"{pool}-web", 2, without=tuple(cell["id"] for cell in cells))

    def host(self, server: str) -> Host:
        return host_of(self.switch, self.fleet.name, server)

    def hosts(self) -> dict[str, Host]:
        """Those that are on, by their servers' ids."""
        return {host.cell: host for host in hosts_of(self.switch, self.fleet.name) if host.is_on}

    def alive(self, cells: list[Json]) -> list[str]:
        """Which of these cells have a process that runs on the host on which they are."""
        return [cell["id"] for cell in cells if self.host(cell["server"]).lives(int(cell["runtime_id"]))]

    # --- what happens ---------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def dropping(self, *drops: Drop) -> Iterator[None]:
        """The switch loses these packets for the time of the block."""
        self.switch.drop(*drops)
        try:
            yield
        finally:
            self.switch.drop_no_more(*drops)

    def begin_scheduler_anew(self) -> None:
        """kill -9, and another one on the same data."""
        self.fleet.kill_scheduler()
        self.fleet.start_scheduler()

    # --- what is said ---------------------------------------------------------------------------------------------

    def condemned(self, after: int) -> dict[str, str]:
        """Cells and servers that were condemned since, with the rule."""
        told = self.fleet.events("CellCondemned", "ServerCondemned", after=after)
        return {event["cell"] or event["server"]: event["rule"] for event in told}

    def judged(self, server: str, verdict: str, says: str) -> bool:
        """Whether that is the verdict on the server, and that one of the facts on which it rests."""
        row = self.fleet.server(server)
        return row["verdict"] == verdict and says in {fact["says"] for fact in row["evidence"]}

    def neighbours_say(self, server: str) -> set[str]:
        return {one["answer"] for one in self.fleet.server(server)["neighbours"]}

    def while_watching(self, seconds: float, look: Callable[[], bool], what: str) -> None:
        """It has to stay so for as long. Fails as soon as it does not."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert look(), f"it did not stay so: {what}"
            time.sleep(0.1)


def is_there(server: Json) -> bool:
    return server["phase"] not in {"CONDEMNED", "DRAINING", "DECOMMISSIONED"}


def is_well(server: Json) -> bool:
    answers = [one["answer"] for one in server["neighbours"]]
    heard = len(answers) >= WITNESSES and set(answers) == {"answers"}
    return (server["phase"], server["verdict"]) == ("READY", "healthy") and heard


@contextlib.contextmanager
def a_lab() -> Iterator[Lab]:
    """A switch and a scheduler on it, which has the provider ``lab``. No host yet."""
    directory = Path(tempfile.mkdtemp(prefix="galactica-lab-"))
    switch = Switch(directory / "lab")
    fleet = Fleet(directory)
    try:
        switch.up()
        fleet.host = switch.address()
        fleet.data.mkdir()
        (fleet.data / "providers.yaml").write_text(json.dumps({"providers": {PROVIDER: provider_of(switch)}}))
        fleet.start_scheduler()
        yield Lab(fleet, switch)
    finally:
        if fleet.scheduler is not None:
            fleet.kill_scheduler()  # before its hosts go, so that it orders no others
        try:
            switch.down()
        finally:
            fleet.close()


def provider_of(switch: Switch) -> Json:
    program = [sys.executable, "-m", "deploy.lab.provider", "--directory", str(switch.directory)]
    return {"kind": "exec", "options": {"program": program, "environment": environment_of(ROOT)}}


def seconds(since: str, until: str) -> float:
    """Between two times as ``-o json`` has them."""
    return (datetime.fromisoformat(until) - datetime.fromisoformat(since)).total_seconds()


def split(cells: list[Json], server: str) -> tuple[list[Json], list[Json]]:
    """Those that are there, and the others."""
    return [c for c in cells if c["server"] == server], [c for c in cells if c["server"] != server]
