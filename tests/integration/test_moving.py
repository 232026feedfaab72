"""Where neighbours reach an agent may change while it runs: it looks again, and tells the scheduler."""

import asyncio
import contextlib

import pytest

from galactica.agent.core.events import Connected, Welcomed
from galactica.agent.core.instructions import SendHello
from galactica.agent.link import wire
from galactica.agent.link.identity import Identity
from galactica.agent.link.session import Link
from galactica.agent.neighbours.moving import Mover, is_own
from galactica.agent.neighbours.watch import NeighbourWatch, listen, split_address
from galactica.scheduler.core.sight.observations import Moved
from galactica.v1 import cell_pb2, link_pb2
from tests.support.agent_world import agent_world, until
from tests.support.dispatcher_world import observed
from tests.support.link_world import link_world
from tests.support.probing import no_free_descriptor

HERE = wire.Place("127.0.0.1:7")
NOT_HERE = "192.0.2.1"
"""An address that no machine has (RFC 5737)."""


class Machine:
    """A watch whose machine has whatever address a test says."""

    def __init__(self, host, listening):
        self.host = host
        self.trouble = None
        self.moves, self.left = [], 0
        self.watch = NeighbourWatch(listen(host, 0) if listening else None, self.take)
        self.mover = Mover(self.watch, self.place, self.moved, self.leave)

    async def take(self, _):
        pass

    def place(self):
        if self.trouble:
            raise self.trouble
        return self.host, 0

    def moved(self):
        address = self.watch.address
        self.moves.append((split_address(address)[0] if address else "", self.mover.trouble))

    def leave(self):
        self.left += 1

    def now(self, host, trouble=None):
        self.host, self.trouble = host, trouble
        self.mover.stir()


@contextlib.asynccontextmanager
async def machine(host="127.0.0.1", *, listening=True):
    one = Machine(host, listening)
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(one.watch.run()), tasks.create_task(one.mover.run())]
        yield one
        for task in running:
            task.cancel()


async def test_it_listens_at_another_address_when_its_own_has_changed():
    async with machine() as one:
        before = one.watch.address
        one.now("127.0.0.2")
        await until(lambda: one.moves == [("127.0.0.2", "")], "it moved")
        assert one.watch.address != before
        assert one.left == 0, "the address from before is still there, and so are the connections from it"
        one.now("::1")
        await until(lambda: one.moves[1:] == [("::1", "")], "to an IPv6 address too")


async def test_a_way_to_the_scheduler_that_is_lost_moves_nobody():
    async with machine() as one:
        before = one.watch.address
        one.now("127.0.0.1", OSError(-3, "Temporary failure in name resolution"))
        one.now("127.0.0.2")
        await until(lambda: one.moves, "it looked")
        assert one.moves == [("127.0.0.2", "")]
        assert one.watch.address != before


async def test_an_agent_without_a_free_descriptor_does_not_take_its_address_for_lost():
    with no_free_descriptor(), pytest.raises(OSError, match="Too many open files"):
        is_own("127.0.0.1")


async def test_an_agent_without_an_address_says_why_and_looks_again():
    async with machine(NOT_HERE, listening=False) as one:
        await until(lambda: one.moves, "it looked")
        assert (one.watch.address, one.moves) == ("", [("", "Cannot assign requested address")])
        one.now("127.0.0.1")
        await until(lambda: one.moves[-1] == ("127.0.0.1", ""), "it is there now")


# The link between them.


@contextlib.asynccontextmanager
async def link_to(world):
    """An agent's link, welcomed, that says Hello from HERE and does nothing else."""
    directory = world.data / "identity"
    world.scheduler.identity(directory, "host1")
    taken = []

    async def take(event):
        taken.append(type(event))
        if isinstance(event, Connected):
            facts = wire.ServerFacts({}, cell_pb2.Capacity(), (), "test")
            link.send(event.link, wire.hello(SendHello(event.link, (), 0), facts, (), HERE))

    identity = Identity.load(directory)
    link = Link(world.scheduler.address, "", directory, identity, take)
    running = asyncio.create_task(link.run())
    await until(lambda: Welcomed in taken, "it is welcomed")
    yield link
    running.cancel()
    await asyncio.wait({running})


async def test_a_move_is_told_in_the_session(tmp_path):
    async with agent_world(tmp_path) as world, link_to(world) as link:
        session = await world.scheduler.until_sessions(1)
        link.tell_place(1, HERE)
        await until(lambda: session.moves, "it is told")
        assert (session.moves, session.is_over) == ([link_pb2.Moved(watch_address=HERE.address)], False)


@pytest.mark.parametrize("version", [0, 1])
async def test_a_scheduler_that_does_not_know_moves_gets_a_new_hello(tmp_path, version):
    async with agent_world(tmp_path) as world:
        world.scheduler.wire_version = version
        async with link_to(world) as link:
            await world.scheduler.until_sessions(1)
            link.tell_place(1, HERE)
            await world.scheduler.until_sessions(2)
            first, second = world.scheduler.sessions
            assert (first.moves, first.is_over) == ([], True)
            assert second.hello.watch_address == HERE.address


# The scheduler's end.


async def test_neighbours_are_told_the_new_address_in_the_same_session(tmp_path):
    async with link_world(tmp_path) as world:
        one = await world.agent("a", watch_address="10.0.0.1:7")
        two = await world.agent("b", watch_address="10.0.0.2:7")

        async def heard(agent, addresses):
            while True:
                said = await agent.hear()
                if [one.address for one in said.neighbours.neighbours] == addresses:
                    return said.neighbours

        before = await heard(one, ["10.0.0.2:7"])
        await heard(two, ["10.0.0.1:7"])
        await two.say(moved=link_pb2.Moved(watch_address="[2001:db8::2]:9"))
        after = await heard(one, ["[2001:db8::2]:9"])
        (accepted,) = (await heard(two, ["10.0.0.1:7"])).accepted_keys
        assert after.neighbours[0].key == accepted != before.neighbours[0].key
        await two.say(moved=link_pb2.Moved(watch_trouble="no route to host"))
        await world.mind.until(lambda: len(observed(world, Moved)) == 2)
        places = [(said.server, said.place.address, said.place.trouble) for said in observed(world, Moved)]
        assert places == [("b", "[2001:db8::2]:9", ""), ("b", "", "no route to host")]


@pytest.mark.parametrize("address", ["nowhere", "0.0.0.0:1", "host:7"])
async def test_a_place_that_is_none_is_told_and_costs_no_session(tmp_path, address):
    async with link_world(tmp_path) as world:
        agent = await world.agent("a", watch_address="10.0.0.1:7")
        await agent.say(moved=link_pb2.Moved(watch_address=address))
        await agent.report(sent_at=1.0)
        while not (await agent.hear()).HasField("echo"):
            pass
        assert world.mind.core.sight.servers["a"].place.address == ""
