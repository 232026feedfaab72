"""Which scheduler an agent has obeyed, and what that says about the journal."""

import pytest

from galactica.scheduler.core.admission import EPOCH_LEAP_LIMIT
from galactica.scheduler.core.epochs import STARTS_KEPT, is_overtaken, is_strange
from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.events import Record
from galactica.scheduler.core.model.fleet import CellId, Fleet, Phase
from galactica.scheduler.core.model.requests import Asker, AskerKind, ClaimEpoch, DeleteGroup, Obeyed
from galactica.scheduler.core.reconcile.leftovers import was_ordered
from galactica.scheduler.core.transitions import apply
from tests.support.world import World, service, spec

SELF = Asker(AskerKind.SCHEDULER)


def journal(*events: e.Event) -> Fleet:
    fleet = Fleet()
    for position, event in enumerate(events, 1):
        fleet = apply(fleet, Record(position, 1.0, "test", event))
    return fleet


TWO_STARTS = journal(
    e.SchedulerStarted(1, "v", "first"),
    e.TokenCreated("t", "", 1, 2.0),
    e.SchedulerStarted(2, "v", "second"),
    e.TokenCreated("u", "", 1, 2.0),
)


@pytest.mark.parametrize(
    ("obeyed", "strange"),
    [
        (Obeyed(0), False),
        (Obeyed(1, "first", 2), False),
        (Obeyed(2, "second", 4), False),
        (Obeyed(2, "another"), True),
        (Obeyed(1, "another"), True),
        (Obeyed(1, "first", 3), True),  # that start wrote more than is left of it
        (Obeyed(2, "second", 5), True),
        (Obeyed(2, "", 5), False),  # an older agent, which does not say
        (
            Obeyed(9, "another"),
            False,
        ),  # an epoch that the journal does not know: higher ones are overtaken anyway
    ],
    ids=str,
)
def test_what_the_journal_does_not_know_of_a_scheduler_is_strange(obeyed: Obeyed, strange: bool) -> None:
    assert is_strange(TWO_STARTS, obeyed) is strange


@pytest.mark.parametrize(
    ("obeyed", "overtaken"),
    [
        (Obeyed(2, "second", 4), False),
        (Obeyed(2, "another"), True),
        (Obeyed(3, "third"), False),
        (Obeyed(3, "another"), True),
        (Obeyed(3, ""), True),
        (Obeyed(4, "third"), True),
    ],
    ids=str,
)
def test_start_that_the_journal_could_not_record_yet_is_told_from_another_of_its_epoch(
    obeyed: Obeyed, overtaken: bool
) -> None:
    assert is_overtaken(TWO_STARTS, obeyed, 3, "third") is overtaken


def test_strange_start_that_had_our_epoch_too_is_overtaken_again() -> None:
    """One agent knew of its first epoch only, another one of the epoch that it claimed later."""
    fleet = apply(TWO_STARTS, Record(5, 1.0, "test", e.EpochClaimed(3, "a", "another")))
    assert is_strange(fleet, Obeyed(3, "another", 40))
    fleet = apply(fleet, Record(6, 1.0, "test", e.EpochClaimed(4, "b", "another")))
    assert not is_strange(fleet, Obeyed(3, "another", 40))


def test_a_strange_start_is_overtaken_once() -> None:
    fleet = apply(TWO_STARTS, Record(5, 1.0, "test", e.EpochClaimed(3, "a", "another")))
    assert not is_strange(fleet, Obeyed(2, "another"))
    assert fleet.starts[3].name == "second"  # the scheduler that runs
    assert not is_strange(fleet, Obeyed(3, "second", 5))
    assert is_strange(fleet, Obeyed(2, "a third one"))


def test_start_of_an_older_version_has_no_name_and_is_never_strange() -> None:
    fleet = journal(e.SchedulerStarted(1, "0.1"), e.SchedulerStarted(2, "v", "second"))
    assert not is_strange(fleet, Obeyed(1, "another", 99))


