"""Where a cell goes: each filter and its words, both ranks, what a placer remembers and when it hears of room."""

from collections import Counter
from collections.abc import Sequence

import pytest
from msgspec.structs import replace
from rpds import HashTrieMap, HashTrieSet

from galactica.scheduler.core.model.fleet import Fleet, GroupState, Phase, Server
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.requests import DeleteGroup, DrainServer
from galactica.scheduler.core.model.spec import (
    Group,
    GroupKind,
    Placement,
    Resources,
    RuntimeKind,
    Spec,
    digest_of,
)
from galactica.scheduler.core.model.verdict import Health
from galactica.scheduler.core.placement import Placer, Unplaceable
from galactica.scheduler.core.sight.state import ServerSight, Sight
from tests.support.world import PROOF_SECONDS, World, exited, service, spec

NOW = 1_000.0
MIB = 2**20
BOTH = (RuntimeKind.PROCESS, RuntimeKind.DOCKER)


def server(
    name: str, *, cpu: int = 0, memory: int = 0, used: Resources | None = None, cells: int = 0, **facts
) -> Server:
    """One that beats; ``cells`` of no group in particular are on it."""
    return Server(
        name,
        1,
        facts.pop("phase", Phase.READY),
        capacity=Resources(cpu, memory),
        runtimes=facts.pop("runtimes", BOTH),
        used=used or Resources(),
        cells=HashTrieSet(f"x/{number}.1" for number in range(cells)),
        **facts,
    )


def fleet_of(*servers: Server) -> Fleet:
    return Fleet(servers=HashTrieMap((one.id, one) for one in servers))


def sight_of(fleet: Fleet, heard_at: float = NOW, **heard: float) -> Sight:
    seen = {name: ServerSight("s1", 0.0, heard.get(name, heard_at)) for name in fleet.servers}
    return Sight(servers=HashTrieMap(seen))


def group_of(of: Spec, name: str = "web", **per_server: int) -> GroupState:
    counts = HashTrieMap({key: count for key, count in per_server.items() if count})
    return GroupState(Group(GroupKind.SERVICE, name, 9, of), digest_of(of), 1, (), per_server=counts)


def place(
    of: Spec, servers: Sequence[Server], sight: Sight | None = None, **per_server: int
) -> str | Unplaceable:
    fleet = fleet_of(*servers)
    placer = Placer()
    placer.begin(lambda: fleet, sight or sight_of(fleet), NOW, Policy())
    return placer.place(group_of(of, **per_server), of)


BIG = spec(resources=Resources(cpu_millis=500, memory_bytes=64 * MIB))
PACK = spec(placement=Placement(spread="none"))
FIXED = spec(ports={"http": 8080, "admin": 0})
IN_ZONE_A = spec(placement=Placement(require={"zone": "a"}))


@pytest.mark.parametrize(
    ("of", "one", "why"),
    [
        (spec(), server("a", phase=Phase.ORDERED), "accepts no new cells (condemned or not attached)"),
        (spec(), server("a", phase=Phase.CONDEMNED), "accepts no new cells (condemned or not attached)"),
        (spec(), server("a", phase=Phase.DECOMMISSIONED), "accepts no new cells (condemned or not attached)"),
        (spec(), server("a", runtimes=(RuntimeKind.DOCKER,)), "lacks the process runtime"),
        (spec(), server("a", runtimes=()), "lacks the process runtime"),
        (
            replace(spec(), runtime=RuntimeKind.DOCKER),
            server("a", runtimes=(RuntimeKind.PROCESS,)),
            "lacks the docker runtime",
        ),
        (IN_ZONE_A, server("a"), "lacks the label zone=a"),
        (IN_ZONE_A, server("a", labels={"zone": "b"}), "lacks the label zone=a"),
        (BIG, server("a", cpu=400), "has too little CPU (0.5 cores needed)"),
        (BIG, server("a", cpu=900, used=Resources(401)), "has too little CPU (0.5 cores needed)"),
        (BIG, server("a", memory=63 * MIB), "has too little memory (64 MiB needed)"),
        (
            BIG,
            server("a", cpu=400, memory=63 * MIB),
            "has too little CPU (0.5 cores needed) and too little memory (64 MiB needed)",
        ),
        (
            spec(resources=Resources(cpu_millis=1_000)),
            server("a", cpu=900),
            "has too little CPU (1 core needed)",
        ),
        (spec(), server("a", cpu=100, used=Resources(101)), "has no CPU left"),
    ],
)
def test_each_filter_says_why_it_excludes(of: Spec, one: Server, why: str) -> None:
    refusal = place(of, [one])
    assert refusal == Unplaceable(1, ((why, 1),))
    assert refusal.explain() == f"no server can take it: 1 server {why}"


