"""Verdicts on servers as cells of a pool: as a place for cells, and what their provider says of them."""

from __future__ import annotations

from galactica.scheduler.core.model.fleet import Cell, Fleet, GroupState, Phase
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.rules import Rule
from galactica.scheduler.core.model.spec import Spec
from galactica.scheduler.core.model.verdict import Evidence, Health, Verdict
from galactica.scheduler.core.sight.observations import (
    ProviderServer,
    ProviderState,
)
from galactica.scheduler.core.sight.state import Sight
from galactica.scheduler.core.verdicts.evidence import provider_of, provider_server
from galactica.scheduler.core.verdicts.servers import server_verdict
from galactica.scheduler.core.verdicts.vitals import own_ailments

# --- servers as cells of a pool ------------------------------------------------------------------------------------


def server_cell_verdict(
    cell: Cell,
    spec: Spec,
    of_place: Verdict | None,
    made: ProviderServer | None,
    refused: str,
    trusted_since: float,
    now: float,
) -> Verdict:
    """What the evidence says of a server as a cell. ``of_place``: the verdict on it as a place for cells, where its
    agent ever attached; ``made``, ``refused``: its provider's word."""
    if refused:
        return Verdict(Health.DEAD, Rule.START_FAILED, refused, (Evidence("provider", refused, now),))
    if made is not None and made.state is ProviderState.GONE:
        if of_place is not None and of_place.rule in (Rule.PROVIDER_GONE, Rule.PROVIDER_CONTRADICTED):
            return of_place  # it has weighed the same word
        reason = f"its provider reports that it is gone{': ' + made.reason if made.reason else ''}"
        facts = (Evidence("provider", reason, now), *(of_place.evidence if of_place else ()))
        return Verdict(Health.DEAD, Rule.PROVIDER_GONE, reason, facts)
    deadline = max(cell.ordered_at, trusted_since) + spec.health.boot_within_seconds
    if not cell.was_ready and now >= deadline:
        reason = f"not ready within {spec.health.boot_within_seconds:g} s of its order"
        return Verdict(Health.SICK, Rule.BOOT_TIMEOUT, reason, (Evidence("scheduler", reason, now),))
    if of_place is not None:
        return of_place
    if made is None:
        return Verdict(Health.HEALTHY, Rule.ORDERED, "its provider is making it", next_look_at=deadline)
    return Verdict(Health.HEALTHY, Rule.BOOTING, "its agent has not attached yet", next_look_at=deadline)


def pool_cell_verdict(
    fleet: Fleet, state: GroupState, cell: Cell, sight: Sight, now: float, policy: Policy
) -> Verdict:
    """What the evidence says of a pool's cell: as a place for cells, and what its provider says of it."""
    server = fleet.servers.get(cell.id)
    of_place = None
    if server is not None and server.phase in (Phase.READY, Phase.CONDEMNED):
        of_place = server_verdict(fleet, server, sight, now, policy)
    spec = state.spec_for(cell)
    made = provider_server(sight, spec, cell.id)
    provider = sight.providers.get(provider_of(spec))
    refused = (provider.refused.get(cell.id) if provider else None) or ""
    return server_cell_verdict(cell, spec, of_place, made, refused, sight.trusted_since, now)


def is_well(verdict: Verdict, fleet: Fleet, cell: Cell, sight: Sight, policy: Policy) -> bool:
    """Whether this verdict on a pool's cell says nothing against it. Also where the only doubt is about the scheduler's
    own clock: then no server would ever be well."""
    if verdict.rule != Rule.CLOCK_OFF:
        return verdict.health is Health.HEALTHY
    server = fleet.servers.get(cell.id)
    return server is not None and not own_ailments(fleet, server, sight, policy.vitals)
