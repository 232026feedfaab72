"""How much work something is, whatever the machine."""

import sys
from collections.abc import Callable
from types import FrameType


def calls_of(work: Callable[[], object]) -> int:
    """How many calls of functions the work takes."""
    calls = 0

    def count(_frame: FrameType, happening: str, _what: object) -> None:
        nonlocal calls
        calls += happening in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls
