"""Runs many seeds on all cores and prints those that fail: ``make sim SEEDS=1000-1999`` or ``make sim MINUTES=60``.

It is quiet: for each bad seed what it breaks and the line that replays it, and one line at the end. Exits 1 if a seed
is bad. Without ``SEEDS`` the seeds are fresh ones.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import re
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait

import structlog

from tests.sim.seeds import SeedFailed, run_seed

FRESH_SEEDS = 10**9, 10**12
"""Between which numbers the first of the fresh seeds is. A bad one is found again by its number."""
MINUTES = 5.0
"""How long it hunts where nothing is said."""

Trial = Callable[[int], str]
"""A seed to why it fails; empty where it holds."""


def try_seed(seed: int) -> str:
    try:
        run_seed(seed)
    except SeedFailed as failed:
        return str(failed)
    return ""


def hunt(seeds: Iterable[int], trial: Trial, workers: int) -> Iterator[str]:
    """Yields a text for each seed as it ends: why it fails, empty where it holds."""
    waiting = iter(seeds)
    with ProcessPoolExecutor(workers, initializer=_be_quiet) as pool:
        running: set[Future[str]] = set()
        try:
            while True:
                for seed in itertools.islice(waiting, 2 * workers - len(running)):
                    running.add(pool.submit(trial, seed))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for one in done:
                    yield one.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # each worker ends with the seed that it has
            raise


def _be_quiet() -> None:
    """The product's log tells of everything that is done to it here."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def until(end: float, first: int) -> Iterator[int]:
    """Seeds from ``first`` on, until the monotonic clock shows ``end``."""
    seed = first
    while time.monotonic() < end:
        yield seed
        seed += 1


def range_of(text: str) -> range:
    """``5-9`` is 5, 6, 7, 8 and 9; ``5`` is one seed."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if match is None or int(match[2] or match[1]) < int(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no range of seeds: write it like 1000-1999")
    return range(int(match[1]), int(match[2] or match[1]) + 1)


def main(arguments: list[str], trial: Trial = try_seed, workers: int | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.hunt", description=__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seeds", type=range_of, help="a range, such as 1000-1999")
    which.add_argument(
        "--minutes", type=float, default=MINUTES, help=f"fresh seeds for so long ({MINUTES:g})"
    )
    asked = parser.parse_args(arguments)
    seeds: Iterable[int] = asked.seeds or until(time.monotonic() + asked.minutes * 60.0, _fresh())
    count = bad = 0
    for why in hunt(seeds, trial, workers or os.cpu_count() or 1):
        count += 1
        if why:
            bad += 1
            print(why, flush=True)
    print(f"{bad} of {count} seeds failed" if bad else f"{count} seeds held")
    return 1 if bad else 0


def _fresh() -> int:
    low, high = FRESH_SEEDS
    return low + secrets.randbelow(high - low)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # a history depends on the order of hash maps
        sys.exit("a seed that fails would not fail again: set PYTHONHASHSEED=0, or use make sim")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # its workers end with it
    sys.exit(main(sys.argv[1:]))
