"""The operator's word while a scheduler is grown anew from its fleet."""

from __future__ import annotations

from typing import Protocol

from galactica.scheduler.core.model.genome import GenomeMark
from galactica.scheduler.core.model.requests import Asker, EndRegrowth
from galactica.scheduler.core.ports import Mind
from galactica.scheduler.security.gate import InvalidRequest
from galactica.scheduler.views.genome import Spread
from galactica.v1 import operator_pb2


class GenomeKeeping(Protocol):
    """Who spreads the genome and gathers it again. The dispatcher's ``Genomes`` implements it."""

    def spread(self) -> Spread: ...

    async def take_newest(self) -> GenomeMark:
        """Raises Refused."""

    async def go_without(self, by: Asker) -> None:
        """Raises Refused."""


async def regrow(
    request: operator_pb2.RegrowRequest, mind: Mind, genomes: GenomeKeeping, by: Asker
) -> operator_pb2.RegrowResponse:
    """Raises Refused, InvalidRequest."""
    match request.step:
        case operator_pb2.REGROW_STEP_TAKE:
            mark = await genomes.take_newest()
            done = f"the genome of {mark} is planted"
        case operator_pb2.REGROW_STEP_WITHOUT_GENOME:
            await genomes.go_without(by)
            done = "the fleet goes on without a genome: apply the manifests, then adopt the unknown cells"
        case operator_pb2.REGROW_STEP_SETTLE:
            await mind.ask(EndRegrowth(), by)
            done = "cells and servers are judged and ordered again"
        case _:
            raise InvalidRequest(f"unknown step {int(request.step)}")
    return operator_pb2.RegrowResponse(done=done, position=mind.fleet().position)
