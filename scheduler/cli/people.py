"""The scheduler's answers as texts and tables for people."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from galactica.scheduler.cli.output import Shown, Styled
from galactica.scheduler.units import format_bytes, format_duration
from galactica.scheduler.views import shapes
from galactica.v1 import cell_pb2, operator_pb2

GOOD, BAD, WARN, NEW, DIM = "green", "bold red", "yellow", "cyan", "dim"

_PHASE_STYLES = {
    "ORDERED": NEW,
    "BOOTING": NEW,
    "READY": GOOD,
    "CONDEMNED": BAD,
    "DRAINING": WARN,
    "DECOMMISSIONED": DIM,
}
_VERDICT_STYLES = {"healthy": GOOD, "suspect": WARN, "sick": BAD, "dead": BAD}
_EVENT_STYLES = {
    "CellOrdered": NEW,
    "CellReady": GOOD,
    "CellCondemned": BAD,
    "CellDecommissioned": DIM,
    "ServerJoined": GOOD,
    "ServerCondemned": BAD,
    "ServerDecommissioned": DIM,
    "GroupApplied": "bold",
    "GroupDeleted": "bold",
    "CallRefused": WARN,
}

_LEFT_OUT = frozenset({"autopsy", "backoff", "evidence"})
"""Fields of events that are too long for a line."""

CELL_COLUMNS = ("CELL", "PHASE", "VERDICT", "SERVER", "REVISION", "AGE", "ENDPOINTS", "NOTE")
SERVER_COLUMNS = (
    "SERVER",
    "PHASE",
    "VERDICT",
    "CELLS",
    "CPU",
    "MEMORY",
    "RUNTIMES",
    "LABELS",
    "BEAT",
    "AGENT",
    "NEIGHBOURS",
    "NOTE",
)
GROUP_COLUMNS = ("GROUP", "REVISION", "WANTED", "READY", "BOOTING", "SICK")


def headline(status: operator_pb2.GetStatusResponse) -> list[Shown]:
    """One line: whether the fleet is healthy, and if not, what is missing."""
    start = f"fleet {status.fleet}: "
    if status.healthy:
        cells = sum(group.ready for group in status.groups)
        counts = f" - {counted(len(status.groups), 'group')}, {counted(cells, 'cell')} ready"
        return [start, Styled("healthy", GOOD), counts if status.groups else " - no groups yet"]
    troubles = [
        _trouble(group)
        for group in status.groups
        if group.ready != group.wanted or group.sick or group.booting
    ]
    if len(troubles) > 3:
        troubles = [*troubles[:3], counted(len(troubles) - 3, "more group")]
    held = sum(max(1, held.slots) for held in without_storms(status))
    for storm in status.storms:
        troubles.append(f"storm in {storm.pool or 'the joined servers'}: {silent(storm)}")
    if held:
        troubles.append(f"{held} held")
    return [start, Styled("NOT healthy", BAD), f" - {'; '.join(troubles)}" if troubles else ""]


def without_storms(status: operator_pb2.GetStatusResponse) -> list[operator_pb2.Hold]:
    """What is held, but for what the storms tell themselves."""
    storms = {storm.pool for storm in status.storms}
    return [hold for hold in status.held if hold.rule != "storm" or hold.group not in storms]


def genome_text(genome: operator_pb2.GenomeStatus) -> str:
    """Who could grow a scheduler anew."""
    mark = f"epoch {genome.epoch}, position {genome.position}"
    return f"Genome ({mark}) kept by {genome.kept} of {counted(genome.wanted, 'agent')}"


def silent(storm: operator_pb2.Storm) -> str:
    """``2 of 3 servers silent``."""
    return f"{storm.silent} of {storm.of} servers silent"


def _trouble(group: operator_pb2.GroupStatus) -> str:
    """``web has 2 of 3 ready``; for a group with enough ready cells, its other cells: ``web: 1 still going``."""
    if group.ready < group.wanted:
        return f"{group.name} has {group.ready} of {group.wanted} ready"
    going = group.ready - group.wanted + group.sick
    coming = f"{group.booting} booting" if group.booting else ""
    return f"{group.name}: {', '.join(filter(None, [f'{going} still going' if going else '', coming]))}"


def group_row(group: operator_pb2.GroupStatus) -> list[Shown]:
    full = group.ready == group.wanted and not group.sick and not group.booting
    return [
        f"{group.kind}/{group.name}",
        str(group.revision),
        str(group.wanted),
        Styled(str(group.ready), GOOD if full else WARN),
        Styled(str(group.booting), NEW if group.booting else ""),
        Styled(str(group.sick), BAD if group.sick else ""),
    ]


def hold_text(hold: operator_pb2.Hold, now: float) -> str:
    """``web (2 cells): backoff: 3 cells of revision 2 died early; next check in 4s``."""
    subject = hold.group or "fleet"
    if hold.slots:
        subject += f" ({counted(hold.slots, 'cell')})"
    return f"{subject}: {hold.rule}: {hold.reason}; {next_look(hold, now)}"


def next_look(hold: operator_pb2.Hold, now: float) -> str:
    if not hold.HasField("next_look_at"):
        return "next check when something changes"
    wait = hold.next_look_at - now
    return f"next check in {format_duration(wait)}" if wait > 0 else "next check now"


def cell_row(cell: operator_pb2.Cell, now: float) -> list[Shown]:
    age = format_duration(max(0.0, now - cell.ordered_at)) if cell.HasField("ordered_at") else ""
    return [
        cell.id,
        phase(cell.phase),
        verdict(cell.verdict),
        cell.server,
        str(cell.revision),
        age,
        ", ".join(f"{name}={address}" for name, address in sorted(cell.endpoints.items())),
        _cell_note(cell),
    ]


def _cell_note(cell: operator_pb2.Cell) -> str:
    notes = []
    if cell.phase in {"ORDERED", "BOOTING"} and cell.progress:
        notes.append(cell.progress)
    if cell.verdict != "healthy" and cell.reason:
        notes.append(cell.reason)
    if cell.phase == "READY" and cell.kind == "container" and not cell.serving:
        notes.append("does not serve")
    if cell.replaced_by:
        notes.append(f"replaced by {cell.replaced_by}")
    return "; ".join(notes)


def server_row(server: operator_pb2.Server, now: float) -> list[Shown]:
    beat = (
        format_duration(max(0.0, now - server.last_beat_at)) if server.HasField("last_beat_at") else "never"
    )
    vitals = server.vitals
    alive = server.HasField("vitals")
    return [
        server.id,
        phase(server.phase),
        verdict(server.verdict),
        str(len(server.cells)),
        _share(vitals.cpu_fraction, alive, f"{server.capacity.cpu_millis / 1_000:g} cores"),
        _share(vitals.memory_fraction, alive, format_bytes(server.capacity.memory_bytes)),
        ", ".join(server.runtimes),
        ", ".join(f"{name}={value}" for name, value in sorted(server.labels.items())),
        beat if beat == "never" else f"{beat} ago",
        server.agent_version,
        neighbours_text(server.neighbours),
        "; ".join([*filter(None, [server.reason if server.verdict != "healthy" else ""]), *server.notes]),
    ]


def neighbours_text(answers: Iterable[operator_pb2.NeighbourAnswer]) -> str:
    """``2 silent, 1 answering``."""
    counts = Counter(
        "answering" if neighbour.answer == "answers" else neighbour.answer for neighbour in answers
    )
    return ", ".join(f"{count} {answer}" for answer, count in counts.most_common())


def evidence_parts(fact: operator_pb2.Evidence) -> list[Shown]:
    return [Styled(f"  {date_text(fact.at)}  ", DIM), f"{fact.source}: ", fact.says]


def _share(fraction: float, alive: bool, whole: str) -> Shown:
    if not alive:
        return whole
    return Styled(f"{fraction:.0%} of {whole}", BAD if fraction > 0.95 else WARN if fraction > 0.8 else "")


def event_parts(event: operator_pb2.Event) -> list[Shown]:
    """One line in the output of ``events``."""
    subject = event.cell or event.server or event.group
    at = f" on {event.server}" if event.cell and event.server else ""
    return [
        Styled(f"{event.position:>7}  {clock_text(event.at)}  ", DIM),
        Styled(f"{event.type:<20}", _EVENT_STYLES.get(event.type, "")),
        f"  {subject}{at}",
        _details_text(shapes.details(event)),
        Styled(f"  ({event.cause})" if event.cause else "", DIM),
    ]


def _details_text(details: dict[str, Any]) -> str:
    """The details that fit in a line. ``why`` and JSON show whole specs and autopsies."""
    return "".join(
        f"  {name}={_short(name, value)}"
        for name, value in details.items()
        if name not in _LEFT_OUT and value not in ("", None, [], {}) and not _is_nested(value)
    )


def _is_nested(value: Any) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(isinstance(item, dict | list) for item in inner)


def _short(name: str, value: Any) -> str:
    match value:
        case str():
            return value[:12] if name == "digest" else value
        case dict():
            return ",".join(f"{key}:{item}" for key, item in value.items())
        case int() | float() if shapes.is_time(name) and 0 < value < shapes.CALENDAR_ENDS:
            return until_text(value)
        case _:
            return json.dumps(value, separators=(",", ":"))


def certificate_lines(story: operator_pb2.GetCertificateResponse, now: float) -> Iterator[list[Shown]]:
    """The death certificate, or the state of a living cell."""
    cell = story.cell
    condemned = story.HasField("condemned_at")
    where = f" on {cell.server}" if cell.server else ""
    yield [Styled(cell.id, "bold"), "  ", phase(cell.phase), where, "" if condemned else "  (alive)"]
    yield from _facts(story)
    if story.evidence:
        yield [""]
        yield [Styled("Evidence", "bold")]
        for fact in sorted(story.evidence, key=lambda fact: fact.at):
            yield evidence_parts(fact)
    if story.HasField("autopsy"):
        yield from _autopsy_lines(story.autopsy)
    if story.held:
        yield [""]
        yield [Styled("Its replacement is held", "bold")]
        for hold in story.held:
            yield [f"  {hold_text(hold, now)}"]


def _facts(story: operator_pb2.GetCertificateResponse) -> Iterator[list[Shown]]:
    cell = story.cell
    times = [
        ("ordered", cell.HasField("ordered_at"), cell.ordered_at),
        ("ready", cell.HasField("ready_at"), cell.ready_at),
        ("condemned", cell.HasField("condemned_at"), cell.condemned_at),
        ("decommissioned", cell.HasField("decommissioned_at"), cell.decommissioned_at),
    ]
    facts: list[tuple[str, Shown]] = [
        ("verdict", verdict(story.verdict)),
        ("reason", cell.reason),
        ("rule", story.rule),
        ("cause", story.cause),
        ("budget", story.budget),
        ("spec", f"revision {cell.revision}, digest {cell.digest[:12]}" if cell.digest else ""),
        *((name, date_text(at)) for name, there, at in times if there),
        ("replaces", story.replaces),
        ("replaced by", story.replaced_by),
    ]
    for name, value in facts:
        if (value.text if isinstance(value, Styled) else value) != "":
            yield [Styled(f"  {name:<15}", DIM), value]


def _autopsy_lines(autopsy: cell_pb2.Autopsy) -> Iterator[list[Shown]]:
    yield [""]
    yield [Styled("Autopsy", "bold")]
    lived = f", lived {format_duration(autopsy.lived_seconds)}" if autopsy.lived_seconds else ""
    memory = ", out of memory" if autopsy.oom_killed else ""
    yield [f"  {autopsy.reason}{memory}{lived}"]
    if autopsy.last_lines:
        yield ["  last lines of its output:"]
        for text in autopsy.last_lines:
            yield [Styled("    | ", DIM), text]


def change_text(change: operator_pb2.GroupChange, cells: str, *, planned: bool = False) -> list[Shown]:
    """What changed (or would change) for one group: ``web: created, revision 1, 6 cells wanted``."""
    start = f"{change.group}: "
    if change.change == "unchanged":
        return [start, Styled("unchanged", DIM), f", revision {change.revision}"]
    differences = f" ({', '.join(change.differences)})" if change.differences else ""
    word = f"would be {change.change}" if planned else change.change
    wanted = f", {cells} wanted" if cells and not planned else ""
    return [start, Styled(word, GOOD), f", revision {change.revision}{wanted}{differences}"]


def plan_lines(plan: operator_pb2.PlanGroupsResponse, now: float) -> Iterator[list[Shown]]:
    """Deaths and births. A cell and its replacement are on consecutive lines."""
    deaths = {death.cell_id: death for death in plan.deaths}
    for birth in plan.births:
        death = deaths.pop(birth.replaces, None)
        if death is not None:
            yield [Styled(f"  - {death.cell_id}", BAD), f"{_on(death.server)}  {death.rule}"]
        replaces = f"  replaces {birth.replaces}" if birth.replaces else ""
        yield [Styled(f"  + {birth.cell_id}", GOOD), f"{_on(birth.server)}{replaces}"]
    for death in deaths.values():
        yield [Styled(f"  - {death.cell_id}", BAD), f"{_on(death.server)}  {death.rule}"]
    if plan.more_births or plan.more_deaths:
        births, deaths_more = counted(plan.more_births, "birth"), counted(plan.more_deaths, "death")
        yield [Styled("  …     ", WARN), f"and {births} and {deaths_more} more that are not listed"]
    for hold in plan.held:
        yield [Styled("  held  ", WARN), hold_text(hold, now)]


def _on(server: str) -> str:
    return f" on {server}" if server else ""


def phase(text: str) -> Styled:
    return Styled(text, _PHASE_STYLES.get(text, ""))


def verdict(text: str) -> Styled:
    return Styled(text, _VERDICT_STYLES.get(text, ""))


def counted(number: int, noun: str) -> str:
    """``1 cell``, ``6 cells``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def clock_text(at: float) -> str:
    """Local time of day, to the millisecond."""
    return datetime.fromtimestamp(at).astimezone().strftime("%H:%M:%S.%f")[:-3]


def date_text(at: float) -> str:
    """Local date and time, to the millisecond."""
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def until_text(at: float) -> str:
    """Local date and time, to the second."""
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
