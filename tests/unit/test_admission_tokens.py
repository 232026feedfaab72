"""What is admitted: join tokens and enrolments, shells, and what a name may be used for."""

from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from galactica.scheduler.core import admission
from galactica.scheduler.core.admission import admit, differences
from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.fleet import Fleet, Phase
from galactica.scheduler.core.model.keys import ServerKey, SlotKey
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.requests import (
    Accepted,
    Asker,
    CondemnCell,
    CreateToken,
    DeleteGroup,
    DrainServer,
    Enrol,
    OpenShell,
    Refused,
)
from tests.support.admission_world import WRONG, draft_of, full_of_tokens, two_ready
from tests.support.world import SECRET, START, World, pool, service

# --- tokens -------------------------------------------------------------------------------------------------------


def enrol_all(world: World, servers: Sequence[str]) -> list[str]:
    """Who was admitted."""
    admitted = []
    for server in servers:
        try:
            world.ask(Enrol("t", SECRET, server), Asker.server(server))
        except Refused:
            continue
        admitted.append(server)
    return admitted


@pytest.mark.parametrize("uses", [1, 2, 3])
def test_a_token_admits_as_many_servers_as_it_has_uses(uses: int) -> None:
    world = World()
    world.ask(CreateToken("t", SECRET, uses, world.now + 10))
    assert enrol_all(world, "abcd") == list("abcd")[:uses]
    assert sorted(world.core.fleet.servers) == list("abcd")[:uses]
    assert list(world.core.fleet.tokens) == []


def test_a_wrong_secret_and_an_unknown_token_cannot_be_told_apart_and_use_nothing_up() -> None:
    world = World()
    world.ask(CreateToken("t", SECRET, 1, world.now + 10))
    answers = []
    for token in ("t", "unknown"):
        with pytest.raises(Refused) as refused:
            world.ask(Enrol(token, WRONG, "a"))
        answers.append((refused.value.rule, str(refused.value), refused.value.missing))
    assert answers[0] == answers[1]
    assert enrol_all(world, "a") == ["a"]


def test_a_token_that_was_never_made_is_not_opened_by_the_empty_secret() -> None:
    with pytest.raises(Refused):
        World().ask(Enrol("t", "0" * 64, "a"))


def test_a_token_admits_until_it_expires() -> None:
    world = World()
    world.ask(CreateToken("t", SECRET, 5, world.now + 10))
    world.now += 9.999
    assert enrol_all(world, "a") == ["a"]
    world.now += 0.001
    assert enrol_all(world, "b") == []


def test_expired_tokens_leave_room_for_new_ones() -> None:
    world = full_of_tokens()
    world.now += 10
    world.ask(CreateToken("one", SECRET, 1, world.now + 10))
    assert list(world.core.fleet.tokens) == ["one"]


def test_a_server_that_enrolled_may_enrol_again_until_it_attached_and_after_it_is_gone() -> None:
    world = World()
    world.ask(CreateToken("t", SECRET, 5, world.now + 100))
    assert enrol_all(world, "aa") == ["a", "a"]
    world.attach("a")
    assert enrol_all(world, "a") == []
    world.ask(DrainServer("a"))
    assert world.core.fleet.servers["a"].phase is Phase.DECOMMISSIONED
    assert enrol_all(world, "a") == ["a"]
    assert (world.core.fleet.servers["a"].phase, world.core.fleet.servers["a"].generation) == (Phase.READY, 2)


def test_enrolment_looks_at_its_server_alone() -> None:
    draft = draft_of(Fleet())
    admit(draft, CreateToken("t", SECRET, 1, START + 9), Asker.operator("ann"))
    admitted = admit(draft, Enrol("t", SECRET, "a"), Asker.server("a"))
    assert admitted == admission.Admitted(Accepted(2), {ServerKey("a"): "server:a"})


def test_a_shell_begins_the_cells_death_timer_and_a_second_one_does_not_put_it_off() -> None:
    draft = draft_of(two_ready().core.fleet, START)
    admitted = admit(draft, OpenShell("web/0.1"), Asker.operator("ann"))
    assert admitted.dirty == {SlotKey("web", 0): "operator:ann"}
    later = draft_of(draft.fleet, START + 60)
    admit(later, OpenShell("web/0.1"), Asker.operator("bob"))
    opened = [record.event for record in (*draft.records, *later.records)]
    dies_at = START + Policy().shell_seconds
    assert opened == [e.ShellOpened("web/0.1", "ann", dies_at), e.ShellOpened("web/0.1", "bob", dies_at)]
    assert later.fleet.cell("web/0.1").dies_at == dies_at
    assert later.fleet.cell("web/1.1").dies_at is None


def test_a_shell_in_a_cell_that_is_not_there_is_refused() -> None:
    with pytest.raises(Refused, match="no such cell: web/9\\.9 \\(or it is already decommissioned\\)"):
        admit(draft_of(two_ready().core.fleet), OpenShell("web/9.9"), Asker.operator("ann"))


def test_age_drift_and_exclusion_are_told_as_differences() -> None:
    before = service("web", 2)
    after = replace(
        before, max_age_seconds=3_600.0, replace_touched=False, spec=replace(before.spec, exclusive=True)
    )
    assert differences(before, after) == (
        "max_age_seconds: 0.0 -> 3600.0",
        "replace_touched: True -> False",
        "spec.exclusive: False -> True",
    )


def test_a_name_is_of_one_kind_for_as_long_as_anything_of_it_is_there() -> None:
    world = two_ready()
    with pytest.raises(
        Refused, match="the name web already belongs to a service; delete the service first"
    ) as no:
        world.apply(service("api", 1), pool("web", 1))
    assert (no.value.rule, world.phases("api")) == ("name_taken", {})
    world.obedient = False
    world.ask(DeleteGroup("web"))
    with pytest.raises(Refused, match="wait until its last cell is gone"):
        world.apply(pool("web", 1))


def test_a_name_is_free_for_another_kind_once_all_of_it_is_gone() -> None:
    world = two_ready()
    world.ask(DeleteGroup("web"))
    assert [change.change for change in world.apply(pool("web", 1)).changes] == ["created"]


def test_condemning_a_server_that_joined_by_itself_names_the_verb_for_it() -> None:
    with pytest.raises(Refused, match="remove it with: galactica drain a") as no:
        two_ready().ask(CondemnCell("a"))
    assert no.value.rule == "is_server"
