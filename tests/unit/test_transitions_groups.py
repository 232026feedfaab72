"""What events make of groups, of servers and of the fleet itself."""

import re
from collections.abc import Iterable

import pytest
from msgspec.structs import replace
from rpds import HashTrieMap

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.events import AnyEvent, IllegalTransition, Record
from galactica.scheduler.core.model.fleet import (
    REVISIONS_KEPT,
    Fleet,
    GroupState,
    Phase,
    Revision,
    Server,
    Tally,
    Token,
)
from galactica.scheduler.core.model.spec import Resources, RuntimeKind, digest_of
from galactica.scheduler.core.model.verdict import Autopsy, Health
from galactica.scheduler.core.transitions import apply
from tests.support.folding import apply_all
from tests.support.histories import (
    DEAD,
    DRAINING,
    GONE,
    JOINED,
    ONE,
    ORDERED,
    READY,
    SICK,
    TWO,
    begun,
    told,
)
from tests.support.world import service, spec

# --- groups -------------------------------------------------------------------------------------------------------


def test_a_new_group_is_its_first_revision() -> None:
    fleet = told(e.GroupApplied(service("web", 3), ONE, 1))
    expected = GroupState(service("web", 3), ONE, 1, (Revision(1, ONE, spec("1")),), last_position=1)
    assert fleet == Fleet(1, 1.0, groups=HashTrieMap({"web": expected}))


def test_a_changed_group_keeps_its_slots_and_remembers_its_specs_and_replicas_are_no_revision() -> None:
    before = told(ORDERED, fleet=begun())
    after = told(e.GroupApplied(service("web", 2, spec("2")), TWO, 2), fleet=before)
    revisions = (Revision(1, ONE, spec("1")), Revision(2, TWO, spec("2")))
    assert after.groups["web"] == replace(
        before.groups["web"],
        group=service("web", 2, spec("2")),
        digest=TWO,
        revision=2,
        revisions=revisions,
        tally=Tally(booting=1, outdated=1),
        last_position=5,
    )
    scaled = told(e.GroupApplied(service("web", 5, spec("2")), TWO, 2), fleet=after)
    assert scaled.groups["web"].revisions == revisions
    assert scaled.groups["web"].spec_of(ONE) == spec("1")


def test_the_oldest_specs_are_forgotten() -> None:
    fleet = Fleet()
    for number in range(1, REVISIONS_KEPT + 3):
        fleet = told(
            e.GroupApplied(service(of=spec(str(number))), digest_of(spec(str(number))), number), fleet=fleet
        )
    assert [r.number for r in fleet.groups["web"].revisions] == list(range(3, REVISIONS_KEPT + 3))
    assert fleet.groups["web"].spec_of(ONE) is None


def test_a_deleted_group_goes_with_its_last_cell_and_its_generations_are_never_used_again() -> None:
    fleet = told(ORDERED, READY, e.GroupDeleted("web"), fleet=begun())
    assert (fleet.groups["web"].deleted, fleet.groups["web"].wanted_slots) == (True, 0)
    fleet = told(SICK, DRAINING, GONE, fleet=fleet)
    assert (fleet.groups, fleet.generations) == (HashTrieMap(), HashTrieMap({"web": 2}))
    fleet = told(e.GroupApplied(service("web", 2), ONE, 1), fleet=fleet)
    assert (fleet.groups["web"].first_generation, fleet.generations) == (2, HashTrieMap())
    with pytest.raises(IllegalTransition, match="next generation is 2"):
        told(replace(ORDERED, cell="web/1.1"), fleet=fleet)
    fleet = told(e.GroupDeleted("web"), fleet=fleet)
    assert fleet.generations == HashTrieMap({"web": 2})


def test_a_deleted_group_that_is_applied_while_its_cells_end_is_wanted_again() -> None:
    fleet = told(ORDERED, e.GroupDeleted("web"), e.GroupApplied(service(), ONE, 1), fleet=begun())
    assert (fleet.groups["web"].deleted, fleet.groups["web"].wanted_slots) == (False, 1)
    with pytest.raises(IllegalTransition, match="there is no group api"):
        told(e.GroupDeleted("api"), fleet=fleet)


# --- servers ------------------------------------------------------------------------------------------------------


ENROLLED = e.ServerEnrolled("a", "")

LOSE = e.ServerCondemned("a", Health.DEAD, "lease_expired", "silent")

DRAIN = e.ServerCondemned("a", Health.HEALTHY, "operator", "drained by ann")

BURY = e.ServerDecommissioned("a")

CHANGE = e.ServerChanged("a", {"zone": "y"}, Resources(8_000), 1, (RuntimeKind.DOCKER,), "0.2")

JOINED_SERVER = Server(
    "a",
    1,
    Phase.READY,
    {"zone": "x"},
    Resources(4_000, 1_024),
    9,
    (RuntimeKind.PROCESS,),
    "0.1",
    2.0,
    last_position=2,
)

CONDEMNED_SERVER = replace(
    JOINED_SERVER,
    phase=Phase.CONDEMNED,
    condemned_at=3.0,
    condemned_by="operator",
    condemned_health=Health.HEALTHY,
    last_position=3,
)


