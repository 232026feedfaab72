"""The neighbours' watch over real sockets on loopback: what comes back, what is believed, and what it may cost."""

import asyncio
import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from galactica.agent.core import events as messages
from galactica.agent.core import model as model_core
from galactica.agent.core.model import Answer, Neighbour
from galactica.agent.neighbours.watch import (
    ANSWER,
    ANSWERS_A_WINDOW,
    PACKET_BYTES,
    PING,
    READS_A_WINDOW,
    RECEIVE_BUFFER_BYTES,
    WINDOW_SECONDS,
    NeighbourWatch,
    joined_address,
    listen,
    opened,
    packet,
)
from galactica.agent.neighbours.watch import key_id as id_of
from galactica.agent.starved import Lacks
from tests.support.agent_world import ROOT, until

FLOOD = 60_000

LOOPBACK = "127.0.0.1"

KEY = b"k" * 16

OTHER_KEY = b"o" * 16

CHILD = """
import asyncio, sys
from galactica.agent.neighbours.watch import NeighbourWatch, listen
async def nobody(_): pass
async def main():
    watch = NeighbourWatch(listen("127.0.0.1", 0), nobody)
    watch.watch((), [bytes.fromhex(sys.argv[1])])
    print(watch.address, flush=True)
    await watch.run()
asyncio.run(main())
"""


class Watcher:
    """A watch in this process, and what it said last."""

    def __init__(self, host: str = LOOPBACK) -> None:
        self.lacks = Lacks()
        self.watch = NeighbourWatch(listen(host, 0), self.take, self.lacks)
        self.said: dict[str, model_core.Testimony] = {}
        self.times = 0

    async def take(self, event: messages.Testified) -> None:
        self.said = {one.server_id: one for one in event.testimonies}
        self.times += 1

    def answer(self, server_id: str = "one") -> Answer | None:
        return self.said[server_id].answer if server_id in self.said else None

    async def until(self, answer: Answer, server_id: str = "one", seconds: float = 10.0) -> None:
        await until(lambda: self.answer(server_id) is answer, f"{answer.name}, is {self.said}", seconds)


@contextlib.asynccontextmanager
async def watching(host: str = LOOPBACK) -> AsyncIterator[Watcher]:
    watcher = Watcher(host)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(watcher.watch.run())
        try:
            yield watcher
        finally:
            running.cancel()


@pytest.fixture
async def watcher():
    async with watching() as watcher:
        yield watcher


@pytest.fixture
def child():
    """A watched agent as a process of its own; its address."""
    paths = str(ROOT)
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, KEY.hex()],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    process.address = process.stdout.readline().strip()
    yield process
    process.kill()
    process.communicate()


class Socket:
    """A UDP socket in a test's hands."""

    def __init__(self) -> None:
        self.socket = listen(LOOPBACK, 0)
        self.address = joined_address(*self.socket.getsockname())

    def received(self) -> list[tuple[bytes, tuple[str, int]]]:
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self.socket.recvfrom(4_096))
        return found

    async def next(self) -> tuple[bytes, tuple[str, int]]:
        async with asyncio.timeout(10):
            return await asyncio.get_running_loop().sock_recvfrom(self.socket, 4_096)

    def send(self, data: bytes, address: str) -> None:
        host, port = address.rsplit(":", 1)
        self.socket.sendto(data, (host, int(port)))

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def hand():
    hand = Socket()
    yield hand
    hand.close()


async def answers_of(hand: Socket, address: str, *sent: bytes) -> list[bytes]:
    """What came back, up to the answer to a ping that is sent last."""
    for data in sent:
        hand.send(data, address)
    hand.send(packet(PING, KEY, 2**63), address)
    heard = []
    while (data := (await hand.next())[0]) != packet(ANSWER, KEY, 2**63):
        heard.append(data)
    return heard


# Three answers.


async def test_agent_that_lives_answers(watcher, child):
    watcher.watch.watch([Neighbour("one", child.address, KEY)], [])
    await watcher.until(Answer.ANSWERS)


async def test_kernel_says_that_a_killed_agents_port_is_closed(watcher, child):
    watcher.watch.watch([Neighbour("one", child.address, KEY)], [])
    await watcher.until(Answer.ANSWERS)
    child.kill()
    killed_at = time.monotonic()
    await watcher.until(Answer.REFUSED)
    assert watcher.said["one"].since > killed_at


