"""Who reads the log of a scheduler or an agent may go away, and the disk under it may be full: the work goes on."""

from __future__ import annotations

import os
from contextlib import contextmanager

import pytest

from tests.support.fleet import a_fleet

pytestmark = pytest.mark.xdist_group("e2e-logs")


@contextmanager
def errors_to(fleet, descriptor):
    """What is begun meanwhile has that standard error, and nobody else has it open for writing afterwards."""
    fleet.errors_to = descriptor
    yield
    fleet.errors_to = None
    os.close(descriptor)


@pytest.fixture
def fleet(tmp_path):
    with a_fleet() as begun:
        yield begun


def read_until(reader, words):
    """What comes from the pipe until these words came."""
    read = b""
    while words not in read:
        read += os.read(reader, 1 << 16)
    return read.decode()


def test_scheduler_and_agent_go_on_when_nobody_reads_their_logs_and_tell_later_what_was_lost(fleet, tmp_path):
    pipe = tmp_path / "log"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    fleet.kill_scheduler()
    with errors_to(fleet, os.open(pipe, os.O_WRONLY)):
        fleet.start_scheduler()
        fleet.start_agent("a")
    fleet.apply("web", replicas=2)
    fleet.until_ready("web", 2)
    os.close(reader)
    fleet.start_agent("b")  # both sides have something to log from here on
    fleet.kill_agent("b")
    fleet.until(lambda: fleet.server("b")["verdict"] == "dead", "the scheduler goes on judging")
    fleet.start_agent("c")
    assert fleet.scheduler.poll() is None
    assert fleet.agents["a"].poll() is None
    os.set_blocking(reader := os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), True)
    fleet.start_agent("d")
    told = read_until(reader, b"log_lines_lost")
    os.close(reader)
    line = next(line for line in told.splitlines() if "log_lines_lost" in line)
    assert '"count": ' in line
    assert '"level": "warning"' in line


def test_scheduler_and_agent_begin_and_work_with_logs_that_take_nothing(fleet):
    fleet.kill_scheduler()
    with errors_to(fleet, os.open("/dev/full", os.O_WRONLY)):
        fleet.start_scheduler()
        fleet.start_agent("a")
    fleet.apply("one", exclusive=True)  # with the watchdog beside the agent
    fleet.until_ready("one", 1)
    fleet.kill_scheduler()
    fleet.start_scheduler()
    fleet.until(lambda: fleet.server("a")["verdict"] == "healthy", "the agent attaches again")
    fleet.until_ready("one", 1)
    assert fleet.agents["a"].poll() is None