@pytest.mark.parametrize(
    ("of", "one"),
    [
        (BIG, server("a", cpu=500, memory=64 * MIB)),
        (BIG, server("a", cpu=1_000, memory=128 * MIB, used=Resources(500, 64 * MIB))),
        (BIG, server("a")),
        (BIG, server("a", used=Resources(10**9, 10**15))),
        (IN_ZONE_A, server("a", labels={"zone": "a", "rack": "7"})),
        (spec(resources=Resources(pids=10**6)), server("a", cpu=1, memory=1)),
    ],
)
def test_a_server_that_passes_every_filter_takes_the_cell(of: Spec, one: Server) -> None:
    assert place(of, [one]) == "a"


@pytest.mark.parametrize(("silence", "answer"), [(2.5, "a"), (2.6, Unplaceable(1, (("is silent", 1),)))])
def test_no_cell_goes_to_a_silent_server(silence: float, answer: str | Unplaceable) -> None:
    assert place(spec(), [server("a")], sight_of(fleet_of(server("a")), NOW - silence)) == answer


def test_no_cell_goes_to_a_server_that_leaves() -> None:
    leaving = Sight(servers=HashTrieMap({"a": ServerSight("s1", 0.0, NOW, is_leaving=True)}))
    assert place(spec(), [server("a")], leaving) == Unplaceable(1, (("is leaving", 1),))


def test_no_cell_goes_where_no_session_is_open() -> None:
    closed = Sight(servers=HashTrieMap({"a": ServerSight("s1", 0.0, NOW, closed_at=NOW)}))
    for sight in (Sight(), closed):
        assert place(spec(), [server("a")], sight) == Unplaceable(1, (("is silent", 1),))


def test_an_empty_fleet_says_so() -> None:
    refusal = place(spec(), [])
    assert isinstance(refusal, Unplaceable)
    assert refusal.explain() == "no server has joined"


def test_an_explanation_counts_each_filter_largest_first() -> None:
    servers = [
        server("a", runtimes=()),
        server("b", cpu=1),
        server("c", cpu=1),
        server("d", phase=Phase.CONDEMNED),
    ]
    refusal = place(BIG, servers)
    assert isinstance(refusal, Unplaceable)
    assert refusal.explain() == (
        "no server can take it: 2 servers have too little CPU (0.5 cores needed), "
        "1 server accepts no new cells (condemned or not attached), 1 server lacks the process runtime"
    )


# --- ranks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("servers", "per_server", "best"),
    [
        pytest.param([server("a"), server("b")], {"a": 1}, "b", id="fewest cells of the group"),
        pytest.param(
            [server("a", cells=9), server("b")], {"b": 1}, "a", id="its own cells before any others"
        ),
        pytest.param(
            [server("a", cpu=1_000, used=Resources(500)), server("b", cpu=4_000, used=Resources(600))],
            {},
            "b",
            id="then the emptiest by share",
        ),
        pytest.param(
            [
                server("a", cpu=1_000, memory=1_000, used=Resources(100, 900)),
                server("b", cpu=1_000, memory=1_000, used=Resources(800, 100)),
            ],
            {},
            "b",
            id="by its scarcest resource",
        ),
        pytest.param([server("a", cells=2), server("b", cells=1)], {}, "b", id="then fewest cells"),
        pytest.param([server("b"), server("a")], {}, "a", id="then by name"),
    ],
)
def test_spread_chooses(servers: Sequence[Server], per_server: dict[str, int], best: str) -> None:
    assert place(spec(), servers, **per_server) == best


