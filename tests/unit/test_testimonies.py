"""What servers say of each other, on its way: the agent's report, the wire, and the scheduler's sight."""

import pytest

from galactica.agent.core.events import (
    Connected,
    Disconnected,
    Instructed,
    NeighboursGiven,
    ResyncAsked,
    Testified,
    Tick,
    Welcomed,
)
from galactica.agent.core.instructions import SendReport, WatchNeighbours
from galactica.agent.core.model import Answer, Neighbour, Testimony, TestimonyReport
from galactica.agent.core.step import State, next_look, step
from galactica.agent.link import wire as agent_wire
from galactica.scheduler.core.sight import observations as observations_sight
from galactica.scheduler.core.sight.observations import Attached, Reported, ServerFacts
from galactica.scheduler.core.sight.observe import observe
from galactica.scheduler.core.sight.state import Sight
from galactica.scheduler.wire import cell as cell_wire
from galactica.scheduler.wire import link as wire
from galactica.v1 import cell_pb2, link_pb2

# pytest would take these for tests.
for one in (Testified, Testimony, TestimonyReport):
    one.__test__ = False

BEAT, LEASE = 1.0, 5.0
ONE = Neighbour("one", "10.0.0.1:7", b"1" * 16)


class Agent:
    """A state that is stepped, with a clock that only the test moves."""

    def __init__(self):
        self.now = 100.0
        self.state = State()
        self.said = []

    def take(self, event):
        self.state, instructions = step(self.state, event)
        self.said += instructions
        return instructions

    def attach(self, link=1):
        self.take(Connected(link, self.now))
        self.take(Welcomed(link, f"s{link}", 1, BEAT, LEASE, self.now))

    def testify(self, *testimonies):
        return self.take(Testified(testimonies, self.now))

    def told(self):
        """What reports said of others until now, oldest first; those that said nothing are left out."""
        reports = [one for one in self.said if isinstance(one, SendReport)]
        return [one.testimonies for one in reports if one.testimonies]

    def wait(self, seconds):
        end = self.now + seconds
        while next_look(self.state) <= end:
            self.now = max(self.now, next_look(self.state))
            self.take(Tick(self.now))
        self.now = end


def test_change_is_told_at_once_and_once():
    agent = Agent()
    agent.attach()
    agent.wait(0.5)
    agent.testify(Testimony("one", Answer.SILENT, agent.now - 0.25))
    assert agent.told() == [(TestimonyReport("one", Answer.SILENT, 0.25),)]
    agent.wait(3.0)
    assert len(agent.told()) == 1


def test_only_what_changed_is_told():
    agent = Agent()
    agent.attach()
    first = Testimony("one", Answer.ANSWERS, agent.now)
    agent.testify(first)
    agent.wait(0.5)
    agent.testify(first, Testimony("two", Answer.REFUSED, agent.now))
    assert agent.told()[1:] == [(TestimonyReport("two", Answer.REFUSED, 0.0),)]


def test_changes_right_behind_a_report_share_the_next_one():
    agent = Agent()
    agent.attach()
    one, two = Testimony("one", Answer.SILENT, agent.now), Testimony("two", Answer.SILENT, agent.now)
    agent.wait(0.5)
    agent.testify(Testimony("three", Answer.ANSWERS, agent.now))
    agent.testify(one)
    agent.testify(one, two)
    agent.wait(0.5)
    assert [{said.server_id for said in told} for told in agent.told()] == [{"three"}, {"one", "two"}]


def test_what_was_seen_without_a_session_is_its_first_report():
    agent = Agent()
    agent.attach()
    agent.testify(Testimony("one", Answer.ANSWERS, agent.now))
    agent.take(Disconnected(1, agent.now))
    agent.wait(7.0)
    agent.testify(Testimony("one", Answer.SILENT, agent.now - 2.0), Testimony("two", Answer.ANSWERS, 100.0))
    agent.wait(1.0)
    agent.attach(2)
    report = agent.said[-1]
    assert (report.session, report.sequence) == ("s2", 1)
    assert report.testimonies == (
        TestimonyReport("one", Answer.SILENT, 3.0),
        TestimonyReport("two", Answer.ANSWERS, 8.0),
    )


def test_complete_report_says_everything_of_the_neighbours_too():
    agent = Agent()
    agent.attach()
    agent.testify(Testimony("one", Answer.ANSWERS, agent.now))
    agent.wait(0.5)
    agent.take(Instructed(1, "s1", 1, (ResyncAsked(),), agent.now, 1))
    assert agent.said[-1].complete
    assert agent.said[-1].testimonies == (TestimonyReport("one", Answer.ANSWERS, 0.5),)


def test_those_who_are_watched_no_more_are_not_told_of():
    agent = Agent()
    agent.attach()
    agent.testify(Testimony("two", Answer.ANSWERS, agent.now))
    agent.testify(Testimony("one", Answer.SILENT, agent.now))
    agent.testify()
    agent.wait(2.0)
    assert [{said.server_id for said in told} for told in agent.told()] == [{"two"}]


