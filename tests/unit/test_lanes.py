"""Threads that users share: nobody takes them all, and who leaves the queue is not served."""

from __future__ import annotations

import threading
from concurrent.futures import wait
from typing import TYPE_CHECKING

import pytest

from galactica.agent.runtimes.docker.lanes import FairThreads

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS = 20.0


@pytest.fixture
def threads() -> Iterator[FairThreads]:
    threads = FairThreads(4, 2, "test")
    yield threads
    threads.shutdown(wait=True, cancel_futures=True)


class Slow:
    """Work that ends when it is told to."""

    def __init__(self) -> None:
        self.began = threading.Semaphore(0)
        self.may_end = threading.Event()

    def __call__(self) -> str:
        self.began.release()
        assert self.may_end.wait(SECONDS)
        return "slow"

    def until_begun(self, times: int) -> None:
        for _ in range(times):
            assert self.began.acquire(timeout=SECONDS)


def test_user_whose_work_is_slow_leaves_threads_for_the_others(threads: FairThreads) -> None:
    slow = Slow()
    slow_work = [threads.submit("slow", slow) for _ in range(8)]
    slow.until_begun(2)
    assert threads.submit("good", lambda: "done").result(SECONDS) == "done"
    assert sum(one.running() for one in slow_work) == 2
    slow.may_end.set()
    assert {one.result(SECONDS) for one in slow_work} == {"slow"}


def test_users_that_wait_have_their_turns_one_after_the_other() -> None:
    threads, slow = FairThreads(1, 1, "test"), Slow()
    threads.submit("a", slow)
    slow.until_begun(1)
    done: list[str] = []
    waiting = [threads.submit(user, done.append, user) for user in ("c", "c", "c", "d", "d")]
    slow.may_end.set()
    wait(waiting, SECONDS)
    threads.shutdown(wait=True, cancel_futures=True)
    assert done == ["c", "d", "c", "d", "c"]


def test_work_that_was_cancelled_while_it_waited_is_not_done(threads: FairThreads) -> None:
    slow = Slow()
    busy = [threads.submit("a", slow) for _ in range(2)]
    slow.until_begun(2)
    done: list[int] = []
    waiting = [threads.submit("a", done.append, n) for n in range(3)]
    assert waiting[1].cancel()
    slow.may_end.set()
    wait([*busy, waiting[0], waiting[2]], SECONDS)
    assert done == [0, 2]


def test_error_of_the_work_goes_to_who_waits_and_frees_the_thread(threads: FairThreads) -> None:
    for _ in range(5):
        with pytest.raises(ZeroDivisionError):
            threads.submit("a", lambda: 1 // 0).result(SECONDS)
    assert threads.submit("a", lambda: 1).result(SECONDS) == 1


def test_work_after_the_end_is_refused(threads: FairThreads) -> None:
    threads.shutdown(wait=True, cancel_futures=True)
    with pytest.raises(RuntimeError, match="shutdown"):
        threads.submit("a", lambda: 1).result(SECONDS)
