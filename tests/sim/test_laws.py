"""Each law notices what it forbids, and lets pass what it allows."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.events import Record
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.spec import Group, GroupKind, Resources, RuntimeKind, ServerBody, Spec
from galactica.scheduler.core.model.verdict import Health
from galactica.scheduler.core.sight.observations import CellReport, CellState
from tests.sim.absences import Absences
from tests.sim.laws import LawBroken, Laws
from tests.sim.provider import Temper
from tests.sim.rollouts import Rollouts
from tests.sim.seeds import reason_of
from tests.sim.serves import what_is_broken
from tests.sim.simulation import Simulation
from tests.sim.words import Words
from tests.support.reconcile_world import server_of, three_ready
from tests.support.world import running, service, spec

WEB = Group(GroupKind.SERVICE, "web", 3, Spec(RuntimeKind.PROCESS))
RACK = Group(GroupKind.POOL, "rack", 1, Spec(RuntimeKind.SERVER, server=ServerBody("local", "{}")))


def ready(cell: str, digest: str) -> list[e.AnyEvent]:
    return [e.CellOrdered(cell, digest, 1, "a"), e.CellReady(cell)]


def outdated(cell: str) -> e.CellCondemned:
    return e.CellCondemned(cell, Health.HEALTHY, "outdated", "it is old", (), "one")


def died(cell: str) -> e.CellCondemned:
    return e.CellCondemned(cell, Health.DEAD, "exited", "it ended", (), "one")


def broken_by(timed: list[tuple[float, list[e.AnyEvent]]]) -> list[str]:
    """What the rollouts' law says of a history: events by their time."""
    law = Rollouts()
    records = [Record(0, at, "test", event) for at, events in timed for event in events]
    return [said for said in map(law.note, records) if said]


THREE_SERVE: list[e.AnyEvent] = [
    e.GroupApplied(WEB, "old", 1),
    *ready("web/0.1", "old"),
    *ready("web/1.1", "old"),
    *ready("web/2.1", "old"),
]
NEXT = e.GroupApplied(WEB, "new", 2)


def test_nothing_that_serves_is_condemned_for_a_revision_of_which_one_died_young_a_moment_ago() -> None:
    history = [
        (0.0, THREE_SERVE),
        (100.0, [NEXT, outdated("web/0.1"), *ready("web/0.2", "new")]),
        (104.0, [died("web/0.2")]),
    ]
    assert broken_by([*history, (163.0, [outdated("web/1.1")])]) == [
        "a cell that serves is condemned for a revision of which one died young a moment ago"
    ]
    assert broken_by([*history, (165.0, [outdated("web/1.1")])]) == []


def test_a_death_after_it_was_proven_is_not_young() -> None:
    grown_up = [
        (0.0, THREE_SERVE),
        (100.0, [NEXT, outdated("web/0.1"), *ready("web/0.2", "new")]),
        (106.0, [died("web/0.2"), outdated("web/1.1")]),
    ]
    assert broken_by(grown_up) == []


def test_a_revision_that_proved_nothing_costs_no_more_than_one_and_the_surge() -> None:
    cells = ("web/0.1", "web/1.1", "web/2.1")
    rolled: list[e.AnyEvent] = [
        event
        for cell in cells
        for event in (outdated(cell), *ready(cell[:-1] + "2", "new"), e.CellDraining(cell))
    ]
    assert broken_by([(0.0, THREE_SERVE), (100.0, [NEXT, *rolled])]) == [
        "a revision that proved nothing cost the service ['web/0.1', 'web/1.1', 'web/2.1']"
    ]
    later = [(110.0, [*rolled[4:]])]
    assert broken_by([(0.0, THREE_SERVE), (100.0, [NEXT, *rolled[:4]]), *later]) == []


def test_what_is_not_wanted_any_more_costs_the_service_nothing() -> None:
    cells = ("web/0.1", "web/1.1", "web/2.1")
    going = [event for cell in cells for event in (outdated(cell), *ready(cell[:-1] + "2", "new"))]
    drained = [e.CellDraining(cell) for cell in cells]
    began: list[tuple[float, list[e.AnyEvent]]] = [(0.0, THREE_SERVE), (100.0, [NEXT, *going])]
    assert broken_by([*began, (101.0, [e.GroupDeleted("web"), *drained])]) == []
    smaller = e.GroupApplied(replace(WEB, replicas=0), "new", 2)
    assert broken_by([*began, (101.0, [smaller, *drained])]) == []


