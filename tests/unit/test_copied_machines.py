"""Two machines with one identity: what another machine than the journal knows says of a server's cells is no proof
before the known one had a lease to come back."""

import pytest
from msgspec.structs import replace

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.commands import Decommission, Order
from galactica.scheduler.core.model.fleet import Phase
from galactica.scheduler.core.model.requests import CreateToken, DrainServer, Enrol
from galactica.scheduler.core.sight.observations import CellReport, Reported
from galactica.scheduler.core.verdicts.machines import has_better_claim
from tests.support.reconcile_world import READY
from tests.support.world import SECRET, World, exited, gone, running, service, spec

CELL = "web/0.1"
FIRST, COPY, REBOOTED = "boot-a/disk-1", "boot-b/disk-2", "boot-c/disk-1"
LEASE_SECONDS = 5.0
WAIT_SECONDS = LEASE_SECONDS + 1.0
"""A lease, and the beat that may have been sent just before."""


def served() -> World:
    """Server a is the machine FIRST and runs the only cell."""
    world = World()
    world.ask(CreateToken("ta", SECRET, 1, world.now + 3600))
    world.ask(Enrol("ta", SECRET, "a"))
    world.attach("a", machine=FIRST)
    world.apply(service())
    world.advance(10)
    assert world.phases() == {CELL: READY}
    assert world.core.fleet.servers["a"].machine == FIRST
    return world


def after_a_start(
    world: World, *said: CellReport, machine: str = COPY, booted_at: float | None = None
) -> World:
    """The scheduler starts anew, and another machine attaches as server a at once."""
    successor = world.crash()
    successor.obedient = False
    successor.attach("a", *said, machine=machine, booted_at=booted_at)
    return successor


def condemned(world: World) -> list[tuple[str, str]]:
    return [(one.cell, one.rule) for one in world.events(e.CellCondemned)]


@pytest.mark.parametrize(
    "said",
    [[], [exited(CELL)], [gone(CELL)], [running(CELL, failures=9)]],
    ids=["lacks", "exited", "gone", "ill"],
)
@pytest.mark.parametrize("is_new", [True, False], ids=["after a start", "while the scheduler runs"])
def test_a_copys_word_condemns_nothing_and_the_first_machine_comes_back_to_its_cells(
    said: list[CellReport], is_new: bool
) -> None:
    world = served()
    if is_new:
        world = after_a_start(world, *said)
    else:
        world.detach("a")
        world.attach("a", *said, machine=COPY)
    world.advance(WAIT_SECONDS - 0.5)
    (hold,) = (one for one in world.core.view(world.now).holds if one.rule == "other_machine")
    assert hold.reason.startswith("another machine than before is attached as server a")

    world.attach("a", running(CELL), machine=FIRST)
    world.advance(30)

    assert condemned(world) == []
    assert world.phases() == {CELL: READY}
    assert world.held() == set()
    assert world.core.fleet.servers["a"].machine == FIRST


def test_after_the_first_machines_lease_the_other_one_is_the_server() -> None:
    world = after_a_start(served())
    world.advance(WAIT_SECONDS + 0.5)
    assert condemned(world) == [(CELL, "vanished")]
    assert world.core.fleet.servers["a"].machine == COPY
    assert [one.cell for one in world.sent if isinstance(one, Order)] == ["web/0.2"]


def test_the_lease_counts_from_when_the_first_machine_was_heard() -> None:
    world = served()
    heard_at = world.now
    world.detach("a")
    world.advance(LEASE_SECONDS - 1.0, beating=False)
    world.attach("a", machine=COPY)
    assert condemned(world) == []
    world.advance(heard_at + WAIT_SECONDS + 0.5 - world.now)
    assert condemned(world) == [(CELL, "vanished")]


def test_a_reboot_is_believed_at_once() -> None:
    world = served()
    world.detach("a")
    world.advance(3.0, beating=False)
    world.attach("a", machine=REBOOTED, booted_at=world.now - 2.0)
    assert condemned(world) == [(CELL, "vanished")]
    assert world.core.fleet.servers["a"].machine == REBOOTED


