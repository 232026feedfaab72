"""Every rule on cells: when it matches, what it says, when to look again, and which rule goes first."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from msgspec.structs import replace
from rpds import HashTrieMap

from galactica.scheduler.core.model.fleet import Cell, Phase, Server
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.spec import HealthSpec, HttpProbe, RuntimeKind, Spec
from galactica.scheduler.core.model.verdict import Autopsy, Evidence, Health, Verdict
from galactica.scheduler.core.sight.observations import CellReport, CellState, ProbeStatus
from galactica.scheduler.core.sight.state import ServerSight, Sight
from galactica.scheduler.core.sight.vitals import Ailment
from galactica.scheduler.core.verdicts.cells import CELL_RULES, cell_verdict, is_serving

NOW = 1_000.0
ORDERED_AT = 990.0
HEARD_AT = 999.0
BOOT_WITHIN = 30.0
DEADLINE = ORDERED_AT + BOOT_WITHIN
SPEC = Spec(
    RuntimeKind.PROCESS,
    health=HealthSpec(probe=HttpProbe("http"), sick_after=3, boot_within_seconds=BOOT_WITHIN),
)
NO_PROBE = Spec(RuntimeKind.PROCESS)
UP = Server("a", 1, Phase.READY, joined_at=900.0)
DRAINED = Server(
    "a", 1, Phase.CONDEMNED, condemned_at=995.0, condemned_by="operator", condemned_health=Health.HEALTHY
)
LOST = Server(
    "a", 1, Phase.CONDEMNED, condemned_at=995.0, condemned_by="lease_expired", condemned_health=Health.DEAD
)
OPEN = ServerSight("s1", attached_at=900.0, heard_at=HEARD_AT)
CLOSED = ServerSight("s1", attached_at=900.0, heard_at=HEARD_AT, closed_at=999.5)
ITSELF = replace(UP, machine="boot-a/1")
ANOTHER = replace(OPEN, machine="boot-b/2")
"""Has the session of the server ITSELF."""


@dataclass
class Case:
    """A cell, what carries it and what is seen of it; by default one that boots and is not shown yet."""

    phase: Phase = Phase.BOOTING
    report: CellReport | None = None
    server: Server | None = field(default_factory=lambda: UP)
    seen: ServerSight | None = field(default_factory=lambda: OPEN)
    spec: Spec = field(default_factory=lambda: SPEC)
    trusted_since: float = 0.0
    now: float = NOW

    def verdict(self) -> Verdict:
        ready_at = 992.0 if self.phase is Phase.READY else None
        cell = Cell("web/0.1", "web", 0, 1, self.phase, "d", 1, "a", ORDERED_AT, ready_at=ready_at)
        sight = Sight(trusted_since=self.trusted_since)
        if self.seen is not None:
            seen = self.seen
            if self.report is not None:
                seen = replace(seen, reports=HashTrieMap({"web/0.1": self.report}))
            sight = Sight(self.trusted_since, HashTrieMap({"a": seen}))
        return cell_verdict(cell, self.spec, self.server, sight, self.now, Policy())


def shown(state: CellState = CellState.RUNNING, **facts: Any) -> CellReport:
    return CellReport("web/0.1", "d", state, **facts)


def probed(failures: int, *, passed: bool = True, error: str = "") -> CellReport:
    return shown(probe=ProbeStatus(passed, failures, error))


def agent_says(says: str, at: float = HEARD_AT) -> tuple[Evidence, ...]:
    return (Evidence("agent a", says, at),)


RUNNING = Verdict(Health.HEALTHY, "running", "it runs")
BOOTING = Verdict(Health.HEALTHY, "booting", "it boots", next_look_at=DEADLINE)
SILENT = Verdict(
    Health.SUSPECT,
    "server_silent",
    "no heartbeat from its server a",
    (Evidence("scheduler", "no heartbeat from its server a", NOW),),
)
_NO_PROOF = (
    "another machine is attached as its server a: what that one says of it is no proof before the first one's lease is "
    "over"
)
OTHER_MACHINE = Verdict(Health.SUSPECT, "other_machine", _NO_PROOF, (Evidence("scheduler", _NO_PROOF, NOW),))
SERVER_LOST = Verdict(
    Health.DEAD,
    "server_lost",
    "its server a is lost",
    (Evidence("server a", "it was condemned as dead by rule lease_expired", 995.0),),
)
VANISHED = Verdict(
    Health.DEAD,
    "vanished",
    "its agent no longer has it",
    agent_says("its agent no longer has it"),
)


def dead(rule: str, reason: str) -> Verdict:
    return Verdict(Health.DEAD, rule, reason, agent_says(reason))


def sick(rule: str, reason: str) -> Verdict:
    return Verdict(Health.SICK, rule, reason, agent_says(reason))


def suspect(rule: str, reason: str) -> Verdict:
    return Verdict(Health.SUSPECT, rule, reason, agent_says(reason))


FAILED_3 = sick("probe_failed", "its probe failed 3 times in a row")
TOO_SLOW = "not ready within 30 s of its order"

STARVED = Ailment("agent_starved", "its agent lacks what it needs (EMFILE)", 980.0, HEARD_AT)
HOT = Ailment("memory_pressure", "its memory is full", 980.0, HEARD_AT)


def on_an_ailing_server(*ailing: Ailment) -> ServerSight:
    return replace(OPEN, ailing=ailing)


def not_started_there(health: Health, reason: str) -> Verdict:
    says = f"{reason}, and its server is ailing: {STARVED.says}"
    return Verdict(
        health,
        "server_ailing",
        says,
        (*agent_says(reason), Evidence("vitals a", STARVED.says, STARVED.since)),
    )


IN_DOUBT = "its agent cannot tell how it is: no layer"

CELL_TABLE: dict[str, tuple[Case, Verdict]] = {
    "lost server": (Case(Phase.READY, shown(), LOST), SERVER_LOST),
    "unknown server": (
        Case(Phase.READY, None, None, None),
        Verdict(
            Health.DEAD, "server_lost", "its server a is lost", (Evidence("server a", "it is gone", NOW),)
        ),
    ),
    "drained server is not lost": (Case(Phase.READY, probed(0), DRAINED), RUNNING),
    "fenced": (
        Case(Phase.READY, shown(CellState.EXITED, autopsy=Autopsy("fenced: nobody", fenced=True))),
        dead("fenced", "fenced: nobody"),
    ),
    "exited with autopsy": (
        Case(Phase.READY, shown(CellState.EXITED, autopsy=Autopsy("exited with 1", exit_code=1))),
        dead("exited", "exited with 1"),
    ),
    "exited without autopsy": (Case(Phase.READY, shown(CellState.EXITED)), dead("exited", "exited")),
    "start failed": (
        Case(Phase.ORDERED, shown(CellState.FAILED, autopsy=Autopsy("no such image"))),
        dead("start_failed", "no such image"),
    ),
    "start failed without autopsy": (
        Case(Phase.ORDERED, shown(CellState.FAILED)),
        dead("start_failed", "start_failed"),
    ),
    "start failed on a server where nothing starts": (
        Case(
            Phase.ORDERED,
            shown(CellState.FAILED, autopsy=Autopsy("no such image")),
            seen=on_an_ailing_server(HOT, STARVED),
        ),
        not_started_there(Health.DEAD, "no such image"),
    ),
    "boot too long on a server where nothing starts": (
        Case(report=shown(), seen=on_an_ailing_server(STARVED), now=DEADLINE),
        not_started_there(Health.SICK, TOO_SLOW),
    ),
    "boot too long on a server that ails by something else": (
        Case(report=shown(), seen=on_an_ailing_server(HOT), now=DEADLINE),
        sick("boot_timeout", TOO_SLOW),
    ),
    "exited on a server where nothing starts": (
        Case(Phase.READY, shown(CellState.EXITED), seen=on_an_ailing_server(STARVED)),
        dead("exited", "exited"),
    ),
    "not shown any more": (Case(Phase.READY), VANISHED),
    "not shown any more while it boots": (Case(Phase.BOOTING), VANISHED),
    "gone by itself": (Case(Phase.READY, shown(CellState.GONE)), VANISHED),
    "not shown yet": (Case(Phase.ORDERED), BOOTING),
    "gone before it was taken": (Case(Phase.ORDERED, shown(CellState.GONE)), BOOTING),
    "not shown while its agent is away": (Case(Phase.READY, seen=CLOSED), SILENT),
    "boot too long": (Case(report=shown(), now=DEADLINE), sick("boot_timeout", TOO_SLOW)),
    "boot too long, with the probe's error": (
        Case(report=probed(9, passed=False, error="refused"), now=DEADLINE),
        sick("boot_timeout", TOO_SLOW + ": refused"),
    ),
    "boot just short of too long": (Case(report=shown(), now=DEADLINE - 0.001), BOOTING),
    "boot counts from the attachment": (
        Case(report=shown(), seen=ServerSight("s2", attached_at=1_010.0, heard_at=1_011.0), now=DEADLINE),
        Verdict(Health.HEALTHY, "booting", "it boots", next_look_at=1_010.0 + BOOT_WITHIN),
    ),
    "boot counts from the scheduler's start": (
        Case(report=shown(), trusted_since=1_005.0, now=DEADLINE),
        Verdict(Health.HEALTHY, "booting", "it boots", next_look_at=1_005.0 + BOOT_WITHIN),
    ),
    "boot too long while nothing is heard": (
        Case(report=shown(), seen=CLOSED, now=DEADLINE),
        Verdict(
            Health.SUSPECT,
            SILENT.rule,
            SILENT.reason,
            (Evidence("scheduler", SILENT.reason, DEADLINE),),
        ),
    ),
    "boot time does not bind a cell that was ready": (Case(Phase.READY, probed(0), now=DEADLINE), RUNNING),
    "boot tells its progress": (
        Case(report=shown(CellState.STARTING, progress="pulls hello:1, 40 %")),
        Verdict(Health.HEALTHY, "booting", "pulls hello:1, 40 %", next_look_at=DEADLINE),
    ),
    "probe failed often enough": (Case(Phase.READY, probed(3)), FAILED_3),
    "probe failed more than enough": (
        Case(Phase.READY, probed(7, error="refused")),
        sick("probe_failed", "its probe failed 7 times in a row: refused"),
    ),
    "probe failed after it passed, before READY": (Case(report=probed(3)), FAILED_3),
    "probe failed though the agent forgot its success": (
        Case(Phase.READY, probed(3, passed=False)),
        FAILED_3,
    ),
    "probe never passed": (Case(report=probed(50, passed=False)), BOOTING),
    "probe begins to fail": (
        Case(Phase.READY, probed(2, error="timeout")),
        suspect("probe_failing", "its probe failed 2 of 3 times: timeout"),
    ),
    "probe failed once": (
        Case(Phase.READY, probed(1)),
        suspect("probe_failing", "its probe failed 1 of 3 times"),
    ),
    "in doubt": (Case(Phase.READY, shown(doubt="no layer")), suspect("doubtful", IN_DOUBT)),
    "in doubt, in a state that says nothing": (
        Case(Phase.READY, shown(CellState.STARTING, doubt="no layer")),
        suspect("doubtful", IN_DOUBT),
    ),
    "in doubt while it boots": (
        Case(report=shown(CellState.STARTING, doubt="no layer")),
        Verdict(Health.SUSPECT, "doubtful", IN_DOUBT, agent_says(IN_DOUBT), DEADLINE),
    ),
    "in doubt, and boots too long": (
        Case(report=shown(CellState.STARTING, doubt="no layer"), now=DEADLINE),
        Verdict(Health.SICK, "doubtful", f"{TOO_SLOW}, and {IN_DOUBT}", agent_says(IN_DOUBT)),
    ),
    "in doubt, and long after its boot time": (
        Case(Phase.READY, shown(doubt="no layer"), now=DEADLINE + 3_600),
        suspect("doubtful", IN_DOUBT),
    ),
    "in doubt, and its probe failed": (
        Case(Phase.READY, shown(probe=ProbeStatus(True, 3), doubt="no layer")),
        FAILED_3,
    ),
    "another machine is attached and does not show it": (
        Case(Phase.READY, None, ITSELF, ANOTHER),
        OTHER_MACHINE,
    ),
    "another machine is attached and shows it": (
        Case(Phase.READY, probed(0), ITSELF, ANOTHER),
        OTHER_MACHINE,
    ),
    "its own machine is attached": (
        Case(Phase.READY, probed(0), ITSELF, replace(OPEN, machine=ITSELF.machine)),
        RUNNING,
    ),
    "any machine where none is known": (Case(Phase.READY, None, UP, ANOTHER), VANISHED),
    "stream closed": (Case(Phase.READY, probed(0), seen=CLOSED), SILENT),
    "no session at all": (Case(Phase.READY, seen=None), SILENT),
    "no session at all while it boots": (Case(Phase.BOOTING, seen=None), SILENT),
    "probe passes": (Case(Phase.READY, probed(0)), RUNNING),
    "runs without a probe": (Case(Phase.READY, shown(), spec=NO_PROBE), RUNNING),
    "stops by itself, it seems": (Case(Phase.READY, shown(CellState.STOPPING)), RUNNING),
}


@pytest.mark.parametrize("story", CELL_TABLE)
def test_each_rule_on_cells_says_what_it_saw(story: str) -> None:
    case, expected = CELL_TABLE[story]
    assert case.verdict() == expected


PAIRS_OF_CELL_RULES: dict[str, Case] = {
    "server_lost before exited": Case(Phase.READY, shown(CellState.EXITED), LOST),
    "server_lost before other_machine": Case(Phase.READY, None, replace(LOST, machine="boot-a/1"), ANOTHER),
    "other_machine before fenced": Case(
        Phase.READY, shown(CellState.EXITED, autopsy=Autopsy("its lease ended", fenced=True)), ITSELF, ANOTHER
    ),
    "other_machine before exited": Case(Phase.READY, shown(CellState.EXITED), ITSELF, ANOTHER),
    "other_machine before start_failed": Case(Phase.ORDERED, shown(CellState.FAILED), ITSELF, ANOTHER),
    "other_machine before vanished": Case(Phase.READY, None, ITSELF, ANOTHER),
    "other_machine before boot_timeout": Case(report=shown(), server=ITSELF, seen=ANOTHER, now=DEADLINE),
    "other_machine before probe_failed": Case(Phase.READY, probed(3), ITSELF, ANOTHER),
    "other_machine before doubtful": Case(Phase.READY, shown(doubt="no layer"), ITSELF, ANOTHER),
    "server_lost before vanished": Case(Phase.READY, None, LOST),
    "server_lost before boot_timeout": Case(report=shown(), server=LOST, now=DEADLINE),
    "server_lost before probe_failed": Case(Phase.READY, probed(3), LOST),
    "server_lost before server_silent": Case(Phase.READY, probed(0), LOST, CLOSED),
    "exited before boot_timeout": Case(report=shown(CellState.EXITED), now=DEADLINE),
    "exited before probe_failed": Case(Phase.READY, shown(CellState.EXITED, probe=ProbeStatus(True, 3))),
    "exited before server_silent": Case(Phase.READY, shown(CellState.EXITED), seen=CLOSED),
    "start_failed before boot_timeout": Case(Phase.ORDERED, shown(CellState.FAILED), now=DEADLINE),
    "start_failed before server_silent": Case(Phase.ORDERED, shown(CellState.FAILED), seen=CLOSED),
    "vanished before boot_timeout": Case(now=DEADLINE),
    "vanished before probe_failed": Case(Phase.READY, shown(CellState.GONE, probe=ProbeStatus(True, 3))),
    "boot_timeout before probe_failed": Case(report=probed(3), now=DEADLINE),
    "probe_failed before server_silent": Case(Phase.READY, probed(3), seen=CLOSED),
    "probe_failed before booting": Case(report=probed(3)),
    "server_silent before probe_failing": Case(Phase.READY, probed(1), seen=CLOSED),
    "server_silent before booting": Case(report=shown(), seen=CLOSED),
    "probe_failing before booting": Case(report=probed(1)),
    "exited before doubtful": Case(Phase.READY, shown(CellState.EXITED, doubt="no layer")),
    "probe_failed before doubtful": Case(Phase.READY, shown(probe=ProbeStatus(True, 3), doubt="x")),
    "server_silent before doubtful": Case(Phase.READY, shown(doubt="no layer"), seen=CLOSED),
    "doubtful before probe_failing": Case(Phase.READY, shown(probe=ProbeStatus(True, 1), doubt="x")),
    "doubtful before booting": Case(report=shown(doubt="no layer")),
}


@pytest.mark.parametrize("pair", PAIRS_OF_CELL_RULES)
def test_where_two_rules_on_cells_match_the_first_one_is_told(pair: str) -> None:
    assert PAIRS_OF_CELL_RULES[pair].verdict().rule == pair.partition(" ")[0]


def test_the_tables_cover_every_rule_on_cells() -> None:
    told = {expected.rule for _, expected in CELL_TABLE.values()}
    ruled = {"server_lost", "fenced", "exited", "start_failed", "vanished", "boot_timeout", "probe_failed"}
    assert told == ruled | {
        "other_machine",
        "server_silent",
        "server_ailing",
        "doubtful",
        "probe_failing",
        "booting",
        "running",
    }
    # One rule tells both endings, "server_ailing" is told in place of others, and "running" is what is left.
    assert len(CELL_RULES) == len(told) - 3


@pytest.mark.parametrize(
    ("report", "spec", "serves"),
    [
        (None, SPEC, False),
        (probed(0), SPEC, True),
        (probed(1), SPEC, False),
        (probed(0, passed=False), SPEC, False),
        (shown(), SPEC, False),
        (shown(), NO_PROBE, True),
        (shown(doubt="no layer"), NO_PROBE, False),
        (shown(probe=ProbeStatus(True), doubt="no layer"), SPEC, False),
        (shown(CellState.STARTING, probe=ProbeStatus(True)), SPEC, False),
        (shown(CellState.STOPPING), NO_PROBE, False),
        (shown(CellState.EXITED), NO_PROBE, False),
    ],
)
def test_a_cell_serves_when_it_runs_and_its_probe_passes(
    report: CellReport | None, spec: Spec, serves: bool
) -> None:
    cell = Cell("web/0.1", "web", 0, 1, Phase.BOOTING, "d", 1, "a", ORDERED_AT)
    reports = HashTrieMap({"web/0.1": report} if report else {})
    sight = Sight(servers=HashTrieMap({"a": ServerSight("s1", 900.0, HEARD_AT, reports=reports)}))
    assert is_serving(cell, spec, sight) is serves
