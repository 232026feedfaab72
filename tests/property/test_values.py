"""Pure statements over any values: digests, ids, waits, placement and the sight's fold."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from rpds import HashTrieMap

from galactica.scheduler.core.budgets.services import next_backoff
from galactica.scheduler.core.model.fleet import (
    Backoff,
    CellId,
    Fleet,
    GroupState,
    Phase,
    Server,
    parse_cell_id,
)
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.requests import ApplyGroups
from galactica.scheduler.core.model.spec import Placement, Resources, RuntimeKind, Spec, digest_of
from galactica.scheduler.core.placement import Placer, Unplaceable
from galactica.scheduler.core.sight.observations import (
    Attached,
    CellReport,
    CellState,
    Detached,
    Reported,
    ServerFacts,
)
from galactica.scheduler.core.sight.observe import observe
from galactica.scheduler.core.sight.state import ServerSight, Sight
from tests.support.world import World, exited, service, spec

WORDS = st.text("abcxyz-", min_size=1, max_size=5)
NOW = 1_000.0


@st.composite
def shuffled(draw: st.DrawFn, values: st.SearchStrategy) -> tuple[dict, dict]:
    """One dictionary twice, with its keys in two orders."""
    one = draw(st.dictionaries(WORDS, values, max_size=6))
    other = draw(st.permutations(sorted(one)))
    return one, {key: one[key] for key in other}


# --- the order of dictionaries ------------------------------------------------------------------------------------


@given(env=shuffled(WORDS), ports=shuffled(st.integers(0, 9)), require=shuffled(WORDS))
def test_a_digest_does_not_depend_on_the_order_of_dictionaries(env, ports, require) -> None:
    one, other = (spec(env=env[n], ports=ports[n], placement=Placement("server", require[n])) for n in (0, 1))
    assert digest_of(one) == digest_of(other)


@given(
    env=shuffled(WORDS), ports=shuffled(st.just(0)), labels=shuffled(WORDS), applied=st.permutations("xyz")
)
def test_decisions_do_not_depend_on_the_order_of_dictionaries(env, ports, labels, applied) -> None:
    worlds = []
    for n in (0, 1):
        world = World()
        world.join("a", "b", labels=labels[n])
        of = spec(env=env[n], ports={"http": 0, **ports[n]}, placement=Placement("server", labels[n]))
        world.apply(*(service(name, 2, of) for name in applied))
        world.report(world.cell("x/0.1").server, exited("x/0.1"))
        world.ask(ApplyGroups((service("y", 2, replace(of, command=("other",))),)))
        worlds.append(world)
    one, other = worlds
    assert (one.records, one.sent, one.core.fleet) == (other.records, other.sent, other.core.fleet)
    assert len(one.phases("x")) == 2


SPECS = st.builds(
    Spec,
    runtime=st.sampled_from(RuntimeKind),
    image=st.sampled_from(["", "hello:1", "hello:2"]),
    command=st.lists(WORDS, max_size=2).map(tuple),
    env=st.dictionaries(WORDS, WORDS, max_size=2),
    ports=st.dictionaries(WORDS, st.integers(0, 3), max_size=2),
    writable=st.lists(WORDS, max_size=2).map(tuple),
)


@given(one=SPECS, other=SPECS)
def test_two_specs_have_one_digest_exactly_when_they_are_equal(one: Spec, other: Spec) -> None:
    assert (digest_of(one) == digest_of(other)) is (one == other)


# --- ids ----------------------------------------------------------------------------------------------------------


@given(
    group=st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True), n=st.integers(0, 999_999_999)
)
def test_an_id_is_parsed_to_what_spelt_it(group: str, n: int) -> None:
    cell = CellId(group, n, n // 2)
    assert parse_cell_id(str(cell)) == cell


@given(st.text("ab/.019-", max_size=12))
def test_whatever_is_parsed_is_spelt_so(text: str) -> None:
    parsed = parse_cell_id(text)
    assert parsed is None or str(parsed) == text


# --- waits --------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 90), max_size=40))
def test_waits_never_pass_the_limit_and_never_shrink_while_deaths_go_on(gaps: list[int]) -> None:
    policy, now, backoff, waits = Policy(), NOW, Backoff(), [0.0]
    for gap in gaps:
        now += gap
        state = GroupState(service(), "d", 1, (), backoff=backoff)
        began = now >= backoff.not_before
        backoff = next_backoff(state, "d", now, policy)
        if began:
            waits.append(max(0.0, backoff.not_before - now))
        assert backoff.not_before - now <= policy.backoff_limit_seconds
    assert waits == sorted(waits)
    assert backoff.early_deaths == len(gaps)


# --- placement ----------------------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(0, 6), min_size=1, max_size=6),
    steps=st.lists(
        st.tuples(st.sampled_from(["web", "api", "frees", "turn"]), st.integers(0, 50)), max_size=40
    ),
)
def test_a_placer_chooses_what_a_walk_over_all_servers_would(
    sizes: list[int], steps: list[tuple[str, int]]
) -> None:
    """Spread, in which cells only ever make a server worse: what became better is told to ``touch``."""
    of = spec(resources=Resources(memory_bytes=1))
    servers = [
        Server(f"s{number}", 1, Phase.READY, capacity=Resources(0, size), runtimes=(RuntimeKind.PROCESS,))
        for number, size in enumerate(sizes)
    ]
    fleet = Fleet(servers=HashTrieMap((one.id, one) for one in servers))
    sight = Sight(servers=HashTrieMap((one.id, ServerSight("s1", 0.0, NOW)) for one in servers))
    groups = {name: GroupState(service(name, 9, of), digest_of(of), 1, ()) for name in ("web", "api")}
    cells: list[tuple[str, str]] = []
    placer = Placer()
    placer.begin(lambda: fleet, sight, NOW, Policy())

    def account(group: str, server: str, by: int) -> None:
        nonlocal fleet
        one, state = fleet.servers[server], groups[group]
        grown = replace(one, used=Resources(0, one.used.memory_bytes + by))
        fleet = replace(fleet, servers=fleet.servers.insert(server, grown))
        count = (state.per_server.get(server) or 0) + by
        groups[group] = replace(state, per_server=state.per_server.insert(server, count))

    for step, number in steps:
        if step == "frees" and cells:
            group, server = cells.pop(number % len(cells))
            account(group, server, -1)
            placer.touch(server)
            placer.begin(lambda: fleet, sight, NOW, Policy())
        elif step in groups:
            chosen = placer.place(groups[step], of)
            assert chosen == _by_walking(fleet, groups[step])
            if isinstance(chosen, str):
                account(step, chosen, 1)
                cells.append((step, chosen))


def _by_walking(fleet: Fleet, state: GroupState) -> str | Unplaceable:
    ranked = []
    full = 0
    for server in fleet.servers.values():
        size, used = server.capacity.memory_bytes, server.used.memory_bytes
        if size and used >= size:
            full += 1
            continue
        ranked.append((state.per_server.get(server.id) or 0, used / size if size else 0.0, server.id))
    if ranked:
        return min(ranked)[-1]
    return Unplaceable(full, (("has too little memory (1 B needed)", full),))


# --- sight --------------------------------------------------------------------------------------------------------


REPORTS = st.lists(
    st.builds(CellReport, st.sampled_from(["web/0.1", "web/1.1"]), st.just("d"), st.sampled_from(CellState)),
    max_size=2,
).map(tuple)
OBSERVATIONS = st.one_of(
    st.builds(
        Attached, st.sampled_from("ab"), st.sampled_from("st"), st.just(NOW), st.just(ServerFacts()), REPORTS
    ),
    st.builds(
        Reported,
        st.sampled_from("ab"),
        st.sampled_from("st"),
        st.integers(1, 6),
        st.floats(NOW, NOW + 9),
        REPORTS,
        st.none(),
        st.booleans(),
    ),
    st.builds(Detached, st.sampled_from("ab"), st.sampled_from("st"), st.just(NOW)),
)


@given(st.lists(OBSERVATIONS, max_size=20))
def test_no_observation_twice_changes_what_is_seen_and_none_touches_another_server(history) -> None:
    sight = Sight()
    for observation in history:
        after = observe(sight, observation).sight
        again = observe(after, observation)
        assert again.sight == after
        if isinstance(observation, Reported | Detached):
            assert (again.cells, again.servers, again.everything) == ((), (), False)
        other = "b" if observation.server == "a" else "a"
        assert after.servers.get(other) is sight.servers.get(other)
        sight = after