async def test_stopped_agent_is_silent_and_answers_when_it_goes_on(watcher, child):
    watcher.watch.watch([Neighbour("one", child.address, KEY)], [])
    await watcher.until(Answer.ANSWERS)
    child.send_signal(signal.SIGSTOP)
    await watcher.until(Answer.SILENT)
    child.send_signal(signal.SIGCONT)
    await watcher.until(Answer.ANSWERS)
    assert watcher.times == 3


async def test_stopped_agent_that_is_killed_is_refused_next(watcher, child):
    watcher.watch.watch([Neighbour("one", child.address, KEY)], [])
    await watcher.until(Answer.ANSWERS)
    child.send_signal(signal.SIGSTOP)
    await watcher.until(Answer.SILENT)
    child.kill()
    await watcher.until(Answer.REFUSED)


async def test_address_of_the_other_family_works_as_well():
    async with watching("::1") as one, watching("::1") as two:
        one.watch.watch([Neighbour("two", two.watch.address, KEY)], [OTHER_KEY])
        two.watch.watch([Neighbour("one", one.watch.address, OTHER_KEY)], [KEY])
        await one.until(Answer.ANSWERS, "two")
        await two.until(Answer.ANSWERS, "one")


async def test_agent_without_a_free_descriptor_asks_later_and_accuses_nobody(watcher, child):
    """What it could not ask while it lacked one is no silence of the neighbour."""
    watcher.watch.watch([Neighbour("one", child.address, KEY)], [])
    await watcher.until(Answer.ANSWERS)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        both = [Neighbour("one", child.address, KEY), Neighbour("two", child.address, KEY)]
        watcher.watch.watch(both, [])
        assert await until(watcher.lacks.take, "a lack") == "EMFILE"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    await watcher.until(Answer.ANSWERS, "two")
    assert watcher.answer("one") is Answer.ANSWERS


async def test_neighbours_that_cannot_be_reached_say_nothing_and_disturb_nobody(watcher, child):
    nowhere = Neighbour("nowhere", "240.0.0.1:9", KEY)
    broken = [Neighbour("name", "example.org:9", KEY), Neighbour("short", child.address, b"k")]
    watcher.watch.watch([nowhere, *broken, Neighbour("one", child.address, KEY)], [b"", b"k" * 99])
    await watcher.until(Answer.ANSWERS)
    assert watcher.said.keys() == {"one"}


async def test_who_is_watched_no_more_gets_no_pings(watcher, hand):
    watcher.watch.watch([Neighbour("one", hand.address, KEY)], [])
    await hand.next()
    with contextlib.closing(Socket()) as other:
        watcher.watch.watch([Neighbour("two", other.address, KEY)], [])
        hand.received()
        for _ in range(3):  # who is still watched is pinged on
            await other.next()
    assert hand.received() == []


# What is believed.


async def test_neighbour_that_does_not_know_the_key_gives_no_answer(watcher, child, hand):
    """It had the time of two pings for an answer, which ``hand`` counts."""
    others = [Neighbour("two", child.address, KEY), Neighbour("three", hand.address, KEY)]
    watcher.watch.watch([Neighbour("one", child.address, OTHER_KEY), *others], [])
    await watcher.until(Answer.ANSWERS, "two")
    for _ in range(3):
        await hand.next()
    assert watcher.said.keys() == {"two"}


async def test_nothing_but_an_answer_under_the_key_to_the_ping_that_waits_is_one(watcher, hand):
    """Neither the ping sent back, nor an answer under another key, cut, longer, changed, or to another ping."""
    watcher.watch.watch([Neighbour("one", hand.address, KEY)], [])
    ping, sender = await hand.next()
    _, sequence = opened(ping, PING, {id_of(KEY): KEY})
    right = packet(ANSWER, KEY, sequence)
    assert opened(ping, ANSWER, {id_of(KEY): KEY}) is None
    wrong = [
        b"",
        ping,
        packet(ANSWER, OTHER_KEY, sequence),
        id_of(KEY).join([right[:2], packet(ANSWER, OTHER_KEY, sequence)[6:]]),
        right[:-1],
        right + b"0",
        right[:-1] + bytes([right[-1] ^ 1]),
        bytes([2]) + right[1:],
        packet(ANSWER, KEY, sequence - 1),
        packet(ANSWER, KEY, sequence + 10_000),
    ]
    for data in wrong:
        hand.socket.sendto(data, sender)
    later, _ = await hand.next()  # it is asked again, since nothing of that was an answer
    assert (watcher.said, opened(later, PING, {id_of(KEY): KEY})) == ({}, (KEY, sequence + 1))
    hand.socket.sendto(right, sender)
    await watcher.until(Answer.ANSWERS)


