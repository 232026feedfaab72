"""What readers are shown, from a small world that the real core decides on."""

import pytest
from msgspec.structs import replace

from galactica.scheduler.core.model.events import SCHEMA_VERSION
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.requests import Asker, CondemnCell, DeleteGroup, DrainServer, OpenShell
from galactica.scheduler.views import cells as views
from galactica.scheduler.views import certificates as history
from galactica.scheduler.views import events as events_views
from galactica.scheduler.views import servers as server_views
from galactica.scheduler.views import status as status_views
from galactica.v1 import cell_pb2, operator_pb2
from tests.support.world import START, World, exited, gone, running, service, spec, starting


def world_of(*groups, servers=("a", "b"), **options):
    world = World(**options)
    world.join(*servers)
    if groups:
        world.apply(*groups)
    return world


def view(world):
    return world.core.view(world.now)


def status(world):
    return status_views.status(view(world), "alpha")


def group(world, name="web"):
    return next(row for row in status(world).groups if row.name == name)


def row(world, cell_id):
    return next(cell for cell in views.cells(view(world), with_graves=True) if cell.id == cell_id)


def certificate(world, cell_id, *, forgotten=False):
    def of(wanted):
        return [record for record in world.records if getattr(record.event, "cell", "") == wanted]

    name, _, generation = cell_id.rpartition(".")
    successor = f"{name}.{int(generation) + 1}"
    seen = view(world)
    if forgotten:
        seen = view(World(fleet=type(seen.fleet)()))
    return history.certificate(seen, cell_id, of(cell_id), of(successor))


def _as_if_all_ready(fleet):
    state = fleet.groups["web"]
    return replace(
        fleet, groups=fleet.groups.insert("web", replace(state, tally=replace(state.tally, ready=3)))
    )


class TestStatus:
    def test_fleet_without_groups_is_healthy(self):
        assert status(world_of(servers=())) == operator_pb2.GetStatusResponse(
            fleet="alpha", healthy=True, position=1, epoch=1
        )

    @pytest.mark.parametrize(
        ("off_seconds", "where"),
        [(40 * 86_400.0, "40d behind"), (-3_660.0, "1h 1m ahead of"), (59.0, ""), (-59.0, "")],
    )
    def test_a_wall_clock_that_was_set_since_is_told(self, off_seconds, where):
        world = world_of()
        shown = status_views.status(view(world), "alpha", wall=world.now + off_seconds)
        words = "the scheduler's wall clock, which was set since a scheduler started"
        told = [f"times in the journal are {where} {words}; ages, waits and leases are right"]
        assert (shown.notes, shown.healthy) == (told if where else [], True)

    def test_fleet_that_has_all_it_wants_is_healthy(self):
        world = world_of(service("web", 3), service("api", 1))
        shown = status(world)
        assert shown.healthy
        assert list(shown.groups) == [
            operator_pb2.GroupStatus(kind="service", name="api", wanted=1, ready=1, revision=1),
            operator_pb2.GroupStatus(kind="service", name="web", wanted=3, ready=3, revision=1),
        ]

    def test_cells_that_boot_make_it_unhealthy(self):
        world = world_of(service("web", 2), obedient=False)
        world.report("a", starting("web/0.1"))
        assert (status(world).healthy, group(world).booting) == (False, 2)

    def test_sick_cell_that_waits_for_its_successor_counts_as_sick(self):
        world = world_of(service("web", 2), servers=("a",))
        world.obedient = False
        world.report("a", running("web/0.1", failures=3))
        assert group(world) == operator_pb2.GroupStatus(
            kind="service", name="web", wanted=2, ready=1, booting=1, sick=1, revision=1
        )
        assert not status(world).healthy

    def test_dead_cell_that_the_journal_cannot_record_is_not_called_ready(self):
        world = world_of(service("web", 2), servers=("a",))
        world.journal_refuses = "disk full"
        world.report("a", exited("web/0.1"))
        shown = status(world)
        assert (group(world).ready, group(world).sick, shown.healthy) == (1, 1, False)
        assert [(hold.group, hold.rule, hold.reason) for hold in shown.held] == [("", "journal", "disk full")]

    def test_what_is_held_is_one_line_per_group_and_rule(self):
        world = world_of(service("web", 3, spec(placement=spec().placement)), servers=())
        (hold,) = status(world).held
        assert (hold.group, hold.rule, hold.slots) == ("web", "no_capacity", 3)
        assert hold.next_look_at == pytest.approx(world.now + Policy().relook_seconds)
        assert not status(world).healthy

    def test_new_revision_is_unhealthy_until_the_last_old_cell_is_replaced(self):
        world = world_of(service("web", 2))
        world.obedient = False
        world.apply(service("web", 2, spec("2")))
        assert not status(world).healthy
        world.obedient = True
        world.until(lambda: status(world).healthy)
        assert group(world) == operator_pb2.GroupStatus(
            kind="service", name="web", wanted=2, ready=2, revision=2
        )

    def test_cells_of_an_older_revision_make_it_unhealthy_though_they_serve(self):
        world = world_of(service("web", 3))
        world.obedient = False
        world.apply(service("web", 3, spec("2")))
        seen = replace(view(world), holds=())
        assert not status_views.status(replace(seen, fleet=_as_if_all_ready(seen.fleet)), "alpha").healthy

    def test_what_is_held_makes_it_unhealthy_though_all_is_ready(self):
        world = world_of(service("web", 1), servers=("a",))
        world.ask(DrainServer("a"))
        shown = status(world)
        assert (group(world).ready, shown.held[0].rule, shown.healthy) == (1, "no_capacity", False)

    def test_service_that_is_deleted_is_shown_until_its_last_cell_is_gone(self):
        world = world_of(service("web", 2))
        world.obedient = False
        world.ask(DeleteGroup("web"))
        assert (group(world).wanted, group(world).sick) == (0, 2)
        world.report("a", gone("web/0.1"), gone("web/1.1"))
        world.report("b", gone("web/0.1"), gone("web/1.1"))
        assert list(status(world).groups) == []