def test_only_the_newest_starts_are_remembered() -> None:
    fleet = journal(*(e.SchedulerStarted(n, "v", f"start {n}") for n in range(1, STARTS_KEPT + 3)))
    assert sorted(fleet.starts) == list(range(3, STARTS_KEPT + 3))


def test_ids_that_a_lost_journal_may_have_given_out_are_not_given_out_again() -> None:
    world = World()
    world.join("a")
    world.apply(service("web", 1), service("old", 2))
    world.advance(1)
    world.ask(DeleteGroup("old"))
    world.advance(1)
    world.ask(ClaimEpoch(Obeyed(world.core.fleet.epoch + 1), "a"), SELF)
    world.apply(service("web", 2), service("old", 1), service("new", 1))
    world.advance(60)
    assert world.phases("web") == {"web/0.1": Phase.READY, "web/1.3001": Phase.READY}
    assert world.phases("old") == {"old/0.3001": Phase.READY}
    assert world.phases("new") == {"new/0.3001": Phase.READY}
    fleet = world.core.fleet
    for name, slot, generation, ours in [
        ("web", 0, 1, True),
        ("web", 0, 2, False),
        ("web", 0, 3_000, False),
        ("web", 1, 1, False),
        ("web", 1, 3_000, False),
        ("web", 1, 3_001, True),
        ("old", 0, 1, True),
        ("old", 0, 2, False),
        ("new", 0, 1, False),
        ("new", 0, 3_001, True),
    ]:
        assert was_ordered(fleet, str(CellId(name, slot, generation))) is ours, (name, slot, generation)


def test_a_backup_that_comes_back_again_gives_out_no_id_of_the_time_before() -> None:
    """Its first return gave ids out, and was lost itself. Its agents know the epoch that it had."""
    backup = World()
    backup.join("a")
    given: set[str] = set()
    for obeyed in (7, 8):
        world = backup.crash()
        world.attach("a")
        world.ask(ClaimEpoch(Obeyed(obeyed), "a"), SELF)
        world.apply(service("web", 2))
        world.until(lambda world=world: len(world.phases("web")) == 2, 60.0)  # type: ignore[misc]
        assert not given & world.phases("web").keys()
        given |= world.phases("web").keys()


def test_an_epoch_that_is_made_up_uses_up_few_generations() -> None:
    world = World()
    world.join("a")
    world.ask(ClaimEpoch(Obeyed(EPOCH_LEAP_LIMIT), "a"), SELF)
    world.apply(service("web", 1))
    assert world.phases("web") == {"web/0.100000001": Phase.READY}


def test_an_older_journals_claim_leaves_out_what_it_left_out_then() -> None:
    fleet = apply(TWO_STARTS, Record(5, 1.0, "test", e.EpochClaimed(9, "a")))
    assert fleet.least_generation == 1_001


@pytest.mark.parametrize("has_known", [True, False])
def test_an_exclusive_cell_waits_for_what_a_copy_of_a_machine_may_hide(has_known: bool) -> None:
    """Every server was heard, but as ``a`` a machine with a copy of its disk: the one that runs a cell of the slot was
    turned away, and ends it when its lease is over."""
    before = World()
    before.join("a", "b")
    if has_known:
        before.apply(service("db", 1, spec(exclusive=True)))
    world = before.crash()
    world.ask(ClaimEpoch(Obeyed(7), "a"), SELF)
    world.attach("a")
    world.attach("b")
    world.apply(service("db", 1, spec(exclusive=True)))
    claimed_at = world.now
    world.advance(world.policy.lease_seconds)
    assert [cell for cell in world.phases("db") if cell.endswith("001")] == []
    world.until(lambda: world.phases("db") == {"db/0.8001": Phase.READY}, 60.0)
    assert world.now >= claimed_at + world.policy.lease_seconds + world.policy.fence_margin_seconds
