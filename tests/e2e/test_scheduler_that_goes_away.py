"""The scheduler is killed at any moment and started again; it is away for long; two of them want the same fleet."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections import Counter

import grpc
import pytest

from tests.support.fleet import LEASE_SECONDS, a_fleet
from tests.support.processes import is_alive, kill, pids

pytestmark = pytest.mark.xdist_group("e2e-scheduler")

AGENTS = ("earth", "mars", "venus")
DEATHS = 5
LONGEST_LIFE_SECONDS = 1.0


@pytest.fixture
def fleet():
    with a_fleet(*AGENTS) as fleet:
        yield fleet


class Load:
    """Operators who apply and condemn and a murderer of cells, until told to stop. Remembers what was acknowledged.

    Each cell writes its id to ``ledger`` when it begins to run.
    """

    def __init__(self, fleet, seed):
        self.fleet = fleet
        self.ledger = fleet.directory / "ledger"
        self.ledger.touch()
        self.applied: list[tuple[str, int, bool]] = []
        """Groups, their replicas and whether that was acknowledged, one after the other."""
        self.condemned: list[str] = []
        self.tried: list[str] = []
        """Cells that somebody condemned, acknowledged or not."""
        self.murdered: list[str] = []
        self.codes: Counter[int] = Counter()
        self.unexpected: list[str] = []
        self._seed = seed
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._loop, args=(act, n)) for n, act in enumerate(self._acts())
        ]

    def _acts(self):
        return (self._apply, self._condemn, self._murder)

    def _loop(self, act, number):
        chance = random.Random(self._seed * 10 + number)
        while not self._over.is_set():
            act(chance)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, *words):
        done = self.fleet.run(*words)
        self.codes[done.code] += 1
        if done.code not in {0, 1, 3}:
            self.unexpected.append(done.err)
        return done.code == 0

    def apply(self, name, replicas):
        command = ["sh", "-c", f'echo "$CELL_ID" >> {self.ledger}; exec sleep 1000']
        file = self.fleet.service(name, replicas, command=command)
        self.applied.append((name, replicas, self._run("apply", str(file))))

    def _apply(self, chance):
        self.apply(f"g{chance.randrange(6)}", chance.randint(2, 6))

    def _condemn(self, chance):
        cell = self._a_ready_cell(chance)
        if cell is not None:
            self.tried.append(cell["id"])
            if self._run("condemn", cell["id"]):
                self.condemned.append(cell["id"])

    def _murder(self, chance):
        cell = self._a_ready_cell(chance)
        if cell is not None and is_alive(int(cell["runtime_id"])):
            self.murdered.append(cell["id"])
            with contextlib.suppress(ProcessLookupError):  # it was condemned meanwhile
                kill(cell)
        self._over.wait(0.3)

    def _a_ready_cell(self, chance):
        try:
            ready = self.fleet.ready("")
        except grpc.RpcError:  # the scheduler was killed in the middle of the answer
            return None
        return chance.choice(ready) if ready else None


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("seed", [1, 2])
def test_a_scheduler_killed_at_any_moment_loses_nothing_and_harms_nobody(fleet, seed):
    chance = random.Random(seed)
    agents = {name: process.pid for name, process in fleet.agents.items()}
    with Load(fleet, seed) as load:
        load.apply("base", 6)
        for _ in range(DEATHS):
            time.sleep(chance.uniform(0.0, LONGEST_LIFE_SECONDS))
            fleet.kill_scheduler()
            fleet.start_scheduler()
        fleet.until(lambda: all(map(fleet.is_attached, AGENTS)), "all agents are back by themselves")
    assert {name: process.pid for name, process in fleet.agents.items()} == agents
    assert [process.poll() for process in fleet.agents.values()] == [None] * len(AGENTS)
    assert load.codes[0] >= 3, "there was some load"
    assert load.unexpected == [], "a scheduler that is not there is told as such"

    status = fleet.until(lambda: (s := fleet.status())["healthy"] and s, "the fleet is whole", 60.0)
    wanted = {group["name"]: group["wanted"] for group in status["groups"]}
    _check_groups(fleet, load, wanted)
    fleet.until(
        lambda: {fleet.cell(cell)["phase"] for cell in load.condemned} <= {"DECOMMISSIONED"},
        "what was condemned is gone",
    )
    _check_deaths(fleet, load)
    _check_that_nothing_ran_twice(fleet, load)
    assert len(fleet.events("SchedulerStarted")) == DEATHS + 1


def _check_groups(fleet, load, wanted):
    """Each group is as its last acknowledged apply says, or as one that the scheduler took and could not answer."""
    positions = [event["position"] for event in fleet.events()]
    assert positions == list(range(1, len(positions) + 1))
    possible: dict[str, set[int]] = {}
    for name, replicas, is_acknowledged in load.applied:
        possible[name] = {replicas} if is_acknowledged else possible.get(name, {0}) | {replicas}
    found = {name: wanted.get(name, 0) for name in possible}
    assert [name for name in possible if found[name] not in possible[name]] == [], (found, possible)


def _check_deaths(fleet, load):
    """Nobody died but by our hands."""
    reasons = {"operator": set(load.tried), "exited": set(load.murdered)}
    for event in fleet.events("CellCondemned"):
        if event["rule"] == "scaled_down":
            continue
        assert event["cell"] in reasons.get(event["rule"], ()), event
    assert fleet.events("ServerCondemned") == []
    assert sorted(e["server"] for e in fleet.events("ServerJoined")) == sorted(AGENTS)


def _check_that_nothing_ran_twice(fleet, load):
    begun = Counter(load.ledger.read_text().split())
    assert [cell for cell, times in begun.items() if times > 1] == []
    cells = fleet.cells()
    assert {cell["id"] for cell in cells} <= set(begun)
    running = {cell["id"] for cell in cells}
    assert all(map(is_alive, pids(cells).values()))
    found = [process.environ().get("CELL_ID") for process in fleet.left_running()]
    assert sorted(filter(None, found)) == sorted(running), "what runs is what the scheduler knows of, once"


def test_a_scheduler_that_is_away_for_longer_than_the_lease_finds_everything_as_it_was(fleet):
    before = fleet.apply("web", 6)
    victim, *spared = before
    fleet.kill_scheduler()
    kill(victim)
    time.sleep(LEASE_SECONDS + 1.5)  # the absence itself
    fleet.start_scheduler()
    fleet.until(lambda: all(map(fleet.is_attached, AGENTS)), "all agents are back by themselves")
    after = fleet.until_ready("web", 6, without=(victim["id"],))
    assert pids(after).items() >= pids(spared).items()
    told = fleet.events("CellCondemned", "ServerCondemned", "OrphanRemoved")
    assert [(event["type"], event["cell"], event["rule"]) for event in told] == [
        ("CellCondemned", victim["id"], "exited")
    ]
    assert fleet.why(victim["id"])["autopsy"]["signal"] == "SIGKILL"


def test_a_second_scheduler_on_the_same_directory_ends_at_once_and_says_who_has_it(fleet):
    before = fleet.apply("web", 2)
    context = fleet.context.read_bytes()
    position = fleet.position()
    second = fleet.run(
        "scheduler", "--data", str(fleet.data), "--listen", "127.0.0.1:0", timeout_seconds=20.0
    )
    assert (second.code, second.out) == (1, "")
    assert f"in use by process {fleet.scheduler.pid}" in second.err
    assert str(fleet.data) in second.err
    assert fleet.context.read_bytes() == context
    kill(before[0])
    after = fleet.until_ready("web", 2, without=("web/0.1",))
    assert [cell["id"] for cell in after] == ["web/0.2", "web/1.1"]
    assert fleet.events("SchedulerStarted", after=position) == []


def test_a_scheduler_that_goes_away_in_the_middle_of_a_handshake_is_told_as_not_reachable(fleet):
    fleet.kill_scheduler()
    host, _, port = fleet.address.partition(":")
    with socket.create_server((host, int(port))) as listener:
        thread = threading.Thread(target=_hang_up_on_everybody, args=(listener,))
        thread.start()
        status = fleet.run("status")
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert (status.code, status.out) == (3, "")
    assert status.err.startswith(f"Error: the scheduler at {fleet.address} is not reachable")


def _hang_up_on_everybody(listener):
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1)
