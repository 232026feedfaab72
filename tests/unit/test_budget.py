"""Brakes: each rule at its edge, with the words that the operator reads; and the backoff's arithmetic."""

import pytest

from galactica.scheduler.core.budgets.services import (
    Allowed,
    Held,
    backoff_hold,
    may_condemn_drained,
    may_condemn_outdated,
    may_surge,
    next_backoff,
    sick_surge,
)
from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.fleet import Backoff, GroupState, Phase, Tally
from galactica.scheduler.core.model.policy import MAX_DOUBLINGS, Policy
from galactica.scheduler.core.model.spec import digest_of
from tests.support.world import PROOF_SECONDS, World, exited, gone, running, service, spec

NOW = 1_000.0
POLICY = Policy()
DIGEST = digest_of(spec())


def group(
    replicas: int = 8, tally: Tally | None = None, backoff: Backoff | None = None, **changes: bool
) -> GroupState:
    return GroupState(
        service("web", replicas),
        DIGEST,
        4,
        (),
        tally=tally or Tally(),
        backoff=backoff or Backoff(),
        **changes,
    )


@pytest.mark.parametrize(
    ("replicas", "limit"), [(0, 1), (1, 1), (3, 1), (4, 1), (5, 2), (8, 2), (9, 3), (100, 25), (101, 26)]
)
def test_a_quarter_of_a_group_may_surge_and_always_one(replicas: int, limit: int) -> None:
    assert sick_surge(group(replicas), POLICY) == limit


def test_the_share_that_may_surge_is_policy() -> None:
    assert sick_surge(group(10), Policy(sick_surge_fraction=1.0)) == 10
    assert sick_surge(group(10), Policy(sick_surge_fraction=0.0)) == 1


@pytest.mark.parametrize(
    ("surging", "answer"),
    [
        (0, Allowed("surge: 0 of 2 cells being replaced beside running ones")),
        (1, Allowed("surge: 1 of 2 cells being replaced beside running ones")),
        (2, Held("surge", "2 of 2 allowed replacements boot or have yet to prove themselves")),
        (3, Held("surge", "3 of 2 allowed replacements boot or have yet to prove themselves")),
    ],
)
def test_successors_are_ordered_beside_running_cells_up_to_the_surge(
    surging: int, answer: Allowed | Held
) -> None:
    assert may_surge(group(tally=Tally(surging=surging, replacing=8)), POLICY) == answer


@pytest.mark.parametrize(
    ("tally", "answer"),
    [
        (Tally(ready=8, manned=8, outdated=8), Allowed("slot by slot: 0 of 1 cells being replaced")),
        (Tally(ready=9, manned=9), Allowed("slot by slot: 0 of 1 cells being replaced")),
        (
            Tally(ready=7, manned=8, replacing=1),
            Held("slot_by_slot", "1 of 1 allowed replacements are in progress"),
        ),
        (Tally(ready=7, manned=7), Held("unavailable", "only 7 of 8 cells are ready")),
        (Tally(ready=7, booting=1, manned=7), Held("unavailable", "only 7 of 8 cells are ready")),
    ],
)
def test_outdated_cells_go_slot_by_slot_and_never_out_of_a_thin_group(
    tally: Tally, answer: Allowed | Held
) -> None:
    assert may_condemn_outdated(group(tally=tally), NOW, POLICY, trusted_since=0.0) == answer


def test_more_slots_at_once_are_policy_and_those_being_replaced_still_serve() -> None:
    policy = Policy(outdated_surge=3)
    assert may_condemn_outdated(
        group(tally=Tally(ready=6, manned=8, replacing=2)), NOW, policy, trusted_since=0.0
    ) == Allowed("slot by slot: 2 of 3 cells being replaced")
    assert may_condemn_outdated(
        group(tally=Tally(ready=5, manned=7, replacing=2)), NOW, policy, trusted_since=0.0
    ) == Held("unavailable", "only 7 of 8 cells are ready")


@pytest.mark.parametrize(
    ("replacing", "answer"),
    [
        (1, Allowed("surge: 1 of 2 cells being replaced")),
        (2, Held("surge", "2 of 2 allowed replacements are in progress")),
    ],
)
def test_a_drain_takes_as_many_cells_of_a_group_at_once_as_sickness(
    replacing: int, answer: Allowed | Held
) -> None:
    assert may_condemn_drained(group(tally=Tally(replacing=replacing)), POLICY) == answer


@pytest.mark.parametrize(
    ("backoff", "held"),
    [
        (Backoff(), None),
        (Backoff(DIGEST, 3, 2, NOW - 1, NOW), None),
        (Backoff("other", 3, 2, NOW - 1, NOW + 1), None),
        (
            Backoff(DIGEST, 3, 2, NOW - 1, NOW + 1),
            Held("backoff", "3 cells of revision 4 died early", NOW + 1),
        ),
    ],
)
def test_orders_of_the_current_spec_wait_until_the_backoff_is_over(
    backoff: Backoff, held: Held | None
) -> None:
    assert backoff_hold(group(backoff=backoff), NOW) == held