class TestCells:
    def test_cells_are_told_by_group_slot_and_generation(self):
        world = world_of(service("web", 11), service("api", 1))
        names = [cell.id for cell in views.cells(view(world))]
        assert names == ["api/0.1", *(f"web/{slot}.1" for slot in range(11))]

    def test_ready_cell_shows_where_it_answers(self):
        world = world_of(service("web", 1), servers=("a",))
        shown = row(world, "web/0.1")
        cell = world.cell("web/0.1")
        assert shown == operator_pb2.Cell(
            id="web/0.1",
            group="web",
            slot=0,
            generation=1,
            kind="container",
            serving=True,
            phase="READY",
            verdict="healthy",
            reason="it runs",
            server="a",
            digest=cell.digest,
            revision=1,
            ordered_at=START,
            ready_at=START,
            endpoints={"http": "127.0.0.1:8080"},
            runtime_id="pid",
        )

    def test_booting_cell_shows_what_its_agent_does(self):
        world = world_of(service("web", 1), servers=("a",), obedient=False)
        report = starting("web/0.1")
        world.report("a", type(report)(report.cell, report.digest, report.state, progress="pulling, 40 %"))
        shown = row(world, "web/0.1")
        assert (shown.phase, shown.verdict, shown.progress) == ("BOOTING", "healthy", "pulling, 40 %")

    def test_condemned_cell_keeps_its_verdict_when_its_probe_turns_green(self):
        world = world_of(service("web", 1), servers=("a",))
        world.obedient = False
        world.report("a", running("web/0.1", failures=3))
        world.report("a", running("web/0.1"))
        shown = row(world, "web/0.1")
        assert (shown.phase, shown.verdict, shown.reason) == ("CONDEMNED", "sick", "probe_failed")
        assert shown.replaced_by == "web/0.2"

    def test_decommissioned_cells_are_shown_only_when_asked_for(self):
        world = world_of(service("web", 1), servers=("a",))
        world.report("a", exited("web/0.1"))
        assert [cell.id for cell in views.cells(view(world))] == ["web/0.2"]
        assert [cell.id for cell in views.cells(view(world), with_graves=True)] == ["web/0.1", "web/0.2"]
        assert row(world, "web/0.1").decommissioned_at == START

    def test_cells_of_one_group_can_be_asked_for(self):
        world = world_of(service("web", 1), service("api", 1))
        assert [cell.id for cell in views.cells(view(world), "api")] == ["api/0.1"]


