"""The scheduler's half of fencing: when the next cell of an exclusive slot may be ordered."""

import pytest
from msgspec.structs import replace
from rpds import HashTrieMap

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.commands import Decommission, DecommissionServer
from galactica.scheduler.core.model.fleet import Fleet, Phase, Server
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.rules import Rule
from galactica.scheduler.core.model.spec import Group, Stop
from galactica.scheduler.core.model.verdict import Autopsy, Health
from galactica.scheduler.core.sight.observations import Answer, CellReport
from galactica.scheduler.core.transitions import apply
from galactica.scheduler.core.verdicts.fence import ended_at
from tests.support.world import World, exited, gone, pool, running, service, spec
from tests.unit.test_pools import condemned, rack, silence

READY = Phase.READY
HOLDER = "db/0.1"
POLICY = Policy()
GRACE = 10.0


def db(*, exclusive: bool = True, grace_seconds: float = GRACE) -> Group:
    return service("db", 1, spec(exclusive=exclusive, stop=Stop(grace_seconds=grace_seconds)))


def joined(group: Group) -> tuple[World, str]:
    """Two servers that joined by themselves; the one that carries the cell is not heard from here on."""
    world = World()
    world.join("a", "b")
    world.apply(group)
    world.advance(10)
    holder = world.cell(HOLDER).server
    world.deaf.add(holder)
    return world, holder


def patience(lease: float = 5.0, grace: float = GRACE) -> float:
    """What the rule promises: a tenth of the lease more than was told, the grace, clocks that differ by two in a
    thousand, a beat, and the margin."""
    return (lease * 1.1 + grace) * 1.002 + 1.0 + POLICY.fence_margin_seconds


def wait_of(world: World, holder: str) -> float:
    server = world.core.fleet.servers[holder]
    spec_ = world.core.fleet.groups["db"].group.spec
    return ended_at(world.core.fleet, server, spec_, world.core.sight, world.policy)


@pytest.mark.parametrize("grace", [0.0, 10.0, 60.0])
def test_the_next_cell_waits_for_lease_grace_and_margin_after_what_was_heard_last(grace: float) -> None:
    world, holder = joined(db(grace_seconds=grace))
    heard_at = world.core.sight.servers[holder].heard_at
    assert wait_of(world, holder) == pytest.approx(heard_at + patience(grace=grace))
    silence(world, holder, heard_at + patience(grace=grace) - world.now - 0.5)
    assert condemned(world) == [(holder, "lease_expired")]
    assert "db/0.2" not in world.phases("db")
    silence(world, holder, 1.0)
    silence(world, holder, 1.0)
    assert world.phases("db") == {"db/0.2": READY}
    assert [event.proof for event in world.events(e.CellDecommissioned)] == ["fenced"]


def test_the_hold_says_when_the_next_cell_will_be_ordered() -> None:
    world, holder = joined(db())
    at = wait_of(world, holder)
    silence(world, holder, 10.0)
    (hold,) = (one for one in world.core.view(world.now).holds if one.rule == "exclusive")
    assert hold.next_look_at == at
    assert f"{HOLDER} may still run" in hold.reason
    assert f"its server {holder} is lost" in hold.reason


def test_a_providers_word_needs_no_wait() -> None:
    world = rack(3)
    world.apply(db())
    world.advance(10)
    holder = world.cell(HOLDER).server
    world.deaf_providers = True
    world.deaf.add(holder)
    silence(world, holder, 5.0, Answer.SILENT)
    assert condemned(world) == [(holder, "neighbours_silent")]
    assert "db/0.2" not in world.phases("db")
    assert DecommissionServer in [type(command) for command in world.told_providers]
    world.lose(holder)
    world.settle()
    assert world.phases("db") == {"db/0.2": READY}
    assert holder not in world.core.fleet.servers


def test_the_agents_word_needs_no_wait() -> None:
    world, holder = joined(db())
    silence(world, holder, 10.0)
    assert "exclusive" in world.held()
    world.deaf.clear()
    world.attach(holder, running(HOLDER))
    world.advance(2)
    assert world.phases("db") == {"db/0.2": READY}
    assert [event.proof for event in world.events(e.CellDecommissioned)] == ["agent"]


def test_what_was_ordered_as_a_cell_that_may_live_on_waits_for_somebodys_word() -> None:
    """Nobody there ends it by itself, however long we wait."""
    world, holder = joined(db(exclusive=False))
    world.apply(db())
    silence(world, holder, 300.0)
    assert [cell for cell, phase in world.phases("db").items() if phase is READY] == []
    assert "exclusive" in world.held()


def test_a_scheduler_that_starts_anew_waits_as_if_it_had_just_heard_everybody() -> None:
    world, holder = joined(db())
    silence(world, holder, 10.0)
    assert condemned(world)
    successor = world.crash()
    started = successor.now
    assert wait_of(successor, holder) == pytest.approx(started + patience())


def another_machine(world: World, holder: str, *inventory: CellReport) -> float:
    """It attaches as that server while the first one is away. Returns when the first one's cell has ended for sure."""
    world.detach(holder)
    world.deaf.discard(holder)
    world.attach(holder, *inventory, machine="a copy")
    return world.now + patience()


