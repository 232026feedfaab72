"""The engine's event stream: one thread that tells of deaths and of hands on containers and, after a break, lists
everything anew."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from galactica.agent.core.model import Found
from galactica.agent.runtimes.docker.autopsy import Death
from galactica.agent.runtimes.docker.differences import COPIED, DEFAULT_NETWORKS, ran
from galactica.agent.runtimes.docker.engine import Engine
from galactica.agent.runtimes.port import RuntimeUnavailable

BACKOFF_FIRST_SECONDS = 0.1
BACKOFF_LIMIT_SECONDS = 2.0
OVERLAP_SECONDS = 2
"""The engine answers a moment before it has subscribed us; asking from a little earlier covers that
moment."""
JOIN_SECONDS = 2.0

HANDS = ("update", "rename", "exec_start", "extract-to-dir", "connect", "disconnect")
"""Events that a person's hands cause. The agent's own commands are among them, and are told apart by their ids."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Touch:
    """Somebody laid hands on a container; ``line`` says how, where a comparison would not show it. ``exec_id``: the
    command that was run."""

    container_id: str
    at: float
    line: str = ""
    exec_id: str = ""


@dataclass(frozen=True, slots=True)
class Hearers:
    """What the thread calls, in the thread. ``out_of_memory``: with a container's id. ``connected``: an
    attempt succeeded (None) or failed."""

    death: Callable[[Death], None]
    out_of_memory: Callable[[str], None]
    relisted: Callable[[Sequence[Found]], None]
    connected: Callable[[RuntimeUnavailable | None], None]
    touched: Callable[[Touch], None]


class EventThread:
    """Reads for as long as it is not closed. After each break of the stream: subscribe first, then list."""

    def __init__(self, engine: Engine, hearers: Hearers) -> None:
        self._engine = engine
        self._hearers = hearers
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._stream: Any = None
        self._thread = threading.Thread(target=self._run, name="docker-events", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def interrupt(self) -> None:
        """Break the stream: the thread connects again and lists everything."""
        with self._lock:
            if self._stream is not None:
                with contextlib.suppress(OSError):
                    self._stream.close()

    def close(self) -> None:
        """Ends the thread; blocks for a moment."""
        self._closed.set()
        self.interrupt()
        self._thread.join(JOIN_SECONDS)

    def _run(self) -> None:
        backoff_seconds, attempts = BACKOFF_FIRST_SECONDS, 0
        while not self._closed.is_set():
            try:
                with self._subscribed() as events:
                    if attempts:
                        self._hearers.relisted(self._engine.found())
                    self._hearers.connected(None)
                    backoff_seconds = BACKOFF_FIRST_SECONDS
                    self._read(events)
                self._part("the event stream ended", 0.0)
            except RuntimeUnavailable as error:
                self._hearers.connected(error)
                self._part(str(error), backoff_seconds)
                backoff_seconds = min(2 * backoff_seconds, BACKOFF_LIMIT_SECONDS)
            except Exception:  # noqa: BLE001 - the thread's outermost edge: without it deaths would go unseen
                _log.exception("reading the Docker engine's events failed; connecting anew")
                self._part("see above", backoff_seconds)
                backoff_seconds = min(2 * backoff_seconds, BACKOFF_LIMIT_SECONDS)
            attempts += 1

    def _part(self, why: str, wait_seconds: float) -> None:
        if not self._closed.is_set():
            level = logging.WARNING if wait_seconds <= BACKOFF_FIRST_SECONDS else logging.DEBUG
            _log.log(level, "no events from the Docker engine (%s); connecting in %.1f s", why, wait_seconds)
            self._engine.forget_client()
            self._closed.wait(wait_seconds)

    @contextlib.contextmanager
    def _subscribed(self) -> Iterator[Any]:
        # Not by label: a network's events carry none of the container's.
        filters = {"type": ["container", "network"], "event": ["die", "oom", *HANDS]}
        client = self._engine.client()
        with self._engine.errors("tell of events"):
            stream = client.events(since=int(time.time()) - OVERLAP_SECONDS, filters=filters, decode=True)
        with self._lock:
            self._stream = stream
        if self._closed.is_set():  # close() came before there was a stream to break
            self.interrupt()
        try:
            yield stream
        finally:
            with self._lock:
                self._stream = None
            with contextlib.suppress(OSError):
                stream.close()

    def _read(self, events: Iterator[Any]) -> None:
        with self._engine.errors("tell of events"):
            for event in events:
                news = news_of(event)
                if isinstance(news, Death):
                    self._hearers.death(news)
                elif isinstance(news, Touch):
                    self._hearers.touched(news)
                elif news is not None:
                    self._hearers.out_of_memory(news)


def news_of(event: Any) -> Death | Touch | str | None:
    """A death, or the id of a container that ran out of memory. None for all else, and for what does not say
    of whom it speaks: engines send events without an id, and errors as events."""
    if not isinstance(event, dict):
        return None
    actor = event.get("Actor") or {}
    container_id = actor.get("ID") or event.get("id")
    action = event.get("Action") or event.get("status")
    if not container_id or not isinstance(action, str):
        return None
    if event.get("Type") == "network" or action not in {"die", "oom"}:
        return _touch_of(event, actor, action)
    if action == "oom":
        return str(container_id)
    told = actor.get("Attributes") or {}
    return Death(container_id, _number(told.get("exitCode"), -1), _number(event.get("timeNano"), 0) / 1e9)


def _touch_of(event: Any, actor: Any, action: str) -> Touch | None:
    told, at = actor.get("Attributes") or {}, _number(event.get("timeNano"), 0) / 1e9
    if event.get("Type") == "network":
        container_id = told.get("container")
        is_start = action == "connect" and told.get("name") in DEFAULT_NETWORKS
        return Touch(container_id, at) if container_id and action in HANDS and not is_start else None
    verb, _, words = action.partition(":")
    if verb == "exec_start":
        program = (words.split() or [""])[0]
        return Touch(actor.get("ID", ""), at, ran(program), told.get("execID", ""))
    if verb not in HANDS:
        return None
    return Touch(actor.get("ID", ""), at, COPIED if verb == "extract-to-dir" else "")


def _number(text: Any, otherwise: int) -> int:
    try:
        return int(text)
    except (TypeError, ValueError):
        return otherwise