def test_neighbours_are_taken_from_the_session_in_force_alone():
    agent = Agent()
    agent.attach(2)
    assert agent.take(NeighboursGiven(1, (ONE,), (), agent.now)) == ()
    assert agent.take(NeighboursGiven(2, (ONE,), (b"2" * 16,), agent.now)) == (
        WatchNeighbours((ONE,), (b"2" * 16,)),
    )


def test_neighbours_and_testimonies_survive_the_wire():
    response = link_pb2.AttachResponse(
        neighbours=link_pb2.Neighbours(
            neighbours=[link_pb2.Neighbour(server_id="one", address="10.0.0.1:7", key=b"1" * 16)],
            accepted_keys=[b"2" * 16],
        )
    )
    assert agent_wire.event(response, 3, 7.0) == NeighboursGiven(3, (ONE,), (b"2" * 16,), 7.0)

    told = tuple(TestimonyReport(answer.name, answer, 1.5) for answer in Answer)
    sent = agent_wire.report(SendReport(1, "s1", 4, testimonies=told), 0.0).report
    assert wire.reported(sent, "web-1", 50.0).said.testimonies == tuple(
        observations_sight.Testimony(answer.name, observations_sight.Answer(answer.name.lower()), 48.5)
        for answer in Answer
    )

    facts = agent_wire.ServerFacts({}, cell_pb2.Capacity(), (), "0.1.0")
    here, nowhere = agent_wire.Place("[::1]:7"), agent_wire.Place("", "no route")
    hello = agent_wire.hello(agent_wire.SendHello(1, (), 0), facts, (ONE,), here).hello
    assert wire.place(hello).said == observations_sight.Place("[::1]:7")
    assert wire.place(agent_wire.moved(nowhere).moved).said == observations_sight.Place("", "no route")
    assert wire.watching(hello) == wire.Heard((wire.WatchedServer("one", "10.0.0.1:7", b"1" * 16),))
    assert wire.watch_address(link_pb2.Hello()) == ""


@pytest.mark.parametrize(
    "address",
    ["nowhere", "example.org:80", "10.0.0.1", "10.0.0.1:0", "10.0.0.1:65536", "0.0.0.0:7", "[::]:7",
     "224.0.0.1:7", "255.255.255.255:7", "10.0.0.1:7x", "10.0.0.1:7" + "7" * 1_000],
)  # fmt: skip
def test_watch_address_that_is_no_one_hosts_is_refused_and_among_others_skipped(address):
    with pytest.raises(cell_wire.WireError, match=r"hello\.watch_address"):
        wire.watch_address(link_pb2.Hello(watch_address=address))
    good = link_pb2.Neighbour(server_id="two", address="10.0.0.2:7")
    wrong = link_pb2.Neighbour(server_id="one", address=address)
    watched, (reason,) = wire.watching(link_pb2.Hello(watching=[wrong, good]))
    assert watched == (wire.WatchedServer("two", "10.0.0.2:7", b""),)
    assert reason.startswith("hello.watching: ")


@pytest.mark.parametrize(
    "testimony",
    [
        link_pb2.Testimony(server_id="one"),
        link_pb2.Testimony(server_id="one", answer=9),
        link_pb2.Testimony(server_id="x" * 201, answer=1),
    ],
)
def test_a_testimony_that_cannot_be_is_skipped_and_told(testimony):
    good = link_pb2.Testimony(server_id="two", answer=1)
    report = link_pb2.Report(session="s", sequence=1, testimonies=[testimony, good])
    said, (reason,) = wire.reported(report, "web-1", 50.0)
    assert [one.server for one in said.testimonies] == ["two"]
    assert reason.startswith("testimonies: ")


def test_too_many_testimonies_are_refused():
    testimonies = [link_pb2.Testimony(server_id="one", answer=1)] * 257
    with pytest.raises(cell_wire.WireError, match="testimonies"):
        wire.reported(link_pb2.Report(session="s", sequence=1, testimonies=testimonies), "web-1", 50.0)


def test_what_a_neighbour_withdraws_counts_no_longer():
    sight = Sight()
    for watcher in ("a", "b"):
        sight = observe(sight, Attached(watcher, "s", 1.0, ServerFacts())).sight
        said = (observations_sight.Testimony("x", observations_sight.Answer.ANSWERS, 1.0),)
        seen = observe(sight, Reported(watcher, "s", 1, 2.0, testimonies=said))
        sight = seen.sight
        assert seen.servers == ("x",)
    seen = observe(sight, Reported("a", "s", 2, 3.0, withdrawn=("x",)))
    assert (dict(seen.sight.about["x"]), seen.servers) == ({"b": said[0]}, ("x",))
    last = observe(seen.sight, Reported("b", "s", 2, 3.0, withdrawn=("x",))).sight
    assert "x" not in last.about
