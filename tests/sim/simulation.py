"""One seeded history: trouble first, under which the laws must hold, then calm, in which the fleet must converge."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import Random

from galactica.scheduler.controller import Controller, load
from galactica.scheduler.core.genome import nothing_wanted
from galactica.scheduler.core.model.events import CellReady, Record
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.requests import (
    ApplyGroups,
    Asker,
    CreateToken,
    DeleteGroup,
    Enrol,
    Refused,
    Request,
)
from galactica.scheduler.core.model.spec import Group
from galactica.scheduler.core.sight.observations import Observation, ProviderState, Testimony
from galactica.scheduler.core.turns import Start
from galactica.v1 import link_pb2
from tests.sim import clock
from tests.sim.calm import calm_down, converge
from tests.sim.host import Host
from tests.sim.journal import Disk, SimJournal
from tests.sim.laws import LawBroken, Laws
from tests.sim.link import Links
from tests.sim.network import Network
from tests.sim.pings import Pings
from tests.sim.provider import SimProvider
from tests.sim.regrown import Genomes
from tests.sim.rivals import Rivals
from tests.sim.serves import serve_one_by_one
from tests.sim.stall import SleepyController
from tests.sim.troubles import Troubles
from tests.sim.wanted import pool, service

TROUBLE_SECONDS = 60.0
SECRET = "0" * 64


@dataclass
class Outcome:
    seed: int
    records: int
    trace: str
    """SHA-256 over every record: two runs of a seed give the same."""
    troubles: Counter[str]


@dataclass
class Scheduler:
    """One life of the scheduler's process."""

    controller: Controller
    journal: SimJournal
    links: Links
    task: asyncio.Task[None]


