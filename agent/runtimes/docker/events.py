"""The engine's event stream: one thread reports deaths and changes of containers. After a break it lists all
containers again."""

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from galactica.agent.core.model import Found
from galactica.agent.runtimes.docker.autopsy import Death
from galactica.agent.runtimes.docker.differences import COPIED, DEFAULT_NETWORKS, PAUSED, ran, signalled
from galactica.agent.runtimes.docker.engine import Engine
from galactica.agent.runtimes.docker.listing import Listing
from galactica.agent.runtimes.port import RuntimeUnavailable

BACKOFF_FIRST_SECONDS = 0.1
BACKOFF_LIMIT_SECONDS = 2.0
OVERLAP_SECONDS = 2
"""The engine answers shortly before the subscription is active. Asking for slightly older events covers that gap."""
JOIN_SECONDS = 2.0

HANDS = ("update", "rename", "exec_start", "extract-to-dir", "connect", "disconnect", "pause", "kill")
"""Events of changes by other people or programs. The agent's own commands cause such events too; their ids tell them
apart, and what it ends itself is not heard any more."""
ENDINGS = frozenset({"SIGKILL", "SIGTERM", "SIGINT", "SIGQUIT", "SIGABRT"})
"""Signals that ask a program to end: its death tells more than the signal."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Touch:
    """Somebody may have changed a container. ``line`` says how, if a comparison would not show it. ``exec_id``: the
    command that was run. ``is_kill``: it was killed, which changes nothing in it but tells why it ended."""

    container_id: str
    at: float
    line: str = ""
    exec_id: str = ""
    is_kill: bool = False


@dataclass(frozen=True, slots=True)
class Hearers:
    """Callbacks; the events thread calls them. ``out_of_memory``: with a container's id, and when the kernel killed a
    process of it. ``connected``: an attempt to connect succeeded (None) or failed."""

    death: Callable[[Death], None]
    out_of_memory: Callable[[str, float], None]
    relisted: Callable[[Sequence[Found]], None]
    connected: Callable[[RuntimeUnavailable | None], None]
    touched: Callable[[Touch], None]


class EventThread:
    """Reads events until it is closed. After each break of the stream it subscribes first, then lists."""

    def __init__(self, engine: Engine, listing: Listing, hearers: Hearers) -> None:
        self._engine = engine
        self._listing = listing
        self._hearers = hearers
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._stream: Any = None
        self._thread = threading.Thread(target=self._run, name="docker-events", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def interrupt(self) -> None:
        """Close the stream: the thread connects again and lists everything."""
        with self._lock:
            if self._stream is not None:
                with contextlib.suppress(OSError):
                    self._stream.close()

    def close(self) -> None:
        """End the thread. Blocks for a moment."""
        self._closed.set()
        self.interrupt()
        self._thread.join(JOIN_SECONDS)

    def _run(self) -> None:
        backoff_seconds, attempts = BACKOFF_FIRST_SECONDS, 0
        while not self._closed.is_set():
            try:
                with self._subscribed() as events:
                    if attempts:
                        self._hearers.relisted(self._listing.found())
                    self._hearers.connected(None)
                    backoff_seconds = BACKOFF_FIRST_SECONDS
                    self._read(events)
                self._part("the event stream ended", 0.0)
            except RuntimeUnavailable as error:
                self._hearers.connected(error)
                self._part(str(error), backoff_seconds)
                backoff_seconds = min(2 * backoff_seconds, BACKOFF_LIMIT_SECONDS)
            except Exception:  # noqa: BLE001 - the thread's outermost edge: without the thread deaths would be missed
                _log.exception("reading the Docker engine's events failed; connecting again")
                self._part("see above", backoff_seconds)
                backoff_seconds = min(2 * backoff_seconds, BACKOFF_LIMIT_SECONDS)
            attempts += 1

    def _part(self, why: str, wait_seconds: float) -> None:
        if not self._closed.is_set():
            level = logging.WARNING if wait_seconds <= BACKOFF_FIRST_SECONDS else logging.DEBUG
            _log.log(level, "lost the Docker engine's events (%s); connecting in %.1f s", why, wait_seconds)
            self._engine.forget_client()
            self._closed.wait(wait_seconds)

    @contextlib.contextmanager
    def _subscribed(self) -> Iterator[Any]:
        # Not filtered by label: a network's events do not have the container's labels.
        filters = {"type": ["container", "network"], "event": ["die", "oom", *HANDS]}
        client = self._engine.client()
        with self._engine.errors("send events"):
            stream = client.events(since=int(time.time()) - OVERLAP_SECONDS, filters=filters, decode=True)
        with self._lock:
            self._stream = stream
        if self._closed.is_set():  # close() was called before the stream existed
            self.interrupt()
        try:
            yield stream
        finally:
            with self._lock:
                self._stream = None
            with contextlib.suppress(OSError):
                stream.close()

    def _read(self, events: Iterator[Any]) -> None:
        with self._engine.errors("send events"):
            for event in events:
                news = news_of(event)
                if isinstance(news, Death):
                    self._hearers.death(news)
                elif isinstance(news, Touch):
                    self._hearers.touched(news)
                elif news is not None:
                    self._hearers.out_of_memory(news, _at(event))


def news_of(event: Any) -> Death | Touch | str | None:
    """A death, a touch, or the id of a container that ran out of memory. None for other events and for those without
    an id: engines send events without one, and errors as events."""
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
    attributes = actor.get("Attributes") or {}
    return Death(container_id, _number(attributes.get("exitCode"), -1), _at(event))


def _touch_of(event: Any, actor: Any, action: str) -> Touch | None:
    attributes, at = actor.get("Attributes") or {}, _at(event)
    if event.get("Type") == "network":
        container_id = attributes.get("container")
        is_start = action == "connect" and attributes.get("name") in DEFAULT_NETWORKS
        return Touch(container_id, at) if container_id and action in HANDS and not is_start else None
    verb, _, words = action.partition(":")
    if verb == "exec_start":
        program = (words.split() or [""])[0]
        return Touch(actor.get("ID", ""), at, ran(program), attributes.get("execID", ""))
    if verb == "kill":
        name = _name_of_signal(str(attributes.get("signal", "")))
        if name == "SIGKILL":
            return Touch(actor.get("ID", ""), at, is_kill=True)
        return Touch(actor.get("ID", ""), at, signalled(name)) if name not in ENDINGS else None
    return Touch(actor.get("ID", ""), at, _LINES.get(verb, "")) if verb in HANDS else None


_LINES = {"extract-to-dir": COPIED, "pause": PAUSED}
"""What a comparison would not show, or not any more."""


def _name_of_signal(text: str) -> str:
    """Engines tell its number or its name."""
    if text.isdecimal():
        try:
            return signal.Signals(int(text)).name
        except ValueError:
            return f"signal {text}"
    return text if text.startswith("SIG") else f"SIG{text}"


def _at(event: Any) -> float:
    """Unix seconds."""
    return _number(event.get("timeNano"), 0) / 1e9


def _number(text: Any, default: int) -> int:
    try:
        return int(text)
    except (TypeError, ValueError):
        return default