def test_what_goes_beside_an_elder_that_still_serves_costs_the_service_nothing() -> None:
    cells = ("web/0", "web/1", "web/2")
    newer = [event for cell in cells for event in (outdated(f"{cell}.1"), *ready(f"{cell}.2", "new"))]
    newest = [event for cell in cells for event in (outdated(f"{cell}.2"), e.CellDraining(f"{cell}.2"))]
    history = [
        (0.0, THREE_SERVE),
        (100.0, [NEXT, *newer]),
        (101.0, [e.GroupApplied(WEB, "newest", 3), *newest]),
    ]
    assert broken_by(history) == []


@pytest.mark.parametrize(
    ("event", "needed"),
    [
        (e.CellReady("web/0.1"), CellState.RUNNING),
        (died("web/0.1"), CellState.EXITED),
        (replace(died("web/0.1"), rule="start_failed"), CellState.FAILED),
        (replace(died("web/0.1"), rule="vanished"), CellState.GONE),
    ],
)
def test_only_the_own_agents_word_counts(event: e.CellReady | e.CellCondemned, needed: CellState) -> None:
    report = CellReport("web/0.1", "d", needed)
    ordered = Record(1, 0.0, "test", e.CellOrdered("web/0.1", "d", 1, "a"))

    def verdict(speaker: str) -> str:
        words = Words()
        words.note(ordered)
        words.heard(speaker, [report], complete=False)
        return words.note(Record(2, 0.0, "test", event))

    assert verdict("a") == ""
    assert verdict("b") == f"the agent of a never said that it is {needed.value}"


def test_what_a_complete_report_leaves_out_is_gone() -> None:
    words = Words()
    words.note(Record(1, 0.0, "test", e.CellOrdered("web/0.1", "d", 1, "a")))
    words.heard("a", [CellReport("web/0.1", "d", CellState.RUNNING)], complete=True)
    vanished = Record(2, 0.0, "test", replace(died("web/0.1"), rule="vanished"))
    assert words.note(vanished)
    words.heard("a", [], complete=True)
    assert not words.note(vanished)


def test_a_machine_is_not_decommissioned_while_its_provider_has_it() -> None:
    laws = Laws(standing={"rack/0.1"})
    events: list[e.AnyEvent] = [
        e.GroupApplied(RACK, "d", 1),
        e.CellOrdered("rack/0.1", "d", 1, ""),
        outdated("rack/0.1"),
        e.CellDraining("rack/0.1"),
        e.CellDecommissioned("rack/0.1", "provider"),
    ]
    records = [Record(number, 0.0, "test", event) for number, event in enumerate(events, start=1)]
    with pytest.raises(LawBroken, match="its provider still has it"):
        laws.durable(records)


@pytest.mark.parametrize("lists_lied", [False, True])
def test_a_machine_ends_before_its_successor_only_where_its_provider_lied_that_it_is_gone(
    lists_lied: bool,
) -> None:
    laws = Laws(standing={"rack/0.1"}, lists_lied=lists_lied)
    events: list[e.AnyEvent] = [
        e.GroupApplied(RACK, "d", 1),
        e.CellOrdered("rack/0.1", "d", 1, ""),
        e.CellReady("rack/0.1"),
        replace(outdated("rack/0.1"), rule="operator"),
    ]
    laws.durable([Record(number, 0.0, "test", event) for number, event in enumerate(events, start=1)])
    ending = Record(5, 0.0, "test", e.CellDraining("rack/0.1"))
    if lists_lied:
        laws.durable([ending])
    else:
        with pytest.raises(LawBroken, match="ended before its replacement was proven"):
            laws.durable([ending])


def test_times_in_the_journal_never_go_back() -> None:
    laws = Laws()
    laws.durable([Record(1, 5.0, "test", e.SchedulerStarted(1, "sim"))])
    with pytest.raises(LawBroken, match="time goes back"):
        laws.durable([Record(2, 4.0, "test", e.SchedulerStarted(2, "sim"))])


