"""The genome: what a fleet wants and who belongs to it, without what runs at the moment. A scheduler that has lost its
journal can be grown anew from it, since its agents know what runs.
"""

from __future__ import annotations

from msgspec import Struct

from galactica.scheduler.core.model.fleet import Phase, Revision
from galactica.scheduler.core.model.spec import Group, Resources, RuntimeKind


class GenomeGroup(Struct, frozen=True, omit_defaults=True):
    """A wanted group. ``revisions``: the current one last, before it those of which there are cells."""

    group: Group
    revisions: tuple[Revision, ...]
    unused: int
    """The first generation that was certainly never given out. It is far above the newest."""


class GenomeServer(Struct, frozen=True, omit_defaults=True):
    """A server of the fleet, or one that was drained and must not come back by itself. ``digest``, ``revision`` and
    ``ref`` (its provider's name for it) only where it is a cell of a pool."""

    id: str
    generation: int
    phase: Phase = Phase.READY
    labels: dict[str, str] = {}
    capacity: Resources = Resources()
    disk_bytes: int = 0
    runtimes: tuple[RuntimeKind, ...] = ()
    agent_version: str = ""
    pool: str = ""
    digest: str = ""
    revision: int = 0
    ref: str = ""


class Genome(Struct, frozen=True, omit_defaults=True):
    """``unused``: the first unused generation of the names of deleted groups. ``least_generation``: that of names that
    the fleet had not known by then."""

    groups: tuple[GenomeGroup, ...] = ()
    servers: tuple[GenomeServer, ...] = ()
    unused: dict[str, int] = {}
    least_generation: int = 1


class GenomeMark(Struct, frozen=True, order=True):
    """Which state of the fleet a genome is of: the later, the greater."""

    epoch: int = 0
    position: int = 0

    def __str__(self) -> str:
        return f"epoch {self.epoch}, position {self.position}"