@pytest.mark.parametrize(
    ("servers", "per_server", "best"),
    [
        pytest.param(
            [server("a", cpu=4_000, used=Resources(600)), server("b", cpu=1_000, used=Resources(500))],
            {},
            "b",
            id="the fullest by share",
        ),
        pytest.param([server("a", cells=1), server("b", cells=2)], {}, "b", id="then most cells"),
        pytest.param([server("a"), server("b", cells=1)], {"b": 5}, "b", id="whoever's cells they are"),
        pytest.param([server("b"), server("a")], {}, "a", id="then by name"),
    ],
)
def test_packing_chooses(servers: Sequence[Server], per_server: dict[str, int], best: str) -> None:
    assert place(PACK, servers, **per_server) == best


def test_packing_skips_the_fullest_that_is_full() -> None:
    of = replace(BIG, placement=Placement(spread="none"))
    full, half = server("a", cpu=1_000, used=Resources(900)), server("b", cpu=1_000, used=Resources(400))
    assert place(of, [full, half]) == "b"


@pytest.mark.parametrize(
    ("of", "taken", "answer"),
    [
        (FIXED, (), "a"),
        (FIXED, (8081,), "a"),
        (FIXED, (8080,), Unplaceable(1, (("has port 8080 in use by another cell", 1),))),
        (spec(ports={"http": 0}), (8080,), "a"),
        (replace(FIXED, runtime=RuntimeKind.DOCKER), (8080,), "a"),
    ],
)
def test_a_fixed_port_of_a_process_is_used_once_on_a_server(
    of: Spec, taken: tuple[int, ...], answer: str | Unplaceable
) -> None:
    assert place(of, [server("a", ports=HashTrieMap(dict.fromkeys(taken, 1)))]) == answer


def test_a_fixed_port_of_one_service_is_taken_for_all_others_until_its_cell_is_gone() -> None:
    world = World()
    world.join("a", "b")
    for name in ("one", "two", "three"):
        world.apply(service(name, 1, FIXED))
    assert world.cell("one/0.1").server != world.cell("two/0.1").server
    assert world.phases("three") == {}
    (hold,) = world.core.view(world.now).holds
    assert (hold.rule, hold.reason) == (
        "no_capacity",
        "no server can take it: 2 servers have port 8080 in use by another cell",
    )
    server = world.cell("one/0.1").server
    world.ask(DeleteGroup("one"))
    assert world.cell("three/0.1").server == server


# --- in the world: what a placer remembers ------------------------------------------------------------------------


def counts(world: World) -> dict[str, int]:
    return {name: len(one.cells) for name, one in sorted(world.core.fleet.servers.items())}


def test_cells_of_one_turn_see_each_other() -> None:
    world = World()
    world.join(*"abcde")
    world.apply(service("web", 12), service("api", 8))
    assert sorted(counts(world).values()) == [4, 4, 4, 4, 4]
    per_group = Counter(
        (cell.group, cell.server) for cell in map(world.cell, [*world.phases(), *world.phases("api")])
    )
    assert all(2 <= per_group["web", name] <= 3 and 1 <= per_group["api", name] <= 2 for name in "abcde")


def test_packing_fills_one_server_before_the_next() -> None:
    world = World()
    world.join("a", "b", "c", memory_bytes=3)
    world.apply(service("web", 7, replace(PACK, resources=Resources(memory_bytes=1))))
    assert sorted(counts(world).values()) == [1, 3, 3]


def test_a_server_that_joins_later_gets_the_next_cells() -> None:
    world = World()
    world.join("a")
    world.apply(service("web", 3))
    world.join("b")
    world.apply(service("web", 6))
    assert counts(world) == {"a": 3, "b": 3}


