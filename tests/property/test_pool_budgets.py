"""Whatever befalls a pool, its budget holds: counted from the journal alone, without the product's tallies."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.events import Record
from galactica.scheduler.core.model.fleet import Phase
from galactica.scheduler.core.model.requests import CondemnCell, Refused
from galactica.scheduler.core.model.spec import Group, Replace
from galactica.scheduler.core.model.verdict import Health
from galactica.scheduler.core.sight.observations import ServerUnmade
from galactica.scheduler.core.sight.vitals import Vitals
from tests.support.world import World, pool

SIZE = 4
WINDOW_SECONDS = 60.0
BUDGETS = st.builds(
    Replace,
    surge=st.integers(0, 2),
    unavailable=st.integers(1, 2),
    count=st.integers(0, 3),
    window_seconds=st.just(WINDOW_SECONDS),
)
SLOTS = st.integers(0, SIZE - 1)
TROUBLES = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["dies", "ails", "is condemned"]), SLOTS),
        st.tuples(
            st.sampled_from(["the pool changes", "time passes", "the provider sleeps", "it wakes"]),
            st.just(0),
        ),
    ),
    max_size=25,
)


@given(budget=BUDGETS, troubles=TROUBLES)
def test_a_pools_budget_holds_in_any_history(budget: Replace, troubles: Sequence[tuple[str, int]]) -> None:
    world = World()
    world.apply(_rack(budget, 0))
    world.advance(5)
    killed: set[str] = set()
    for number, (trouble, slot) in enumerate(troubles):
        _befall(world, budget, trouble, slot, number, killed)
        world.advance(5)
    _wake(world)
    world.advance(2 * WINDOW_SECONDS)
    assert [c for c, phase in world.phases("rack").items() if phase is Phase.READY] or budget.count
    _check(world.records, budget, killed)


def _rack(budget: Replace, version: int) -> Group:
    return pool("rack", SIZE, body=f'{{"version":{version}}}', replace=budget)


def _befall(world: World, budget: Replace, trouble: str, slot: int, number: int, killed: set[str]) -> None:
    cells = [cell for cell in world.phases("rack") if cell.startswith(f"rack/{slot}.")]
    match trouble:
        case "dies" if cells:
            killed.add(cells[0])
            world.core.take(ServerUnmade("local", cells[0], world.now, is_gone=True))
        case "ails" if cells and cells[-1] in world.core.sight.servers:
            for _ in range(4):
                seen = world.core.sight.servers.get(cells[-1])
                if seen is not None and seen.is_open:
                    world.report(cells[-1], vitals=Vitals(disk_fraction=1.0))
                world.advance(5)
        case "is condemned" if cells:
            try:
                world.ask(CondemnCell(cells[-1]))
            except Refused:
                return
        case "the pool changes":
            world.apply(_rack(budget, number + 1))
        case "the provider sleeps":
            world.deaf_providers = True
        case "it wakes":
            _wake(world)


def _wake(world: World) -> None:
    world.deaf_providers = False


def _check(records: Sequence[Record], budget: Replace, killed: set[str]) -> None:
    there: set[str] = set()
    ready: set[str] = set()
    replaced_at: list[float] = []
    for record in records:
        match record.event:
            case e.CellOrdered(cell=cell, replaces=replaces):
                there.add(cell)
                assert len(there) <= SIZE + budget.surge, f"{cell} is one server too many: {sorted(there)}"
                if replaces and budget.count:
                    replaced_at.append(record.at)
                    recent = [at for at in replaced_at if record.at - at < budget.window_seconds]
                    assert len(recent) <= budget.count, f"{cell} is ordered too soon: {recent}"
            case e.CellReady(cell=cell):
                ready.add(cell)
            case e.CellCondemned(cell=cell, health=Health.DEAD):
                there.discard(cell)
                ready.discard(cell)
            case e.CellDraining(cell=cell) if cell in ready:
                if cell not in killed:
                    _check_drain(cell, ready, budget)
                ready.discard(cell)
            case e.CellDecommissioned(cell=cell):
                there.discard(cell)
                ready.discard(cell)
            case _:
                pass


def _check_drain(cell: str, ready: set[str], budget: Replace) -> None:
    """A server that served and lives goes when its successor is READY, or when so many may be missing."""
    slot = cell.rpartition(".")[0]
    if any(other != cell and other.rpartition(".")[0] == slot for other in ready):
        return
    assert budget.surge == 0, f"{cell} went before its successor was READY"
    serving = {other.rpartition(".")[0] for other in ready} - {slot}
    assert SIZE - len(serving) <= budget.unavailable, (
        f"{cell} went although too many were missing: {sorted(ready)}"
    )
