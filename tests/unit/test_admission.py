"""What is asked of the core is admitted whole or refused whole, each refusal by its rule and in words for people."""

import pytest

from galactica.scheduler.core.admission import admit, differences
from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.fleet import Fleet, Phase
from galactica.scheduler.core.model.keys import ServerKey, SlotKey
from galactica.scheduler.core.model.requests import (
    Accepted,
    ApplyGroups,
    Asker,
    CondemnCell,
    CreateToken,
    DeleteGroup,
    DrainServer,
    Enrol,
    EnrolOperator,
    GroupChange,
    RecordRefusal,
    Refused,
    Request,
)
from galactica.scheduler.core.model.spec import HealthSpec, Placement, Resources, TcpProbe, digest_of
from galactica.scheduler.core.model.verdict import Health
from tests.support.admission_world import WRONG, draft_of, full_of_tokens, two_ready
from tests.support.world import SECRET, START, World, running, service, spec

ONE, TWO = digest_of(spec("1")), digest_of(spec("2"))


def sick_one() -> World:
    """web/0.1 is condemned and waits for a successor that boots."""
    world = two_ready()
    world.obedient = False
    world.report(world.cell("web/0.1").server, running("web/0.1", failures=3))
    return world


def drained() -> World:
    world = World()
    world.join("a")
    world.apply(service())
    world.ask(DrainServer("a"))
    return world


def expired() -> World:
    world = World()
    world.ask(CreateToken("t", SECRET, 1, world.now + 10))
    world.now += 10
    return world


def with_token() -> World:
    world = two_ready()
    world.ask(CreateToken("t", SECRET, 2, world.now + 10))
    return world


TOKEN = "the join token is unknown, wrong or used up; ask an operator for a new one"

REFUSALS = [
    (
        two_ready,
        ApplyGroups((service("api", 1), service("huge", 1_000_000))),
        ("too_many_cells", "too many cells wanted: 1000003; the limit is 1000000", False),
    ),
    (
        two_ready,
        ApplyGroups(tuple(service(f"g{number}", 0) for number in range(10_000))),
        ("too_many_groups", "too many groups: 10001; the limit is 10000", False),
    ),
    (two_ready, DeleteGroup("api"), ("no_such_group", "no such group: api", True)),
    (
        two_ready,
        CondemnCell("web/2.1"),
        ("no_such_cell", "no such cell: web/2.1 (or it is already decommissioned)", True),
    ),
    (
        two_ready,
        CondemnCell("web"),
        ("no_such_cell", "no such cell: web (or it is already decommissioned)", True),
    ),
    (
        sick_one,
        CondemnCell("web/0.1"),
        ("condemned", "web/0.1 is already condemned, by rule probe_failed", False),
    ),
    (two_ready, DrainServer("c"), ("no_such_server", "no such server: c", True)),
    (
        drained,
        DrainServer("a"),
        ("not_ready", "server a is CONDEMNED; only a READY server can be drained", False),
    ),
    (
        full_of_tokens,
        CreateToken("one", SECRET, 1, START + 10),
        ("too_many_tokens", "too many open join tokens: 10000; wait until some are used or expire", False),
    ),
    (two_ready, Enrol("nobody", SECRET, "c"), ("token", TOKEN, False)),
    (with_token, Enrol("t", WRONG, "c"), ("token", TOKEN, False)),
    (
        expired,
        Enrol("t", SECRET, "c"),
        ("token", "the join token has expired; ask an operator for a new one", False),
    ),
    (expired, Enrol("t", WRONG, "c"), ("token", TOKEN, False)),
    (
        with_token,
        Enrol("t", SECRET, "a"),
        (
            "server_exists",
            (
                "this fleet already has a server with the id a (READY); "
                "choose another id with --id, or wait until that server is lost"
            ),
            False,
        ),
    ),
]


@pytest.mark.parametrize(
    ("of", "request_", "refusal"), REFUSALS, ids=lambda x: x[0] if isinstance(x, tuple) else ""
)
def test_each_refusal_names_its_rule_and_decides_nothing(
    of, request_: Request, refusal: tuple[str, str, bool]
) -> None:
    world = of()
    draft = draft_of(world.core.fleet, world.now)
    with pytest.raises(Refused) as refused:
        admit(draft, request_, Asker.operator("ann"))
    assert (refused.value.rule, str(refused.value), refused.value.missing) == refusal
    assert (draft.records, draft.commands, draft.fleet is world.core.fleet) == ([], [], True)


def test_what_is_refused_changes_nothing_in_the_world() -> None:
    world = two_ready()
    fleet, records = world.core.fleet, len(world.records)
    with pytest.raises(Refused):
        world.apply(service("api", 1), service("huge", 1_000_000))
    assert (world.core.fleet, len(world.records)) == (fleet, records)


def test_a_refusal_does_not_hinder_what_was_asked_beside_it() -> None:
    world = two_ready()
    draft = draft_of(world.core.fleet)
    with pytest.raises(Refused):
        admit(draft, DeleteGroup("api"), Asker.operator("ann"))
    admitted = admit(draft, DeleteGroup("web"), Asker.operator("ann"))
    assert admitted.accepted == Accepted(world.core.fleet.position + 1, 2)


# --- applying -----------------------------------------------------------------------------------------------------


