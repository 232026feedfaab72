"""A provider of virtual machines: slow, failing, forgetful, and sometimes plainly wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from galactica.scheduler.core.model.commands import DecommissionServer, OrderServer, ProviderCommand
from galactica.scheduler.core.sight.observations import (
    Observation,
    ProviderListed,
    ProviderServer,
    ProviderSilent,
    ProviderState,
    ServerMade,
    ServerNotMade,
    ServerUnmade,
)

SWEEP_SECONDS = 5.0


class World(Protocol):
    """What a provider does to the world, and how its answers find the scheduler that lives now."""

    def now(self) -> float: ...

    def machine_made(self, name: str) -> None: ...

    def machine_deleted(self, name: str) -> None: ...

    def list_lies(self) -> None: ...

    def tell(self, observation: Observation) -> None: ...


@dataclass
class Temper:
    """How the provider is at the moment; fractions are per call."""

    seconds: float = 0.3
    fails: float = 0.0
    answer_lost: float = 0.0
    silent: bool = False
    lists_nothing: bool = False
    delete_seconds: float = 0.0
    """How long a delete takes that was accepted at once."""
    deletes_forgotten: float = 0.0
    """Accepted, and nothing follows."""
    says_gone_at_once: bool = False
    """It claims the end of what it only accepted. No provider may: this is for tests of the laws."""


@dataclass
class SimProvider:
    """Implements ``ports.ProviderOutbox``. Its machines outlive schedulers."""

    random: Random
    world: World
    temper: Temper = field(default_factory=Temper)
    usual: Temper = field(default_factory=Temper)
    """How it is when nothing troubles it."""
    machines: dict[str, ProviderState] = field(default_factory=dict)
    going: set[str] = field(default_factory=set)
    """Machines whose delete goes on. They are listed until it is done."""

    def send(self, commands: Sequence[ProviderCommand]) -> None:
        for command in commands:
            self._later(self._obey, command)

    def _later(self, act: Callable[..., None], *args: object) -> None:
        delay = self.temper.seconds * self.random.uniform(0.5, 2.0)
        asyncio.get_running_loop().call_later(delay, act, *args)

    def _obey(self, command: ProviderCommand) -> None:
        if self.temper.silent:
            self.world.tell(ProviderSilent("local", "it does not answer", self.world.now()))
            return
        match command:
            case OrderServer(cell=cell):
                self._make(cell)
            case DecommissionServer(cell=cell):
                self._take_delete(cell)
                is_gone = self.usual.says_gone_at_once
                self._answer(ServerUnmade("local", cell, self.world.now(), is_gone=is_gone))

    def _take_delete(self, cell: str) -> None:
        if cell not in self.machines or cell in self.going:
            return
        if self.random.random() >= self.temper.deletes_forgotten:
            self.going.add(cell)
            asyncio.get_running_loop().call_later(self.temper.delete_seconds, self._delete, cell)

    def _delete(self, cell: str) -> None:
        self.going.discard(cell)
        if self.machines.pop(cell, None) is not None:
            self.world.machine_deleted(cell)

    def _make(self, cell: str) -> None:
        if cell not in self.machines and self.random.random() < self.temper.fails:
            self._answer(ServerNotMade("local", cell, "no capacity in this zone", self.world.now()))
            return
        if cell not in self.machines:
            self.machines[cell] = ProviderState.RUNNING
            self.world.machine_made(cell)
        self._answer(ServerMade("local", cell, f"vm-{cell}", self.world.now()))

    def _answer(self, observation: Observation) -> None:
        if self.random.random() >= self.temper.answer_lost:
            self.world.tell(observation)

    def die(self, cell: str) -> None:
        """The machine is destroyed from outside; the provider knows."""
        self.machines[cell] = ProviderState.GONE
        self.world.machine_deleted(cell)

    async def sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = self.world.now()
            if self.temper.silent:
                self.world.tell(ProviderSilent("local", "it does not answer", now))
                continue
            servers = tuple(
                ProviderServer(cell, f"vm-{cell}", state) for cell, state in sorted(self.machines.items())
            )
            if self.temper.lists_nothing and servers:
                self.world.list_lies()
                servers = ()
            self.world.tell(ProviderListed("local", servers, now, now))
