"""What only tests need of the core: a whole history folded at once, and one reconciliation without a turn around it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce

from galactica.scheduler.core.model.events import Record
from galactica.scheduler.core.model.fleet import Fleet
from galactica.scheduler.core.model.keys import Key
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.reconcile.draft import Draft
from galactica.scheduler.core.reconcile.plan import Plan, finish
from galactica.scheduler.core.sight.state import Sight
from galactica.scheduler.core.transitions import apply


def apply_all(fleet: Fleet, records: Iterable[Record]) -> Fleet:
    return reduce(apply, records, fleet)


def reconcile(fleet: Fleet, sight: Sight, dirty: Mapping[Key, str], now: float, policy: Policy) -> Plan:
    return finish(Draft(fleet, sight, now, policy), dirty)
