"""A scheduler that lost all but its CA: it plants the genome, takes in what runs, and harms nothing."""

import pytest

from galactica.scheduler.core.genome import GENERATIONS_RESERVED
from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.fleet import Phase
from galactica.scheduler.core.model.genome import Genome, GenomeMark
from galactica.scheduler.core.model.requests import (
    AdoptCells,
    CondemnCell,
    CondemnUnknown,
    DeleteGroup,
    DrainServer,
    EndRegrowth,
    PlantGenome,
    Refused,
)
from galactica.scheduler.core.model.spec import digest_of
from galactica.scheduler.core.sight.observations import CellState
from galactica.scheduler.views.events import event_row
from galactica.scheduler.views.status import status
from tests.support.regrown_world import (
    fleet_of_two,
    harm,
    planted,
    remains_of,
    report_of,
    told,
)
from tests.support.world import ANN, PROOF_SECONDS, World, pool, service, spec

READY = Phase.READY
LEASE = World().policy.lease_seconds


def generation_of(cell: str) -> int:
    return int(cell.rpartition(".")[2])


def is_fresh(cell: str, slot: str) -> bool:
    """Whether it is far above all ids that the lost journal may have given out."""
    return cell.rpartition(".")[0] == slot and generation_of(cell) >= 2 * GENERATIONS_RESERVED


def test_what_runs_is_taken_in_as_it_is_and_nothing_is_harmed() -> None:
    before = fleet_of_two()
    remains = remains_of(before)
    world = planted(remains, "a", "b")
    assert world.phases() == before.phases() == dict.fromkeys((f"web/{n}.1" for n in range(4)), READY)
    assert [world.cell(cell).server for cell in world.phases()] == [
        before.cell(cell).server for cell in world.phases()
    ]
    world.advance(LEASE + 1)
    assert (harm(world), told(world), world.held()) == ([], [], set())
    assert status(world.core.view(world.now), "f").healthy


def test_ids_of_the_lost_journal_are_not_given_out_again() -> None:
    before = fleet_of_two()
    before.ask(CondemnCell("web/0.1"))
    before.advance(10)
    world = planted(remains_of(before), "a", "b")
    world.advance(LEASE + 1)
    world.apply(service("web", 5))
    *kept, new = world.phases()
    assert kept == ["web/0.2", "web/1.1", "web/2.1", "web/3.1"]
    assert is_fresh(new, "web/4")
    world.ask(CondemnCell("web/1.1"))
    world.advance(10)
    successor = list(world.phases())[1]
    assert is_fresh(successor, "web/1")
    assert world.cell(successor).replaces == "web/1.1"


def test_the_name_of_a_deleted_group_goes_on_above_its_old_ids() -> None:
    before = fleet_of_two()
    before.apply(service("gone", 1))
    before.advance(10)
    before.ask(DeleteGroup("gone"))
    before.advance(10)
    assert "gone" not in before.core.fleet.groups
    world = planted(remains_of(before), "a", "b")
    world.advance(LEASE + 1)
    world.apply(service("gone", 1))
    (again,) = world.phases("gone")
    assert is_fresh(again, "gone/0")


def test_cells_that_are_missing_are_ordered_only_when_everybody_was_heard_for_a_lease() -> None:
    remains = remains_of(fleet_of_two())
    remains.running["a"].popitem()
    world = planted(remains, "a", "b")
    world.advance(LEASE - 1)
    assert (harm(world), len(world.phases())) == ([], 3)
    assert world.held() == {"regrowing"}
    world.advance(2)
    assert len(world.phases()) == 4
    assert world.events(e.RegrowthEnded) == [e.RegrowthEnded("every server was heard for one lease")]


def test_cells_that_died_meanwhile_are_condemned_only_then() -> None:
    remains = remains_of(fleet_of_two())
    dead, digest = next((one.cell, one.digest) for one in remains.running["a"].values())
    remains.running["a"][dead] = report_of(dead, digest, CellState.EXITED)
    world = planted(remains, "a", "b")
    world.advance(LEASE - 1)
    assert harm(world) == []
    world.advance(3)
    assert [one.cell for one in world.events(e.CellCondemned)] == [dead]
    assert len(world.phases()) == 4


def test_where_a_server_is_not_heard_only_an_operator_ends_the_wait() -> None:
    remains = remains_of(fleet_of_two())
    world = planted(remains, "a")
    world.advance(600)
    assert harm(world) == []
    held = [one for one in status(world.core.view(world.now), "f").held if one.rule == "regrowing"]
    assert all("not heard: b" in hold.reason for hold in held)
    assert {hold.group for hold in held} == {"", "web"}
    world.ask(EndRegrowth())
    world.advance(10)
    assert [one.server for one in world.events(e.ServerCondemned)] == ["b"]
    assert {world.cell(cell).server for cell in world.phases()} == {"a"}
    assert world.events(e.RegrowthEnded) == [e.RegrowthEnded("settled by ann")]


