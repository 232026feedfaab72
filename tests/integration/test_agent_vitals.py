"""Vitals where things are really bad: disks full, read-only and hung, an engine that hangs, kernel errors."""

import asyncio
import contextlib
import os
import subprocess
import threading
import uuid

import pytest

from galactica.agent.health.disk import TRIAL_NAME, DiskTrial
from galactica.agent.health.kernel_log import KERNEL_LOG, WINDOW_SECONDS, KernelLog
from galactica.agent.health.vitals import VitalsTaker
from galactica.scheduler.core.model.policy import USUAL_LIMITS
from galactica.scheduler.core.sight.vitals import ailments
from galactica.scheduler.wire.cell import vitals_from_proto
from tests.support.docker_cells import a_runtime, own_engine


def _taker(data, *runtimes):
    return VitalsTaker(data, runtimes, lambda: None)


async def _ailing_by(taker):
    """As the scheduler takes it."""
    vitals = vitals_from_proto(await taker.take())
    own = {"disk_full", "disk_read_only", "engine_hung"}  # how this machine feels is another matter
    return {one.rule: one.says for one in ailments((), vitals, USUAL_LIMITS, 1.0) if one.rule in own}


@pytest.fixture
def small_disk(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], check=True)
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


async def test_a_disk_that_works_is_well_and_keeps_nothing_of_the_trial(tmp_path):
    taker = _taker(tmp_path)
    assert await _ailing_by(taker) == {}
    assert (await taker.take()).disk_error == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root
async def test_a_disk_that_is_full_is_told_and_well_again_when_there_is_room(small_disk):
    taker = _taker(small_disk)
    assert await _ailing_by(taker) == {}
    with contextlib.suppress(OSError), (small_disk / "hog").open("wb", buffering=0) as hog:
        while True:
            hog.write(b"x" * 4_096)
    assert (await taker.take()).disk_fraction == 1.0
    assert await _ailing_by(taker) == {"disk_full": "its disk takes no new files (ENOSPC)"}
    (small_disk / "hog").unlink()
    assert await _ailing_by(taker) == {}


@pytest.mark.root
async def test_a_disk_without_inodes_is_full_although_it_has_room(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=3", "tmpfs", str(tmp_path)], check=True)
    try:
        taker = _taker(tmp_path)
        for name in "ab":
            (tmp_path / name).touch()
        vitals = await taker.take()
        assert (vitals.disk_error, vitals.disk_fraction < 0.5) == ("ENOSPC", True)
        assert list(await _ailing_by(taker)) == ["disk_full"]
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


@pytest.mark.root
async def test_a_disk_that_turned_read_only_is_told(small_disk):
    taker = _taker(small_disk)
    assert await _ailing_by(taker) == {}
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert await _ailing_by(taker) == {"disk_read_only": "its disk is not writable (EROFS)"}


async def test_a_disk_that_does_not_answer_is_told_and_holds_nobody_up(tmp_path):
    # Opening a FIFO for writing waits for a reader, as a write to a disk that hangs waits for ever.
    os.mkfifo(tmp_path / TRIAL_NAME)
    trial = DiskTrial(tmp_path, timeout_seconds=0.05)
    assert [await trial.error() for _ in range(3)] == ["ETIMEDOUT"] * 3
    assert sum(thread.name == "disk-trial" for thread in threading.enumerate()) == 1
    reader = os.open(tmp_path / TRIAL_NAME, os.O_RDONLY | os.O_NONBLOCK)
    patient = DiskTrial(tmp_path)
    while await trial.error() == "ETIMEDOUT":  # it goes on by itself
        await asyncio.sleep(0)
    os.close(reader)
    assert await patient.error() == ""


async def test_a_disk_that_does_not_answer_is_not_asked_how_full_it_is(tmp_path):
    """To ask would make the whole agent wait."""
    os.mkfifo(tmp_path / TRIAL_NAME)
    vitals = await _taker(tmp_path).take()
    assert (vitals.disk_error, list(vitals.unread)) == ("ETIMEDOUT", ["disk_fraction"])
    os.close(os.open(tmp_path / TRIAL_NAME, os.O_RDONLY | os.O_NONBLOCK))


@pytest.mark.docker
@pytest.mark.root
async def test_an_engine_that_hangs_is_told_and_well_again_when_it_answers(engine, busybox_image, tmp_path):
    with own_engine(engine, busybox_image) as own:
        async with a_runtime(own.url) as runtime:
            taker = _taker(tmp_path, runtime)
            assert await _ailing_by(taker) == {}
            own.freeze()
            assert await _ailing_by(taker) == {"engine_hung": "its engine does not answer"}
            own.thaw()
            async with asyncio.timeout(30):
                while await _ailing_by(taker):
                    await asyncio.sleep(0.1)


@pytest.mark.root
def test_new_lines_of_the_kernels_log_count_for_a_minute():
    word = uuid.uuid4().hex.encode()
    log = KernelLog(is_counted=lambda record: word in record)
    try:
        assert log.count(1.0) == 0
        for _ in range(3):
            KERNEL_LOG.write_bytes(b"<3>test " + word + b"\n")
        assert [log.count(2.0), log.count(2.0 + WINDOW_SECONDS), log.count(2.1 + WINDOW_SECONDS)] == [3, 3, 0]
    finally:
        log.close()
