"""The end of each history: all trouble is over, and the fleet must become what is wanted."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from galactica.scheduler.core.model.requests import ApplyGroups
from galactica.scheduler.core.model.spec import GroupKind
from tests.sim.backup import tidy_up
from tests.sim.host import Troubles
from tests.sim.laws import LawBroken
from tests.sim.network import Weather
from tests.sim.regrown import settle, until_grown
from tests.sim.wanted import pool, service

if TYPE_CHECKING:
    from galactica.scheduler.core.model.fleet import GroupState
    from tests.sim.simulation import Simulation

REST_SECONDS = 16.0
"""In which what is still to come of the troubles comes."""
CALM_SECONDS = 240.0


async def calm_down(world: Simulation) -> None:
    """End all trouble, and want something new."""
    world.check()
    world.disk.is_full = False
    world.network.weather = Weather()
    world.network.cut_to.clear()
    world.network.cut_from.clear()
    world.pings.isolated.clear()
    world.provider.temper = world.provider.usual
    for name in list(world.clones):
        world.switch_off_clone(name)
    for host in world.hosts.values():
        was = host.troubles  # who is frozen wakes when its time has come
        host.troubles = Troubles(frozen_until=was.frozen_until, agent_frozen_until=was.agent_frozen_until)
        if host.liar is not None:
            host.lie(None)
        host.boot_agent()
        for body in host.bodies.values():
            body.ill_until = 0.0
    if world.scheduler is None:
        world.start_scheduler()
    await asyncio.sleep(REST_SECONDS)
    await until_grown(world)
    await _bring_a_server_where_none_is_left(world)
    random = world.random
    groups = [service(name, random.randint(1, 6), f"calm{world.seed % 2}") for name in ("web", "api")]
    groups.append(service("db", random.randint(1, 3), "calm", exclusive=True))
    if world.has_pool:
        groups.append(pool(random.randint(1, 3), "calm"))
    await world.must(ApplyGroups(tuple(groups)))


async def _bring_a_server_where_none_is_left(world: Simulation) -> None:
    """As an operator does who sees that all that joined are drained or to blame, and have nowhere to empty into."""
    assert world.scheduler is not None
    servers = world.scheduler.controller.view().fleet.servers.values()
    if not any(server.takes_cells for server in servers if not server.pool):
        assert await world.add_host("spare")


async def converge(world: Simulation) -> None:
    """Wait until the fleet is as it is wanted."""
    end = asyncio.get_running_loop().time() + CALM_SECONDS
    why = unconverged(world)
    while why and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(1.0)
        world.check()
        await tidy_up(world)
        await settle(world)
        why = unconverged(world)
    if why:
        raise LawBroken(f"not converged after {CALM_SECONDS:g} s of calm: {why}")


def unconverged(world: Simulation) -> str:
    """Why the fleet is not yet as it is wanted; empty when it is."""
    assert world.scheduler is not None
    view = world.scheduler.controller.view()
    expected = set()
    for name, state in view.fleet.groups.items():
        why = _unfinished(name, state)
        if why:
            return why
        cells = [cell for slot in state.slots.values() for cell in slot.cells]
        if state.group.kind is GroupKind.SERVICE:
            expected |= {(cell.server, cell.id) for cell in cells}
        elif {cell.id for cell in cells} != world.running_machines():
            return f"machines {sorted(world.provider.machines)} for {sorted(cell.id for cell in cells)}"
    actual = {(host.name, cell) for host in world.hosts.values() for cell in host.bodies}
    if actual != expected:
        return f"orphans {sorted(actual - expected)}, missing {sorted(expected - actual)}"
    return f"held: {view.holds}" if view.holds else ""


def _unfinished(name: str, state: GroupState) -> str:
    cells = [cell for slot in state.slots.values() for cell in slot.cells]
    wrong = [(c.id, c.phase.value) for c in cells if c.phase.value != "READY" or c.digest != state.digest]
    if wrong:
        return f"{name}: {wrong}"
    if len(cells) != state.wanted_slots:
        return f"{name}: {len(cells)} cells for {state.wanted_slots} slots"
    return ""
