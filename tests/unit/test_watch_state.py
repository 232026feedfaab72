"""The pure half of the neighbours' watch: what comes back, or does not, and what is said of it."""

import math

import pytest

from galactica.agent.core import model as model_core
from galactica.agent.core.model import Answer, Neighbour
from galactica.agent.neighbours.state import (
    AGAIN_SECONDS,
    PING_SECONDS,
    SILENT_AFTER,
    Answered,
    Assigned,
    Elapsed,
    NotSent,
    Ping,
    Tell,
    WasRefused,
    WatchState,
    all_testimonies,
    next_look,
    step,
)

ONE = Neighbour("one", "10.0.0.1:7", b"1" * 16)
TWO = Neighbour("two", "10.0.0.2:7", b"2" * 16)
BEGAN = 100.0


class Watcher:
    """A state that is stepped. ``alive``: who answers at once; ``closed``: whose kernel refuses at once."""

    def __init__(self, *neighbours, alive=(), closed=()):
        self.now = BEGAN
        self.state = WatchState(sequence=2**64 - 2)
        self.alive, self.closed = set(alive), set(closed)
        self.pings: list[tuple[float, str]] = []
        self.sequences: list[int] = []
        self.told: list[tuple[float, tuple[model_core.Testimony, ...]]] = []
        self.take(Assigned(neighbours, self.now))
        self.run(0.0)

    def take(self, event):
        self.state, instructions = step(self.state, event)
        for one in instructions:
            if isinstance(one, Ping):
                self.pings.append((round(self.now - BEGAN, 3), one.server_id))
                self.sequences.append(one.sequence)
            else:
                assert isinstance(one, Tell)
                self.told.append((round(self.now - BEGAN, 3), one.testimonies))
        for one in instructions:
            if isinstance(one, Ping) and one.server_id in self.alive:
                self.take(Answered(one.server_id, one.sequence, self.now))
            if isinstance(one, Ping) and one.server_id in self.closed:
                self.take(WasRefused(one.server_id, self.now))

    def run(self, seconds):
        end = self.now + seconds
        while next_look(self.state) <= end:
            self.now = max(self.now, next_look(self.state))
            self.take(Elapsed(self.now))
        self.now = end

    def freeze(self, seconds):
        """The agent gets no time; what was due is done when that is over."""
        self.now += seconds
        self.take(Elapsed(self.now))

    @property
    def answers(self):
        return {one.server_id: one.answer for one in all_testimonies(self.state)}


def test_neighbour_that_answers_is_pinged_once_a_second_and_told_once():
    watcher = Watcher(ONE, alive={"one"})
    watcher.run(3.5)
    assert watcher.pings == [(0.0, "one"), (1.0, "one"), (2.0, "one"), (3.0, "one")]
    assert watcher.told == [(0.0, (model_core.Testimony("one", Answer.ANSWERS, BEGAN),))]


def test_silence_is_known_within_about_two_seconds_and_told_from_its_beginning():
    watcher = Watcher(ONE, alive={"one"})
    watcher.run(0.01)
    watcher.alive.clear()
    watcher.run(5.0)
    told_at, words = watcher.told[-1]
    assert told_at == pytest.approx(PING_SECONDS + SILENT_AFTER * AGAIN_SECONDS)
    assert told_at < 2.1
    assert words == (model_core.Testimony("one", Answer.SILENT, BEGAN + 1.0),)
    assert len(watcher.told) == 2


def test_silent_neighbour_costs_no_more_than_one_that_answers():
    watcher = Watcher(ONE, alive={"one"})
    watcher.alive.clear()
    watcher.run(5.0)
    before = len(watcher.pings)
    watcher.run(10.0)
    assert len(watcher.pings) - before == 10


@pytest.mark.parametrize("lost", range(1, SILENT_AFTER))
def test_lost_packets_that_are_fewer_say_nothing(lost):
    watcher = Watcher(ONE, alive={"one"})
    watcher.run(0.5)
    watcher.alive.clear()
    watcher.run(0.5 + (lost - 0.5) * AGAIN_SECONDS)
    watcher.alive.add("one")
    watcher.run(5.0)
    assert len(watcher.told) == 1


def test_neighbour_that_never_answered_is_not_spoken_of():
    """UDP may be blocked, or it does not know our key yet."""
    watcher = Watcher(ONE, TWO, closed={"two"})
    watcher.run(30.0)
    assert (watcher.told, watcher.answers) == ([], {})
    assert len(watcher.pings) <= 2 * (30 + SILENT_AFTER + 1)


def test_closed_port_is_told_at_the_next_ping():
    watcher = Watcher(ONE, alive={"one"})
    watcher.run(0.5)
    watcher.alive, watcher.closed = set(), {"one"}
    watcher.run(0.6)
    assert watcher.told[1:] == [(1.0, (model_core.Testimony("one", Answer.REFUSED, BEGAN + 1.0),))]


@pytest.mark.parametrize(
    ("alive", "closed", "answer"),
    [({"one"}, set(), Answer.ANSWERS), (set(), {"one"}, Answer.REFUSED), (set(), set(), Answer.SILENT)],
)
@pytest.mark.parametrize(("was_alive", "was_closed"), [({"one"}, set()), (set(), {"one"}), (set(), set())])
def test_every_answer_can_follow_every_other_and_only_a_change_is_told(
    was_alive, was_closed, alive, closed, answer
):
    watcher = Watcher(ONE, alive={"one"})
    watcher.alive, watcher.closed = was_alive, was_closed
    watcher.run(4.0)
    before, told = watcher.answers["one"], len(watcher.told)
    watcher.alive, watcher.closed = alive, closed
    watcher.run(4.0)
    assert watcher.answers == {"one": answer}
    assert len(watcher.told) - told == (before is not answer)


