"""Every rule on servers: when it matches, what it says, on which evidence, and which rule goes first."""

import pytest
from msgspec.structs import replace
from rpds import HashTrieMap

from galactica.scheduler.core.model.fleet import Maintenance, Phase, Server
from galactica.scheduler.core.model.verdict import Evidence, Health, Verdict
from galactica.scheduler.core.sight.observations import CellReport, CellState, ProviderState
from galactica.scheduler.core.verdicts.servers import SERVER_RULES
from tests.support.server_cases import (
    CLOSED,
    DEATHS,
    FULL,
    HEARD_AT,
    MADE,
    OPEN,
    SAID_AT,
    SAYS,
    UP,
    Case,
    ailing,
)

DRAINED = replace(
    UP, phase=Phase.CONDEMNED, condemned_at=995.0, condemned_by="operator", condemned_health=Health.HEALTHY
)

LOST = replace(DRAINED, condemned_by="lease_expired", condemned_health=Health.DEAD)


def facts(
    after: float, said: str = "", skip: int = 0, closed: bool = False, said_at: float = SAID_AT
) -> tuple[Evidence, ...]:
    link = ("its stream was closed", 999.5) if closed else ("its stream is open but silent", HEARD_AT + after)
    heard = (Evidence("agent a", "last heard", HEARD_AT), Evidence("link", *link))
    told = tuple(Evidence(f"neighbour n{n}", SAYS[s][1], said_at) for n, s in enumerate(said) if n >= skip)
    return heard + told


def suspect(rule: str, reason: str, evidence: tuple[Evidence, ...], look_at: float | None) -> Verdict:
    return Verdict(Health.SUSPECT, rule, reason, evidence, look_at)


def dead(rule: str, reason: str, *evidence: Evidence) -> Verdict:
    return Verdict(Health.DEAD, rule, reason, evidence)


def missed(after: float, evidence: tuple[Evidence, ...], look_at: float) -> Verdict:
    reason = f"no heartbeat for {after:.1f} s; it keeps its cells until the lease ends"
    return suspect("beats_missed", reason, evidence, look_at)


def expired(after: str, why: str, *evidence: Evidence, lease: int = 5) -> Verdict:
    reason = f"no heartbeat for {after} s, longer than its lease of {lease} s; {why}; the lease alone decides"
    return dead("lease_expired", reason, *evidence)


def silent(after: float, count: str, *evidence: Evidence) -> Verdict:
    reason = f"no heartbeat for {after:.1f} s, and {count} witnesses get no answer either"
    return dead("neighbours_silent", reason, *evidence)


def falling(after: float, count: str, evidence: tuple[Evidence, ...], look_at: float) -> Verdict:
    hears = f"no heartbeat for {after:.1f} s, and {count} witnesses get no answer either"
    reason = f"{hears}; it may only be stalled, so the verdict waits a moment"
    return suspect("falling_silent", reason, evidence, look_at)


BEATS = Verdict(Health.HEALTHY, "beating", "it sends heartbeats", next_look_at=HEARD_AT + 2.01)

AT_REST = replace(UP, maintenance=Maintenance("s1", 999.5, 1_299.5))

AT_REST_REASON = "in maintenance: its agent ended in order, and its cells live on"

GOODBYE = Evidence("agent a", "it ended in order and left its cells running", 999.5)

NOBODY = "no neighbour can report on it"

MIXED = "its neighbours disagree"

CLOSED_REASON = "its stream is closed; it keeps its cells until the lease ends"

NO_SESSION = "it has not connected since this scheduler started"

WILL = Evidence("bus", "its last will was published", 1_000.0)

CUT_OFF = "no heartbeat, but {}: the server is cut off and keeps its cells"

AWAY = "its agent is gone, but the host is alive ({}); it keeps its cells until the lease ends"

GONE = "its provider reports that it is gone: spot"

BLAMED = Verdict(
    Health.SICK,
    "blamed",
    "8 of the 8 deaths of 2 groups within 60 s fell on it, which had 29% of their cells: the server is to blame",
    tuple(Evidence("server a", f"a cell of {d.group} died by rule exited", 990.0) for d in DEATHS),
)