AFTER_ONE = Backoff(DIGEST, 1, 0, NOW - 1, 0.0)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(Backoff(), Backoff(DIGEST, 1, 0, NOW, 0.0), id="the first death costs nothing"),
        pytest.param(AFTER_ONE, Backoff(DIGEST, 2, 1, NOW, NOW + 1), id="the second waits a second"),
        pytest.param(
            Backoff(DIGEST, 2, 1, NOW - 1, NOW), Backoff(DIGEST, 3, 2, NOW, NOW + 2), id="a new round doubles"
        ),
        pytest.param(
            Backoff(DIGEST, 2, 1, NOW - 1, NOW + 0.5),
            Backoff(DIGEST, 3, 1, NOW, NOW + 0.5),
            id="a death during the hold belongs to its round",
        ),
        pytest.param(
            Backoff(DIGEST, 7, 6, NOW - 40, NOW - 8),
            Backoff(DIGEST, 8, 7, NOW, NOW + 60),
            id="a minute is the limit",
        ),
        pytest.param(
            Backoff(DIGEST, 9_999, 9_998, NOW - 60, NOW),
            Backoff(DIGEST, 10_000, 9_999, NOW, NOW + 60),
            id="so many deaths overflow nothing",
        ),
        pytest.param(
            Backoff(DIGEST, 7, 6, NOW - 600, NOW - 540),
            Backoff(DIGEST, 8, 7, NOW, NOW + 60),
            id="ten minutes, just",
        ),
        pytest.param(
            Backoff(DIGEST, 7, 6, NOW - 600.5, NOW - 540),
            Backoff(DIGEST, 1, 0, NOW, 0.0),
            id="ten minutes of health",
        ),
        pytest.param(
            Backoff("other", 7, 6, NOW - 1, NOW + 59),
            Backoff(DIGEST, 1, 0, NOW, 0.0),
            id="another spec is innocent",
        ),
    ],
)
def test_each_round_of_early_deaths_doubles_the_wait(before: Backoff, after: Backoff) -> None:
    assert next_backoff(group(backoff=before), DIGEST, NOW, POLICY) == after


def test_the_waits_backoff_knows_are_policy() -> None:
    policy = Policy(backoff_first_seconds=0.5, backoff_limit_seconds=0.75)
    assert next_backoff(group(backoff=AFTER_ONE), DIGEST, NOW, policy).not_before == NOW + 0.5
    assert Policy().backoff_limit_seconds / Policy().backoff_first_seconds < 2.0**MAX_DOUBLINGS


# --- as the world shows it ----------------------------------------------------------------------------------------


def test_a_cell_ordered_after_a_backoff_still_names_the_one_that_it_replaces() -> None:
    world = World(obedient=False)
    world.join("a")
    world.apply(service())
    for generation in (1, 2):
        world.report("a", exited(f"web/0.{generation}"))
        world.report("a", gone(f"web/0.{generation}"))
    world.until(lambda: "web/0.3" in world.phases())
    replaces = {event.cell: event.replaces for event in world.events(e.CellOrdered)}  # type: ignore[union-attr]
    assert replaces == {"web/0.1": "", "web/0.2": "web/0.1", "web/0.3": "web/0.2"}


def test_a_cell_that_served_for_just_long_enough_did_not_die_early() -> None:
    for served, level in ((4.5, 1), (5.0, 0)):
        world = World(obedient=False)
        world.join("a")
        world.apply(service())
        world.report("a", exited("web/0.1"))
        world.report("a", running("web/0.2"))
        world.advance(served)
        world.report("a", exited("web/0.2"))
        assert world.core.fleet.groups["web"].backoff.level == level


def test_cells_that_died_with_their_server_do_not_blame_their_spec() -> None:
    world = World(obedient=False)
    world.join("a")
    world.apply(service("web", 4))
    world.detach("a")
    world.advance(6)
    assert world.core.fleet.groups["web"].backoff == Backoff()
    assert world.core.fleet.servers["a"].phase is Phase.DECOMMISSIONED


def test_a_death_certificate_names_the_budget_that_allowed_it() -> None:
    world = World()
    world.join("a", "b")
    world.apply(service("web", 2))
    world.advance(6)
    world.report(world.cell("web/0.1").server, running("web/0.1", failures=3))
    world.report(world.cell("web/1.1").server, exited("web/1.1"))
    world.advance(PROOF_SECONDS)
    world.apply(service("web", 2, spec("2")))
    world.advance(PROOF_SECONDS)
    budgets = {event.cell: event.budget for event in world.events(e.CellCondemned)}  # type: ignore[union-attr]
    assert budgets == {
        "web/0.1": "replaced before it goes",
        "web/1.1": "none: the cell is dead",
        "web/0.2": "none: web/0.3 is proven",
    }