def test_answer_that_took_long_is_one_all_the_same():
    watcher = Watcher(ONE, alive={"one"})
    watcher.run(0.5)
    watcher.alive.clear()
    watcher.run(1.0)
    slow = watcher.sequences[-1]
    watcher.run(2.0)
    assert watcher.answers == {"one": Answer.SILENT}
    watcher.take(Answered("one", watcher.sequences[-2], watcher.now))
    assert watcher.answers == {"one": Answer.ANSWERS}
    assert slow not in watcher.state.watched["one"].awaited


def test_answer_to_no_ping_of_ours_is_none():
    watcher = Watcher(ONE)
    for sequence in (0, watcher.sequences[-1] + 1, watcher.sequences[-1] - 1):
        watcher.take(Answered("one", sequence, watcher.now))
    watcher.take(Answered("stranger", watcher.sequences[-1], watcher.now))
    assert watcher.told == []


def test_answer_counts_once():
    watcher = Watcher(ONE, alive={"one"})
    answered = watcher.sequences[-1]
    watcher.alive.clear()
    watcher.run(4.0)
    watcher.take(Answered("one", answered, watcher.now))
    assert watcher.answers == {"one": Answer.SILENT}


def test_refusal_without_a_ping_says_nothing():
    watcher = Watcher(ONE, alive={"one"})
    watcher.take(WasRefused("one", watcher.now))
    assert watcher.answers == {"one": Answer.ANSWERS}


def test_ping_that_this_agent_could_not_send_proves_nothing():
    watcher = Watcher(ONE, alive=["one"])
    watcher.alive.clear()
    for _ in range(10 * SILENT_AFTER):
        sent = len(watcher.pings)
        watcher.run(PING_SECONDS)
        assert len(watcher.pings) == sent + 1
        watcher.take(NotSent("one"))
    assert [one.answer for one in all_testimonies(watcher.state)] == [Answer.ANSWERS]
    watcher.take(NotSent("nobody"))
    watcher.run(10)
    assert [one.answer for one in all_testimonies(watcher.state)] == [Answer.SILENT]


def test_what_was_missed_while_this_agent_stood_still_proves_nothing():
    watcher = Watcher(ONE, alive={"one"})
    watcher.run(0.5)
    watcher.alive.clear()
    watcher.run(1.0)  # two pings are unanswered
    watcher.freeze(30.0)
    watcher.alive.add("one")
    watcher.run(5.0)
    assert len(watcher.told) == 1


def test_neighbour_that_is_silent_after_a_freeze_of_ours_too_is_silent_since_then():
    watcher = Watcher(ONE, alive={"one"})
    watcher.run(0.5)
    watcher.alive.clear()
    watcher.run(1.0)
    watcher.freeze(30.0)
    woke_at = watcher.now
    watcher.run(5.0)
    assert watcher.told[-1][1] == (model_core.Testimony("one", Answer.SILENT, woke_at),)


def test_neighbours_that_stay_go_on_as_they_were_and_new_ones_are_pinged_at_once():
    watcher = Watcher(ONE, alive={"one", "two"})
    watcher.run(0.5)
    watcher.take(Assigned((ONE, TWO), watcher.now))
    watcher.run(0.6)
    assert watcher.pings == [(0.0, "one"), (0.5, "two"), (1.0, "one"), (1.0, "two")]
    assert watcher.told[-1] == (
        0.5,
        (
            model_core.Testimony("one", Answer.ANSWERS, BEGAN),
            model_core.Testimony("two", Answer.ANSWERS, BEGAN + 0.5),
        ),
    )


def test_those_who_are_watched_no_more_are_spoken_of_no_more():
    watcher = Watcher(ONE, TWO, alive={"one", "two"})
    watcher.take(Assigned((TWO,), watcher.now))
    assert watcher.answers == {"two": Answer.ANSWERS}
    watcher.take(Assigned((), watcher.now))
    assert watcher.told[-1] == (0.0, ())
    assert next_look(watcher.state) == math.inf


@pytest.mark.parametrize(
    "changed", [Neighbour("one", "10.0.0.9:7", ONE.key), Neighbour("one", ONE.address, b"3" * 16)]
)
def test_another_address_or_key_begins_anew(changed):
    watcher = Watcher(ONE, alive={"one"})
    watcher.alive.clear()
    watcher.take(Assigned((changed,), watcher.now))
    watcher.run(4.0)
    assert watcher.answers == {}


def test_no_sequence_is_used_twice_even_where_the_numbers_begin_anew():
    watcher = Watcher(ONE, TWO, alive={"one", "two"})
    watcher.run(10.0)
    assert len(set(watcher.sequences)) == len(watcher.sequences)
    assert all(0 <= one < 2**64 for one in watcher.sequences)


def test_a_testimony_of_silence_says_whether_the_kernel_refused_pings_before() -> None:
    """Only then would the refusals of a host without an agent have come through."""
    watcher = Watcher(ONE, TWO, alive={"one", "two"})
    watcher.run(2.0)
    watcher.alive.clear()
    watcher.closed = {"one"}
    watcher.run(5.0)
    watcher.closed.clear()
    watcher.run(5.0)
    told = {said.server_id: (said.answer, said.after_refusal) for said in watcher.told[-1][1]}
    assert told == {"one": (Answer.SILENT, True), "two": (Answer.SILENT, False)}
    watcher.alive = {"one"}
    watcher.run(2.0)
    watcher.alive.clear()
    watcher.run(5.0)
    assert [said.after_refusal for said in watcher.told[-1][1]] == [False, False], (
        "its agent was back meanwhile"
    )
