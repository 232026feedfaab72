"""Any history at all: servers come and go, cells fall ill and die, operators change their minds, the scheduler dies."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from galactica.scheduler.core.model.commands import Command, Decommission, Order
from galactica.scheduler.core.model.events import CellDraining, Record
from galactica.scheduler.core.model.fleet import Fleet, Phase
from galactica.scheduler.core.model.keys import Key, OrphanKey, ServerKey, SlotKey
from galactica.scheduler.core.model.requests import (
    CondemnCell,
    CreateToken,
    DeleteGroup,
    DrainServer,
    Enrol,
    Refused,
)
from galactica.scheduler.core.sight.observations import CellReport, CellState
from galactica.scheduler.core.transitions import apply
from galactica.scheduler.journal.snapshot import decode, encode
from tests.property.laws import cells_in, cells_of, check_fleet, check_step, waits
from tests.support.folding import apply_all, reconcile
from tests.support.world import SECRET, World, exited, gone, running, service, spec, starting

SERVERS = st.sampled_from("abcd")
GROUPS = st.sampled_from(["web", "api"])
CALM_SECONDS = 130.0


class AnyHistory(RuleBasedStateMachine):
    """``bodies``: what really runs on each server, as its agent would report it."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(obedient=False)
        self.bodies: dict[str, dict[str, CellReport]] = {name: {} for name in "abcde"}
        self.history: list[Record] = []
        self.replayed = Fleet()
        self.pending: list[tuple[str, Command]] = []
        self.read = self.sent = 0

    @initialize()
    def begin(self) -> None:
        self.world.join("a", "b")
        self.world.apply(service("web", 6))
        self._learn()
        for _, command in self.pending:
            self._obey(command)
            self._show(command.server, running(command.cell))
        self.pending.clear()

    # --- the outside ----------------------------------------------------------------------------------------------

    @rule(name=SERVERS)
    def agent_attaches(self, name: str) -> None:
        self._enrolled(name)
        self.world.attach(name, *self.bodies[name].values())

    @rule(name=SERVERS)
    def agent_leaves(self, name: str) -> None:
        if self._is_open(name):
            self.world.detach(name)

    @rule(name=SERVERS)
    def machine_dies(self, name: str) -> None:
        self.bodies[name].clear()
        self.agent_leaves(name)

    @rule(keep=st.sampled_from([0, 0, 1, 3]), boots=st.booleans())
    def agents_obey(self, keep: int, boots: bool) -> None:
        """All but the newest few commands arrive; what is ordered boots first, or runs at once."""
        for _ in range(max(0, len(self.pending) - keep)):
            session, command = self.pending.pop(0)
            seen = self.world.core.sight.servers[command.server]
            if seen.is_open and seen.session == session:
                self._obey(command)
                if isinstance(command, Order) and not boots:
                    self._show(command.server, running(command.cell))

    @rule(data=st.data(), fate=st.sampled_from(["runs", "runs", "exits", "ill", "green"]))
    def something_happens_to_a_cell(self, data: st.DataObject, fate: str) -> None:
        alive = [
            (name, cell)
            for name, cells in self.bodies.items()
            for cell, body in cells.items()
            if body.state in (CellState.STARTING, CellState.RUNNING)
        ]
        if not alive:
            return
        name, cell = data.draw(st.sampled_from(alive))
        report = {"exits": exited(cell), "ill": running(cell, failures=3)}.get(fate, running(cell))
        self._show(name, report)

    @rule(seconds=st.sampled_from([0.5, 2.0, 3.5, 6.0, 31.0]), beating=st.sets(SERVERS))
    def time_passes(self, seconds: float, beating: set[str]) -> None:
        end = self.world.now + seconds
        while self.world.now < end:
            self.world.now += 0.5
            for name in sorted(beating):
                if self._is_open(name):
                    self.world.report(name)
            self.world.settle()

    @rule()
    def scheduler_dies(self) -> None:
        self._learn()
        self.world = self.world.crash()
        self.pending.clear()
        self.read = self.sent = 0

    @rule()
    def disk_fills(self) -> None:
        self.world.journal_refuses = "disk full"

    @precondition(lambda self: self.world.journal_refuses)
    @rule()
    def disk_has_room_again(self) -> None:
        self.world.journal_refuses = ""
        self.world.now += 1.0
        self.world.settle()

    # --- operators ------------------------------------------------------------------------------------------------

    @rule(name=GROUPS, replicas=st.integers(0, 6), version=st.sampled_from("123"))
    def apply(self, name: str, replicas: int, version: str) -> None:
        self.world.apply(service(name, replicas, spec(version)))

    @rule(name=GROUPS)
    def delete(self, name: str) -> None:
        with suppress(Refused):
            self.world.ask(DeleteGroup(name))

    @rule(data=st.data())
    def condemn(self, data: st.DataObject) -> None:
        cells = sorted(cell.id for cell in cells_of(self.world.core.fleet))
        if cells:
            with suppress(Refused):
                self.world.ask(CondemnCell(data.draw(st.sampled_from(cells))))

    @rule(name=SERVERS)
    def drain(self, name: str) -> None:
        with suppress(Refused):
            self.world.ask(DrainServer(name))

    # --- what always holds ----------------------------------------------------------------------------------------

    @invariant()
    def each_step_was_legal_and_the_journal_says_it_all(self) -> None:
        self._learn()
        assert self.replayed == self.world.core.fleet

    @invariant()
    def deciding_again_at_the_same_moment_decides_nothing(self) -> None:
        core, now = self.world.core, self.world.now
        keys: dict[Key, str] = {ServerKey(name): "again" for name in core.fleet.servers}
        for name, state in core.fleet.groups.items():
            keys |= {SlotKey(name, number): "again" for number in {*state.slots, *range(state.wanted_slots)}}
        for name, seen in core.sight.servers.items():
            server = core.fleet.servers.get(name)
            if server and server.phase is Phase.READY:  # what a lost one shows is looked at when it returns
                orphans = [cell for cell in seen.reports if core.fleet.cell(cell) is None]
                keys |= {OrphanKey(name, cell): "again" for cell in orphans}
        first = reconcile(core.fleet, core.sight, keys, now, core.policy)
        if not self.world.journal_refuses:
            assert (first.records, first.commands) == ((), ())
        second = reconcile(first.fleet, first.sight, keys, now, core.policy)
        assert (second.records, second.commands) == ((), ())

    def teardown(self) -> None:
        """In calm the fleet becomes what is wanted, and the whole journal gives it again."""
        self.world.journal_refuses = ""
        self.world.now += 1.0
        self.world.settle()
        self.world.obedient = True
        for name in "abcde":  # the last one is new: all others may be drained
            self._enrolled(name)
            self.world.attach(name, *(running(cell) for cell in self.bodies[name]))
        end = self.world.now + CALM_SECONDS
        while self.world.now < end:
            self.world.now += 2.0
            self.world.beat()
        self._learn()
        fleet = self.world.core.fleet
        assert apply_all(Fleet(), self.history) == fleet
        assert decode(encode(fleet)) == fleet
        assert self.world.core.view(self.world.now).holds == ()
        for state in fleet.groups.values():
            cells = cells_in(state)
            assert {cell.slot for cell in cells} == set(range(state.wanted_slots))
            assert {(cell.phase, cell.digest) for cell in cells} <= {(Phase.READY, state.digest)}
            assert len(cells) == state.wanted_slots

    # --- how ------------------------------------------------------------------------------------------------------

    def _learn(self) -> None:
        """Replay what is durable and new, and note what was sent."""
        for record in self.world.records[self.read :]:
            after = apply(self.replayed, record)
            check_step(self.replayed, record, after, self.world.policy)
            check_fleet(after)
            self._proven_before_the_kill(record)
            self.replayed = after
            self.history.append(record)
        self.read = len(self.world.records)
        for command in self.world.sent[self.sent :]:
            self.pending.append((self.world.core.sight.servers[command.server].session, command))
        self.sent = len(self.world.sent)

    def _proven_before_the_kill(self, record: Record) -> None:
        """``replayed`` is still the fleet before the record."""
        event = record.event
        cell = self.replayed.cell(event.cell) if isinstance(event, CellDraining) else None
        if cell is None or not waits(cell):
            return
        state = self.replayed.groups[cell.group]
        body = self.bodies[cell.server].get(cell.id)
        lives = body is not None and body.state is CellState.RUNNING
        proven = any(other.phase is Phase.READY for other in state.slots[cell.slot].cells)
        assert proven or not lives or cell.slot >= state.wanted_slots

    def _is_open(self, name: str) -> bool:
        seen = self.world.core.sight.servers.get(name)
        return seen is not None and seen.is_open

    def _enrolled(self, name: str) -> None:
        server = self.world.core.fleet.servers.get(name)
        if server is None or (server.phase is Phase.DECOMMISSIONED and server.is_drained):
            self.world.ask(CreateToken("t" + name, SECRET, 1, self.world.now + 3600))
            with suppress(Refused):
                self.world.ask(Enrol("t" + name, SECRET, name))

    def _obey(self, command: Command) -> None:
        match command:
            case Order(server=server, cell=cell) if cell not in self.bodies[server]:
                self._show(server, starting(cell))
            case Decommission(server=server, cell=cell):
                self.bodies[server].pop(cell, None)
                self.world.report(server, gone(cell))

    def _show(self, name: str, report: CellReport) -> None:
        self.bodies[name][report.cell] = report
        if self._is_open(name):
            self.world.report(name, report)


TestAnyHistory = pytest.mark.timeout(600)(
    AnyHistory.TestCase
)  # a failing example takes minutes to be made small