def test_a_server_that_loses_a_cell_of_the_group_gets_the_next_one() -> None:
    world = World()
    world.join("a", "b", "c")
    world.apply(service("web", 6))
    lost = world.cell("web/5.1").server
    world.apply(service("web", 5))
    world.apply(service("web", 6))
    assert world.cell("web/5.2").server == lost == "c"


def test_room_that_a_cell_leaves_is_used_again_at_once() -> None:
    one = spec(resources=Resources(memory_bytes=1))
    world = World()
    world.join("a", memory_bytes=2)
    world.apply(service("web", 2, one))
    world.apply(service("api", 1, one))
    assert (world.phases("api"), world.held()) == ({}, {"no_capacity"})
    world.apply(service("web", 1, one))
    assert (world.phases("api"), world.held()) == ({"api/0.1": Phase.READY}, set())


def test_a_fixed_port_that_comes_free_is_used_again() -> None:
    world = World()
    world.join("a")
    world.apply(service("web", 1, FIXED))
    world.report("a", exited("web/0.1"))
    assert world.phases() == {"web/0.2": Phase.READY}


def test_a_server_that_was_silent_takes_what_waited_for_it_as_soon_as_it_is_heard_again() -> None:
    world = World()
    world.join("a")
    world.advance(3, beating=False)
    world.apply(service("web", 100))
    assert (world.phases(), world.held()) == ({}, {"no_capacity"})
    world.beat("a")
    assert (set(world.phases().values()), len(world.phases()), world.held()) == ({Phase.READY}, 100, set())


def test_what_waited_for_any_server_goes_on_when_agents_attach_to_a_new_scheduler() -> None:
    before = World()
    before.join("a")
    world = before.crash()
    world.apply(service())
    assert world.held() == {"listening"}
    world.attach("a")
    assert (world.phases(), world.held()) == ({"web/0.1": Phase.READY}, set())


def test_a_server_with_a_new_label_takes_what_waited_for_it() -> None:
    world = World()
    world.join("a")
    world.apply(service(of=IN_ZONE_A))
    assert world.held() == {"no_capacity"}
    world.detach("a")
    world.attach("a", labels={"zone": "a"})
    assert world.phases() == {"web/0.1": Phase.READY}


def test_a_drained_server_gets_no_new_cells() -> None:
    world = World()
    world.join("a", "b")
    world.apply(service("web", 2))
    world.ask(DrainServer("a"))
    world.apply(service("web", 6))
    assert world.core.fleet.servers["a"].condemned_health is Health.HEALTHY
    world.advance(PROOF_SECONDS)
    assert counts(world) == {"a": 0, "b": 6}


def test_thousands_of_cells_spread_evenly_over_five_thousand_servers() -> None:
    fleet = fleet_of(*(server(f"s{number:04}", cpu=1_000) for number in range(5_000)))
    placer = Placer()
    placer.begin(lambda: fleet, sight_of(fleet), NOW, Policy())
    of = spec(resources=Resources(cpu_millis=100))
    state = group_of(of)
    for _ in range(10_000):
        chosen = placer.place(state, of)
        assert isinstance(chosen, str)
        one = fleet.servers[chosen]
        used = Resources(one.used.cpu_millis + 100)
        fleet = replace(fleet, servers=fleet.servers.insert(chosen, replace(one, used=used)))
        count = (state.per_server.get(chosen) or 0) + 1
        state = replace(state, per_server=state.per_server.insert(chosen, count))
    assert set(state.per_server.values()) == {2}
    assert len(state.per_server) == 5_000


def test_a_full_fleet_of_five_thousand_servers_says_so_in_one_line() -> None:
    servers = [server(f"s{number:04}", cpu=100, used=Resources(100)) for number in range(5_000)]
    refusal = place(spec(resources=Resources(cpu_millis=100)), servers)
    assert isinstance(refusal, Unplaceable)
    assert refusal.explain() == "no server can take it: 5000 servers have too little CPU (0.1 cores needed)"