def test_a_server_that_comes_late_brings_its_cells() -> None:
    before = fleet_of_two()
    remains = remains_of(before)
    world = planted(remains, "a")
    world.advance(30)
    remains.attach(world, "b")
    assert world.phases() == before.phases()
    world.advance(LEASE + 1)
    assert harm(world) == []


def test_cell_that_a_late_server_brings_has_to_prove_itself_although_it_has_the_lower_number() -> None:
    before = fleet_of_two(1)
    before.ask(CondemnCell("web/0.1"))
    before.advance(10)
    (cell,) = before.phases()
    server = before.cell(cell).server
    late = "b" if server == "a" else "a"
    remains = remains_of(before)
    remains.running[late] = {"web/0.1": report_of("web/0.1", before.core.fleet.groups["web"].digest)}
    world = planted(remains, server)
    world.obedient = False
    world.ask(CondemnCell(cell))
    remains.attach(world, late)
    assert world.phases() == {cell: Phase.CONDEMNED, "web/0.1": READY}
    world.advance(PROOF_SECONDS)
    assert world.phases()[cell] is Phase.DRAINING


def test_what_a_late_server_shows_is_never_taken_for_decommissioned() -> None:
    """Its ids are below those that are given out from now on, and the new journal knows nothing of them."""
    remains = remains_of(fleet_of_two(1))
    digest = digest_of(spec())
    remains.running = {
        "b": {"web/0.57": report_of("web/0.57", digest), "web/3.9": report_of("web/3.9", digest)}
    }
    world = planted(remains, "a")
    remains.attach(world, "b")
    world.advance(60)
    assert (harm(world), told(world)) == ([], [])
    assert world.phases() == {"web/0.57": READY}
    assert set(world.core.fleet.unknown) == {"web/3"}


def test_a_server_that_joined_after_the_newest_genome_is_taken_in_too() -> None:
    before = fleet_of_two()
    remains = remains_of(before)
    remains.running["c"] = {"web/0.7": report_of("web/0.7", digest_of(spec()))}
    world = planted(remains, "a", "b", "c")
    assert world.core.fleet.servers["c"].phase is READY
    assert world.held() == {"unknown_cell"}, "its slot has a cell by now"
    world.advance(60)
    assert (harm(world), told(world)) == ([], [])


def test_of_two_cells_of_a_slot_the_younger_one_that_runs_is_taken_in() -> None:
    remains = remains_of(fleet_of_two(1))
    digest = digest_of(spec())
    remains.running = {
        "a": {
            "web/0.1": report_of("web/0.1", digest),
            "web/0.3": report_of("web/0.3", digest, CellState.FAILED),
        },
        "b": {"web/0.2": report_of("web/0.2", digest)},
    }
    world = planted(remains, "a", "b")
    assert world.phases() == {"web/0.2": READY}
    world.advance(60)
    assert (harm(world), told(world), world.held()) == ([], [], {"unknown_cell"})


def test_cells_of_an_older_revision_are_known_in_the_middle_of_a_rollout() -> None:
    before = fleet_of_two()
    before.obedient = False
    before.apply(service("web", 4, spec("2")))
    remains = remains_of(before)
    assert len({one.digest for cells in remains.running.values() for one in cells.values()}) == 2
    world = planted(remains, "a", "b")
    assert world.held() <= {"unknown_cell", "regrowing"}
    assert {world.cell(cell).revision for cell in world.phases()} <= {1, 2}
    assert len(world.phases()) == 4


def test_what_the_genome_does_not_cover_stays_unknown() -> None:
    remains = remains_of(fleet_of_two(1))
    remains.running = {
        "a": {
            "api/0.1": report_of("api/0.1", digest_of(spec())),
            "web/0.9": report_of("web/0.9", digest_of(spec("9"))),
            "web/5.1": report_of("web/5.1", digest_of(spec())),
        }
    }
    world = planted(remains, "a", "b")
    world.advance(60)
    assert (harm(world), told(world), world.held()) == ([], [], {"unknown_cell"})
    assert set(world.core.fleet.unknown) == {"api/0", "web/0", "web/5"}


def test_a_drained_server_does_not_come_back_by_that() -> None:
    before = fleet_of_two()
    before.ask(DrainServer("b"))
    before.advance(30)
    assert before.core.fleet.servers["b"].phase is Phase.DECOMMISSIONED
    world = planted(remains_of(before), "a", "b")
    world.advance(LEASE + 1)
    server = world.core.fleet.servers["b"]
    assert (server.phase, server.is_drained) == (Phase.DECOMMISSIONED, True)
    assert {world.cell(cell).server for cell in world.phases()} == {"a"}


def test_a_server_that_was_being_drained_goes_on_with_that_when_its_cells_are_known() -> None:
    before = fleet_of_two()
    before.obedient = False
    before.ask(DrainServer("b"))
    assert before.core.fleet.servers["b"].phase is Phase.CONDEMNED
    remains = remains_of(before)
    world = planted(remains, "a")
    world.advance(2)
    assert world.core.fleet.servers["b"].phase is Phase.CONDEMNED
    remains.attach(world, "b")
    assert len(world.phases()) == 4
    world.advance(60)
    assert world.held() == {"unknown_cell"}, "their successors were taken in"
    world.ask(CondemnUnknown())
    world.advance(10)
    assert world.core.fleet.servers["b"].phase is Phase.DECOMMISSIONED
    assert {world.cell(cell).server for cell in world.phases()} == {"a"}


