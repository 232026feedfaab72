"""Wire versions: which one a scheduler speaks with an agent. ``link.proto`` says what each of them has."""

from __future__ import annotations

from galactica.scheduler.core.model.requests import Refused
from galactica.v1 import link_pb2

WIRE_VERSION = 2
OLDEST_WIRE_VERSION = WIRE_VERSION - 1
"""A scheduler serves agents of the version before too, so that it can be upgraded before they are."""


def spoken_with(hello: link_pb2.Hello) -> int:
    """The newest wire version that both sides speak. Raises Refused if there is none."""
    oldest, newest = hello.wire_version, max(hello.wire_version, hello.newest_wire_version)
    spoken = min(newest, WIRE_VERSION)
    if spoken >= max(oldest, OLDEST_WIRE_VERSION):
        return spoken
    older = "agent" if newest < OLDEST_WIRE_VERSION else "scheduler"
    its = f"version {newest}" if oldest == newest else f"versions {oldest} to {newest}"
    raise Refused(
        "wire_version",
        f"the agent uses wire {its}, but this scheduler uses {WIRE_VERSION} and serves {OLDEST_WIRE_VERSION}: "
        f"install a newer {older}",
    )


def is_behind(wire_version: int) -> bool:
    """Whether an agent whose session has this wire version needs a newer one. 0: it is not attached."""
    return 0 < wire_version < WIRE_VERSION
