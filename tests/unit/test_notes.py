"""What an operator should know and what leaves the fleet healthy."""

import pytest
from msgspec.structs import replace

from galactica.scheduler.core.sight.observations import Moved, Place, Rivalled
from galactica.scheduler.core.sight.observe import observe
from galactica.scheduler.core.sight.state import with_server
from galactica.scheduler.core.sight.vitals import Vitals
from galactica.scheduler.views import servers, status
from galactica.scheduler.views.notes import RIVAL_TOLD_SECONDS
from tests.support.world import World


@pytest.fixture
def view():
    world = World()
    world.join("a", "b")
    return world.core.view(world.now)


def with_foreign_cells(view, count):
    seen = view.sight.servers["a"]
    sight = with_server(view.sight, "a", replace(seen, vitals=Vitals(foreign_cells=count)))
    return replace(view, sight=sight)


def told(view):
    """By ``status``, and by ``servers`` for each server."""
    page = status.status(view, "demo")
    assert page.healthy
    return list(page.notes), {row.id: list(row.notes) for row in servers.servers(view)}


@pytest.mark.parametrize(
    ("count", "says"),
    [
        (0, []),
        (1, ["1 cell of another fleet on server a"]),
        (5, ["5 cells of another fleet on server a"]),
    ],
)
def test_cells_of_another_fleet_are_told_and_leave_the_fleet_healthy(view, count, says):
    assert told(with_foreign_cells(view, count)) == (says, {"a": says, "b": []})


def test_it_is_told_why_neighbours_cannot_watch_a_server(view):
    moved = Moved("a", view.sight.servers["a"].session, Place("", "no route to host"))
    sight = observe(view.sight, moved).sight
    says = ["neighbours cannot watch server a: no route to host"]
    assert told(replace(view, sight=sight)) == (says, {"a": says, "b": []})
    of_another_session = observe(sight, Moved("a", "older", Place("10.0.0.1:7"))).sight
    assert of_another_session.servers["a"].place == moved.place
    again = observe(sight, replace(moved, place=Place("10.0.0.1:7"))).sight
    assert told(replace(view, sight=again)) == ([], {"a": [], "b": []})
    rows = {row.id: row.watch_address for row in servers.servers(replace(view, sight=again))}
    assert rows == {"a": "10.0.0.1:7", "b": ""}


def test_a_second_machine_is_told_for_a_while(view):
    rivalled = Rivalled("a", "192.0.2.7:4711", view.now)
    view = replace(view, sight=observe(view.sight, rivalled).sight)
    (note,) = told(view)[0]
    assert note.startswith(
        "a second live machine claims the identity of server a, from 192.0.2.7:4711; it gets no session"
    )
    assert told(replace(view, now=view.now + RIVAL_TOLD_SECONDS)) == ([], {"a": [], "b": []})


def test_a_second_machine_of_a_server_that_was_never_seen_is_not_remembered(view):
    assert observe(view.sight, Rivalled("stranger", "192.0.2.7:1", view.now)).sight is view.sight


def with_wire_versions(view, **versions):
    sight = view.sight
    for server, version in versions.items():
        sight = with_server(sight, server, replace(sight.servers[server], wire_version=version))
    return replace(view, sight=sight)


BEHIND_BOTH = (
    "2 agents are behind this scheduler, such as that of server a: install newer ones; "
    "galactica servers names them"
)
BEHIND = "its agent is behind: it uses wire version 1, and this scheduler 2; install a newer agent"


@pytest.mark.parametrize(
    ("versions", "says", "behind"),
    [
        ({"a": 2, "b": 0}, [], []),
        (
            {"a": 2, "b": 1},
            ["the agent of server b is behind this scheduler: install a newer one there"],
            ["b"],
        ),
        (
            {"a": 1, "b": 1},
            [BEHIND_BOTH],
            ["a", "b"],
        ),
    ],
)
def test_servers_names_agents_that_are_behind_and_status_has_one_line_for_all(view, versions, says, behind):
    view = with_wire_versions(view, **versions)
    assert told(view) == (says, {name: [BEHIND] if name in behind else [] for name in ("a", "b")})
    rows = {row.id: (row.wire_version, row.is_behind) for row in servers.servers(view)}
    assert rows == {name: (version, name in behind) for name, version in versions.items()}


def test_an_agent_that_is_away_is_not_behind(view):
    view = with_wire_versions(view, a=1)
    away = replace(view.sight.servers["a"], closed_at=view.now)
    view = replace(view, sight=with_server(view.sight, "a", away))
    row = next(row for row in servers.servers(view) if row.id == "a")
    assert (row.wire_version, row.is_behind, list(row.notes)) == (0, False, [])
