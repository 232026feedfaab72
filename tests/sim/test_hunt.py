"""The hunt finds bad seeds and names them; what multiplies or never ends is a failure with its number."""

from __future__ import annotations

import argparse
import asyncio
import itertools
from collections import Counter

import pytest

from tests.sim import clock
from tests.sim.hunt import main, range_of, until
from tests.sim.laws import LawBroken
from tests.sim.seeds import SeedFailed, run_seed
from tests.sim.simulation import Outcome
from tests.sim.work import TookTooLong, TooMuchWork, patience

FROZEN_PAIRS = (1000487, 1000587, 1001069, 2000388)
"""In each of these a host with two exclusive cells freezes: what its watchdog plans for them must not multiply."""


def seven_is_bad(seed: int) -> str:
    def history(seed: int) -> Outcome:
        if seed == 7:
            raise LawBroken("two of\none slot")
        return Outcome(seed, 1, "", Counter())

    try:
        run_seed(seed, history)
    except SeedFailed as failed:
        return str(failed)
    return ""


def test_a_bad_seed_is_found_and_printed_with_the_line_that_replays_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--seeds", "5-8"], seven_is_bad, workers=2) == 1
    assert capsys.readouterr().out == (
        "seed 7 fails: LawBroken: two of one slot\n"
        "  PYTHONHASHSEED=0 SIM_SEEDS=7 .venv/bin/python -m pytest tests/sim -k promises\n"
        "1 of 4 seeds failed\n"
    )


def test_seeds_that_hold_are_only_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "0-1"], workers=1) == 0
    assert capsys.readouterr().out == "2 seeds held\n"


def test_a_hunt_by_the_clock_ends_and_takes_one_seed_after_the_other() -> None:
    assert list(until(0.0, 5)) == []
    assert list(itertools.islice(until(float("inf"), 5), 3)) == [5, 6, 7]


@pytest.mark.parametrize("text", ["", "a-b", "9-5", "-5", "1-2-3"])
def test_what_is_no_range_of_seeds_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="write it like 1000-1999"):
        range_of(text)


def test_a_range_includes_its_end() -> None:
    assert (list(range_of("5-7")), list(range_of("5"))) == ([5, 6, 7], [5])


def test_timers_that_multiply_are_found_in_the_second_in_which_they_do_and_named() -> None:
    def doubling() -> None:
        for _ in range(2):
            asyncio.get_running_loop().call_later(0.01, doubling)

    async def history() -> None:
        asyncio.get_running_loop().call_later(3.5, doubling)
        await asyncio.sleep(60.0)

    with pytest.raises(TooMuchWork, match=r"second 3 .*what multiplies: .*doubling"):
        clock.run(history())


def test_timers_that_gather_slowly_are_found_and_named() -> None:
    def end_of_lease() -> None: ...

    async def history() -> None:
        while True:
            await asyncio.sleep(0.1)
            asyncio.get_running_loop().call_later(1_000.0, end_of_lease)

    with pytest.raises(TooMuchWork, match=r"what multiplies: .*end_of_lease \(\d+ times\)"):
        clock.run(history())


def test_callbacks_that_wake_each_other_without_end_are_found_and_named() -> None:
    async def history() -> None:
        while True:
            await asyncio.sleep(0)

    async def both() -> None:
        await asyncio.gather(history(), history())

    with pytest.raises(TooMuchWork, match=r"second 0 .*what multiplies: .*history"):
        clock.run(both())


def test_what_turns_in_a_circle_is_ended_when_patience_is() -> None:
    async def history() -> None:
        await asyncio.sleep(1.0)
        while True:
            pass

    with pytest.raises(TookTooLong), patience(0.05):
        clock.run(history())


def test_a_seed_that_does_not_end_is_a_failure_with_its_number() -> None:
    def hangs(_: int) -> Outcome:
        raise TookTooLong("it took more than 20 s of the processor's time")

    with pytest.raises(SeedFailed, match="seed 4711 fails: TookTooLong: it took more than 20 s"):
        run_seed(4711, hangs)


@pytest.mark.parametrize("seed", FROZEN_PAIRS)
def test_two_exclusive_cells_on_a_host_that_freezes_end(seed: int) -> None:
    run_seed(seed)
