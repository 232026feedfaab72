"""The format of a snapshot on disk: structs of its own, flat and without field names.

So the model can change without changing the format. Fields may be added at a struct's end with a default, but never
renamed, reordered or removed: then older versions can be read. An older program refuses a newer VERSION (``snapshot``),
since it would overlook what it does not know.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from galactica.scheduler.core.model.fleet import CellKind, Death, Maintenance, Phase, Revision, Silence
from galactica.scheduler.core.model.spec import Group, Resources, RuntimeKind
from galactica.scheduler.core.model.verdict import Health


class CellOnDisk(Struct, frozen=True, array_like=True, gc=False):
    """``group``, ``digest``, ``server`` and ``condemned_by`` are indexes into the snapshot's ``words``."""

    id: str
    group: int
    slot: int
    generation: int
    phase: Phase
    digest: int
    revision: int
    server: int
    ordered_at: float
    cpu_millis: int
    memory_bytes: int
    pids: int
    kind: CellKind
    ready_at: float | None
    condemned_at: float | None
    decommissioned_at: float | None
    condemned_by: int
    condemned_health: Health | None
    replaces: str
    replaced_by: str
    endpoints: dict[str, str]
    runtime_id: str
    last_position: int
    dies_at: float | None = None
    ports: tuple[int, ...] = ()


class SlotOnDisk(Struct, frozen=True, array_like=True, gc=False):
    number: int
    next_generation: int
    cells: list[CellOnDisk]


class TallyOnDisk(Struct, frozen=True, array_like=True):
    ready: int
    booting: int
    condemned: int
    replacing: int
    surging: int
    outdated: int
    extra: int = 0
    manned: int = -1
    """Below zero: written by a version that did not count these two."""
    renewing: int = 0


class BackoffOnDisk(Struct, frozen=True, array_like=True):
    digest: str
    early_deaths: int
    level: int
    last_at: float
    not_before: float


class GroupOnDisk(Struct, frozen=True, array_like=True):
    """``group`` and ``revisions`` are the model's own structs, with field names: they are few, and events contain them
    too."""

    group: Group
    digest: str
    revision: int
    revisions: tuple[Revision, ...]
    first_generation: int
    slots: list[SlotOnDisk]
    tally: TallyOnDisk
    backoff: BackoffOnDisk
    per_server: dict[str, int]
    deleted: bool
    last_position: int
    deaths: tuple[Death, ...] = ()
    longest_lease_seconds: float = 0.0
    replaced_at: tuple[float, ...] = ()
    newest_ready_at: float = 0.0


class ServerOnDisk(Struct, frozen=True, array_like=True):
    id: str
    generation: int
    phase: Phase
    labels: dict[str, str]
    capacity: Resources
    disk_bytes: int
    runtimes: tuple[RuntimeKind, ...]
    agent_version: str
    joined_at: float
    condemned_at: float | None
    condemned_by: str
    condemned_health: Health | None
    used: Resources
    cells: list[str]
    last_position: int
    pool: str = ""
    deaths: tuple[Death, ...] = ()
    ports: dict[int, int] = {}
    maintenance: Maintenance | None = None
    machine: str = ""


class TokenOnDisk(Struct, frozen=True, array_like=True):
    id: str
    secret_sha256: str
    uses_left: int
    expires_at: float
    server: str = ""


class FleetOnDisk(Struct, frozen=True, array_like=True):
    """``words``: names that many cells share, each once. ``groups``: each an encoded GroupOnDisk. They are encoded and
    decoded one at a time, so that the cells are not twice in memory (measured: encoding takes 40 % less time)."""

    position: int
    at: float
    epoch: int
    groups: dict[str, msgspec.Raw]
    servers: dict[str, ServerOnDisk]
    tokens: dict[str, TokenOnDisk]
    generations: dict[str, int]
    graves: list[tuple[int, CellOnDisk]]
    burials: int
    words: list[str]
    released: dict[str, float] = {}
    silences: dict[str, tuple[Silence, ...]] = {}
    unknown: dict[str, dict[str, str]] = {}
    overtaken_at: float | None = None
    skipped: dict[str, tuple[tuple[int, int], ...]] = {}
    least_generation: int = 1
    starts: dict[int, tuple[str, int]] = {}
    strange_starts: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()
    regrowth: tuple[float, bool] | None = None
    regrown_at: float | None = None
    unknown_too: tuple[tuple[str, str], ...] = ()
    """``unknown`` has one server for each cell; these are cells with the other servers that show them."""
    unwanted_too: tuple[tuple[str, str], ...] = ()
    """Of ``unknown_too``, what an operator condemned. ``unwanted`` has those of ``unknown``."""
    shown: dict[str, int] = {}
