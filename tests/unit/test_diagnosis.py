"""Blame: a table of histories of deaths, and whom they speak against."""

from __future__ import annotations

import pytest
from rpds import HashTrieMap

from galactica.scheduler.core.model.fleet import Death, Fleet, GroupState, Phase, Server
from galactica.scheduler.core.model.spec import Group, GroupKind, RuntimeKind, Spec
from galactica.scheduler.core.verdicts.blame import blame_server, blame_spec, chance_of

NOW = 1_000.0
WINDOW_SECONDS = 60.0


def deaths(group: str, **on: int) -> tuple[Death, ...]:
    return tuple(
        Death(group, "d", server, "exited", NOW - 10) for server, count in on.items() for _ in range(count)
    )


def blamed(
    cells: dict[str, dict[str, int]], *died: Death, now: float = NOW, forgotten: tuple[Death, ...] = ()
) -> bool:
    """``cells``: group to how many cells it has on each server. ``forgotten``: deaths that only the server remembers.
    Whether server a is to blame."""
    groups = {
        name: GroupState(
            Group(GroupKind.SERVICE, name, sum(on.values()), Spec(RuntimeKind.PROCESS)),
            "d",
            1,
            (),
            per_server=HashTrieMap(on),
            deaths=tuple(death for death in died if death.group == name),
        )
        for name, on in cells.items()
    }
    on_a = tuple(death for death in (*forgotten, *died) if death.server == "a")
    server = Server("a", 1, Phase.READY, deaths=on_a)
    fleet = Fleet(groups=HashTrieMap(groups), servers=HashTrieMap({"a": server}))
    return blame_server(server, fleet, now, WINDOW_SECONDS) is not None


EVEN = {name: {"a": 1, "b": 4, "c": 4} for name in ("web", "api")}
GATHERED = (*deaths("web", a=4), *deaths("api", a=4))


def test_deaths_of_several_groups_that_gather_on_one_server_blame_it() -> None:
    assert blamed(EVEN, *GATHERED)


@pytest.mark.parametrize(
    ("cells", "died", "now"),
    [
        pytest.param(EVEN, (*deaths("web", a=1), *deaths("api", a=1)), NOW, id="too few"),
        pytest.param(EVEN, deaths("web", a=8), NOW, id="of one group: it may be the spec"),
        pytest.param(
            EVEN,
            (*deaths("web", a=4, b=4, c=4), *deaths("api", a=4, b=4, c=4)),
            NOW,
            id="as many everywhere: somebody kills cells, or both specs are bad",
        ),
        pytest.param(
            EVEN, (*deaths("web", a=3, b=1), *deaths("api", a=2, c=2)), NOW, id="more here, as chance has it"
        ),
        pytest.param(
            {"web": {"a": 9}, "api": {"a": 9}}, GATHERED, NOW, id="nobody beside it to be compared with"
        ),
        pytest.param(EVEN, GATHERED, NOW + 60, id="long ago"),
    ],
)
def test_a_server_is_not_blamed_where_deaths_say_nothing_about_it(
    cells: dict[str, dict[str, int]], died: tuple[Death, ...], now: float
) -> None:
    assert not blamed(cells, *died, now=now)


def test_deaths_of_deleted_groups_speak_no_more() -> None:
    assert not blamed({"web": EVEN["web"]}, *GATHERED)


def test_deaths_from_before_a_group_was_applied_anew_speak_no_more() -> None:
    assert blamed(EVEN, *deaths("api", a=8), *deaths("web", a=1))
    assert not blamed(EVEN, *deaths("api", a=8), forgotten=deaths("web", a=1))


@pytest.mark.parametrize(("here", "is_blamed"), [(4, False), (6, True)])
def test_among_hundreds_of_servers_one_is_unlucky_where_cells_are_killed_all_over(
    here: int, is_blamed: bool
) -> None:
    names = ("a", *(f"s{number}" for number in range(199)))
    cells = {group: dict.fromkeys(names, 2) for group in ("web", "api")}
    elsewhere = dict.fromkeys(names[1 : 17 - here // 2], 1)
    died = [death for group in cells for death in deaths(group, a=here // 2, **elsewhere)]
    assert blamed(cells, *died) is is_blamed


@pytest.mark.parametrize(
    ("here", "everywhere", "share", "chance"),
    [(0, 5, 0.3, 1.0), (1, 1, 0.25, 0.25), (2, 2, 0.5, 0.25), (1, 2, 0.5, 0.75), (3, 3, 1.0, 1.0)],
)
def test_chance_is_the_upper_tail_of_the_binomial_distribution(
    here: int, everywhere: int, share: float, chance: float
) -> None:
    assert chance_of(here, everywhere, share) == pytest.approx(chance)


def test_a_spec_is_blamed_where_its_cells_die_on_several_servers() -> None:
    assert blame_spec(deaths("web", a=2, b=1), "d", NOW, WINDOW_SECONDS) is not None
    assert blame_spec(deaths("web", a=3), "d", NOW, WINDOW_SECONDS) is None
    assert blame_spec(deaths("web", a=2, b=1), "another", NOW, WINDOW_SECONDS) is None
    assert blame_spec(deaths("web", a=2, b=1), "d", NOW + 60, WINDOW_SECONDS) is None
