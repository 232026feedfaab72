"""Verdicts by a server's own vitals: suspect while they are bad, sick once they stay bad.

Such a server still sends heartbeats, so these rules are careful. A trouble that many servers share is hardly the fault
of each. The last working server is better than none.
"""

from __future__ import annotations

import itertools

from galactica.scheduler.core.model.fleet import Fleet, Phase, Server
from galactica.scheduler.core.model.policy import VitalLimits
from galactica.scheduler.core.model.rules import Rule
from galactica.scheduler.core.model.verdict import Evidence, Health, Verdict
from galactica.scheduler.core.sight.state import Sight
from galactica.scheduler.core.sight.vitals import Ailment

CLOCK_WITNESSES = 2
"""So many other servers must have the scheduler's time, before one that has another is to blame."""


def vitals_verdict(
    fleet: Fleet, server: Server, sight: Sight, now: float, limits: VitalLimits
) -> Verdict | None:
    """The verdict by its vitals; None where they are good."""
    seen = sight.servers.get(server.id)
    if seen is None or not seen.ailing:
        return None
    facts = tuple(Evidence(f"vitals {server.id}", one.says, one.since) for one in seen.ailing)
    lasting = [one for one in seen.ailing if one.lasts(now, limits)]
    if not lasting:
        first = seen.ailing[0]
        due_at = first.since + limits.ailing_seconds
        reason = f"{first.says}; it gets no new cells while other servers can take them"
        return Verdict(Health.SUSPECT, first.rule, reason, facts, due_at if due_at > now else None)
    ailment = next((one for one in lasting if not _is_excused(one, fleet, sight, limits)), None)
    look_at = now + limits.ailing_seconds
    if ailment is None:
        reason = f"{lasting[0].says}; {_excuse(lasting[0], fleet, sight)}"
        return Verdict(Health.SUSPECT, lasting[0].rule, reason, facts, look_at)
    reason = f"{ailment.says}, for {now - ailment.since:.0f} s"
    if not server.pool and not _can_be_spared(fleet, server, sight):
        reason += "; no other healthy server could take its cells, so it stays"
        return Verdict(Health.SUSPECT, ailment.rule, reason, facts, look_at)
    return Verdict(Health.SICK, ailment.rule, reason, facts)


def own_ailments(fleet: Fleet, server: Server, sight: Sight, limits: VitalLimits) -> tuple[Ailment, ...]:
    """What ails the server itself. A clock that is as likely the scheduler's is nothing to wait for: it may stay so for
    good."""
    seen = sight.servers.get(server.id)
    ailing = seen.ailing if seen else ()
    return tuple(one for one in ailing if not _is_ours(one, fleet, sight, limits))


def _is_excused(ailment: Ailment, fleet: Fleet, sight: Sight, limits: VitalLimits) -> bool:
    """What the agents of many servers lack is the doing of what they run, and their replacements would lack it too."""
    if ailment.rule == Rule.AGENT_STARVED:
        return _is_common(ailment, fleet, sight, limits)
    return _is_ours(ailment, fleet, sight, limits)


def _excuse(ailment: Ailment, fleet: Fleet, sight: Sight) -> str:
    count = len(sight.ailing.get(ailment.rule) or ())
    so_say = f"so say {count} of {len(fleet.servers)} servers"
    if ailment.rule == Rule.AGENT_STARVED:
        return f"{so_say}: hardly the fault of each, and none is condemned for it"
    return f"{so_say}, and too few have the time of the scheduler: it suspects its own clock and condemns none of them"


def _is_common(ailment: Ailment, fleet: Fleet, sight: Sight, limits: VitalLimits) -> bool:
    sharing = len(sight.ailing.get(ailment.rule) or ())
    return sharing > max(1, int(len(fleet.servers) * limits.common_fraction))


def _is_ours(ailment: Ailment, fleet: Fleet, sight: Sight, limits: VitalLimits) -> bool:
    """Clocks are compared with the scheduler's. If many seem wrong, the scheduler's is wrong. It is as likely to be
    wrong as the one that differs, as long as not two others agree with it."""
    if ailment.rule != Rule.CLOCK_OFF:
        return False
    return _is_common(ailment, fleet, sight, limits) or not _agree_with_us(sight, CLOCK_WITNESSES)


def _agree_with_us(sight: Sight, count: int) -> bool:
    """Whether that many servers have a clock like the scheduler's."""
    agreeing = (name for name in sight.well if _tells_its_clock(sight, name))
    return sum(1 for _ in itertools.islice(agreeing, count)) == count


def _tells_its_clock(sight: Sight, server: str) -> bool:
    vitals = sight.servers[server].vitals
    return vitals is not None and vitals.clock_offset_ms is not None


def _can_be_spared(fleet: Fleet, server: Server, sight: Sight) -> bool:
    """Whether another healthy server could take its cells. No provider replaces a server that joined by itself."""
    others = (fleet.servers.get(name) for name in sight.well if name != server.id)
    return any(other is not None and other.phase is Phase.READY for other in others)
