"""The keeping of genomes alone: a scheduler's ``Genomes`` with the real core behind it, and agents played by hand."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from galactica.scheduler.core.model.requests import ApplyGroups, Asker, AskerKind, RecogniseServer
from galactica.scheduler.core.model.spec import Group, RuntimeKind
from galactica.scheduler.core.sight.observations import Attached, ServerFacts
from galactica.scheduler.link.genomes import Genomes
from galactica.scheduler.security.ca import CertificateAuthority
from galactica.v1 import link_pb2
from tests.support.memory_mind import MemoryMind

ANN = Asker.operator("ann")


class TimedMind(MemoryMind):
    """Its time is what the test says."""

    time = 2_000_000_000.0

    def now(self) -> float:
        return self.time


@dataclass
class Keeper:
    """An agent that keeps what it is given, or fails to. ``gives``: what it sends instead of that."""

    kept: link_pb2.Genome = field(default_factory=link_pb2.Genome)
    error: str = ""
    gives: link_pb2.Genome | None = None
    is_silent: bool = False
    received: int = 0


class GenomeWorld:
    def __init__(self, directory: Path, *, regrows: bool = False) -> None:
        self.mind = TimedMind(regrows=regrows)
        self.ca = CertificateAuthority.open_or_create(directory / "ca", "alpha")
        self.genomes = Genomes(self.mind, self.ca, self._send)
        self.keepers: dict[str, Keeper] = {}
        self._sessions = 0

    async def attach(self, name: str, keeper: Keeper | None = None, **labels: str) -> Keeper:
        keeper = keeper or self.keepers.get(name) or Keeper()
        self.keepers[name] = keeper
        if self.mind.fleet().regrowth is None:
            if name not in self.mind.fleet().servers:
                await self.mind.enrol(name)
        else:
            await self.mind.ask(RecogniseServer(name), Asker(AskerKind.SCHEDULER))
        self._sessions += 1
        facts = ServerFacts(labels=labels, runtimes=(RuntimeKind.PROCESS,))
        self.genomes.attached(name, link_pb2.Hello(genome=keeper.kept.mark))
        await self.mind.observe(Attached(name, f"s{self._sessions}", self.mind.now(), facts))
        return keeper

    async def apply(self, *groups: Group) -> None:
        await self.mind.ask(ApplyGroups(groups), ANN)

    async def look(self, after_seconds: float = 1.0) -> None:
        self.mind.time += after_seconds
        await self.genomes.look()

    def _send(self, server: str, message: link_pb2.AttachResponse) -> None:
        """Answers come after it, as from a real agent."""
        asyncio.get_running_loop().call_soon(self._answer, server, message)

    def _answer(self, server: str, message: link_pb2.AttachResponse) -> None:
        keeper = self.keepers[server]
        if keeper.is_silent:
            return
        if message.HasField("genome_wanted"):
            self.genomes.given(server, keeper.gives or keeper.kept)
            return
        keeper.received += 1
        if not keeper.error:
            keeper.kept = message.genome
        answer = link_pb2.GenomeKept(mark=keeper.kept.mark, error=keeper.error)
        self.genomes.kept(server, answer)
