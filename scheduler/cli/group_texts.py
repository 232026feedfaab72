"""One group as texts for people: how it stands, what is held, and what it died of."""

from __future__ import annotations

from collections.abc import Iterator

from galactica.scheduler.cli import people
from galactica.scheduler.cli.output import Shown, Styled
from galactica.v1 import operator_pb2

DEATH_COLUMNS = ("CELL", "VERDICT", "SERVER", "REVISION", "DIED", "RULE", "REASON")


def counts(answer: operator_pb2.GetGroupResponse) -> str:
    """``2 of 3 ready (1 not proven yet), 1 booting, 0 sick``."""
    group = answer.group
    unproven = f" ({answer.unproven} not proven yet)" if answer.unproven else ""
    return f"{group.ready} of {group.wanted} ready{unproven}, {group.booting} booting, {group.sick} sick"


def progress(answer: operator_pb2.GetGroupResponse) -> str:
    """``web: 1 of 3 ready, 1 booting, 0 sick; held: backoff``."""
    rules = ", ".join(dict.fromkeys(hold.rule for hold in answer.held))
    return f"{answer.group.name}: {counts(answer)}{f'; held: {rules}' if rules else ''}"


def lines(answer: operator_pb2.GetGroupResponse, now: float) -> Iterator[list[Shown]]:
    """How it stands, what is held and why, and its newest deaths."""
    group = answer.group
    state = Styled("healthy", people.GOOD) if answer.healthy else Styled("NOT healthy", people.BAD)
    yield [Styled(f"{group.kind}/{group.name}", "bold"), "  ", state, f"  revision {group.revision}"]
    yield [f"  {counts(answer)}"]
    if answer.blamed:
        yield [Styled("  the spec is to blame: ", people.BAD), answer.blamed]
    if answer.held:
        yield [""]
        yield [Styled("Held", "bold")]
        for hold in answer.held:
            yield [f"  {people.hold_text(hold, now)}"]
    if answer.deaths:
        yield [""]
        yield [Styled("Newest deaths", "bold")]
        for death in answer.deaths:
            yield from death_lines(death)
        yield [f"  More of one: galactica why {answer.deaths[0].cell.id}"]


def death_lines(death: operator_pb2.GetCertificateResponse) -> Iterator[list[Shown]]:
    """``web/0.3 on earth, revision 2: exited: exit code 3``, and the last lines of its output."""
    cell = death.cell
    where = f" on {cell.server}" if cell.server else ""
    at = f"{people.until_text(death.condemned_at)}  " if death.HasField("condemned_at") else ""
    yield [Styled(f"  {at}", people.DIM), f"{cell.id}{where}, revision {cell.revision}: {reason(death)}"]
    for text in death.autopsy.last_lines:
        yield [Styled("    | ", people.DIM), text]


def reason(death: operator_pb2.GetCertificateResponse) -> str:
    """The rule, and what the autopsy or else the verdict says."""
    says = death.autopsy.reason or death.cell.reason
    return f"{death.rule}: {says}" if says and says != death.rule else death.rule


def death_row(death: operator_pb2.GetCertificateResponse) -> list[Shown]:
    return [
        death.cell.id,
        people.verdict(death.verdict),
        death.cell.server,
        str(death.cell.revision),
        people.until_text(death.condemned_at) if death.HasField("condemned_at") else "",
        death.rule,
        death.autopsy.reason or death.cell.reason,
    ]