@pytest.mark.parametrize(
    ("machine", "booted_seconds_ago"),
    [(REBOOTED, 60.0), (REBOOTED, None), (COPY, 1.0), ("", 1.0)],
    ids=["booted before the first was heard last", "boot not known", "another place", "no name"],
)
def test_what_does_not_look_like_a_reboot_waits(machine: str, booted_seconds_ago: float | None) -> None:
    world = served()
    world.detach("a")
    world.advance(2.0, beating=False)
    booted_at = None if booted_seconds_ago is None else world.now - booted_seconds_ago
    world.attach("a", machine=machine, booted_at=booted_at)
    world.advance(2.0)
    assert condemned(world) == []


def test_a_machine_that_booted_before_the_scheduler_began_to_listen_may_be_a_running_clone() -> None:
    world = served()
    world = after_a_start(world, machine=REBOOTED, booted_at=world.now - 1.0)
    world.advance(2.0)
    assert condemned(world) == []


def test_a_server_that_was_condemned_may_come_back_as_another_machine_at_once() -> None:
    world = served()
    world.apply(service("web", 0))
    world.ask(DrainServer("a"))
    world.until(lambda: world.core.fleet.servers["a"].phase is Phase.DECOMMISSIONED)
    world.detach("a")
    world.ask(CreateToken("t2", SECRET, 1, world.now + 3600))
    world.ask(Enrol("t2", SECRET, "a"))
    world.attach("a", machine=COPY)
    world.advance(1.0)
    assert world.held() == set()
    assert world.core.fleet.servers["a"].machine == COPY


def test_a_journal_that_names_no_machine_takes_the_one_that_attaches() -> None:
    fleet = served().core.fleet
    fleet = replace(fleet, servers=fleet.servers.insert("a", replace(fleet.servers["a"], machine="")))
    world = World(fleet=fleet)
    world.attach("a", running(CELL), machine=COPY)
    assert world.events(e.MachineRecognised) == [e.MachineRecognised("a", COPY)]
    world.attach("a", machine=FIRST)
    world.advance(1.0)
    assert condemned(world) == []


def test_a_copy_gets_no_orders_before_it_is_the_server() -> None:
    world = after_a_start(served())
    world.apply(service("api", 1))
    world.apply(service("web", 1, spec("2")))
    world.advance(WAIT_SECONDS - 1.0)
    assert [one for one in world.sent if isinstance(one, Order | Decommission)] == []
    world.advance(20)
    assert any(isinstance(one, Order) for one in world.sent)


def test_a_copy_that_leaves_in_order_does_not_end_the_server() -> None:
    world = after_a_start(served())
    seen = world.core.sight.servers["a"]
    world.core.take(Reported("a", seen.session, 1, world.now, complete=True, is_leaving=True))
    world.settle()
    world.detach("a")
    world.attach("a", running(CELL), machine=FIRST)
    world.advance(10)
    assert world.events(e.ServerCondemned) == condemned(world) == []


def test_a_cell_that_is_to_go_is_gone_only_by_its_own_machines_word() -> None:
    world = served()
    world.obedient = False
    world.join("b")
    world.ask(DrainServer("a"))
    world.detach("a")
    world.attach("a", gone(CELL), machine=COPY)
    world.advance(WAIT_SECONDS - 1.0)
    assert world.events(e.CellDecommissioned) == []


def test_an_unknown_cell_is_not_gone_because_a_copy_lacks_it() -> None:
    world = served()
    world.report("a", running(CELL), running("web/5.9"))
    assert [one.cell for one in world.events(e.UnknownCellFound)] == ["web/5.9"]
    world = after_a_start(world)
    world.advance(2.0)
    assert world.events(e.OrphanRemoved) == []
    world.advance(WAIT_SECONDS)
    assert [(one.cell, one.is_gone) for one in world.events(e.OrphanRemoved)] == [("web/5.9", True)]


@pytest.mark.parametrize(
    ("known", "newcomer", "holder", "has"),
    [
        (FIRST, FIRST, COPY, True),
        (FIRST, FIRST, FIRST, False),
        (FIRST, COPY, COPY, False),
        (FIRST, COPY, FIRST, False),
        (FIRST, FIRST, "", True),
        ("", "", COPY, False),
        ("", COPY, FIRST, False),
    ],
)
def test_who_has_the_better_claim(known: str, newcomer: str, holder: str, has: bool) -> None:
    world = World()
    world.join("a")
    server = replace(world.core.fleet.servers["a"], machine=known)
    assert has_better_claim(server, newcomer, holder) is has
