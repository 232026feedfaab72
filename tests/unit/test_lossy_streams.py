"""Standard error of scheduler and agent: lines may be lost, the work goes on, and what was lost is told."""

import os
import subprocess
import sys

import pytest

from galactica.agent import log as agent_log
from galactica.scheduler.settings import streams as scheduler_streams

SIDES = {"scheduler": scheduler_streams, "agent": agent_log}


@pytest.fixture(params=SIDES)
def side(request):
    return SIDES[request.param]


@pytest.fixture
def fifo(tmp_path):
    """A named pipe, which may get another reader after its reader has gone."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


def reader_of(path):
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)


def lossy(side, descriptor):
    return side.LossyStream(descriptor, lambda lost: f"{lost} lost")


def test_lines_without_a_reader_are_lost_and_the_next_reader_is_told_how_many(side, fifo):
    first = reader_of(fifo)
    writer = os.open(fifo, os.O_WRONLY)
    stream = lossy(side, writer)
    stream.write("one\n")
    assert os.read(first, 100) == b"one\n"
    os.close(first)
    stream.write("two\n")
    stream.write("three\n")
    assert stream.lost == 2
    second = reader_of(fifo)
    stream.write("four\n")
    assert os.read(second, 100) == b"2 lost\nfour\n"
    assert stream.lost == 0
    os.close(second)
    os.close(writer)


def test_a_reader_that_does_not_read_costs_lines_and_no_waiting(side, fifo):
    reader = reader_of(fifo)
    writer = os.open(fifo, os.O_WRONLY)
    stream = lossy(side, writer)
    while not stream.lost:
        stream.write("x" * 1_000 + "\n")
    for _ in range(4):
        stream.write("more\n")
    assert stream.lost == 5
    read = b""
    while len(read) % 1_001 or not read:
        read += os.read(reader, 1 << 20)
    stream.write("again\n")
    assert os.read(reader, 100) == b"5 lost\nagain\n"
    os.close(reader)
    os.close(writer)


def test_a_line_that_was_cut_off_does_not_run_into_the_next_one(side, fifo):
    reader = reader_of(fifo)
    writer = os.open(fifo, os.O_WRONLY)
    stream = lossy(side, writer)
    stream.write("x" * (1 << 20) + "\n")
    assert stream.lost == 1
    torn = os.read(reader, 1 << 20)
    assert set(torn) == {ord("x")}
    stream.write("whole\n")
    assert os.read(reader, 100) == b"\n1 lost\nwhole\n"
    os.close(reader)
    os.close(writer)


def test_a_full_disk_and_a_closed_descriptor_cost_lines_only(side):
    full = os.open("/dev/full", os.O_WRONLY)
    stream = lossy(side, full)
    stream.write("one\n")
    stream.write("two\nlines\n")
    assert stream.lost == 3
    os.close(full)
    stream.write("four\n")
    assert stream.lost == 4


@pytest.mark.parametrize("module", ["galactica.scheduler.settings.streams", "galactica.agent.log"])
def test_no_file_gets_the_number_of_a_closed_standard_stream(module):
    program = (
        f"import os; from {module} import open_standard_streams as opened; opened();"
        "import sys; print(3 <= os.open('/etc/hostname', os.O_RDONLY), sys.stderr.fileno())"
    )
    code = 'exec "$0" -c "$1" <&- 2>&-'
    done = subprocess.run(
        ["sh", "-c", code, sys.executable, program], stdout=subprocess.PIPE, text=True, check=True, timeout=60
    )
    assert done.stdout.split()[0] == "True"