async def test_answer_that_is_played_again_is_none(watcher, hand):
    watcher.watch.watch([Neighbour("one", hand.address, KEY)], [])
    ping, sender = await hand.next()
    answer = packet(ANSWER, KEY, opened(ping, PING, {id_of(KEY): KEY})[1])
    hand.socket.sendto(answer, sender)
    await watcher.until(Answer.ANSWERS)
    deadline = time.monotonic() + 10
    while watcher.answer() is Answer.ANSWERS and time.monotonic() < deadline:
        hand.socket.sendto(answer, sender)
        await asyncio.sleep(0.02)
    assert watcher.answer() is Answer.SILENT


async def test_answer_from_another_address_is_none(watcher, hand):
    watcher.watch.watch([Neighbour("one", hand.address, KEY)], [])
    ping, sender = await hand.next()
    with contextlib.closing(Socket()) as stranger:
        answer = packet(ANSWER, KEY, opened(ping, PING, {id_of(KEY): KEY})[1])
        stranger.socket.sendto(answer, sender)
        await hand.next()
        assert watcher.said == {}


# What others may have of this agent.


async def test_only_pings_under_an_accepted_key_are_answered_and_no_answer_is_longer_than_its_ping(
    watcher, hand
):
    watcher.watch.watch([], [KEY])
    right = packet(PING, KEY, 7)
    wrong = [
        b"",
        b"x",
        right[:-1],
        right + b"x",
        right * 40,
        packet(PING, OTHER_KEY, 7),
        packet(ANSWER, KEY, 7),
    ]
    wrong += [right[:-1] + bytes([right[-1] ^ 1]), bytes([2]) + right[1:]]
    heard = await answers_of(hand, watcher.watch.address, *wrong, right)
    assert heard == [packet(ANSWER, KEY, 7)]
    assert len(heard[0]) == len(right) == PACKET_BYTES == 30


async def test_key_that_is_accepted_no_more_gets_no_answer(watcher, hand):
    watcher.watch.watch([], [KEY, OTHER_KEY])
    other = packet(PING, OTHER_KEY, 7)
    assert len(await answers_of(hand, watcher.watch.address, other)) == 1
    watcher.watch.watch([], [KEY])
    assert await answers_of(hand, watcher.watch.address, other) == []


async def test_one_key_gets_a_bounded_number_of_answers_and_takes_none_from_another(watcher, hand):
    """Whoever repeats a ping with somebody else's address cannot make this agent flood them."""
    watcher.watch.watch([], [KEY, OTHER_KEY])
    began = time.monotonic()
    heard = await answers_of(hand, watcher.watch.address, *[packet(PING, OTHER_KEY, 7)] * 100)
    assert ANSWERS_A_WINDOW <= len(heard) <= ANSWERS_A_WINDOW * windows_since(began)


def windows_since(began: float) -> int:
    """How many windows a watch may have begun since then, however slow this machine is."""
    return 2 + int((time.monotonic() - began) / WINDOW_SECONDS)


async def test_flood_costs_little_and_the_watch_goes_on(child, watcher):
    """A child is flooded as fast as this process can send. It reads the few packets of each window that it may, the
    kernel drops the rest, and it answers afterwards."""
    host, port = child.address.rsplit(":", 1)
    garbage = packet(PING, OTHER_KEY, 7)

    def flood() -> float:
        began = time.monotonic()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(FLOOD):
                sender.sendto(garbage, (host, int(port)))
        return began

    began = await asyncio.to_thread(flood)
    taken = FLOOD - dropped_at(int(port))
    assert taken <= READS_A_WINDOW * windows_since(began) + RECEIVE_BUFFER_BYTES // PACKET_BYTES
    watcher.watch.watch([Neighbour("one", child.address, KEY)], [])
    await watcher.until(Answer.ANSWERS)


def dropped_at(port: int) -> int:
    """Packets to that UDP port that the kernel has dropped since nobody read them in time (proc_net_udp)."""
    lines = [line.split() for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
    return next(int(line[-1]) for line in lines if int(line[1].partition(":")[2], 16) == port)