def test_ids_of_groups_that_were_made_after_the_newest_genome_are_not_given_out_again() -> None:
    before = fleet_of_two()
    remains = remains_of(before)
    remains.running["a"]["late/0.3"] = report_of("late/0.3", digest_of(spec()))
    world = planted(remains, "a", "b")
    world.advance(LEASE + 1)
    world.apply(service("late", 2), service("later", 1))
    (one,) = world.phases("late")
    assert is_fresh(one, "late/1")
    assert world.held() == {"unknown_cell"}, "that of its slot 0 was never ordered by this journal"
    (other,) = world.phases("later")
    assert is_fresh(other, "later/0")
    world.ask(AdoptCells())
    assert set(world.phases("late")) == {"late/0.3", one}
    again = planted(remains_of(world), "a", "b")
    again.advance(LEASE + 1)
    again.apply(service("last", 1))
    (last,) = again.phases("last")
    assert generation_of(last) > generation_of(other), (
        "nor are those of a scheduler that was grown anew itself"
    )


def test_servers_of_a_pool_stay_its_cells() -> None:
    before = World()
    before.apply(pool("rack", 2), service("web", 4))
    before.advance(20)
    remains = remains_of(before)
    racks = sorted(before.phases("rack"))
    world = planted(remains, *racks)
    world.lists(*racks)
    world.advance(LEASE + 1)
    assert world.phases("rack") == before.phases("rack")
    assert {name: world.core.fleet.servers[name].pool for name in racks} == dict.fromkeys(racks, "rack")
    assert world.phases() == before.phases()
    assert (harm(world), world.told_providers) == ([], [])
    world.lose(racks[0])
    world.advance(20)
    assert is_fresh(next(iter(world.phases("rack"))), "rack/0")


def test_server_of_a_pool_whose_candidate_is_proven_meanwhile_goes_only_when_everybody_was_heard() -> None:
    before = World()
    before.apply(pool("rack", 2))
    before.advance(20)
    before.apply(pool("rack", 2, '{"a":1}'))
    before.until(lambda: before.phases("rack").get("rack/0.2") is READY)
    assert before.phases("rack")["rack/0.1"] is READY
    world = planted(remains_of(before), "rack/0.1", "rack/0.2")
    world.lists("rack/0.1", "rack/0.2", "rack/1.1")
    world.advance(10 * LEASE)
    assert harm(world) == []
    world.attach("rack/1.1")
    world.until(lambda: "rack/0.1" not in world.phases("rack"))


def test_an_exclusive_cell_that_nobody_shows_has_the_time_to_end() -> None:
    before = World()
    before.join("a", "b")
    before.apply(service("db", 1, spec(exclusive=True)))
    before.advance(10)
    remains = remains_of(before)
    remains.running.clear()
    world = planted(remains, "a", "b")
    world.ask(EndRegrowth())
    assert world.held() == {"exclusive"}
    world.advance(10)
    assert world.phases("db") == {}
    world.advance(15)
    assert list(world.phases("db").values()) == [READY]


def test_a_genome_is_planted_once_and_only_where_one_is_wanted() -> None:
    remains = remains_of(fleet_of_two())
    world = planted(remains, "a", "b")
    with pytest.raises(Refused, match="knows what its fleet wants"):
        remains.plant(world)
    with pytest.raises(Refused, match="knows what its fleet wants"):
        remains.plant(fleet_of_two())
    with pytest.raises(Refused, match="nothing is held"):
        fleet_of_two().ask(EndRegrowth())


def test_an_epoch_above_that_of_the_genome_is_claimed_with_it() -> None:
    remains = remains_of(fleet_of_two())
    remains.mark = GenomeMark(41, 7)
    world = planted(remains, "a", "b")
    assert world.core.fleet.epoch == 42
    (event,) = world.events(e.GenomePlanted)
    assert (event.epoch, event.genome_position, event.server) == (41, 7, "a")


def test_without_any_genome_an_operator_goes_on_and_applies_the_manifests() -> None:
    remains = remains_of(fleet_of_two())
    world = remains.regrown()
    remains.attach(world, "a", "b")
    world.ask(PlantGenome(Genome()), ANN)
    world.apply(service("web", 4))
    assert world.ask(AdoptCells()).cells == 4
    world.advance(LEASE + 1)
    assert (harm(world), len(world.phases())) == ([], 4)


def test_events_show_no_secret_of_the_genome() -> None:
    before = World()
    before.join("a")
    before.apply(service("web", 1, spec(env={"PASSWORD": "hush"})))
    world = planted(remains_of(before), "a")
    rows = [event_row(record) for record in world.records]
    assert any(row.type == "GenomePlanted" for row in rows)
    assert "hush" not in str(rows)
