"""Verdicts on containers: what the evidence says at one moment.

The rules are an ordered table: the first match wins, and ``galactica why`` prints its name. Nothing here is stored, and
nothing here acts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from galactica.scheduler.core.model.fleet import Cell, Phase, Server
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.rules import KEEP_FROM_STARTING, Rule
from galactica.scheduler.core.model.spec import Spec
from galactica.scheduler.core.model.verdict import Evidence, Health, Verdict
from galactica.scheduler.core.sight.observations import CellReport, CellState
from galactica.scheduler.core.sight.state import ServerSight, Sight
from galactica.scheduler.core.sight.vitals import Ailment
from galactica.scheduler.core.verdicts.machines import is_known
from galactica.scheduler.core.verdicts.maintenance import maintenance_of


class _Case(NamedTuple):
    """All that the rules on a cell may look at."""

    cell: Cell
    spec: Spec
    server: Server | None
    seen: ServerSight | None
    report: CellReport | None
    now: float
    policy: Policy
    trusted_since: float
    silent: bool
    is_away: bool
    """Its server is in maintenance."""

    @property
    def is_left_out(self) -> bool:
        """Its agent, which had accepted it, does not report it, in reports of which something is missing."""
        is_new = self.cell.phase is Phase.ORDERED
        return self.report is None and not is_new and self.seen is not None and self.seen.is_doubtful

    @property
    def source(self) -> str:
        return f"agent {self.cell.server}"


def cell_verdict(
    cell: Cell, spec: Spec, server: Server | None, sight: Sight, now: float, policy: Policy
) -> Verdict:
    """What the evidence says of a cell. ``server``: the one that carries it, None where it is unknown."""
    seen = sight.servers.get(cell.server)
    report = None if seen is None else seen.reports.get(cell.id)
    silent = seen is None or not seen.is_open
    is_away = server is not None and maintenance_of(server, sight, now) is not None
    case = _Case(cell, spec, server, seen, report, now, policy, sight.trusted_since, silent, is_away)
    for rule in CELL_RULES:
        verdict = rule(case)
        if verdict is not None:
            return verdict
    return Verdict(Health.HEALTHY, Rule.RUNNING, "it runs" if cell.was_ready else "it boots")


# --- rules on cells, in order ------------------------------------------------------------------------------------


def _server_lost(case: _Case) -> Verdict | None:
    server = case.server
    if server is not None and not server.is_lost:
        return None
    says = "it is gone" if server is None else f"it was condemned as dead by rule {server.condemned_by}"
    at = case.now if server is None or server.condemned_at is None else server.condemned_at
    fact = Evidence(f"server {case.cell.server}", says, at)
    return Verdict(Health.DEAD, Rule.SERVER_LOST, f"its server {case.cell.server} is lost", (fact,))


def _other_machine(case: _Case) -> Verdict | None:
    """Its place is taken by a machine that may know nothing of it: neither a death nor a proof that it is well."""
    if case.server is None or case.seen is None or is_known(case.server, case.seen):
        return None
    reason = (
        f"another machine is attached as its server {case.cell.server}: what that one says of it is no proof before "
        "the first one's lease is over"
    )
    return Verdict(Health.SUSPECT, Rule.OTHER_MACHINE, reason, (Evidence("scheduler", reason, case.now),))


def _fenced(case: _Case) -> Verdict | None:
    report = case.report
    if (
        report is None
        or report.state is not CellState.EXITED
        or not (report.autopsy and report.autopsy.fenced)
    ):
        return None
    return Verdict(Health.DEAD, Rule.FENCED, report.autopsy.reason, (_fact(case, report.autopsy.reason),))


def _ended(case: _Case) -> Verdict | None:
    report = case.report
    if report is None or report.state not in (CellState.EXITED, CellState.FAILED):
        return None
    rule = Rule.EXITED if report.state is CellState.EXITED else Rule.START_FAILED
    reason = report.autopsy.reason if report.autopsy else rule
    if rule is Rule.START_FAILED and (ailment := _ailment(case)):
        return _not_started_there(case, Health.DEAD, reason, ailment)
    return Verdict(Health.DEAD, rule, reason, (_fact(case, reason),))


def _not_started_there(case: _Case, health: Health, reason: str, ailment: Ailment) -> Verdict:
    facts = (_fact(case, reason), Evidence(f"vitals {case.cell.server}", ailment.says, ailment.since))
    return Verdict(health, Rule.SERVER_AILING, f"{reason}, and its server is ailing: {ailment.says}", facts)


def _ailment(case: _Case) -> Ailment | None:
    """What keeps cells from starting on its server."""
    ailing = case.seen.ailing if case.seen else ()
    return next((one for one in ailing if one.rule in KEEP_FROM_STARTING), None)


def _vanished(case: _Case) -> Verdict | None:
    """The agent answers, but no longer has a cell that it had accepted."""
    if case.silent or case.cell.phase is Phase.ORDERED:
        return None
    if case.is_left_out or (case.report is not None and case.report.state is not CellState.GONE):
        return None
    reason = "its agent no longer has it"
    return Verdict(Health.DEAD, Rule.VANISHED, reason, (_fact(case, reason),))


def _boot_timeout(case: _Case) -> Verdict | None:
    """Time without contact to its agent does not count."""
    if case.cell.was_ready or case.seen is None or case.silent:
        return None
    deadline = _boot_deadline(case, case.seen)
    if case.now < deadline:
        return None
    reason = f"not ready within {case.spec.health.boot_within_seconds:g} s of its order"
    doubt = _doubt(case)
    if doubt:  # which says nothing against its spec
        return Verdict(Health.SICK, Rule.DOUBTFUL, f"{reason}, and {doubt}", (_fact(case, doubt),))
    if ailment := _ailment(case):
        return _not_started_there(case, Health.SICK, reason, ailment)
    reason += _last_error(case)
    return Verdict(Health.SICK, Rule.BOOT_TIMEOUT, reason, (_fact(case, reason),))


def _boot_deadline(case: _Case, seen: ServerSight) -> float:
    since = max(case.cell.ordered_at, case.trusted_since, seen.attached_at)
    return since + case.spec.health.boot_within_seconds


def _probe_failed(case: _Case) -> Verdict | None:
    failures = _failures(case)
    if failures < case.spec.health.sick_after:
        return None
    reason = f"its probe failed {failures} times in a row{_last_error(case)}"
    return Verdict(Health.SICK, Rule.PROBE_FAILED, reason, (_fact(case, reason),))


def _server_silent(case: _Case) -> Verdict | None:
    if not case.silent:
        return None
    if case.is_away:
        reason = f"its server {case.cell.server} is in maintenance: it lives on, and nobody looks after it"
        return Verdict(Health.SUSPECT, Rule.MAINTENANCE, reason, (Evidence("scheduler", reason, case.now),))
    reason = f"no heartbeat from its server {case.cell.server}"
    return Verdict(Health.SUSPECT, Rule.SERVER_SILENT, reason, (Evidence("scheduler", reason, case.now),))


def _doubtful(case: _Case) -> Verdict | None:
    """Its agent has it, and cannot tell how it is: neither a death nor a proof that it is well."""
    doubt = _doubt(case)
    if not doubt:
        return None
    deadline = None if case.cell.was_ready or case.seen is None else _boot_deadline(case, case.seen)
    return Verdict(Health.SUSPECT, Rule.DOUBTFUL, doubt, (_fact(case, doubt),), deadline)


def _probe_failing(case: _Case) -> Verdict | None:
    failures = _failures(case)
    if failures == 0:
        return None
    reason = f"its probe failed {failures} of {case.spec.health.sick_after} times{_last_error(case)}"
    return Verdict(Health.SUSPECT, Rule.PROBE_FAILING, reason, (_fact(case, reason),))


def _booting(case: _Case) -> Verdict | None:
    if case.cell.was_ready or case.seen is None:
        return None
    progress = case.report.progress if case.report and case.report.progress else "it boots"
    return Verdict(Health.HEALTHY, Rule.BOOTING, progress, next_look_at=_boot_deadline(case, case.seen))


CELL_RULES: tuple[Callable[[_Case], Verdict | None], ...] = (
    _server_lost,
    _other_machine,
    _fenced,
    _ended,
    _vanished,
    _boot_timeout,
    _probe_failed,
    _server_silent,
    _doubtful,
    _probe_failing,
    _booting,
)


def _failures(case: _Case) -> int:
    """Failures in a row that count. Before its first success a cell is booting, which has a rule of its own."""
    probe = case.report.probe if case.report else None
    if probe is None or not (probe.has_passed or case.cell.was_ready):
        return 0
    return probe.consecutive_failures


def _doubt(case: _Case) -> str:
    if case.is_left_out:
        return "its agent does not report it, and part of what its agent reported is missing"
    return (
        f"its agent cannot tell how it is: {case.report.doubt}" if case.report and case.report.doubt else ""
    )


def _last_error(case: _Case) -> str:
    probe = case.report.probe if case.report else None
    return f": {probe.last_error}" if probe and probe.last_error else ""


def _fact(case: _Case, says: str) -> Evidence:
    return Evidence(case.source, says, case.seen.heard_at if case.seen else case.now)


def is_serving(cell: Cell, spec: Spec, sight: Sight) -> bool:
    """Whether the agent reports enough for READY: the cell runs, its probe (if it has one) passes, and
    nothing about it is in doubt."""
    report = sight.report_of(cell.server, cell.id)
    if report is None or report.state is not CellState.RUNNING or report.doubt:
        return False
    if spec.health.probe is None:
        return True
    return report.probe is not None and report.probe.has_passed and report.probe.consecutive_failures == 0
