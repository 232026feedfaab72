"""What people are shown by a command line whose clock is not the scheduler's: ages and waits, never a time to come.

The scheduler's time begins with its wall clock and never jumps. If that clock was once 40 days ahead, it stays so."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command_line import run, said
from tests.support.operator_service import Scheduler, a_pool_in_a_storm, a_small_fleet, operator_service

FORTY_DAYS = 40 * 86_400.0


@pytest.fixture(params=[FORTY_DAYS, -FORTY_DAYS], ids=["ahead", "behind"])
def now(request: pytest.FixtureRequest) -> float:
    return round(time.time()) + float(request.param)


@pytest.fixture
def scheduler(tmp_path: Path, now: float) -> Iterator[Scheduler]:
    with operator_service(tmp_path) as scheduler:
        scheduler.answers.__dict__.update(a_small_fleet(now).__dict__)
        scheduler.answers.now = now
        yield scheduler


def test_cells_show_their_age(scheduler: Scheduler):
    _, first, *_ = said(run(scheduler, "cells"))
    assert "1m 30s" in first


def test_servers_show_how_long_ago_they_were_heard(scheduler: Scheduler):
    assert any("1s ago" in line for line in said(run(scheduler, "servers")))


def test_status_and_why_show_how_long_a_hold_waits(scheduler: Scheduler, now: float):
    scheduler.answers.status.held[0].next_look_at = now + 30
    scheduler.answers.certificate.held.add(rule="backoff", reason="2 early deaths", next_look_at=now + 12)
    assert any("next check in 30s" in line for line in said(run(scheduler, "status"), 1))
    assert any("next check in 12s" in line for line in said(run(scheduler, "why", "web/1.1")))


def test_storms_and_providers_show_what_is_left_and_what_has_passed(scheduler: Scheduler, now: float):
    scheduler.answers.__dict__.update({**a_pool_in_a_storm(now).__dict__, "now": now})
    assert "held for 14m 50s more" in said(run(scheduler, "storms"))[0]
    assert any("40s ago" in line for line in said(run(scheduler, "providers")))


def test_a_scheduler_that_does_not_tell_its_time_is_read_by_this_machines(scheduler: Scheduler):
    scheduler.answers.__dict__.update(a_small_fleet(time.time()).__dict__)
    _, first, *_ = said(run(scheduler, "cells"))
    assert "1m " in first
