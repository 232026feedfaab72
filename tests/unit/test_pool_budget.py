"""A pool's own budget: surge, unavailable and per, each at its edge and as the world shows it."""

import pytest
from msgspec.structs import replace

from galactica.scheduler.core.budgets.pools import (
    may_condemn_due_server,
    may_condemn_server,
    may_go_first,
    may_order_another,
    may_order_beside,
)
from galactica.scheduler.core.budgets.services import Allowed, Held
from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.commands import DecommissionServer
from galactica.scheduler.core.model.fleet import Cell, GroupState, Phase, Slot, Tally
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.requests import CondemnCell
from galactica.scheduler.core.model.spec import Replace
from galactica.scheduler.core.model.verdict import Health
from galactica.scheduler.core.sight.observations import ServerUnmade
from galactica.scheduler.core.sight.vitals import Vitals
from tests.support.world import World, pool, service

NOW = 1_000.0
READY = Phase.READY
FULL = Vitals(disk_fraction=1.0)
OLD = Cell(
    "rack/0.1", "rack", 0, 1, Phase.CONDEMNED, "d", 1, "", 1.0, condemned_health=Health.SICK, ready_at=2.0
)
DEAD = replace(OLD, condemned_health=Health.DEAD)


def state(
    size: int = 5, tally: Tally | None = None, replaced_at: tuple[float, ...] = (), **budget: float
) -> GroupState:
    group = pool("rack", size, replace=Replace(**budget))  # type: ignore[arg-type]
    return GroupState(
        group, "d", 1, (), tally=tally or Tally(ready=size, manned=size), replaced_at=replaced_at
    )


@pytest.mark.parametrize(
    ("surge", "extra", "slot", "answer"),
    [
        (1, 0, Slot((OLD,)), Allowed("surge: 0 of 1 extra servers")),
        (1, 1, Slot((OLD,)), Held("surge", "1 of 1 allowed extra servers already exist")),
        (2, 1, Slot((OLD,)), Allowed("surge: 1 of 2 extra servers")),
        (0, 0, Slot((OLD,)), Held("surge", "surge is 0, and the old server rack/0.1 still exists")),
        (0, 0, Slot((DEAD,)), Allowed("surge: 0 of 0 extra servers")),
        (1, 1, Slot((DEAD,)), Allowed("surge: 1 of 1 extra servers")),
        (0, 0, Slot(), Allowed("surge: 0 of 0 extra servers")),
    ],
)
def test_successors_stand_beside_those_that_go_up_to_the_surge_and_the_dead_need_none(
    surge: int, extra: int, slot: Slot, answer: Allowed | Held
) -> None:
    assert may_order_beside(state(surge=surge, tally=Tally(extra=extra)), slot) == answer


@pytest.mark.parametrize(
    ("tally", "answer"),
    [
        (Tally(ready=5, manned=5), Allowed("surge: 0 of 2 servers being replaced")),
        (Tally(ready=3, manned=4, replacing=1), Allowed("surge: 1 of 2 servers being replaced")),
        (Tally(ready=3, manned=5, replacing=2), Held("surge", "2 of 2 allowed replacements are in progress")),
        (Tally(ready=5, manned=5, extra=2), Held("surge", "2 of 2 allowed replacements are in progress")),
    ],
)
def test_servers_that_serve_are_condemned_up_to_the_surge(tally: Tally, answer: Allowed | Held) -> None:
    assert may_condemn_server(state(surge=2, tally=tally), NOW) == answer


@pytest.mark.parametrize(
    ("ready", "unavailable", "answer"),
    [
        (5, 0, Allowed("surge: 0 of 1 servers being replaced")),
        (4, 1, Allowed("surge: 0 of 1 servers being replaced")),
        (4, 0, Held("unavailable", "1 of 5 servers are missing; the limit is 0")),
        (3, 1, Held("unavailable", "2 of 5 servers are missing; the limit is 1")),
    ],
)
def test_servers_that_are_merely_due_never_go_out_of_a_thin_pool(
    ready: int, unavailable: int, answer: Allowed | Held
) -> None:
    thin = state(unavailable=unavailable, tally=Tally(ready=ready, manned=ready))
    assert may_condemn_due_server(thin, NOW, Policy(), trusted_since=0.0) == answer