def test_applying_says_what_it_means_for_each_group_and_which_slots_to_look_at() -> None:
    world = two_ready()
    position = world.core.fleet.position
    draft = draft_of(world.core.fleet)
    groups = (service("web", 2), service("api", 1), service("db", 0))
    admitted = admit(draft, ApplyGroups(groups), Asker.operator("ann"))
    changes = (
        GroupChange("web", "unchanged", 1, ONE),
        GroupChange("api", "created", 1, ONE),
        GroupChange("db", "created", 1, ONE),
    )
    assert admitted.accepted == Accepted(position + 2, 1, changes)
    assert admitted.dirty == {SlotKey("api", 0): f"event:{position + 1}"}
    assert [(record.cause, record.event) for record in draft.records] == [
        ("operator:ann", e.GroupApplied(service("api", 1), ONE, 1)),
        ("operator:ann", e.GroupApplied(service("db", 0), ONE, 1)),
    ]


def test_a_changed_group_tells_each_difference_and_a_new_revision_only_for_a_new_spec() -> None:
    world = two_ready()
    scaled = world.apply(service("web", 3))
    assert scaled.changes == (GroupChange("web", "changed", 1, ONE, ("replicas: 2 -> 3",)),)
    changed = world.apply(service("web", 3, spec("2")))
    assert changed.changes == (GroupChange("web", "changed", 2, TWO, ("spec.command: serve 1 -> serve 2",)),)
    back = world.apply(service("web", 3))
    assert back.changes == (GroupChange("web", "changed", 3, ONE, ("spec.command: serve 2 -> serve 1",)),)


def test_fewer_replicas_and_deletion_look_at_empty_slots_too_so_that_nothing_stays_held_for_them() -> None:
    nowhere = spec(placement=Placement(require={"zone": "nowhere"}))
    world = World()
    world.join("a")
    world.apply(service("web", 3, nowhere))
    assert len(world.core.view(world.now).holds) == 3
    world.apply(service("web", 1, nowhere))
    assert [hold.key for hold in world.core.view(world.now).holds] == [SlotKey("web", 0)]
    assert world.ask(DeleteGroup("web")).cells == 0
    assert world.core.view(world.now).holds == ()


def test_a_deleted_group_that_is_applied_again_while_its_cells_end_is_a_change() -> None:
    world = two_ready()
    world.obedient = False
    world.ask(DeleteGroup("web"))
    with pytest.raises(Refused, match="no such group: web"):
        world.ask(DeleteGroup("web"))
    assert [change.change for change in world.apply(service("web", 2)).changes] == ["changed"]
    assert {cell: phase for cell, phase in world.phases().items() if phase is Phase.ORDERED} == {
        "web/0.2": Phase.ORDERED,
        "web/1.2": Phase.ORDERED,
    }


def test_values_of_the_environment_are_never_shown_in_differences() -> None:
    before = service(of=spec(env={"PASSWORD": "hunter2", "OLD": "secret1", "SAME": "secret2"}))
    after = service(of=spec(env={"PASSWORD": "hunter3", "NEW": "secret3", "SAME": "secret2"}))
    lines = differences(before, after)
    assert lines == ("spec.env.NEW: changed", "spec.env.OLD: changed", "spec.env.PASSWORD: changed")
    only_env = differences(service(), after)
    assert not [line for line in only_env if "hunter" in line or "secret" in line]


def test_each_kind_of_difference_is_told_by_its_path() -> None:
    after = spec(
        resources=Resources(cpu_millis=500),
        ports={"http": 80, "admin": 0},
        placement=Placement("none", {"zone": "a"}),
        health=HealthSpec(probe=TcpProbe("http"), boot_within_seconds=30.0),
    )
    assert differences(service(), service(of=after)) == (
        "spec.health.probe.path: / -> -",
        "spec.health.probe.type: http -> tcp",
        "spec.placement.require.zone: - -> a",
        "spec.placement.spread: server -> none",
        "spec.ports.admin: - -> 0",
        "spec.ports.http: 0 -> 80",
        "spec.resources.cpu_millis: - -> 500",
    )


# --- the other verbs ----------------------------------------------------------------------------------------------


def test_condemning_and_draining_leave_their_certificate() -> None:
    world = two_ready()
    draft = draft_of(world.core.fleet)
    position = draft.fleet.position
    on = world.cell("web/0.1").server
    condemned = admit(draft, CondemnCell("web/0.1"), Asker.operator("ann"))
    drained = admit(draft, DrainServer(on), Asker.operator("bob"))
    assert condemned.accepted == Accepted(position + 1, 1)
    assert condemned.dirty == {SlotKey("web", 0): "operator:ann"}
    assert drained.accepted == Accepted(position + 2, 1)
    assert drained.dirty == {ServerKey(on): "operator:bob", SlotKey("web", 0): "operator:bob"}
    assert [(record.cause, record.event) for record in draft.records] == [
        (
            "operator:ann",
            e.CellCondemned(
                "web/0.1",
                Health.HEALTHY,
                "operator",
                "condemned by ann",
                budget="an operator's request needs no budget; the replacement comes first",
            ),
        ),
        ("operator:bob", e.ServerCondemned(on, Health.HEALTHY, "operator", "drained by bob")),
    ]


@pytest.mark.parametrize(
    ("request_", "event"),
    [
        (EnrolOperator("ann", "admin", 9.0), e.OperatorEnrolled("ann", "admin", 9.0)),
        (RecordRefusal("eve", "viewer", "Apply"), e.CallRefused("eve", "viewer", "Apply")),
        (CreateToken("t", SECRET, 2, START + 9), e.TokenCreated("t", SECRET, 2, START + 9)),
    ],
)
def test_what_only_has_to_be_known_is_recorded(request_: Request, event: e.AnyEvent) -> None:
    draft = draft_of(Fleet())
    admitted = admit(draft, request_, Asker.operator("ann"))
    assert (admitted.accepted, admitted.dirty) == (Accepted(1), {})
    assert [record.event for record in draft.records] == [event]
