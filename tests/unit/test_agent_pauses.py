"""How long the agent waits before it opens the link again."""

from galactica.agent.link.pauses import (
    PAUSE_FIRST_SECONDS,
    PAUSE_LIMIT_SECONDS,
    SERVED_SECONDS,
    TURNED_AWAY_LIMIT_SECONDS,
    Pauses,
)


def test_pauses_grow_up_to_their_limit_while_no_stream_serves():
    pauses = Pauses()
    for number in range(20):
        longest = min(PAUSE_LIMIT_SECONDS, PAUSE_FIRST_SECONDS * 2**number)
        assert longest / 2 <= pauses.next_seconds() <= longest
        pauses.ended(SERVED_SECONDS - 0.01)  # a welcome alone proves nothing


def test_a_stream_that_served_for_a_while_ends_their_growth():
    pauses = Pauses()
    for _ in range(10):
        pauses.next_seconds()
    pauses.ended(SERVED_SECONDS)
    assert pauses.next_seconds() <= PAUSE_FIRST_SECONDS


def test_a_second_machine_waits_longer_also_while_the_scheduler_is_away():
    pauses = Pauses()
    for _ in range(20):
        pauses.next_seconds()
        pauses.ended(0.0, was_turned_away=True)
    pauses.ended(0.0)
    assert pauses.next_seconds() >= TURNED_AWAY_LIMIT_SECONDS / 2 > PAUSE_LIMIT_SECONDS
    pauses.ended(SERVED_SECONDS)
    for _ in range(20):
        longest = pauses.next_seconds()
    assert longest <= PAUSE_LIMIT_SECONDS