@pytest.mark.parametrize(
    ("tally", "answer"),
    [
        (Tally(ready=5, manned=5), Allowed("unavailable: 0 of 1 servers missing")),
        (Tally(ready=4, manned=5, replacing=1), Allowed("unavailable: 0 of 1 servers missing")),
        (
            Tally(ready=4, manned=4),
            Held("unavailable", "1 of 5 servers are missing; the limit is 1"),
        ),
    ],
)
def test_without_surge_the_old_one_goes_first_as_long_as_not_too_many_are_missing(
    tally: Tally, answer: Allowed | Held
) -> None:
    thin = state(surge=0, unavailable=1, tally=tally)
    assert may_go_first(thin) == answer
    assert may_condemn_server(thin, NOW) == answer
    assert may_condemn_due_server(thin, NOW, Policy(), trusted_since=0.0) == answer


@pytest.mark.parametrize(
    ("replaced_at", "answer"),
    [
        ((), Allowed("per: 0 of 2 replacements in 100 s")),
        ((950.0,), Allowed("per: 1 of 2 replacements in 100 s")),
        ((900.0, 950.0), Allowed("per: 1 of 2 replacements in 100 s")),
        ((901.0, 950.0), Held("per", "2 of 2 allowed replacements in 100 s are used", 1_001.0)),
        ((901.0, 950.0, 960.0), Held("per", "3 of 2 allowed replacements in 100 s are used", 1_050.0)),
    ],
)
def test_so_many_replacements_in_each_window_and_no_more(
    replaced_at: tuple[float, ...], answer: Allowed | Held
) -> None:
    assert may_order_another(state(count=2, window_seconds=100.0, replaced_at=replaced_at), NOW) == answer


def test_a_server_whose_successor_is_still_to_be_ordered_counts_too() -> None:
    owing = state(
        surge=3,
        count=2,
        window_seconds=100.0,
        replaced_at=(950.0,),
        tally=Tally(ready=4, manned=5, replacing=1),
    )
    assert may_condemn_server(owing, NOW) == Held(
        "per", "1 of 2 allowed replacements in 100 s are used, 1 pending", 1_050.0
    )


# --- as the world shows it ----------------------------------------------------------------------------------------


def rack(size: int = 4, **budget: float) -> World:
    world = World()
    world.apply(pool("rack", size, replace=Replace(**budget)))  # type: ignore[arg-type]
    world.apply(service("web", size))
    world.advance(10)
    return world


def ordered(world: World) -> list[tuple[float, str]]:
    return [
        (record.at, record.event.cell)
        for record in world.records
        if isinstance(record.event, e.CellOrdered) and record.event.replaces.startswith("rack")
    ]


def most_servers(world: World) -> int:
    """The largest number of servers that the provider had at once."""
    there = most = 0
    for record in world.records:
        match record.event:
            case e.CellOrdered(cell=cell) if cell.startswith("rack"):
                there += 1
                most = max(most, there)
            case e.CellDecommissioned(cell=cell) if cell.startswith("rack"):
                there -= 1
    return most


@pytest.mark.parametrize("surge", [1, 2, 3])
def test_a_changed_pool_has_never_more_servers_than_its_surge_allows(surge: int) -> None:
    world = rack(6, surge=surge)
    world.apply(pool("rack", 6, body='{"size":"large"}', replace=Replace(surge=surge)))
    world.advance(60)
    assert world.phases("rack") == {f"rack/{slot}.2": READY for slot in range(6)}
    assert most_servers(world) == 6 + surge


def test_without_surge_each_old_server_goes_before_its_successor_is_ordered() -> None:
    world = rack(3, surge=0, unavailable=1)
    began = len(world.records)
    world.apply(pool("rack", 3, body='{"size":"large"}', replace=Replace(surge=0, unavailable=1)))
    world.advance(60)
    assert world.phases("rack") == {f"rack/{slot}.2": READY for slot in range(3)}
    story = [
        (type(record.event).__name__, record.event.cell)  # type: ignore[union-attr]
        for record in world.records[began:]
        if isinstance(record.event, e.CellDecommissioned | e.CellOrdered | e.CellReady)
        and record.event.cell.startswith("rack")
    ]
    assert story == [
        step
        for slot in range(3)
        for step in (
            ("CellDecommissioned", f"rack/{slot}.1"),
            ("CellOrdered", f"rack/{slot}.2"),
            ("CellReady", f"rack/{slot}.2"),
        )
    ]
    assert all(phase is READY for phase in world.phases("web").values())