@pytest.mark.parametrize(
    ("history", "server"),
    [
        ((ENROLLED,), Server("a", 0, Phase.ORDERED, last_position=1)),
        ((ENROLLED, JOINED), JOINED_SERVER),
        (
            (ENROLLED, JOINED, CHANGE),
            replace(
                JOINED_SERVER,
                labels={"zone": "y"},
                capacity=Resources(8_000),
                disk_bytes=1,
                runtimes=(RuntimeKind.DOCKER,),
                agent_version="0.2",
                last_position=3,
            ),
        ),
        ((ENROLLED, JOINED, DRAIN), CONDEMNED_SERVER),
        (
            (ENROLLED, JOINED, DRAIN, LOSE),
            replace(CONDEMNED_SERVER, condemned_health=Health.DEAD, last_position=4),
        ),
        (
            (ENROLLED, JOINED, LOSE),
            replace(CONDEMNED_SERVER, condemned_by="lease_expired", condemned_health=Health.DEAD),
        ),
        (
            (ENROLLED, JOINED, DRAIN, BURY),
            replace(CONDEMNED_SERVER, phase=Phase.DECOMMISSIONED, last_position=4),
        ),
        (
            (ENROLLED, JOINED, LOSE, BURY, replace(JOINED, generation=2)),
            replace(JOINED_SERVER, generation=2, joined_at=5.0, last_position=5),
        ),
        ((ENROLLED, JOINED, DRAIN, BURY, ENROLLED), Server("a", 1, Phase.ORDERED, last_position=5)),
        ((ENROLLED, JOINED, ENROLLED), JOINED_SERVER),
        ((ENROLLED, replace(JOINED, machine="m")), replace(JOINED_SERVER, machine="m")),
        (
            (ENROLLED, JOINED, e.MachineRecognised("a", "m")),
            replace(JOINED_SERVER, machine="m", last_position=3),
        ),
        (
            (ENROLLED, replace(JOINED, machine="m"), DRAIN, BURY, ENROLLED),
            Server("a", 1, Phase.ORDERED, last_position=5),
        ),
    ],
)
def test_a_servers_life_is_whole_values(history: Iterable[AnyEvent], server: Server) -> None:
    assert told(*history).servers["a"] == server


@pytest.mark.parametrize(
    ("history", "event", "message"),
    [
        ((), JOINED, "ServerJoined at position 1: there is no server a"),
        ((ENROLLED, JOINED), replace(JOINED, generation=2), "cannot follow: server a is READY"),
        ((ENROLLED,), replace(JOINED, generation=2), "server a is of generation 0"),
        ((ENROLLED, JOINED, LOSE, BURY), JOINED, "server a is of generation 1"),
        ((ENROLLED,), e.MachineRecognised("a", "m"), "cannot follow: server a is ORDERED"),
        ((ENROLLED,), CHANGE, "cannot follow: server a is ORDERED"),
        ((ENROLLED, JOINED, DRAIN), CHANGE, "cannot follow: server a is CONDEMNED"),
        ((ENROLLED,), LOSE, "cannot follow: server a is ORDERED"),
        ((ENROLLED, JOINED, DRAIN), DRAIN, "server a is condemned already"),
        ((ENROLLED, JOINED, LOSE), LOSE, "server a is condemned already"),
        ((ENROLLED, JOINED, LOSE), DRAIN, "server a is condemned already"),
        ((ENROLLED, JOINED), BURY, "cannot follow: server a is READY"),
        ((ENROLLED, JOINED, LOSE, BURY), BURY, "cannot follow: server a is DECOMMISSIONED"),
        (
            (ENROLLED, JOINED, e.GroupApplied(service(), ONE, 1), ORDERED, LOSE),
            BURY,
            "server a still has 1 cells",
        ),
    ],
)
def test_a_servers_illegal_moves_are_refused(
    history: Iterable[AnyEvent], event: AnyEvent, message: str
) -> None:
    with pytest.raises(IllegalTransition, match=re.escape(message)):
        told(event, fleet=told(*history))


# --- the fleet itself ---------------------------------------------------------------------------------------------


def test_records_follow_one_another_without_a_hole() -> None:
    fleet = begun()
    for position in (fleet.position, fleet.position + 2):
        with pytest.raises(IllegalTransition, match=f"record {position} does not follow position 3"):
            apply(fleet, Record(position, 1.0, "test", ORDERED))


def test_a_fleets_time_never_goes_back() -> None:
    fleet = apply_all(
        Fleet(), [Record(1, 7.0, "start", e.SchedulerStarted(1, "v")), Record(2, 5.0, "x", ENROLLED)]
    )
    assert (fleet.at, fleet.epoch) == (7.0, 1)
    with pytest.raises(IllegalTransition, match="epoch 1 is not above 1"):
        told(e.SchedulerStarted(1, "v"), fleet=fleet)


def test_a_token_lives_until_it_is_used_up_and_expired_ones_go_when_a_new_one_comes() -> None:
    fleet = told(e.TokenCreated("t", "5" * 64, 2, 2.5), e.ServerEnrolled("a", "t"))
    assert fleet.tokens == HashTrieMap({"t": Token("t", "5" * 64, 1, 2.5)})
    assert told(e.ServerEnrolled("b", "t"), fleet=fleet).tokens == HashTrieMap()
    fleet = told(e.TokenCreated("u", "6" * 64, 1, 9.0), fleet=fleet)
    assert fleet.tokens == HashTrieMap({"u": Token("u", "6" * 64, 1, 9.0)})


@pytest.mark.parametrize(
    "event",
    [
        e.OrphanRemoved("web/9.9", "a", "nobody ordered it"),
        e.OperatorEnrolled("ann", "admin", 9.0),
        e.CallRefused("ann", "viewer", "Apply"),
    ],
)
def test_some_facts_change_nothing_but_the_position(event: AnyEvent) -> None:
    before = begun()
    assert told(event, fleet=before) == replace(before, position=4, at=4.0)


def test_an_autopsy_in_the_journal_does_not_make_the_fleet_larger() -> None:
    autopsy = Autopsy("exited with 1", exit_code=1, last_lines=("bye",) * 50)
    plain = told(ORDERED, DEAD, DRAINING, GONE, fleet=begun())
    assert told(ORDERED, DEAD, DRAINING, replace(GONE, autopsy=autopsy), fleet=begun()) == plain
