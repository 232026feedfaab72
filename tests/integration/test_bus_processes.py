"""The message bus between real processes: an agent's last will, and a scheduler whose broker stands still."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trustme

from galactica.scheduler.bus.bus import Bus, Pace
from galactica.scheduler.bus.messages import Topics
from galactica.scheduler.core.model.spec import Resources, RuntimeKind
from galactica.scheduler.core.sight.observations import Attached, ServerFacts, WillRead
from galactica.scheduler.settings.broker import bus_options
from tests.support.agent_world import FLEET, AgentProcess, FakeScheduler, fake_scheduler
from tests.support.broker import PASSWORD, Broker, listening, until
from tests.support.fleet import Fleet, a_fleet
from tests.support.memory_mind import MemoryMind
from tests.support.processes import cli_command

STOPPED_SECONDS = 3.0


@contextmanager
def a_broker(directory: Path, *, is_guarded: bool = False) -> Iterator[Broker]:
    """``is_guarded``: with TLS, passwords and the rights of deploy/bus."""
    directory.mkdir()
    users = ("scheduler", "reader", "host1") if is_guarded else ()
    broker = Broker(directory, users, trustme.CA() if is_guarded else None)
    try:
        broker.start()
        yield broker
    finally:
        broker.kill()


class World:
    """A broker, a scheduler's end of the link, an agent beside them, and a mind that listens to the bus."""

    def __init__(self, broker: Broker, scheduler: FakeScheduler, directory: Path) -> None:
        self.broker = broker
        self.mind = MemoryMind()
        self.scheduler = scheduler
        scheduler.identity(directory / "agent" / "identity", "host1")
        words = ["--bus", broker.url(), "--bus-ca", str(broker.ca_file)]
        self.agent = AgentProcess(scheduler, directory / "agent", *words, GALACTICA_BUS_PASSWORD=PASSWORD)

    async def attached(self, number: int = 1) -> None:
        """The mind knows the agent's newest session as the dispatcher would have told it."""
        session = await self.scheduler.until_sessions(number)
        if "host1" not in self.mind.view().fleet.servers:
            await self.mind.enrol("host1")
        facts = ServerFacts({}, Resources(8_000, 2**34), 0, (RuntimeKind.PROCESS,), "0.1.0")
        await self.mind.observe(Attached("host1", session.id, self.mind.now(), facts))

    @property
    def topic(self) -> str:
        """Of the agent's will."""
        return f"galactica/{FLEET}/{self.scheduler.ca.fleet_id}/wills/host1"

    def wills(self) -> list[str]:
        return [one.server for one in self.mind.observed if isinstance(one, WillRead)]


@asynccontextmanager
async def a_world(directory: Path) -> AsyncIterator[World]:
    """With TLS, and with the rights that deploy/bus hands out."""
    (directory / "ca").mkdir()
    async with fake_scheduler(directory / "ca") as scheduler:
        with a_broker(directory / "broker", is_guarded=True) as broker:
            world = World(broker, scheduler, directory)
            options = bus_options(
                broker.url("scheduler"), broker.ca_file, None, {"GALACTICA_BUS_PASSWORD": PASSWORD}
            )
            pace = Pace(first_pause_seconds=0.1, pause_limit_seconds=0.5, states_every_seconds=0.1)
            bus = asyncio.create_task(
                Bus(options, world.mind, Topics(FLEET, scheduler.ca.fleet_id), pace).run()
            )
            try:
                yield world
            finally:
                world.agent.dispose()
                bus.cancel()
                await asyncio.gather(bus, return_exceptions=True)


def says(world: World, listener, session: str) -> bool:
    will = listener.retained.get(world.topic, {})
    return (will.get("says"), will.get("session")) == ("here", session)


async def test_agent_that_is_killed_is_testified_to_by_its_last_will(tmp_path):
    async with a_world(tmp_path) as world, listening(world.broker) as listener:
        world.agent.start()
        await world.attached()
        await until(lambda: says(world, listener, "s1"), "the agent announces its connection")
        assert world.wills() == []
        world.agent.dispose()
        await until(world.wills, "the will is read")
        assert world.wills() == ["host1"]
        assert listener.retained[world.topic]["says"] == "lost"


async def test_agent_that_ends_in_order_leaves_no_will(tmp_path):
    async with a_world(tmp_path) as world, listening(world.broker) as listener:
        world.agent.start()
        await world.attached()
        await until(lambda: says(world, listener, "s1"), "the agent announces its connection")
        code, said = await world.agent.ended()
        assert (code, PASSWORD in said) == (0, False)
        await until(lambda: world.topic not in listener.retained, "the topic is cleared")
        assert listener.payloads("/wills/")[-1] is None
        # The connection is over, and a later one of the same agent is announced for its own session.
        world.agent.start()
        await world.attached(2)
        await until(lambda: says(world, listener, "s2"), "the agent is back")
        assert "lost" not in [will["says"] for will in listener.payloads("/wills/") if will]
        assert world.wills() == []


