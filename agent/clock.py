"""The agent's clock, and which boot of the host it counts from."""

import time
from pathlib import Path


def now() -> float:
    """Seconds since the host booted (``CLOCK_BOOTTIME``). Never goes back. Unlike the monotonic clock it also counts
    while the host sleeps: a lease must be over when a host wakes up after its end."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """Names the host's boot. Times of this clock and start ticks of processes mean something within one boot alone.
    Raises OSError."""
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
