"""What may happen to a simulated fleet: every public coroutine here is one kind of trouble.

Each comes over the world at once and, where it lasts, ends by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from galactica.scheduler.core.model.requests import ApplyGroups, CondemnCell, DeleteGroup, DrainServer
from tests.sim.backup import last_backup_told_by_epochs, restore
from tests.sim.host import Host
from tests.sim.lies import Liar
from tests.sim.network import Weather
from tests.sim.provider import Temper
from tests.sim.regrown import lose_journal
from tests.sim.wanted import pool, service

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation


NOT_YET = {
    "journal_restored_unnoticed": "an id that only unheard servers know is given out again: nobody shows that it was",
}
"""Troubles that the product does not stand yet, and what they wait for. ``SIM_ALSO=name,...`` lets them happen."""


@dataclass
class Troubles:
    world: Simulation

    def kinds(self) -> list[Callable[[], Awaitable[None]]]:
        """All there are, by name: a seed chooses from them in this order."""
        left_out = NOT_YET.keys() - self.world.also
        names = [name for name in sorted(vars(type(self))) if not name.startswith("_") and name != "kinds"]
        return [getattr(self, name) for name in names if name not in left_out]

    def _host(self) -> Host:
        return self.world.random.choice(
            list(self.world.hosts.values())
        )  # joined hosts never go, so there is one

    def _later(self, act: Callable[[], object], low: float, high: float) -> None:
        asyncio.get_running_loop().call_later(self.world.random.uniform(low, high), act)

    async def cell_killed(self) -> None:
        host = self._host()
        if host.running():
            host.kill_cell(self.world.random.choice(host.running()))

    async def all_cells_of_a_host_killed(self) -> None:
        host = self._host()
        for cell in host.running():
            host.kill_cell(cell)

    async def cell_ill(self) -> None:
        host = self._host()
        if host.running():
            body = host.bodies[self.world.random.choice(host.running())]
            body.ill_until = host.now + self.world.random.uniform(1.0, 15.0)

    async def agent_killed(self) -> None:
        host = self._host()
        host.kill_agent()
        self._later(host.boot_agent, 0.1, self.world.random.choice([12.0, 50.0]))

    async def agent_ends_in_order(self) -> None:
        """As for a package that is installed. Its host may die or hang meanwhile."""
        host = self._host()
        seconds = self.world.random.choice([3.0, 12.0, 50.0])
        back_after_seconds = self.world.random.uniform(0.2, seconds)
        host.end_agent(self.world.random.choice([10.0, 60.0, 300.0]), back_after_seconds)
        fate = self.world.random.random()
        if fate < 0.2:
            self._later(lambda: self._freeze(host), 2.0, seconds)
        elif fate < 0.3 and host.name in self.world.provider.machines:
            self._later(lambda: self._destroy(host), 2.0, seconds)

    def _freeze(self, host: Host) -> None:
        host.troubles.frozen_until = host.now + self.world.random.uniform(1.0, 12.0)

    def _destroy(self, host: Host) -> None:
        if host.name in self.world.provider.machines and host.name in self.world.hosts:
            self.world.provider.die(host.name)

    async def host_frozen(self) -> None:
        host = self._host()
        host.troubles.frozen_until = host.now + self.world.random.uniform(0.5, 12.0)

    async def disks_of_hosts_full(self) -> None:
        """Of one host, or of all of them."""
        until = asyncio.get_running_loop().time() + self.world.random.uniform(5.0, 60.0)
        for host in self.world.random.choice([[self._host()], list(self.world.hosts.values())]):
            host.troubles.disk_full_until = until

    async def agent_frozen(self) -> None:
        host = self._host()
        host.troubles.agent_frozen_until = host.now + self.world.random.uniform(0.5, 40.0)

    async def engine_away(self) -> None:
        host = self._host()
        host.troubles.engine_away = True
        self._later(lambda: setattr(host.troubles, "engine_away", False), 0.5, 10.0)

    async def cells_in_doubt(self) -> None:
        """Some cells of a host cannot be inspected for a while."""
        host = self._host()
        cells = frozenset(cell for cell in host.bodies if self.world.random.random() < 0.6)
        host.doubt(cells)
        self._later(lambda: host.doubt(frozenset()), 1.0, 15.0)

    async def starts_slow_and_failing(self) -> None:
        host = self._host()
        host.troubles.start_seconds = self.world.random.choice([0.05, 0.5, 4.0])
        host.troubles.starts_fail = self.world.random.choice([0.0, 0.2, 1.0])

    async def network_cut(self) -> None:
        """Both ways, or only one."""
        host = self._host()
        ways = self.world.random.choice([("to",), ("from",), ("to", "from")])
        for way in ways:
            cut = self.world.network.cut_to if way == "to" else self.world.network.cut_from
            cut.add(host.name)
            longest = self.world.random.choice([15.0, 40.0])
            self._later(lambda cut=cut: cut.discard(host.name), 0.5, longest)  # type: ignore[misc]

    async def host_isolated(self) -> None:
        """Nobody reaches it, neither the scheduler nor its neighbours."""
        host = self._host()
        for cut in (self.world.network.cut_to, self.world.network.cut_from, self.world.pings.isolated):
            cut.add(host.name)
        seconds = self.world.random.uniform(0.5, self.world.random.choice([15.0, 40.0]))
        for cut in (self.world.network.cut_to, self.world.network.cut_from, self.world.pings.isolated):
            self._later(lambda cut=cut: cut.discard(host.name), seconds, seconds)  # type: ignore[misc]

    async def scheduler_cut_off_from_all(self) -> None:
        names = list(self.world.hosts)
        seconds = self.world.random.uniform(1.0, 60.0)
        for name in names:
            self.world.network.cut_from.add(name)
            self._later(lambda name=name: self.world.network.cut_from.discard(name), seconds, seconds)  # type: ignore[misc]

    async def machine_destroyed(self) -> None:
        machines = [name for name in self.world.provider.machines if name in self.world.hosts]
        if machines:
            self.world.provider.die(self.world.random.choice(machines))

    async def provider(self) -> None:
        self.world.provider.temper = Temper(
            seconds=self.world.random.choice([0.1, 1.0, 8.0]),
            fails=self.world.random.choice([0.0, 0.3, 1.0]),
            answer_lost=self.world.random.choice([0.0, 0.3]),
            silent=self.world.random.random() < 0.2,
            lists_nothing=self.world.random.random() < 0.3,
            delete_seconds=self.world.random.choice([0.0, 3.0, 60.0]),
            deletes_forgotten=self.world.random.choice([0.0, 0.0, 0.3]),
        )

    async def deletes_take_long(self) -> None:
        """They are accepted at once. The machine lives on meanwhile, with all that runs on it."""
        self.world.provider.temper = Temper(delete_seconds=self.world.random.uniform(5.0, 90.0))

    async def agent_lies(self) -> None:
        """For a while, and then an honest one takes its place."""
        host = self._host()
        if host.liar is None:
            self.world.laws.liars.add(host.name)
            host.lie(Liar(self.world.random, lambda: _own(host), lambda: self._elsewhere(host)))
            self._later(lambda: host.lie(None), 2.0, 20.0)

    def _elsewhere(self, host: Host) -> list[str]:
        return [cell for other in self.world.hosts.values() if other is not host for cell in other.bodies]

    async def journal_restored(self) -> None:
        """From a backup that was taken after the fleet was set up, and so many starts ago that its agents tell."""
        told = last_backup_told_by_epochs(self.world.disk)
        if told >= self.world.settled:
            await restore(self.world, self.world.random.randint(self.world.settled, told))

    async def journal_restored_unnoticed(self) -> None:
        """From a backup of this start or the one before it: no agent has obeyed a higher epoch than the next one."""
        newest = self.world.laws.position
        await restore(self.world, self.world.random.randint(self.world.settled, newest))

    async def journal_lost(self) -> None:
        """Nothing is left of the scheduler but its CA."""
        await lose_journal(self.world)

    async def wall_clock_of_the_scheduler_steps(self) -> None:
        """It is noticed by the next scheduler there: one that runs goes by a clock that is not set."""
        steps = [-86_400.0, -3_600.0, -2.0, 2.0, 3_600.0, 40 * 86_400.0]
        self.world.wall_step = self.world.random.choice(steps)
        await self.scheduler_crash()

    async def two_of_one_identity(self) -> None:
        """A machine is cloned with its data directory, and switched off again after a while. The scheduler may end
        meanwhile: then the clone may be the first to attach to the next one."""
        host = self._host()
        if host.name not in self.world.clones:
            self.world.clone(host)
            self._later(lambda: self.world.switch_off_clone(host.name), 2.0, 30.0)
            if self.world.random.random() < 0.3:
                await self.scheduler_crash()

    async def wall_clock_of_a_host_steps(self) -> None:
        """By so little that nobody has to mind, or by much and only for a moment."""
        host = self._host()
        step, seconds = self.world.random.choice(
            [(4.0, 60.0), (-4.0, 60.0), (3_600.0, 3.0), (-86_400.0, 3.0)]
        )
        host.troubles.clock_ahead_seconds = step
        self._later(lambda: setattr(host.troubles, "clock_ahead_seconds", 0.0), seconds, seconds)

    async def revision_dies_young(self) -> None:
        """A service gets a revision whose cells become READY and die before they are proven."""
        wanted = self.world.acknowledged.get("web")
        if wanted is not None:
            await self.world.ask(ApplyGroups((service("web", wanted.replicas, "young"),)))

    async def pool_changed(self) -> None:
        if self.world.has_pool:
            await self.world.ask(
                ApplyGroups((pool(self.world.random.randint(0, 4), self.world.random.choice(["p0", "p1"])),))
            )

    async def bad_weather(self) -> None:
        self.world.network.weather = Weather(
            delay_seconds=self.world.random.choice([0.001, 0.05, 0.5]),
            jitter_seconds=self.world.random.choice([0.0, 0.1, 1.0]),
            lost=self.world.random.choice([0.0, 0.02, 0.2]),
            repeated=self.world.random.choice([0.0, 0.1, 0.5]),
        )

    async def scheduler_crash(self) -> None:
        await self.world.stop_scheduler()
        await asyncio.sleep(self.world.random.choice([0.0, 0.2, 3.0, 12.0]))
        self.world.start_scheduler()
        self.world.nothing_acknowledged_is_lost()

    async def scheduler_stalls(self) -> None:
        """For less than anybody notices, or for longer than a cell takes to be proven."""
        if self.world.scheduler is not None:
            standstill = self.world.scheduler.links.standstill
            standstill.begin()
            self._later(standstill.end, 0.5, 9.0)

    async def scheduler_stalls_during_rollout(self) -> None:
        """At the worst times: whenever a cell becomes READY while a service gets a revision whose cells die young."""
        self.world.stalls_left = self.world.random.randint(3, 12)
        await self.revision_dies_young()

    async def disk_full(self) -> None:
        self.world.disk.is_full = True
        self._later(lambda: setattr(self.world.disk, "is_full", False), 0.2, 6.0)

    async def apply(self) -> None:
        name = self.world.random.choice(["web", "api"])
        command = self.world.random.choice(["v0", "v1", "v2", "dies", "ill", "young"])
        await self.world.ask(ApplyGroups((service(name, self.world.random.randint(0, 8), command),)))

    async def exclusive_changed(self) -> None:
        command = self.world.random.choice(["v0", "v1", "dies"])
        await self.world.ask(
            ApplyGroups((service("db", self.world.random.randint(1, 3), command, exclusive=True),))
        )

    async def delete(self) -> None:
        await self.world.ask(DeleteGroup(self.world.random.choice(["web", "api"])))

    async def condemn(self) -> None:
        host = self._host()
        if host.bodies:
            await self.world.ask(
                CondemnCell(self.world.random.choice(sorted(host.bodies)), "the simulator says so")
            )

    async def drain(self) -> None:
        staying = [name for name in self.world.hosts if name not in self.world.drained and "/" not in name]
        if len(staying) > 2:
            name = self.world.random.choice(staying)
            self.world.drained.add(name)
            await self.world.ask(DrainServer(name))


def _own(host: Host) -> list[str]:
    return [cell for cell, body in host.bodies.items() if not body.order.spec.exclusive]