async def test_connection_that_goes_on_speaks_for_the_links_next_session(tmp_path):
    async with a_world(tmp_path) as world, listening(world.broker) as listener:
        world.agent.start()
        await world.attached()
        await until(lambda: says(world, listener, "s1"), "the agent announces its connection")
        world.scheduler.session.outgoing.put_nowait(None)  # the link ends, and begins anew
        await world.attached(2)
        await until(lambda: says(world, listener, "s2"), "it speaks for the next session")
        assert len({will["connection"] for will in listener.payloads("/wills/") if will}) == 1
        world.agent.dispose()
        await until(world.wills, "the will is read")


async def test_agent_finds_its_broker_again_and_nobody_takes_that_for_a_loss(tmp_path):
    async with a_world(tmp_path) as world:
        world.agent.start()
        await world.attached()
        async with listening(world.broker) as listener:
            await until(lambda: says(world, listener, "s1"), "the agent announces its connection")
        world.broker.kill()
        world.broker.start()
        async with listening(world.broker) as listener:
            await until(lambda: says(world, listener, "s1"), "the agent is back")
            assert world.wills() == []
            world.agent.dispose()
            await until(world.wills, "its new will is read")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--bus", "broker"), "invalid broker address 'broker'"),
        (("--bus", "mqtt://me:word@b"), "a password in the broker's address is visible in ps"),
        (("--bus", "mqtts://b", "--bus-ca", "/no/such/file"), "cannot use the CA file /no/such/file"),
        (("--bus", "mqtt://b", "--bus-password-file", "/no/such/file"), "cannot read the password from"),
    ],
)
async def test_agent_refuses_a_bus_that_cannot_be_in_one_line(tmp_path, words, message):
    (tmp_path / "ca").mkdir()
    async with fake_scheduler(tmp_path / "ca") as scheduler:
        scheduler.identity(tmp_path / "agent" / "identity", "host1")
        agent = AgentProcess(scheduler, tmp_path / "agent", *words)
        agent.start()
        code, said = await agent.ended(None)
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert (code, line.removeprefix("error: ")[: len(message)]) == (2, message)


def start_scheduler(fleet: Fleet, broker: Broker) -> None:
    """As ``Fleet.start_scheduler``, with a bus."""
    words = ["scheduler", "--data", str(fleet.data), "--fleet", fleet.name, "--bus", broker.url()]
    words += ["--listen", fleet.address, "--enrol-listen", fleet.enrol_address]
    fleet.scheduler = fleet.spawn("scheduler", [*cli_command(), *words])
    fleet.until(fleet.answers, "the scheduler answers")


def test_scheduler_goes_on_while_its_broker_stands_still_and_tells_it_all_afterwards(tmp_path):
    with a_broker(tmp_path / "broker") as broker, a_fleet() as fleet:
        fleet.scheduler.terminate()
        fleet.scheduler.wait()
        start_scheduler(fleet, broker)
        asyncio.run(_applies_while_the_broker_stands_still(fleet, broker))
        os.kill(fleet.agents["host1"].pid, signal.SIGKILL)
        fleet.agents["host1"].wait()
        fleet.until(lambda: "will_read" in fleet.log("scheduler", 100_000), "the will is read")


async def _applies_while_the_broker_stands_still(fleet: Fleet, broker: Broker) -> None:
    root = f"galactica/{fleet.name}/{fleet.id}"
    async with listening(broker, f"{root}/#") as listener:
        await asyncio.to_thread(fleet.start_agent, "host1", "--bus", broker.url())
        await until(lambda: f"{root}/wills/host1" in listener.retained, "both are connected")
        broker.send(signal.SIGSTOP)
        try:
            loop = asyncio.get_running_loop()
            begun, asked = loop.time(), 0
            while loop.time() - begun < STOPPED_SECONDS:
                asked += 1
                await asyncio.to_thread(fleet.apply, f"group-{asked}", 1)  # ready, too
        finally:
            broker.send(signal.SIGCONT)
        ready = {f"{root}/cells/group-{number}/0.1" for number in range(1, asked + 1)}
        await until(lambda: ready <= set(listener.retained), "the cells are told")
        newest = fleet.position()
        await until(
            lambda: newest in [one["position"] for one in listener.payloads("/events/")], "the events"
        )
        seen = list(dict.fromkeys(one["position"] for one in listener.payloads("/events/")))
        assert seen == list(range(seen[0], seen[-1] + 1))