@pytest.mark.parametrize("said", [None, exited(HOLDER)], ids=["lacks it", "says it ended"])
def test_what_another_machine_says_of_the_cell_proves_nothing_before_the_first_ones_lease_is_over(
    said: CellReport | None,
) -> None:
    world, holder = joined(db())
    at = another_machine(world, holder, *([said] if said else []))
    world.advance(at - world.now - 0.5)
    assert "db/0.2" not in world.phases("db")
    (hold,) = (one for one in world.core.view(world.now).holds if one.rule == "exclusive")
    assert hold.reason.startswith(
        f"{HOLDER} may still run, and two must never run at once: another machine was "
    )
    world.advance(1.0)
    assert world.phases("db") == {"db/0.2": READY}


def test_another_machine_that_lives_on_as_a_lost_server_does_not_keep_the_first_ones_cell_alive() -> None:
    world, holder = joined(db())
    silence(world, holder, 10.0)
    assert condemned(world) == [(holder, "lease_expired")]
    at = another_machine(world, holder)
    world.advance(at - world.now - 0.5)
    assert "db/0.2" not in world.phases("db")
    world.advance(1.0)
    assert world.phases("db") == {"db/0.2": READY}
    assert [event.proof for event in world.events(e.CellDecommissioned)] == ["fenced"]


def test_cell_that_another_machine_shows_on_a_lost_server_is_ended_there_first() -> None:
    world, holder = joined(db())
    silence(world, holder, 10.0)
    world.sent.clear()
    world.obedient = False
    at = another_machine(world, holder, running(HOLDER))
    world.advance(at - world.now + 30.0)
    assert "db/0.2" not in world.phases("db")
    assert Decommission(holder, HOLDER, Rule.SERVER_LOST) in world.sent
    world.obedient = True
    world.report(holder, gone(HOLDER))
    world.advance(30.0)
    assert world.phases("db") == {"db/0.2": READY}


def test_the_same_machine_is_believed_at_once() -> None:
    world, holder = joined(db())
    world.detach(holder)
    world.deaf.discard(holder)
    world.attach(holder)
    world.advance(0.5)
    assert world.phases("db") == {"db/0.2": READY}


def test_order_whose_answer_is_not_known_goes_to_no_other_machine_before_the_first_ones_lease_is_over() -> (
    None
):
    world = World()
    world.join("a")
    world.deaf.add("a")
    world.apply(db())
    world.advance(1.0)
    assert world.phases("db") == {HOLDER: Phase.ORDERED}
    world.sent.clear()
    at = another_machine(world, "a")
    world.advance(at - world.now - 0.5)
    assert world.sent == []
    world.advance(1.0)
    assert world.phases("db") == {HOLDER: READY}


def test_cell_that_another_machine_got_itself_is_its_own_to_speak_of() -> None:
    world, holder = joined(db())
    at = another_machine(world, holder)
    world.advance(at + 1.0 - world.now)
    (cell,) = world.phases("db")
    server = world.cell(cell).server
    world.report(server, exited(cell))
    world.advance(0.5)
    assert cell not in world.phases("db")


@pytest.mark.parametrize(
    ("leases", "counted"),
    [
        ((15.0,), 15.0),
        ((15.0, 30.0), 30.0),
        ((30.0, 15.0), 30.0),
        ((30.0, 0.0), 30.0),
        ((0.0,), 5.0),
        ((1.0,), 2.0),
    ],
)
def test_of_the_leases_that_an_agent_may_have_been_told_the_longest_counts(
    leases: tuple[float, ...], counted: float
) -> None:
    world = World()
    for lease in leases:
        world.apply(replace(pool("rack", 3), lease_seconds=lease))
    world.apply(db())
    world.advance(10)
    holder = world.cell(HOLDER).server
    heard_at = world.core.sight.servers[holder].heard_at

    assert wait_of(world, holder) == pytest.approx(heard_at + patience(lease=counted))


def test_a_fenced_cell_is_replaced_at_once_and_blames_nobody() -> None:
    world = World()
    world.join("a", "b")
    world.apply(db())
    world.advance(2)
    holder = world.cell(HOLDER).server
    fenced = replace(exited(HOLDER), autopsy=Autopsy("fenced: no scheduler", fenced=True))
    world.attach(holder, fenced)
    world.advance(1)
    assert [event.rule for event in world.events(e.CellCondemned)] == ["fenced"]
    assert world.phases("db") == {"db/0.2": READY}
    assert world.core.fleet.servers[holder].deaths == ()
    assert world.core.fleet.groups["db"].deaths == ()


def test_a_server_that_is_to_blame_and_then_falls_silent_is_lost_for_its_silence() -> None:
    """Silence condemns no more than the guard believes, also where the server was to go for another reason before."""
    before = Server("a", 1, Phase.READY, joined_at=1.0)
    fleet = Fleet(position=0, servers=HashTrieMap({"a": before}))
    for position, (health, rule) in enumerate(
        [(Health.SICK, "blamed"), (Health.DEAD, "neighbours_silent")], 1
    ):
        event = e.ServerCondemned("a", health, rule, "a test says so", ())
        fleet = apply(fleet, e.Record(position, 2.0, "test", event))
    assert fleet.servers["a"].condemned_by == "neighbours_silent"
