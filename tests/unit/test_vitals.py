"""A server's own vitals: what is bad of them, for how long, and what follows. It must never kill a fleet."""

import pytest
from msgspec.structs import replace
from rpds import HashTrieMap

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.commands import DecommissionServer
from galactica.scheduler.core.model.fleet import Phase
from galactica.scheduler.core.model.policy import VitalLimits
from galactica.scheduler.core.model.spec import RuntimeKind
from galactica.scheduler.core.model.verdict import Evidence, Health
from galactica.scheduler.core.sight.vitals import AILMENT_RULES, Ailment, Vitals, ailments
from galactica.scheduler.core.verdicts.servers import server_verdict
from tests.support.work import calls_of
from tests.support.world import World, pool, service, spec

READY = Phase.READY
LIMITS = VitalLimits()
GOOD = Vitals(
    disk_fraction=0.5, memory_fraction=0.5, engine_latency_ms=3.0, clock_offset_ms=10.0, disk_error=""
)

BAD: dict[str, tuple[Vitals, str]] = {
    "disk_full": (Vitals(disk_fraction=0.985), "its disk is 98.5% full, 97% is the limit"),
    "disk_read_only": (Vitals(disk_error="EROFS"), "its disk is not writable (EROFS)"),
    "engine_hung": (Vitals(engine_latency_ms=-1.0), "its engine does not answer"),
    "clock_off": (Vitals(clock_offset_ms=-7_500.0), "its clock is off by -7.5 s, 5 s is the limit"),
    "memory_pressure": (
        Vitals(pressure_memory=71.0),
        "its tasks wait for memory 71 % of the time, 60 % is the limit",
    ),
    "kernel_errors": (
        Vitals(kernel_errors=12),
        "its kernel logged 12 hardware errors within a minute, 10 is the limit",
    ),
    "agent_starved": (Vitals(agent_lacks="EMFILE"), "its agent lacks what it needs (EMFILE)"),
}


def told(vitals: Vitals) -> list[tuple[str, str]]:
    return [(one.rule, one.says) for one in ailments((), vitals, LIMITS, 1.0)]


@pytest.mark.parametrize("rule", AILMENT_RULES)
def test_each_vital_that_is_bad_says_its_value_and_the_limit(rule: str) -> None:
    vitals, says = BAD[rule]
    assert told(vitals) == [(rule, says)]


def test_a_disk_that_has_no_room_for_a_file_is_full_whatever_its_fraction_says() -> None:
    says = "its disk takes no new files (ENOSPC)"
    assert told(Vitals(disk_fraction=0.4, disk_error="ENOSPC")) == [("disk_full", says)]


def test_memory_that_is_full_is_pressure_where_the_kernel_offers_none() -> None:
    says = "its memory is 98.5% full, 98% is the limit"
    assert told(Vitals(memory_fraction=0.985)) == [("memory_pressure", says)]


@pytest.mark.parametrize(
    "vitals",
    [
        Vitals(),
        GOOD,
        Vitals(disk_fraction=0.969, memory_fraction=0.979, pressure_memory=59.9, kernel_errors=9),
        Vitals(clock_offset_ms=5_000.0, engine_latency_ms=1_900.0),
    ],
)
def test_what_is_unknown_or_below_its_limit_is_no_ailment(vitals: Vitals) -> None:
    assert told(vitals) == []


def test_an_ailment_remembers_since_when_and_its_newest_value() -> None:
    first = ailments((), Vitals(disk_fraction=0.98), LIMITS, 100.0)
    second = ailments(first, Vitals(disk_fraction=0.99), LIMITS, 110.0)
    assert second == (Ailment("disk_full", "its disk is 99.0% full, 97% is the limit", 100.0, 110.0, 2),)
    assert ailments(second, GOOD, LIMITS, 120.0) == ()