def test_without_surge_operators_condemn_no_more_at_once_than_may_be_missing() -> None:
    world = rack(3, surge=0, unavailable=1)
    world.deaf_providers = True
    world.ask(CondemnCell("rack/0.1"))
    world.ask(CondemnCell("rack/1.1"))
    world.advance(10)
    assert world.phases("rack") == {
        "rack/0.1": Phase.DRAINING,
        "rack/1.1": Phase.CONDEMNED,
        "rack/2.1": READY,
    }
    assert world.held() == {"surge", "unavailable"}


def test_a_pool_whose_disks_are_all_full_is_replaced_no_faster_than_its_budget() -> None:
    world = rack(4, surge=1)
    world.mute = {f"rack/{slot}.2" for slot in range(4)}  # successors that never get READY
    for _ in range(8):
        world.report("rack/0.1", vitals=FULL)
        for slot in (1, 2, 3):
            world.report(f"rack/{slot}.1", vitals=FULL)
        world.advance(5)
    assert [cell for cell, phase in world.phases("rack").items() if phase is Phase.CONDEMNED] == ["rack/0.1"]
    assert [event.cell for event in world.events(e.CellDraining)] == []  # type: ignore[union-attr]
    held = {hold.rule: hold.reason for hold in world.core.view(world.now).holds}
    assert "surge" in held
    assert "is full" not in held["surge"]
    assert "100.0% full" in held["surge"]


def test_dead_servers_are_replaced_at_once_whatever_the_surge_and_no_faster_than_per() -> None:
    world = rack(4, surge=0, unavailable=1, count=2, window_seconds=600.0)
    for slot in range(3):
        world.lose(f"rack/{slot}.1")
    world.settle()
    died_at = world.now
    assert [cell for _, cell in ordered(world)] == ["rack/0.2", "rack/1.2"]
    (hold,) = [hold for hold in world.core.view(world.now).holds if hold.rule == "per"]
    assert hold.reason == "2 of 2 allowed replacements in 600 s are used"
    assert hold.next_look_at == died_at + 600.0
    world.advance(599)
    assert len(ordered(world)) == 2
    world.advance(2)
    assert ordered(world)[2:] == [(died_at + 600.0, "rack/2.2")]
    assert world.core.fleet.groups["rack"].replaced_at == (died_at, died_at + 600.0)


def test_what_was_replaced_is_remembered_across_a_crash() -> None:
    world = rack(3, count=1, window_seconds=600.0)
    world.lose("rack/0.1")
    world.settle()
    after = world.crash()
    after.core.take(ServerUnmade("local", "rack/1.1", after.now, is_gone=True))
    after.settle()
    assert ordered(after) == []
    assert "per" in after.held()


def test_a_slot_that_was_not_wanted_for_a_while_replaces_nobody() -> None:
    budget = Replace(count=1, window_seconds=600.0)
    world = rack(3, count=1, window_seconds=600.0)
    world.apply(pool("rack", 1, replace=budget))
    world.advance(20)
    world.apply(pool("rack", 3, replace=budget))
    world.advance(20)
    assert world.phases("rack") == {"rack/0.1": READY, "rack/1.2": READY, "rack/2.2": READY}
    assert world.core.fleet.groups["rack"].replaced_at == ()


def test_a_sick_server_whose_slot_is_not_wanted_any_more_needs_no_budget() -> None:
    world = rack(2, surge=1)
    world.mute = {"rack/0.2"}
    world.ask(CondemnCell("rack/0.1"))  # takes the budget, since its successor is not READY
    world.report("rack/1.1", vitals=FULL)
    world.apply(pool("rack", 1))
    world.advance(5)
    assert "rack/1.1" not in world.phases("rack")
    assert any(isinstance(c, DecommissionServer) and c.cell == "rack/1.1" for c in world.told_providers)
