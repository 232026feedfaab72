"""What an operator should know and what leaves the fleet healthy."""

import pytest
from msgspec.structs import replace

from galactica.scheduler.core.sight.observations import Rivalled
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