def test_a_reading_with_gaps_does_not_say_that_anything_is_good_again() -> None:
    first = ailments((), Vitals(disk_fraction=0.98, agent_lacks="EMFILE"), LIMITS, 100.0)
    gaps = replace(GOOD, unread=("disk_fraction",))
    assert ailments(first, gaps, LIMITS, 105.0) == first
    assert ailments(first, gaps, LIMITS, 161.0) == ()
    assert ailments(first, GOOD, LIMITS, 105.0) == ()


def test_bad_readings_far_apart_are_no_trouble_that_lasts() -> None:
    first = ailments((), BAD["disk_full"][0], LIMITS, 100.0)
    (later,) = ailments(first, BAD["disk_full"][0], LIMITS, 161.0)
    assert (later.since, later.reports) == (161.0, 1)


def test_trouble_lasts_by_its_time_and_by_its_reports() -> None:
    ailment = Ailment("disk_full", "", 100.0, 114.0, 3)
    assert not ailment.lasts(114.9, LIMITS)
    assert ailment.lasts(115.0, LIMITS)
    assert not replace(ailment, reports=2).lasts(115.0, LIMITS)


def test_who_ails_by_what_is_counted_until_it_is_well_or_attaches_anew() -> None:
    world = joined("a", "b")
    world.report("a", vitals=BAD["disk_full"][0])
    world.report("b", vitals=replace(BAD["clock_off"][0], disk_fraction=1.0))
    assert {rule: set(servers) for rule, servers in world.core.sight.ailing.items()} == {
        "disk_full": {"a", "b"},
        "clock_off": {"b"},
    }
    assert set(world.core.sight.well) == set()
    world.report("a", vitals=GOOD)
    world.attach("b")
    assert world.core.sight.ailing == HashTrieMap()
    assert set(world.core.sight.well) == {"a", "b"}
    world.detach("b")
    assert set(world.core.sight.well) == {"a"}


# --- as the world shows it ----------------------------------------------------------------------------------------


def joined(*names: str) -> World:
    world = World()
    world.join(*names)
    return world


def ail(world: World, names: tuple[str, ...], vitals: Vitals, seconds: float) -> None:
    """These servers say so every five seconds; all beat."""
    end = world.now + seconds
    while world.now < end:
        for name in names:
            seen = world.core.sight.servers.get(name)
            if seen is not None and seen.is_open:
                world.report(name, vitals=vitals)
        world.advance(min(5.0, end - world.now))


def verdict(world: World, name: str) -> tuple[Health, str]:
    fleet = world.core.fleet
    said = server_verdict(fleet, fleet.servers[name], world.core.sight, world.now, world.policy)
    return said.health, said.rule


def condemned(world: World) -> list[tuple[str, str]]:
    return [(event.server, event.rule) for event in world.events(e.ServerCondemned)]  # type: ignore[union-attr]


@pytest.mark.parametrize("rule", AILMENT_RULES)
def test_a_server_of_a_pool_that_stays_ill_is_replaced_first_and_then_drained(rule: str) -> None:
    world = World()
    world.apply(pool("rack", 5))
    world.apply(service("web", 5))
    world.advance(10)
    began = world.now
    ail(world, ("rack/0.1",), BAD[rule][0], 14.0)
    assert verdict(world, "rack/0.1") == (Health.SUSPECT, rule)
    assert world.events(e.CellCondemned) == []
    ail(world, ("rack/0.1",), BAD[rule][0], 30.0)
    event = next(c for c in world.events(e.CellCondemned) if c.cell == "rack/0.1")  # type: ignore[union-attr]
    assert (event.health, event.rule) == (Health.SICK, rule)  # type: ignore[union-attr]
    assert event.evidence == (Evidence("vitals rack/0.1", BAD[rule][1], began),)  # type: ignore[union-attr]
    order = [
        (type(record.event).__name__, record.event.cell)  # type: ignore[union-attr]
        for record in world.records
        if isinstance(record.event, e.CellReady | e.CellDraining)
        and record.event.cell.startswith("rack/0")
        and record.at > began
    ]
    assert order == [("CellReady", "rack/0.2"), ("CellDraining", "rack/0.1")]
    assert world.phases("rack")["rack/0.2"] is READY
    assert all(phase is READY for phase in world.phases("web").values())
    assert "rack/0.1" not in world.core.fleet.servers


