"""Spreads the fleet's sealed genome over a few agents, and gathers it again for a scheduler that is grown anew.

``Genomes`` belongs to the dispatcher, which passes it what agents say about genomes. Once a second it looks whether
what the fleet wants has changed, and whether each of the chosen agents has it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import structlog
from msgspec import Struct

from galactica.scheduler.core.genome import GenomeReader
from galactica.scheduler.core.model.fleet import Fleet, Phase, Server
from galactica.scheduler.core.model.genome import Genome, GenomeMark
from galactica.scheduler.core.model.requests import Asker, AskerKind, PlantGenome, Refused
from galactica.scheduler.core.ports import Mind
from galactica.scheduler.security.ca import CertificateAuthority
from galactica.scheduler.security.sealing import SEALED_BYTES_LIMIT, SealBroken, seal, unseal
from galactica.scheduler.views.genome import Spread
from galactica.v1 import link_pb2

HOLDERS = 5
"""How many agents keep the newest genome, where there are so many."""
LOOK_EVERY_SECONDS = 1.0
KEPT_WITHIN_SECONDS = 5.0
"""A newest genome that no agent keeps by then is told to operators."""
ANSWER_SECONDS = 10.0
"""How long an agent may take to send the genome that it keeps."""
ZONE = "zone"
"""The label by which servers share a fate."""
NOTHING = GenomeMark()

log = structlog.get_logger("scheduler.genomes")


class _Holder(Struct):
    """An agent that is attached and keeps genomes. ``kept``: what it has on its disk."""

    kept: GenomeMark
    sent: GenomeMark = NOTHING
    failed: GenomeMark = NOTHING
    """The newest one that its disk did not take."""
    rejected: str = ""
    """Why what it gave is no genome of this fleet."""


class Genomes:
    """``send`` queues a message to an attached agent; without a session it is dropped."""

    def __init__(
        self, mind: Mind, ca: CertificateAuthority, send: Callable[[str, link_pb2.AttachResponse], None]
    ) -> None:
        self._mind = mind
        self._ca = ca
        self._send = send
        self._holders: dict[str, _Holder] = {}
        self._reader = GenomeReader()
        self._read_at = -1
        """The position of the fleet that was read last."""
        self._content = Genome()
        self._newest: link_pb2.Genome | None = None
        self._mark = NOTHING
        self._sealed_at = 0.0
        self._trouble = ""
        self._first_told_at: float | None = None
        """When the first agent told of a genome, while this scheduler listens for one."""
        self._asked: dict[str, asyncio.Future[bytes]] = {}
        self._planting = asyncio.Lock()

    # --- what agents say ------------------------------------------------------------------------------------------

    def attached(self, server: str, hello: link_pb2.Hello) -> None:
        """A session began; it takes the place of an earlier one."""
        self.detached(server)
        if not hello.HasField("genome"):
            return
        self._holders[server] = _Holder(_mark_of(hello.genome))
        if self._holders[server].kept != NOTHING and self._first_told_at is None:
            self._first_told_at = self._mind.now()

    def detached(self, server: str) -> None:
        self._holders.pop(server, None)
        asked = self._asked.pop(server, None)
        if asked is not None and not asked.done():
            asked.set_result(b"")

    def kept(self, server: str, message: link_pb2.GenomeKept) -> None:
        holder = self._holders.get(server)
        if holder is None:
            return
        holder.kept = _mark_of(message.mark)
        if message.error:
            holder.failed = holder.sent
            log.warning("genome_not_kept", server=server, reason=message.error[:200])

    def given(self, server: str, message: link_pb2.Genome) -> None:
        asked = self._asked.pop(server, None)
        if asked is not None and not asked.done():
            asked.set_result(message.sealed)

    # --- the loop -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_SECONDS)
            try:
                await self.look()
            except Exception as error:  # a fleet without a genome is a fleet all the same
                log.exception("genome_failed")
                self._trouble = f"the fleet's genome cannot be made or spread: {error}"

    async def look(self) -> None:
        fleet = self._mind.fleet()
        if fleet.regrowth is None or fleet.regrowth.is_planted:
            await self._read(fleet)
            self._spread(fleet)
        elif self._is_time():
            await self._plant_newest()

    async def _read(self, fleet: Fleet) -> None:
        """Seal the genome anew if what the fleet wants has changed, or another epoch has begun."""
        if fleet.position == self._read_at:
            return
        content = await asyncio.to_thread(self._reader.read, fleet)
        self._read_at = fleet.position
        is_old = self._mark.epoch != fleet.epoch
        if content == Genome() or (content == self._content and not is_old):
            return
        mark = GenomeMark(fleet.epoch, fleet.position)
        sealed = await asyncio.to_thread(seal, self._ca, content, mark)
        self._content, self._mark, self._trouble = content, mark, ""
        self._sealed_at = self._mind.now()
        if len(sealed) > SEALED_BYTES_LIMIT:
            self._newest = None
            self._trouble = (
                f"the fleet's genome has {len(sealed)} bytes, more than the limit of {SEALED_BYTES_LIMIT}, so no agent "
                "keeps it: back up the journal often"
            )
            log.warning("genome_too_large", sealed_bytes=len(sealed), limit=SEALED_BYTES_LIMIT)
            return
        self._newest = link_pb2.Genome(mark=_mark_to_proto(mark), fleet_id=self._ca.fleet_id, sealed=sealed)

    def _spread(self, fleet: Fleet) -> None:
        if self._newest is None:
            return
        for server in self._chosen(fleet):
            holder = self._holders[server]
            if holder.kept < self._mark and holder.sent != self._mark:
                holder.sent = self._mark
                self._send(server, link_pb2.AttachResponse(genome=self._newest))

    def _chosen(self, fleet: Fleet) -> list[str]:
        able = (
            fleet.servers[server]
            for server, holder in self._holders.items()
            if server in fleet.servers and holder.failed != self._mark
        )
        return chosen([one for one in able if one.phase is Phase.READY], HOLDERS)

    # --- a scheduler that is grown anew ---------------------------------------------------------------------------

    def _is_time(self) -> bool:
        view = self._mind.view()
        wait_seconds = max(
            view.policy.regrow_seconds, view.policy.tempo(len(view.fleet.servers)).lease_seconds
        )
        return self._first_told_at is not None and view.now >= self._first_told_at + wait_seconds

    def _told(self) -> Mapping[str, GenomeMark]:
        """Which genomes the agents that are attached keep."""
        return {
            server: holder.kept
            for server, holder in self._holders.items()
            if holder.kept != NOTHING and not holder.rejected
        }

    async def take_newest(self) -> GenomeMark:
        """An operator wants to wait for no other agent. Raises Refused."""
        self._check_listening()
        mark = await self._plant_newest()
        if mark is None:
            raise Refused("regrowing", f"no genome can be taken: {self._heard()}")
        return mark

    async def go_without(self, by: Asker) -> None:
        """There is no genome. Raises Refused."""
        self._check_listening()
        if told := self._told():
            server, mark = max(told.items(), key=lambda item: item[1])
            raise Refused(
                "regrowing",
                f"server {server} keeps a genome ({mark}): take it with galactica regrow --take",
            )
        await self._mind.ask(PlantGenome(Genome()), by)

    def _check_listening(self) -> None:
        regrowth = self._mind.fleet().regrowth
        if regrowth is None or regrowth.is_planted:
            raise Refused("regrowing", "no genome is wanted: this scheduler knows what its fleet wants")

    async def _plant_newest(self) -> GenomeMark | None:
        """The mark of what was planted; None if nothing was."""
        async with self._planting:
            best: tuple[GenomeMark, str, Genome] | None = None
            for server, told in sorted(self._told().items(), key=lambda item: item[1], reverse=True):
                if best is not None and told <= best[0]:
                    break
                found = await self._fetch(server)
                if found is not None and (best is None or found[0] > best[0]):
                    best = (found[0], server, found[1])
            if best is None:
                return None
            mark, server, genome = best
            try:
                await self._mind.ask(PlantGenome(genome, mark, server), Asker(AskerKind.SCHEDULER))
            except Refused as refusal:
                log.warning("genome_not_planted", server=server, reason=str(refusal))
                return None
            log.info("genome_planted", server=server, epoch=mark.epoch, position=mark.position)
            return mark

    async def _fetch(self, server: str) -> tuple[GenomeMark, Genome] | None:
        """What the agent keeps, if this fleet's CA has sealed it."""
        asked = self._asked[server] = asyncio.get_running_loop().create_future()
        self._send(server, link_pb2.AttachResponse(genome_wanted=link_pb2.GenomeWanted()))
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                sealed = await asked
            return await asyncio.to_thread(unseal, self._ca, sealed)
        except TimeoutError:
            reason = f"it did not send it within {ANSWER_SECONDS:g} s"
        except SealBroken as broken:
            reason = str(broken)
        self._asked.pop(server, None)
        log.warning("genome_rejected", server=server, reason=reason)
        if (holder := self._holders.get(server)) is not None:
            holder.rejected = reason
        return None

    # --- for operators --------------------------------------------------------------------------------------------

    def spread(self) -> Spread:
        fleet = self._mind.fleet()
        if fleet.regrowth is not None and not fleet.regrowth.is_planted:
            return Spread(regrowing=self._heard())
        if self._mark == NOTHING:
            return Spread()
        ready = sum(1 for server in fleet.servers.values() if server.phase is Phase.READY)
        kept = sum(1 for holder in self._holders.values() if holder.kept == self._mark)
        is_late = self._mind.now() >= self._sealed_at + KEPT_WITHIN_SECONDS
        return Spread(self._mark, kept, min(HOLDERS, ready), self._trouble, is_late=is_late)

    def _heard(self) -> str:
        """What is known of genomes, in a sentence."""
        told = self._told()
        rejected = [f"{server}: {one.rejected}" for server, one in self._holders.items() if one.rejected]
        if told:
            server, mark = max(told.items(), key=lambda item: item[1])
            return f"{len(told)} agents keep a genome; the newest, of {mark}, is on server {server}"
        no_good = f"; what was given is no good: {rejected[0]}" if rejected else ""
        return f"no agent that is attached keeps a genome{no_good}"


def chosen(servers: Iterable[Server], count: int) -> list[str]:
    """So many of the servers, spread over pools and zones. The same servers give the same choice, and one server more
    or less changes it in few places."""
    places: dict[str, list[str]] = defaultdict(list)
    for server in servers:
        places[f"{server.pool}\n{server.labels.get(ZONE, '')}"].append(server.id)
    lines = [sorted(places[place], key=_lot) for place in sorted(places, key=_lot)]
    found: list[str] = []
    for turn in range(max(map(len, lines), default=0)):
        found += [line[turn] for line in lines if turn < len(line)]
        if len(found) >= count:
            break
    return found[:count]


def _lot(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _mark_of(message: link_pb2.GenomeMark) -> GenomeMark:
    return GenomeMark(message.epoch, message.position)


def _mark_to_proto(mark: GenomeMark) -> link_pb2.GenomeMark:
    return link_pb2.GenomeMark(epoch=mark.epoch, position=mark.position)
