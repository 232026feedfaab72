"""Keeps the fleet's sealed genome on this host's disk, for a scheduler that has lost everything else.

The agent cannot read it. It keeps the newest one of its fleet and gives it back when it is asked. Whatever its disk
does, the daemon lives on: what cannot be kept is told to the scheduler, which gives it to another agent.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from galactica.agent.files import replace_secret_file
from galactica.v1 import link_pb2

if TYPE_CHECKING:
    from pathlib import Path

SEALED_BYTES_LIMIT = 1024 * 1024
_FILE_BYTES_LIMIT = SEALED_BYTES_LIMIT + 4096

log = logging.getLogger(__name__)


class GenomeKeeper:
    """One file for each fleet, in the agent's data directory. Only the agent's user can read it."""

    def __init__(self, data: Path, fleet_id: str) -> None:
        """Blocks on the disk."""
        self._path = data / f"genome-{fleet_id}"
        self._fleet_id = fleet_id
        self._mark = link_pb2.GenomeMark()
        self._mark.CopyFrom(self._read().mark)
        self._lock = asyncio.Lock()

    @property
    def mark(self) -> link_pb2.GenomeMark:
        """Of the genome that is kept; all zero if none is."""
        return self._mark

    async def take(self, response: link_pb2.AttachResponse) -> link_pb2.AttachRequest | None:
        """The answer to a message about genomes; None to any other."""
        match response.WhichOneof("message"):
            case "genome":
                async with self._lock:
                    error = await asyncio.to_thread(self._keep, response.genome)
                kept = link_pb2.GenomeKept(mark=self._mark, error=error)
                return link_pb2.AttachRequest(genome_kept=kept)
            case "genome_wanted":
                return link_pb2.AttachRequest(genome=await asyncio.to_thread(self._read))
            case _:
                return None

    def _keep(self, genome: link_pb2.Genome) -> str:
        """Why it was not kept; empty if it, or a newer one, is on the disk."""
        if genome.fleet_id != self._fleet_id:
            return "it is of another fleet"
        if len(genome.sealed) > SEALED_BYTES_LIMIT:
            return f"it is larger than {SEALED_BYTES_LIMIT} bytes"
        if _age(genome.mark) <= _age(self._mark):
            return ""
        try:
            replace_secret_file(self._path, genome.SerializeToString())
        except OSError as error:
            log.warning("genome not kept reason=%r", str(error))
            return f"its disk does not take it: {error.strerror or error}"
        self._mark = genome.mark
        log.info("genome kept epoch=%d position=%d", genome.mark.epoch, genome.mark.position)
        return ""

    def _read(self) -> link_pb2.Genome:
        """What is kept; an empty one if there is none, or none of this fleet that can be read."""
        try:
            with self._path.open("rb") as file:
                genome = link_pb2.Genome.FromString(file.read(_FILE_BYTES_LIMIT))
        except FileNotFoundError:
            return link_pb2.Genome()
        except (OSError, DecodeError) as error:
            log.warning("genome not readable file=%s reason=%r", self._path, str(error))
            return link_pb2.Genome()
        return genome if genome.fleet_id == self._fleet_id else link_pb2.Genome()


def _age(mark: link_pb2.GenomeMark) -> tuple[int, int]:
    return mark.epoch, mark.position