class Simulation:
    """``seed`` decides everything. ``policy`` may be another one to prove that the laws can be broken. ``also``:
    troubles that usually do not happen yet."""

    def __init__(self, seed: int, policy: Policy | None = None, also: frozenset[str] = frozenset()) -> None:
        self.also = also
        self.seed = seed
        self.random = Random(seed)
        self.policy = policy or Policy()
        self.laws = Laws()
        self.network = Network(self.random)
        self.disk = Disk(self.random, self._durable)
        self.hosts: dict[str, Host] = {}
        self.clones: dict[str, Host] = {}
        """Second machines of one identity."""
        self.rivals = Rivals(self.laws, self.machines)
        self.scheduler: Scheduler | None = None
        self.trace = hashlib.sha256()
        self.troubles: Counter[str] = Counter()
        self.acknowledged: dict[str, Group | None] = {}
        self.uncertain: set[str] = set()
        self.provider = SimProvider(self.random, self)
        self.has_pool = self.random.random() < 0.6
        self._chores: set[asyncio.Task[object]] = set()
        self.drained: set[str] = set()
        self.all_names: set[str] = set()
        self.pings = Pings(silent=self.laws.maintenance.silent)
        self.booting: set[str] = set()
        self.broken: list[BaseException] = []
        self._tokens = 0
        self.clock: clock.VirtualClock | None = None
        self.settled = 0
        """Position of the journal when trouble begins."""
        self.has_lost_journal = False
        self.stalls_left = 0
        """So often it is to stand still when the next cell becomes READY."""
        self.wall_step = 0.0
        """By how much the wall clock of the scheduler's machine is wrong. The next scheduler there begins with it."""

    def run(self) -> Outcome:
        clock.run(self._run())
        return Outcome(self.seed, len(self.disk.records), self.trace.hexdigest(), self.troubles)

    # --- the world ------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        asyncio.get_running_loop().set_exception_handler(self._unhandled)
        self.start_scheduler()
        for number in range(self.random.randint(2, 5)):
            await self.add_host(f"h{number}")
        self._chore(self.provider.sweep())
        if self.has_pool:
            await self.ask(ApplyGroups((pool(self.random.randint(1, 4), "p0"),)))
        await self.ask(ApplyGroups((service("web", self.random.randint(1, 8), "v0"),)))
        await self.ask(ApplyGroups((service("db", self.random.randint(1, 3), "v0", exclusive=True),)))
        self.settled = self.laws.position
        await self._make_trouble()
        await calm_down(self)
        await converge(self)
        await self.stop_scheduler()
        for chore in self._chores:
            chore.cancel()

    def _started(self, host: str, order: link_pb2.Order) -> None:
        self.laws.started_on(host, order.cell_id)
        if order.spec.exclusive:
            self.rivals.began()

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        error = context.get("exception")
        self.broken.append(error if isinstance(error, BaseException) else LawBroken(str(context)))

    def _durable(self, records: Sequence[Record]) -> None:
        for record in records:
            self.trace.update(repr(record).encode())
        self.laws.durable(records)
        if self.stalls_left and any(isinstance(record.event, CellReady) for record in records):
            self.stalls_left -= 1
            self._chore(Troubles(self).scheduler_stalls())

    def start_scheduler(self) -> None:
        journal = SimJournal(self.disk)
        fleet = load(journal)
        epoch = max(journal.epoch, fleet.epoch + 1)
        name = f"began at {asyncio.get_running_loop().time()}"
        start = Start(epoch, "sim", name, regrows=self.has_lost_journal and nothing_wanted(fleet))
        self.clock = clock.VirtualClock(self.wall_step, fleet.at)
        controller = SleepyController(journal, fleet, self.clock, start, self.policy)
        links = Links(
            self.network,
            epoch,
            start.id,
            self.laws.sent,
            self._testimony,
            self.laws.heard,
            self.clock,
            controller,
        )
        controller.standstill = links.standstill
        for host in self.machines():
            host.port = links

        async def genomes() -> None:
            assert self.scheduler is not None
            await Genomes(self, self.scheduler).run()

        async def life() -> None:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(controller.run(links, self.provider))
                tasks.create_task(links.pump())
                tasks.create_task(genomes())

        task = asyncio.get_running_loop().create_task(life())
        self.scheduler = Scheduler(controller, journal, links, task)

    async def stop_scheduler(self) -> None:
        """Kill it, wherever it is. What is not durable by now is lost."""
        if self.scheduler is None:
            return
        scheduler, self.scheduler = self.scheduler, None
        scheduler.journal.crash()
        scheduler.links.drop_all()
        scheduler.task.cancel()
        with suppress(asyncio.CancelledError):
            await scheduler.task

    # --- what the provider does to the world ----------------------------------------------------------------------

    def now(self) -> float:
        assert self.clock is not None  # a scheduler has lived, and the provider answers by its clock
        return self.clock.now()

    def tell(self, observation: Observation) -> None:
        if self.scheduler is not None:
            self.scheduler.links.inbox.put_nowait(observation)

    def list_lies(self) -> None:
        self.laws.lists_lied = True

    def machine_made(self, name: str) -> None:
        self.laws.standing.add(name)
        if name not in self.booting:
            self.booting.add(name)
            self._chore(self._boot_machine(name))

    def machine_deleted(self, name: str) -> None:
        host = self.hosts.pop(name, None)
        self.laws.known_dead.add(name)
        self.laws.standing.discard(name)
        if host is not None:
            for cell in host.running():
                self.laws.known_dead.add(cell)
            host.delete()

    async def _boot_machine(self, name: str) -> None:
        """It boots and enrols; where the scheduler is away it tries again, as an agent does."""
        await asyncio.sleep(self.random.uniform(0.1, 2.0))
        while name in self.running_machines() and name not in self.hosts:
            if not await self.add_host(name):
                await asyncio.sleep(1.0)
        self.booting.discard(name)

    def running_machines(self) -> set[str]:
        return {name for name, state in self.provider.machines.items() if state is ProviderState.RUNNING}

    def _chore(self, work: Coroutine[object, object, object]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    def _testimony(self, watcher: Host, now: float) -> tuple[Testimony, ...]:
        """What the watcher finds when it pings three others."""
        names = sorted(self.all_names - {watcher.name})
        if self.has_lost_journal and self.scheduler is not None:
            # The new scheduler names none whose machines are gone, but those that it has let in before.
            known = self.scheduler.controller.fleet().servers
            names = [name for name in names if name in self.hosts or name in known]
        start = sum(map(ord, watcher.name)) % len(names) if names else 0
        watched = (names[start:] + names[:start])[:3]
        return tuple(self.pings.testimony(watcher, name, self.hosts.get(name), now) for name in watched)

    async def enrol(self, name: str) -> bool:
        self._tokens += 1
        token = f"t{self._tokens}"
        if not await self.ask(CreateToken(token, SECRET, 1, self.now() + 3600)):
            return False
        return await self.ask(Enrol(token, SECRET, name))

    async def add_host(self, name: str) -> bool:
        if not await self.enrol(name) or self.scheduler is None:
            return False
        if "/" in name and name not in self.running_machines():
            return False  # deleted or destroyed meanwhile
        scheduler = self.scheduler
        self.all_names.add(name)
        host = self._machine(name, scheduler.links)
        self.hosts[name] = host
        host.boot_agent()
        return True

    def _machine(self, name: str, links: Links) -> Host:
        laws = self.laws
        return Host(
            name, self.random, self.network, links, self._started, laws.known_dead.add, laws.forgotten
        )

    def machines(self) -> list[Host]:
        """All that run."""
        return [*self.hosts.values(), *self.clones.values()]

    def clone(self, host: Host) -> None:
        if self.scheduler is not None:
            self.laws.liars.add(host.name)  # when it is taken for the server, its word counts
            clone = self.clones[host.name] = self._machine(host.name, self.scheduler.links)
            clone.epoch, clone.start = host.epoch, host.start
            clone.machine = f"copied at {asyncio.get_running_loop().time()}"
            clone.boot_agent()

    def switch_off_clone(self, name: str) -> None:
        clone = self.clones.pop(name, None)
        if clone is not None:
            clone.delete()

    async def ask(self, request: Request) -> bool:
        """True: it was acknowledged. What was asked when the scheduler died may or may not have happened."""
        scheduler = self.scheduler
        if scheduler is None:
            return False
        self._note(request, self.uncertain.add)
        asking = asyncio.ensure_future(scheduler.controller.ask(request, Asker.operator("sim")))
        done, _ = await asyncio.wait({asking, scheduler.task}, return_when=asyncio.FIRST_COMPLETED)
        if asking not in done:
            asking.cancel()
            return False
        try:
            asking.result()
        except Refused:
            self._note(request, self.uncertain.discard)
            return False
        except asyncio.CancelledError:
            return False
        self._note(request, self.uncertain.discard)
        self._acknowledge(request)
        return True

    def _note(self, request: Request, note: Callable[[str], None]) -> None:
        if isinstance(request, ApplyGroups):
            for group in request.groups:
                note(group.name)
        elif isinstance(request, DeleteGroup):
            note(request.name)

    def _acknowledge(self, request: Request) -> None:
        if isinstance(request, ApplyGroups):
            self.acknowledged.update({group.name: group for group in request.groups})
        elif isinstance(request, DeleteGroup):
            self.acknowledged[request.name] = None

    async def must(self, request: Request) -> None:
        """Nothing is in the way of this one."""
        if not await self.ask(request):
            self.check()
            raise LawBroken(f"refused in calm: {request}")

    # --- trouble --------------------------------------------------------------------------------------------------

    async def _make_trouble(self) -> None:
        end = asyncio.get_running_loop().time() + TROUBLE_SECONDS
        kinds = Troubles(self).kinds()
        chosen = self.random.sample(kinds, self.random.randint(3, len(kinds)))
        while asyncio.get_running_loop().time() < end:
            await asyncio.sleep(self.random.expovariate(1.0))
            self.check()
            trouble = self.random.choice(chosen)
            self.troubles[trouble.__name__] += 1
            await trouble()

    def check(self) -> None:
        if self.broken:
            raise self.broken[0]
        if self.scheduler is not None and self.scheduler.task.done():
            self.scheduler.task.result()
        if self.scheduler is not None:
            serve_one_by_one(self.scheduler.controller.view())

    def nothing_acknowledged_is_lost(self) -> None:
        assert self.scheduler is not None
        groups = self.scheduler.controller.view().fleet.groups
        for name, group in self.acknowledged.items():
            if name in self.uncertain:
                continue
            state = groups.get(name)
            found = None if state is None or state.deleted else state.group
            if found != group:
                raise LawBroken(f"acknowledged: {group}; after a crash: {found}")
