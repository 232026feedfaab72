"""Where the fleet's genome is kept, for operators. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from galactica.scheduler.core.model.genome import GenomeMark
from galactica.v1 import operator_pb2


class Spread(Struct, frozen=True):
    """``newest``: the mark of the newest genome; None: there is nothing to keep yet. ``kept``: how many agents that are
    attached have it on their disks; ``wanted``: how many should. ``trouble``: why it cannot be spread; empty if it can.
    ``regrowing``: how a scheduler that is being grown anew stands; empty where none is. ``is_late``: the newest one had
    time enough to be kept."""

    newest: GenomeMark | None = None
    kept: int = 0
    wanted: int = 0
    trouble: str = ""
    regrowing: str = ""
    is_late: bool = True


def genome_row(spread: Spread) -> operator_pb2.GenomeStatus | None:
    if spread.newest is None:
        return None
    mark = spread.newest
    return operator_pb2.GenomeStatus(
        epoch=mark.epoch, position=mark.position, kept=spread.kept, wanted=spread.wanted
    )


def genome_notes(spread: Spread) -> Iterator[str]:
    """What an operator should know of it: one sentence each."""
    if spread.regrowing:
        yield spread.regrowing
    if spread.trouble:
        yield spread.trouble
    elif spread.newest is not None and spread.wanted and not spread.kept and spread.is_late:
        yield (
            f"no agent keeps the newest genome ({spread.newest}): if the scheduler's disk were lost now, what was "
            "changed last would be lost with it"
        )
