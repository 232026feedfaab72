"""The agent's clock."""

import time


def now() -> float:
    """Seconds since the host booted (``CLOCK_BOOTTIME``). Never goes back. Unlike the monotonic clock it also counts
    while the host sleeps: a lease must be over when a host wakes up after its end."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