class TestServers:
    def test_server_shows_what_it_is_has_and_carries(self):
        world = World()
        world.join("a", labels={"zone": "x"}, memory_bytes=100)
        world.apply(service("web", 2))
        (shown,) = server_views.servers(view(world))
        assert shown == operator_pb2.Server(
            id="a",
            phase="READY",
            verdict="healthy",
            reason="it sends heartbeats",
            labels={"zone": "x"},
            runtimes=["process", "docker"],
            capacity=cell_pb2.Capacity(memory_bytes=100),
            used=cell_pb2.Capacity(),
            cells=["web/0.1", "web/1.1"],
            last_beat_at=START,
            evidence=[operator_pb2.Evidence(source="agent a", says="it sends heartbeats", at=START)],
        )

    def test_silent_server_is_suspect_and_then_dead(self):
        world = world_of(servers=("a",))
        world.now += 3.0
        (suspect,) = server_views.servers(view(world))
        world.now += 3.0
        (dead,) = server_views.servers(view(world))
        assert (suspect.verdict, dead.verdict) == ("suspect", "dead")

    def test_server_that_enrolled_and_never_attached_has_no_beat(self):
        world = world_of(servers=("a",)).crash()
        (shown,) = server_views.servers(view(world))
        assert not shown.HasField("last_beat_at")

    def test_drained_server_shows_its_phase(self):
        world = world_of(service("web", 1), servers=("a",))
        world.ask(DrainServer("a"))
        (shown,) = server_views.servers(view(world))
        assert shown.phase == "CONDEMNED"


class TestCertificate:
    def test_cell_that_nobody_ordered_has_none(self):
        assert certificate(world_of(), "web/0.1") is None

    def test_condemned_by_an_operator(self):
        world = world_of(service("web", 1), servers=("a",))
        world.ask(CondemnCell("web/0.1", "too slow"), Asker.operator("ann"))
        shown = certificate(world, "web/0.1")
        assert (shown.rule, shown.verdict, shown.cause, shown.cell.reason) == (
            "operator",
            "healthy",
            "operator:ann",
            "condemned by ann: too slow",
        )
        assert shown.replaced_by == "web/0.2"
        assert certificate(world, "web/0.2").replaces == ""  # it lives: no death to certify
        assert certificate(world, "web/0.2").cell.replaces == "web/0.1"

    def test_what_holds_the_successor_is_told(self):
        world = world_of(service("web", 1), servers=("a",))
        world.obedient = False
        world.report("a", exited("web/0.1"))
        world.report("a", exited("web/0.2"))
        shown = certificate(world, "web/0.2")
        assert [hold.rule for hold in shown.held] == ["backoff"]

    def test_cell_that_the_fleet_forgot_is_told_by_the_journal(self):
        world = world_of(service("web", 1), servers=("a",))
        world.report("a", exited("web/0.1"))
        remembered = certificate(world, "web/0.1")
        forgotten = certificate(world, "web/0.1", forgotten=True)
        assert forgotten == remembered


class TestTouched:
    def test_a_cell_that_is_touched_and_may_stay_is_told_as_touched(self):
        world = world_of(replace(service("web", 1), replace_touched=False), servers=("a",))
        world.report("a", replace(running("web/0.1"), touched=("file /etc/motd was changed",)))
        shown = row(world, "web/0.1")
        assert (shown.phase, shown.verdict) == ("READY", "suspect")
        assert shown.reason == "touched: file /etc/motd was changed"
        (fact,) = certificate(world, "web/0.1").evidence
        assert (fact.source, fact.says) == ("agent a", "file /etc/motd was changed")

    def test_a_cell_with_a_shell_is_shown_as_touched(self):
        world = world_of(service("web", 2))
        before = row(world, "web/0.1")
        assert before.endpoints

        world.ask(OpenShell("web/0.1"))
        world.now += 60.0
        shown = row(world, "web/0.1")
        assert (shown.phase, shown.reason, shown.endpoints) == ("CONDEMNED", "touched", before.endpoints)
        (fact,) = certificate(world, "web/0.1").evidence
        assert (fact.source, fact.says, fact.at) == ("scheduler", "a shell was opened in it", START)
        assert dict(row(world, "web/1.1").endpoints) == dict(before.endpoints)


class TestEvents:
    def test_event_tells_its_subject_cause_and_the_rest_as_json(self):
        world = world_of(service("web", 1), servers=("a",))
        record = next(r for r in world.records if type(r.event).__name__ == "CellReady")
        assert events_views.event_row(record) == operator_pb2.Event(
            position=record.position,
            at=START,
            type="CellReady",
            cell="web/0.1",
            group="web",
            cause="report:a",
            schema=SCHEMA_VERSION,
            details_json='{"endpoints": {"http": "127.0.0.1:8080"}, "runtime_id": "pid"}',
        )

    def test_values_of_an_environment_are_not_told(self):
        world = world_of(service("web", 1, spec(env={"PASSWORD": "hunter2"})))
        record = next(r for r in world.records if type(r.event).__name__ == "GroupApplied")
        shown = events_views.event_row(record)
        assert shown.group == "web"
        assert '"PASSWORD": "(not shown)"' in shown.details_json
        assert "hunter2" not in shown.details_json
