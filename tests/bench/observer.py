"""An operator who watches the events as they come, and notes when."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grpc

from galactica.scheduler.cli.client import Client
from galactica.v1 import operator_pb2
from tests.bench.fleet import WAIT_SECONDS


class Seen(NamedTuple):
    """``at``: Unix seconds at which it was told, so it is durable. ``more``: the event's own fields."""

    at: float
    type: str
    cell: str
    server: str
    more: dict[str, Any]


class Observer:
    def __init__(self, client: Client) -> None:
        self._seen: list[Seen] = []
        self._news = threading.Condition()
        self._call = client.stub.WatchEvents(operator_pb2.WatchEventsRequest(tail=1, follow=True))
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def wait(self, condition: Callable[[Seen], bool], what: str, seconds: float = WAIT_SECONDS) -> Seen:
        """The first that is so. Fails where it does not come."""
        deadline = time.monotonic() + seconds
        with self._news:
            while True:
                for seen in self._seen:
                    if condition(seen):
                        return seen
                left = deadline - time.monotonic()
                assert left > 0, f"waited {seconds:g} s in vain for {what}"
                self._news.wait(left)

    def all(self, *types: str) -> list[Seen]:
        with self._news:
            return [seen for seen in self._seen if seen.type in types]

    def close(self) -> None:
        self._call.cancel()
        self._thread.join(WAIT_SECONDS)

    def _read(self) -> None:
        with contextlib.suppress(grpc.RpcError):  # that is how it ends
            for answer in self._call:
                at = time.time()
                told = [
                    Seen(at, one.type, one.cell, one.server, json.loads(one.details_json or "{}"))
                    for one in answer.events
                ]
                with self._news:
                    self._seen += told
                    self._news.notify_all()


@contextlib.contextmanager
def watching(client: Client) -> Iterator[Observer]:
    observer = Observer(client)
    try:
        yield observer
    finally:
        observer.close()