LEAVING = replace(OPEN, is_leaving=True)

LEFT = replace(
    CLOSED, is_leaving=True, reports=HashTrieMap({"web/0.1": CellReport("web/0.1", "d", CellState.GONE)})
)

LEFT_A_CELL = replace(
    LEFT, reports=LEFT.reports.insert("web/1.1", CellReport("web/1.1", "d", CellState.STOPPING))
)

GRACE = "the scheduler has only just started to listen: every server gets one full lease"

FULL_FACT = Evidence("vitals a", FULL, 980.0)


TABLE: dict[str, tuple[Case, Verdict]] = {
    "silent to all, a moment after the scheduler began": (
        Case(3.0, "--", trusted_since=HEARD_AT - 1.5),
        suspect("grace", GRACE, facts(3.0, "--"), HEARD_AT + 3.5),
    ),
    "silent to all, a lease after the scheduler began": (
        Case(3.5, "--", trusted_since=HEARD_AT - 1.5),
        silent(3.5, "2 of 2", *facts(3.5, "--")),
    ),
    "leaving": (
        Case(seen=LEAVING),
        suspect("leaving", "its agent is ending its cells and will leave", facts(0.5), None),
    ),
    "left": (
        Case(1.0, "xx", seen=LEFT),
        dead("left", "its agent ended its cells and left, as announced", *facts(1.0, "xx", closed=True)),
    ),
    "left, and a cell is still there": (
        Case(1.0, seen=LEFT_A_CELL),
        suspect("stream_closed", CLOSED_REASON, facts(1.0, closed=True), HEARD_AT + 2.0),
    ),
    "beats": (Case(), BEATS),
    "two beats of silence are none yet": (Case(2.0, "---"), BEATS),
    "beats, whatever its neighbours hear": (Case(1.0, "---"), BEATS),
    "silence alone": (Case(3.0), missed(3.0, facts(3.0), HEARD_AT + 4.0)),
    "silence alone, near the end of its lease": (Case(4.5), missed(4.5, facts(4.5), HEARD_AT + 5.0)),
    "silence alone to the end of its lease": (Case(5.0), expired("5.0", NOBODY, *facts(5.0))),
    "neighbours hear nothing either": (Case(3.0, "---"), silent(3.0, "3 of 3", *facts(3.0, "---"))),
    "most neighbours hear nothing either": (Case(3.0, "--+"), silent(3.0, "2 of 3", *facts(3.0, "--+"))),
    "it may be held up, a beat after it was heard": (
        Case(2.9, "---"),
        falling(2.9, "3 of 3", facts(2.9, "---"), HEARD_AT + 2.95),
    ),
    "it may be held up, since a neighbour heard it later": (
        Case(3.0, "---", said_at=HEARD_AT + 1.25),
        falling(3.0, "3 of 3", facts(3.0, "---", said_at=HEARD_AT + 1.25), HEARD_AT + 1.25 + 1.95),
    ),
    "half of them is no majority": (
        Case(2.5, "-+"),
        missed(2.5, facts(2.5, "-+"), HEARD_AT + 3.5),
    ),
    "mixed witnesses leave it to the lease": (Case(5.5, "-+x"), expired("5.5", MIXED, *facts(5.5, "-+x"))),
    "neighbours that are silent themselves do not count": (
        Case(3.0, "---", unheard=3),
        missed(3.0, facts(3.0), HEARD_AT + 4.0),
    ),
    "only those that can be heard are counted": (
        Case(3.0, "--+", unheard=2),
        suspect(
            "cut_off",
            CUT_OFF.format("1 of 1 neighbours reach it"),
            facts(3.0, "--+", skip=2),
            HEARD_AT + 300.0,
        ),
    ),
    "its will was read": (Case(3.0, will_at=1_000.0), silent(3.0, "1 of 1", *facts(3.0), WILL)),
    "a will is one witness among others": (
        Case(2.5, "+", will_at=1_000.0),
        missed(2.5, (*facts(2.5, "+"), WILL), HEARD_AT + 3.5),
    ),
    "a will from before it was heard counts for nothing": (
        Case(3.0, will_at=998.0),
        missed(3.0, facts(3.0), HEARD_AT + 4.0),
    ),
    "cut off": (
        Case(60.0, "++-"),
        suspect(
            "cut_off", CUT_OFF.format("2 of 3 neighbours reach it"), facts(60.0, "++-"), HEARD_AT + 300.0
        ),
    ),
    "cut off for too long": (
        Case(300.0, "++"),
        dead(
            "cut_off_too_long",
            "no heartbeat for 300 s, although 2 of 2 neighbours reach it",
            *facts(300.0, "++"),
        ),
    ),
    "its pool says how long it may be cut off": (
        Case(20.0, "+", server=MADE),
        dead(
            "cut_off_too_long",
            "no heartbeat for 20 s, although 1 of 1 neighbours reach it",
            *facts(20.0, "+"),
        ),
    ),
    "its agent is away": (
        Case(1.0, "xx", seen=CLOSED),
        suspect(
            "agent_away",
            AWAY.format("2 of 2 neighbours reach its kernel"),
            facts(1.0, "xx", closed=True),
            HEARD_AT + 5.0,
        ),
    ),
    "its agent is away with its stream open": (
        Case(3.0, "xx-"),
        suspect(
            "agent_away",
            AWAY.format("2 of 3 neighbours reach its kernel"),
            facts(3.0, "xx-"),
            HEARD_AT + 5.0,
        ),
    ),
    "its port is refused but it sends heartbeats": (Case(1.0, "xx"), BEATS),
    "its agent is gone": (
        Case(5.0, "xx"),
        dead(
            "agent_gone",
            "its agent has been gone for longer than its lease of 5 s; 2 of 2 neighbours reach its kernel",
            *facts(5.0, "xx"),
        ),
    ),
    "its stream closed": (
        Case(1.0, seen=CLOSED),
        suspect("stream_closed", CLOSED_REASON, facts(1.0, closed=True), HEARD_AT + 2.0),
    ),
    "its lease ends after its stream closed": (
        Case(5.25, seen=CLOSED),
        expired("5.2", NOBODY, *facts(5.25, closed=True)),
    ),
    "no session yet counts from its joining": (
        Case(2.0, seen=None, server=replace(UP, joined_at=HEARD_AT)),
        suspect(
            "stream_closed",
            CLOSED_REASON,
            (Evidence("agent a", "last heard", HEARD_AT), Evidence("scheduler", NO_SESSION, 1_001.0)),
            HEARD_AT + 3.0,
        ),
    ),
    "silence before this scheduler's start counts for nothing": (
        Case(6.0, seen=None, trusted_since=1_003.0),
        suspect(
            "stream_closed",
            CLOSED_REASON,
            (Evidence("agent a", "last heard", 1_003.0), Evidence("scheduler", NO_SESSION, 1_005.0)),
            1_006.0,
        ),
    ),
    "the lease of a large fleet is stretched": (
        Case(9.5, servers=2_000),
        missed(9.5, facts(9.5), HEARD_AT + 10.0),
    ),
    "its pool has a lease of its own": (
        Case(8.0, server=MADE),
        expired("8.0", NOBODY, *facts(8.0), lease=8),
    ),
    "its provider has it no more": (
        Case(1.0, "+", server=MADE, made=ProviderState.GONE, seen=CLOSED),
        dead("provider_gone", GONE, Evidence("provider", GONE, 1_000.0), *facts(1.0, "+", closed=True)),
    ),
    "its provider has it no more, and it beats on": (
        Case(1.0, "+", server=MADE, made=ProviderState.GONE),
        suspect(
            "provider_contradicted",
            f"{GONE}, but it still sends heartbeats",
            (Evidence("provider", GONE, 1_000.0), *facts(1.0, "+")),
            HEARD_AT + 2.01,
        ),
    ),
    "its provider still has it": (Case(1.0, server=MADE, made=ProviderState.RUNNING), BEATS),
    "no provider speaks for a server that joined by itself": (Case(1.0, made=ProviderState.GONE), BEATS),
    "cells of several groups die on it": (Case(server=replace(UP, deaths=DEATHS)), BLAMED),
    "cells of one group die on it": (Case(server=replace(UP, deaths=DEATHS[::2] * 2)), BEATS),
    "they died long ago": (
        Case(server=replace(UP, deaths=tuple(replace(one, at=939.0) for one in DEATHS))),
        BEATS,
    ),
    "its disk is full for a while": (
        Case(server=MADE, seen=ailing(3)),
        Verdict(Health.SICK, "disk_full", f"{FULL}, for 20 s", (FULL_FACT,)),
    ),
    "its disk is full, as one reading said long ago": (
        Case(server=MADE, seen=ailing(2)),
        suspect(
            "disk_full",
            f"{FULL}; it gets no new cells while other servers can take them",
            (FULL_FACT,),
            HEARD_AT + 2.01,
        ),
    ),
    "its disk is full since a moment ago": (
        Case(server=MADE, seen=ailing(9, since=985.0)),
        suspect(
            "disk_full",
            f"{FULL}; it gets no new cells while other servers can take them",
            (replace(FULL_FACT, at=985.0),),
            1_000.0,
        ),
    ),
    "its disk is full and there is no other server": (
        Case(seen=ailing(3)),
        suspect(
            "disk_full",
            f"{FULL}, for 20 s; no other healthy server could take its cells, so it stays",
            (FULL_FACT,),
            HEARD_AT + 2.01,
        ),
    ),
    "in maintenance": (
        Case(100.0, "xx", server=AT_REST, seen=CLOSED),
        suspect("maintenance", AT_REST_REASON, (GOODBYE, *facts(100.0, "xx")[2:]), 1_299.5),
    ),
    "in maintenance, and its neighbours were never refused": (
        Case(100.0, "---", server=AT_REST, seen=CLOSED),
        suspect("maintenance", AT_REST_REASON, (GOODBYE, *facts(100.0, "---")[2:]), 1_299.5),
    ),
    "its maintenance ran out": (
        Case(301.0, server=AT_REST, seen=CLOSED),
        expired("301.0", NOBODY, *facts(301.0, closed=True)),
    ),
    "its agent is back from maintenance": (Case(server=AT_REST, seen=replace(OPEN, session="s2")), BEATS),
    "enrolled and not attached": (
        Case(60.0, "---", server=Server("a", 0, Phase.ORDERED), seen=None),
        Verdict(Health.HEALTHY, "enrolled", "enrolled; its agent has not attached yet"),
    ),
    "lost": (
        Case(server=LOST),
        dead(
            "lease_expired",
            "condemned: lease_expired",
            Evidence("scheduler", "condemned by rule lease_expired", 995.0),
        ),
    ),
    "drained and still beating": (Case(server=DRAINED), BEATS),
    "drained and dying": (Case(5.0, server=DRAINED), expired("5.0", NOBODY, *facts(5.0))),
    "drained to the end": (
        Case(60.0, server=replace(DRAINED, phase=Phase.DECOMMISSIONED)),
        Verdict(
            Health.HEALTHY,
            "operator",
            "condemned: operator",
            (Evidence("scheduler", "condemned by rule operator", 995.0),),
        ),
    ),
}


@pytest.mark.parametrize("story", TABLE)
def test_each_rule_on_servers_says_what_it_saw(story: str) -> None:
    case, expected = TABLE[story]
    assert case.verdict() == expected


def test_the_table_covers_every_rule_on_servers() -> None:
    told = {expected.rule for _, expected in TABLE.values()}
    told.add("unlisted")  # it needs a whole pool: test_pools has its table
    alone = {
        "enrolled",
        "left",
        "unlisted",
        "lease_expired",
        "blamed",
        "stream_closed",
        "leaving",
        "maintenance",
    }
    of_two = {
        "provider_gone",
        "provider_contradicted",
        "neighbours_silent",
        "grace",
        "cut_off",
        "cut_off_too_long",
        "agent_away",
        "agent_gone",
    }
    of_many = {"falling_silent", "beats_missed", "disk_full", "beating", "operator"}
    assert told == alone | of_two | of_many
    # beats_missed; vitals have a table of their own; a condemned one tells its own
    assert len(SERVER_RULES) == len(alone) + len(of_two) // 2 + 3
