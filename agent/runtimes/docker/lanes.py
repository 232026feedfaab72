"""Threads for blocking calls, by kind of work. They are created when needed.

Some kinds of work have users that must not stand in each other's way: each of those may only have a few of the
threads at once, and free threads go to the users in turn.
"""

import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar, TypeVarTuple

LOG_READERS = 16
SHELL_THREADS = 16
"""Each shell needs a thread that reads and one that writes, and briefly one to begin and to end."""
EXEC_THREADS, EXECS_OF_A_SERVICE = 16, 4
PULL_THREADS, PULLS_OF_A_REGISTRY = 16, 2

_Args = TypeVarTuple("_Args")
_T = TypeVar("_T")


@dataclass(slots=True, eq=False)
class _Work:
    future: Future[Any]
    call: Callable[[], Any]
    is_begun: bool = False
    is_dropped: bool = False


class FairThreads:
    """``threads`` for all users; each user has at most ``each`` of them at once. Work of one user begins in its
    order."""

    def __init__(self, threads: int, each: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, name)
        self._threads = threads
        self._each = each
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, deque[_Work]] = OrderedDict()
        self._busy: Counter[str] = Counter()

    def submit(self, user: str, work: Callable[[*_Args], _T], *args: *_Args) -> Future[_T]:
        """The work begins when it is this user's turn; cancel the future to leave the queue."""
        future: Future[_T] = Future()
        with self._lock:
            before = self._waiting.pop(user, ())
            queue = deque(one for one in before if not one.future.cancelled())
            queue.append(_Work(future, lambda: work(*args)))
            self._waiting[user] = queue
        self._begin()
        return future

    def shutdown(self, *, wait: bool, cancel_futures: bool) -> None:
        with self._lock:
            left = [one for queue in self._waiting.values() for one in queue]
            self._waiting.clear()
        if cancel_futures:
            for one in left:
                one.future.cancel()
        self._pool.shutdown(wait=wait, cancel_futures=cancel_futures)

    def _begin(self) -> None:
        """Give the free threads to those whose turn it is."""
        while (turn := self._next()) is not None:
            user, work = turn
            try:
                self._pool.submit(self._carry_out, user, work)
            except RuntimeError as error:  # no more threads, or closed
                if self._drop(work):
                    self._leave(user)
                    work.future.set_exception(error)

    def _next(self) -> tuple[str, _Work] | None:
        with self._lock:
            if self._busy.total() >= self._threads:
                return None
            for user in tuple(self._waiting):
                queue = self._waiting[user]
                while queue and self._busy[user] < self._each:
                    work = queue.popleft()
                    if work.future.set_running_or_notify_cancel():
                        self._busy[user] += 1
                        self._waiting.move_to_end(user)
                        return user, work
                if not queue:
                    del self._waiting[user]
        return None

    def _drop(self, work: _Work) -> bool:
        """False: a thread has begun it. The pool keeps work for which it could not start a thread."""
        with self._lock:
            work.is_dropped = not work.is_begun
            return work.is_dropped

    def _carry_out(self, user: str, work: _Work) -> None:
        with self._lock:
            if work.is_dropped:
                return
            work.is_begun = True
        try:
            result = work.call()
        except BaseException as error:  # noqa: BLE001 - handed to who waits for it
            self._leave(user)
            work.future.set_exception(error)
        else:
            self._leave(user)
            work.future.set_result(result)
        self._begin()

    def _leave(self, user: str) -> None:
        with self._lock:
            self._busy[user] -= 1
            if not self._busy[user]:
                del self._busy[user]


class Lanes:
    """A hung image registry, slow commands or an engine that does not answer block no other work."""

    def __init__(self) -> None:
        self.make = ThreadPoolExecutor(8, "docker-make")
        self.look = ThreadPoolExecutor(4, "docker-look")
        self.bury = ThreadPoolExecutor(4, "docker-bury")
        self.execute = FairThreads(EXEC_THREADS, EXECS_OF_A_SERVICE, "docker-exec")
        self.pull = FairThreads(PULL_THREADS, PULLS_OF_A_REGISTRY, "docker-pull")
        self.logs = ThreadPoolExecutor(LOG_READERS, "docker-logs")
        self.ping = ThreadPoolExecutor(1, "docker-ping")
        self.compare = ThreadPoolExecutor(1, "docker-compare")
        self.shells = ThreadPoolExecutor(SHELL_THREADS, "docker-shells")

    def close(self) -> None:
        lanes: tuple[ThreadPoolExecutor | FairThreads, ...] = (
            *(self.make, self.look, self.bury, self.execute, self.pull),
            *(self.logs, self.ping, self.compare, self.shells),
        )
        for lane in lanes:
            lane.shutdown(wait=False, cancel_futures=True)