def test_an_id_that_nobody_heard_knew_may_be_given_again_and_one_that_was_heard_may_not() -> None:
    for is_heard in (False, True):
        laws = Laws(wanted={"web": (1, "d")})
        laws.started["web/0.1"] = "h0"
        laws.unheard.add("h0")
        if is_heard:
            laws.heard("h0", (), complete=True)
        laws.durable([Record(1, 5.0, "look", e.CellOrdered("web/0.1", "d", 1, "h1", Resources()))])
        laws.heard("h0", (), complete=True)  # too late for the order
        if is_heard:
            with pytest.raises(LawBroken, match="was made on h1, and before on h0"):
                laws.started_on("h1", "web/0.1")
        else:
            laws.started_on("h1", "web/0.1")


# --- whole histories in which a rule is broken on purpose ----------------------------------------------------------


def shown_by(seeds: list[int], policy: Policy | None = None, temper: Temper | None = None) -> str:
    """What the first of the seeds breaks that breaks anything."""
    for seed in seeds:
        world = Simulation(seed, policy)
        if temper is not None:
            world.provider.usual = temper
        try:
            world.run()
        except (LawBroken, ExceptionGroup) as broken:
            return reason_of(broken)
    return ""


def test_a_provider_that_says_gone_before_it_is_so_is_noticed() -> None:
    liar = Temper(delete_seconds=30.0, says_gone_at_once=True)
    assert "its provider still has it" in shown_by([10, *range(50)], temper=liar)


def test_a_scheduler_that_waits_for_no_proof_is_noticed() -> None:
    broken = shown_by([24, *range(50)], Policy(waits_for_proof=False))
    laws = ("before its replacement was proven", "a revision that proved nothing cost the service")
    assert any(law in broken for law in laws), broken


@pytest.mark.parametrize(("is_silent", "at"), [(False, 30.0), (True, 30.0), (False, 60.0)])
def test_a_server_in_maintenance_is_condemned_for_silence_only_where_its_host_is_silent(
    is_silent: bool, at: float
) -> None:
    law = Absences()
    assert not law.note(Record(1, 0.0, "test", e.MaintenanceBegan("a", "s1", 60.0)))
    if is_silent:
        law.silent.add("a")
    said = law.note(Record(2, at, "test", e.ServerCondemned("a", Health.DEAD, "agent_gone", "it is gone")))
    expected = "a was condemned by agent_gone in maintenance, and its host lives"
    assert said == ("" if is_silent or at >= 60.0 else expected)


def test_a_server_in_maintenance_gets_no_cell_and_no_lease_beyond_the_limit() -> None:
    law = Absences()
    began = Record(1, 0.0, "test", e.MaintenanceBegan("a", "s1", 60.0))
    ordered = Record(2, 1.0, "test", e.CellOrdered("web/0.1", "d", 1, "a"))
    assert not law.note(ordered)
    assert not law.note(began)
    assert law.note(ordered) == "a cell was ordered on a server in maintenance"
    assert not law.note(Record(3, 2.0, "test", e.MaintenanceEnded("a", "its agent is back")))
    assert not law.note(ordered)
    assert law.note(Record(4, 0.0, "test", e.MaintenanceBegan("a", "s1", 4_000.0)))


def test_each_slot_that_has_a_cell_to_serve_has_one_that_does() -> None:
    world = three_ready()
    world.obedient = False
    world.apply(service("web", 3, spec("2")))
    world.report(server_of(world, "web/0.2"), running("web/0.2"))
    state = world.core.fleet.groups["web"]
    old, new, one, two = (world.cell(f"web/{cell}") for cell in ("0.1", "0.2", "1.1", "2.1"))
    assert what_is_broken(state, [new, one, two]) == what_is_broken(state, [old, one, two]) == ""
    assert "two serve in one slot" in what_is_broken(state, [old, new, one, two])
    assert what_is_broken(state, [one, two]) == "nobody serves in slots [0]"
    world.apply(service("web", 3))
    ending = world.cell("web/0.2")
    assert (
        what_is_broken(world.core.fleet.groups["web"], [ending, one, two])
        == "web/0.2 serves, which is DRAINING"
    )
