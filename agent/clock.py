"""The agent's clock."""

import time


def now() -> float:
    """Seconds since the host booted. Unlike the monotonic clock it goes on while the host sleeps (``CLOCK_BOOTTIME``):
    what a lease allows must be over when a host wakes up late. Never goes back."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