def test_vitals_that_get_well_in_time_condemn_nobody() -> None:
    world = World()
    world.apply(pool("rack", 3))
    world.advance(10)
    for _ in range(5):
        ail(world, ("rack/0.1",), BAD["disk_full"][0], 14.0)
        world.report("rack/0.1", vitals=GOOD)
    assert verdict(world, "rack/0.1") == (Health.HEALTHY, "beating")
    assert world.events(e.CellCondemned) == []


def test_a_server_whose_vitals_are_not_known_or_bad_is_not_ready() -> None:
    world = World(mute={"rack/0.1"})
    world.apply(pool("rack", 1))
    world.advance(2)
    assert world.phases("rack") == {"rack/0.1": Phase.BOOTING}
    world.report("rack/0.1", vitals=BAD["disk_full"][0])
    world.advance(2)
    assert world.phases("rack") == {"rack/0.1": Phase.BOOTING}
    world.report("rack/0.1", vitals=GOOD)
    assert world.phases("rack") == {"rack/0.1": READY}


def test_a_server_that_ails_gets_no_new_cells_while_others_can_take_them() -> None:
    world = joined("a", "b")
    world.report("a", vitals=BAD["memory_pressure"][0])
    world.apply(service("web", 4))
    assert {world.cell(cell).server for cell in world.phases()} == {"b"}


def test_a_server_whose_engine_hangs_gets_no_container_at_all_but_takes_processes() -> None:
    world = joined("a")
    world.report("a", vitals=BAD["engine_hung"][0])
    of_docker = spec(runtime=RuntimeKind.DOCKER, image="web:1", command=())
    world.apply(service("web", 1, of_docker), service("job", 1))
    assert world.phases("web") == {}
    assert world.phases("job") == {"job/0.1": READY}
    (hold,) = world.core.view(world.now).holds
    assert hold.reason == "no server can take it: 1 server has an engine that does not answer"
    world.report("a", vitals=GOOD)
    assert world.phases("web") == {"web/0.1": READY}


def test_the_only_server_is_never_condemned_by_its_vitals() -> None:
    world = joined("a")
    world.apply(service("web", 1))
    ail(world, ("a",), BAD["disk_full"][0], 120.0)
    assert condemned(world) == []
    assert verdict(world, "a") == (Health.SUSPECT, "disk_full")
    assert world.phases() == {"web/0.1": READY}


def test_where_all_are_ill_none_is_condemned() -> None:
    world = joined("a", "b", "c")
    ail(world, ("a", "b", "c"), BAD["disk_full"][0], 120.0)
    assert condemned(world) == []


def test_a_verdict_on_one_of_many_that_are_all_ill_does_not_look_at_each_of_the_others() -> None:
    names = tuple(f"s{number}" for number in range(150))
    world = joined(*names)
    ail(world, names, BAD["disk_full"][0], 20.0)
    assert calls_of(lambda: verdict(world, "s0")) < len(names)
    assert verdict(world, "s0") == (Health.SUSPECT, "disk_full")


def test_a_joined_server_is_drained_and_joins_again_only_when_it_is_well() -> None:
    world = joined("a", "b", "c")
    world.apply(service("web", 3))
    ail(world, ("a",), BAD["disk_read_only"][0], 60.0)
    assert condemned(world) == [("a", "disk_read_only")]
    assert {world.cell(cell).server for cell in world.phases()} == {"b", "c"}
    assert world.core.fleet.servers["a"].phase is Phase.DECOMMISSIONED
    assert world.held() == {"disk_read_only"}
    world.report("a", vitals=GOOD)
    world.advance(2)
    assert (world.core.fleet.servers["a"].phase, world.core.fleet.servers["a"].generation) == (READY, 2)


def test_joined_servers_that_ail_together_go_one_by_one() -> None:
    world = joined("a", "b", "c")
    world.apply(service("web", 3))
    world.deaf = {"a", "b"}  # so that what is drained stays
    ail(world, ("a", "b"), BAD["disk_full"][0], 60.0)
    assert condemned(world) == [("a", "disk_full")]
    assert "one_by_one" in world.held()


