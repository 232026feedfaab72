"""Runs seeds, and tells of one that fails with the line that replays it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.sim.simulation import Outcome, Simulation
from tests.sim.work import TookTooLong, patience


class SeedFailed(AssertionError):
    """The message names the seed, what it breaks, and how to replay it."""


@dataclass
class Seeds:
    """``count`` of them, one after the other, from ``first`` on."""

    first: int
    count: int
    outcomes: list[Outcome] = field(default_factory=list)

    def run(self) -> None:
        for seed in range(self.first, self.first + self.count):
            self.outcomes.append(run_seed(seed))


def simulate(seed: int) -> Outcome:
    also = frozenset(filter(None, os.environ.get("SIM_ALSO", "").split(",")))
    return Simulation(seed, also=also).run()


def run_seed(seed: int, history: Callable[[int], Outcome] = simulate) -> Outcome:
    """The history of that seed. Raises SeedFailed, also for one that does not end."""
    try:
        with patience():
            return history(seed)
    except (Exception, TookTooLong) as error:
        raise SeedFailed(f"seed {seed} fails: {reason_of(error)}\n  {replay_line(seed)}") from error


def reason_of(error: BaseException) -> str:
    """The innermost of what tasks wrapped, on one line."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return " ".join(f"{type(error).__name__}: {error}".split())


def replay_line(seed: int) -> str:
    return f"PYTHONHASHSEED=0 SIM_SEEDS={seed} .venv/bin/python -m pytest tests/sim -k promises"
