"""When a healthy cell is too old."""

from __future__ import annotations

import zlib

from galactica.scheduler.core.model.fleet import (
    Cell,
    GroupState,
)

AGE_JITTER = 0.1
"""Cells of one wave do not all come of age at the same moment."""


def due_of(state: GroupState, cell: Cell) -> float | None:
    """When a cell is too old; None where cells of its group never are, or it is not READY yet."""
    if not state.group.max_age_seconds or cell.ready_at is None:
        return None
    share = zlib.crc32(cell.id.encode()) / 0xFFFFFFFF
    return cell.ready_at + state.group.max_age_seconds * (1 - AGE_JITTER + 2 * AGE_JITTER * share)
