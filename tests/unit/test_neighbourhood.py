"""Who watches whom: regular, connected, and nearly the same when one server comes or goes."""

from hypothesis import given
from hypothesis import strategies as st

from galactica.scheduler.link.neighbourhood import DEGREE, draw, redraw, watchers_of

names = st.lists(st.text("abcdefgh0123-", min_size=1, max_size=6), unique=True, max_size=40)
seeds = st.integers(0, 2**63)


def pairs(watched):
    return {(watcher, one) for watcher, others in watched.items() for one in others}


def servers(count):
    return tuple(f"s{number}" for number in range(count))


def reached(watched, start):
    seen, waiting = {start}, [start]
    while waiting:
        news = set(watched[waiting.pop()]) - seen
        seen |= news
        waiting += news
    return seen


@given(names, seeds)
def test_everyone_watches_three_others_and_is_watched_by_three_or_all_where_there_are_no_more(fleet, seed):
    watched = draw(fleet, seed)
    degree = min(DEGREE, max(0, len(fleet) - 1))
    assert watched.keys() == set(fleet)
    assert all(len(set(others)) == len(others) == degree for others in watched.values())
    assert all(watcher not in others for watcher, others in watched.items())
    assert {one: len(others) for one, others in watchers_of(watched).items()} == (
        dict.fromkeys(fleet, degree) if degree else {}
    )


@given(names.filter(bool), seeds)
def test_no_part_of_the_fleet_watches_only_itself(fleet, seed):
    assert reached(draw(fleet, seed), fleet[0]) == set(fleet)


@given(names, seeds, st.randoms(use_true_random=False))
def test_order_in_which_servers_are_named_does_not_matter(fleet, seed, random):
    shuffled = list(fleet)
    random.shuffle(shuffled)
    assert draw(shuffled, seed) == draw(fleet, seed)


def test_another_seed_draws_others():
    before, after = (pairs(draw(servers(100), seed)) for seed in (1, 2))
    assert len(before & after) < 30  # three of a hundred are the same by chance, of 300 pairs about nine


def test_one_that_comes_or_goes_changes_few_pairs_of_the_others():
    for count, most in ((20, 15), (100, 9), (1_000, 5)):
        for seed in range(5):
            without = draw(servers(count), seed)
            with_one = draw((*servers(count), "new"), seed)
            others = {pair for pair in pairs(with_one) if "new" not in pair}
            assert len(pairs(without) ^ others) <= most, (count, seed)


@given(names.filter(bool), names.filter(bool), seeds, st.data())
def test_absent_ones_keep_those_who_watch_them(before, after, seed, data):
    absent = set(data.draw(st.lists(st.sampled_from(after), unique=True)))
    first = draw(before, seed)
    second = redraw(first, after, absent, seed)
    known = absent & set(before)
    still = {pair for pair in pairs(first) if pair[0] in after and pair[1] in known & set(after)}
    assert second.keys() == set(after)
    assert {pair for pair in pairs(second) if pair[1] in known and watchers_of(first).get(pair[1])} == still


@given(names, names, seeds)
def test_where_nobody_is_absent_nothing_of_the_draw_before_is_left(before, after, seed):
    assert redraw(draw(before, seed), after, set(), seed) == draw(after, seed)
