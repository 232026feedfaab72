"""How much silence in a pool is believed, over which time, and for how long the guard holds the rest."""

import pytest
from rpds import HashTrieMap

from galactica.scheduler.core.model.fleet import Fleet, Phase, Server, Silence
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.verdict import Health
from galactica.scheduler.core.sight.state import ServerSight, Sight
from galactica.scheduler.core.verdicts.storm import Storm, is_released, storm_of

NOW = 1_000.0


def fleet_of(
    size: int, *, pool: str = "", condemned: dict[str, float] | None = None, released: float | None = None
) -> Fleet:
    """Servers s0, s1, ...; those ``condemned`` for silence are still there, as lost ones."""
    gone = condemned or {}
    servers = {f"s{n}": Server(f"s{n}", 1, Phase.READY, joined_at=900.0, pool=pool) for n in range(size)}
    for name in gone:
        lost = Server(name, 1, Phase.CONDEMNED, pool=pool, condemned_health=Health.DEAD)
        servers[name] = lost
    silences = {pool: tuple(Silence(name, at) for name, at in gone.items())}
    releases = HashTrieMap({} if released is None else {pool: released})
    return Fleet(servers=HashTrieMap(servers), silences=HashTrieMap(silences), released=releases)


def sight_of(size: int, silent: int, since: float, trusted_since: float = 0.0) -> Sight:
    """The first ``silent`` of s0, s1, ... were last heard at ``since``."""
    seen = {f"s{n}": ServerSight("s", 900.0, since if n < silent else NOW) for n in range(size)}
    return Sight(trusted_since, HashTrieMap(seen))


def storm(fleet: Fleet, sight: Sight, pool: str = "", now: float = NOW) -> Storm | None:
    return storm_of(fleet, sight, pool, now, Policy())


@pytest.mark.parametrize(
    ("size", "silent", "storms"),
    [
        (1, 1, False),  # never fewer than one is believed
        (3, 1, False),
        (3, 2, True),
        (10, 2, False),  # a fifth is not more than a fifth
        (10, 3, True),
        (100, 20, False),
        (100, 21, True),
    ],
)
def test_more_silence_than_a_fifth_of_the_pool_is_a_storm(size: int, silent: int, storms: bool) -> None:
    assert (storm(fleet_of(size), sight_of(size, silent, 995.0)) is not None) is storms


@pytest.mark.parametrize(
    ("pool", "name", "where"), [("rack", "rack-995", "pool rack"), ("", "joined-995", "the joined servers")]
)
def test_a_storm_says_what_it_holds_and_until_when(pool: str, name: str, where: str) -> None:
    reason = (
        f"3 of 10 of {where} fell silent within 60 s, more than 2: "
        "the scheduler suspects its own network and condemns none of them for silence"
    )
    expected = Storm(name, pool, 3, 10, 995.0, 995.0 + 900.0, reason)
    assert storm(fleet_of(10, pool=pool), sight_of(10, 3, 995.0), pool) == expected


def test_silence_of_two_beats_is_none_yet() -> None:
    assert storm(fleet_of(10), sight_of(10, 9, NOW - 2.0)) is None
    assert storm(fleet_of(10), sight_of(10, 9, NOW - 2.1)) is not None


def test_silence_before_the_scheduler_could_hear_counts_for_nothing() -> None:
    assert storm(fleet_of(10), sight_of(10, 9, 900.0, trusted_since=NOW - 1.0)) is None


def test_the_silence_of_one_pool_is_no_storm_in_another() -> None:
    assert storm(fleet_of(10, pool="rack"), sight_of(10, 9, 995.0), "other") is None


@pytest.mark.parametrize(
    ("condemned_at", "storms"),
    [
        pytest.param(NOW - 59.0, True, id="within the window"),
        pytest.param(NOW - 60.0, False, id="before the window"),
    ],
)
def test_those_condemned_for_silence_a_moment_ago_count_as_silent(condemned_at: float, storms: bool) -> None:
    fleet = fleet_of(10, condemned={"s8": condemned_at, "s9": condemned_at})
    assert (storm(fleet, sight_of(10, 1, 995.0)) is not None) is storms


def test_a_lost_server_counts_once_and_those_of_the_past_not_at_all() -> None:
    recent = storm(fleet_of(10, condemned={"s9": 990.0}), sight_of(10, 3, 995.0))
    assert recent is not None
    assert (recent.silent, recent.of, recent.since) == (4, 10, 995.0)
    past = storm(fleet_of(10, condemned={"s9": 900.0}), sight_of(10, 3, 995.0))
    assert past is not None
    assert (past.silent, past.of, past.since) == (3, 9, 995.0)


@pytest.mark.parametrize(("later", "storms"), [(899.9, True), (900.0, False)])
def test_a_storm_ends_by_itself(later: float, storms: bool) -> None:
    sight = Sight(servers=sight_of(10, 9, NOW).servers.insert("s9", ServerSight("s", 900.0, NOW + later)))
    assert (storm(fleet_of(10), sight, now=NOW + later) is not None) is storms


def test_a_scheduler_that_hears_nobody_at_all_holds_for_as_long_as_that_lasts() -> None:
    blind = storm(fleet_of(10), sight_of(10, 10, NOW), now=NOW + 90_000)
    assert blind is not None
    assert blind.expires_at == NOW + 90_000 + 900
    assert blind.reason.endswith("it hears no server at all, so only an operator can end this")


def test_a_server_of_another_pool_that_is_heard_shows_that_the_scheduler_is_not_blind() -> None:
    sight = sight_of(10, 10, NOW)
    sight = Sight(servers=sight.servers.insert("elsewhere", ServerSight("s", 900.0, NOW + 900)))
    assert storm(fleet_of(10), sight, now=NOW + 900) is None


@pytest.mark.parametrize(
    ("released_at", "now", "released"),
    [(999.0, NOW, True), (996.0, NOW, False), (999.0, 1_898.9, True), (999.0, 1_899.0, False)],
    ids=["it was silent then", "it fell silent since", "it counts for a while", "and not for ever"],
)
def test_a_release_speaks_of_those_that_are_silent_at_that_moment_and_for_a_while(
    released_at: float, now: float, released: bool
) -> None:
    fleet = fleet_of(10, released=released_at + Policy().storm_hold_seconds)
    sight = sight_of(10, 3, 995.0)
    assert is_released(fleet, sight, fleet.servers["s0"], now, Policy()) is released
    if now == NOW:
        assert (storm(fleet, sight) is None) is released