def test_clocks_that_many_have_wrong_are_the_schedulers_own() -> None:
    world = World()
    world.apply(pool("rack", 10))
    world.advance(10)
    ail(world, ("rack/0.1", "rack/1.1", "rack/2.1"), BAD["clock_off"][0], 120.0)
    assert world.events(e.CellCondemned) == []
    assert verdict(world, "rack/0.1") == (Health.SUSPECT, "clock_off")
    world.report("rack/2.1", vitals=GOOD)
    ail(world, ("rack/0.1", "rack/1.1"), BAD["clock_off"][0], 60.0)
    assert {event.cell for event in world.events(e.CellCondemned)} == {"rack/0.1", "rack/1.1"}  # type: ignore[union-attr]


def test_agents_that_are_starved_everywhere_are_condemned_nowhere() -> None:
    """What they all run is the likelier cause, and would starve their replacements too."""
    world = World()
    world.apply(pool("rack", 10))
    world.advance(10)
    ail(world, ("rack/0.1", "rack/1.1", "rack/2.1"), BAD["agent_starved"][0], 120.0)
    assert world.events(e.CellCondemned) == []
    fleet = world.core.fleet
    shown = server_verdict(fleet, fleet.servers["rack/0.1"], world.core.sight, world.now, world.policy)
    assert (shown.health, shown.rule) == (Health.SUSPECT, "agent_starved")
    assert shown.reason == (
        "its agent lacks what it needs (EMFILE); so say 3 of 10 servers: hardly the fault of each, and none is "
        "condemned for it"
    )
    world.report("rack/2.1", vitals=GOOD)
    ail(world, ("rack/0.1", "rack/1.1"), BAD["agent_starved"][0], 60.0)
    assert {event.cell for event in world.events(e.CellCondemned)} == {"rack/0.1", "rack/1.1"}  # type: ignore[union-attr]


@pytest.mark.parametrize(("size", "is_sick"), [(1, False), (2, False), (3, True)])
def test_a_clock_is_wrong_only_where_two_others_have_the_schedulers_time(size: int, is_sick: bool) -> None:
    world = World()
    world.apply(pool("rack", size))
    world.advance(10)
    ail(world, ("rack/0.1",), BAD["clock_off"][0], 60.0)
    condemned_cells = [event.cell for event in world.events(e.CellCondemned)]  # type: ignore[union-attr]
    assert condemned_cells == (["rack/0.1"] if is_sick else [])
    if not is_sick:
        assert verdict(world, "rack/0.1") == (Health.SUSPECT, "clock_off")


def test_servers_that_say_nothing_of_their_clocks_are_no_witnesses() -> None:
    world = World()
    world.apply(pool("rack", 3))
    world.advance(10)
    for other in ("rack/1.1", "rack/2.1"):
        world.report(other, vitals=Vitals())
    ail(world, ("rack/0.1",), BAD["clock_off"][0], 60.0)
    assert world.events(e.CellCondemned) == []


def test_a_server_whose_engine_hangs_goes_with_the_cells_that_it_cannot_end() -> None:
    world = World()
    world.apply(pool("rack", 3))
    world.apply(service("web", 3))
    world.advance(10)
    world.deaf = {"rack/0.1"}
    ail(world, ("rack/0.1",), BAD["engine_hung"][0], 40.0)
    assert world.phases("rack")["rack/0.1"] is Phase.DRAINING
    assert not any(isinstance(told, DecommissionServer) for told in world.told_providers)
    ail(world, ("rack/0.1",), BAD["engine_hung"][0], 45.0)
    assert [c.cell for c in world.told_providers if isinstance(c, DecommissionServer)] == ["rack/0.1"]
    world.advance(2)
    assert "rack/0.1" not in world.core.fleet.servers
    assert all(phase is READY for phase in (*world.phases("rack").values(), *world.phases("web").values()))
