"""Cells as containers of a Docker Engine.

The SDK blocks, so each kind of work has its own threads (``Lanes``): a hung image registry, slow commands or an engine
that does not answer block no other work. One more thread reads the engine's events. All state of the runtime belongs
to the event loop, except ``Engine.alive``.

With ``live-restore`` containers survive the end of the engine, without it they end too. In both cases the watch
reports the result when the engine is back.
"""

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar, TypeVarTuple

from galactica.agent.core.model import Found, Running
from galactica.agent.runtimes.docker.autopsy import Death, Life, autopsy_at_once, autopsy_of_exit
from galactica.agent.runtimes.docker.drift import Comparer
from galactica.agent.runtimes.docker.engine import Engine, ImageMissing
from galactica.agent.runtimes.docker.events import EventThread, Hearers, Touch
from galactica.agent.runtimes.docker.exec import execute
from galactica.agent.runtimes.docker.lanes import LOG_READERS, Lanes
from galactica.agent.runtimes.docker.listing import Listing
from galactica.agent.runtimes.docker.logs import read_logs
from galactica.agent.runtimes.docker.pull import Puller
from galactica.agent.runtimes.docker.shell import open_shell
from galactica.agent.runtimes.docker.spec import Scope
from galactica.agent.runtimes.port import (
    Begun,
    Exited,
    NotBegun,
    Progress,
    Relisted,
    RuntimeFailure,
    Shell,
    StartFailed,
    Stirred,
    Window,
    nobody_waits,
    not_begun,
    service_of,
)
from galactica.v1 import cell_pb2, link_pb2

NEWS_LIMIT = 4_096
"""Limit for deaths that wait for ``watch``. Beyond it all containers are listed again instead."""
_Args = TypeVarTuple("_Args")
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class DockerRuntime:
    """The port's runtime on a Docker Engine.

    ``fleet``, ``fleet_id`` and ``server`` identify this agent's containers; agents of one fleet that share an engine
    need different servers.
    ``base_url``: the engine's address ("unix:///…", "tcp://…"); None: from DOCKER_HOST. ``host``: the address of this
    server on which ports are published. ``credentials``: a file like ~/.docker/config.json, which it takes precedence
    over. ``timeout_seconds`` bounds each single call to the engine. The constructor does not call the engine.
    """

    kind = cell_pb2.RUNTIME_KIND_DOCKER

    def __init__(
        self,
        fleet: str,
        fleet_id: str,
        base_url: str | None = None,
        host: str = "127.0.0.1",
        *,
        server: str = "",
        credentials: Path | None = None,
        timeout_seconds: int = 30,
    ) -> None:
        self._engine = Engine(Scope(fleet, fleet_id, server, host), base_url, timeout_seconds)
        self._listing = Listing(self._engine)
        self._timeout_seconds = timeout_seconds
        self._lanes = Lanes()
        self._puller = Puller(self._engine, self._lanes.pull, credentials)
        self._news: asyncio.Queue[Exited | Relisted | Stirred | None] = asyncio.Queue(NEWS_LIMIT)
        self._comparer = Comparer(self._engine)
        self._born_at = time.time()
        self._making: dict[str, asyncio.Future[Running]] = {}
        self._starting: Counter[str] = Counter()
        self._deferred: dict[str, Exited] = {}
        self._ends: dict[str, asyncio.Future[None]] = {}
        self._events: EventThread | None = None
        self._subscribed: asyncio.Future[None] | None = None
        self._log_readers = 0

    @property
    def foreign(self) -> int:
        return self._engine.foreign

    async def list(self) -> Sequence[Found]:
        await self._listening()
        found = await self._run(self._lanes.look, self._listing.found)
        return self._without_unfinished(found)

    async def living(self) -> Sequence[link_pb2.Order]:
        return await self._run(self._lanes.look, self._listing.living)

    async def start(self, order: link_pb2.Order, progress: Progress) -> Running:
        await self._listening()
        self._starting[order.cell_id] += 1
        try:
            return await self._start(order, progress)
        finally:
            self._starting[order.cell_id] -= 1
            self._tell_deferred(order.cell_id)

    async def _start(self, order: link_pb2.Order, progress: Progress) -> Running:
        try:
            return await self._make(order)
        except ImageMissing:
            await self._puller.pull(order.spec.image, progress)
        try:
            return await self._make(order)
        except ImageMissing:
            raise StartFailed(
                f"image {order.spec.image} was pulled but is already gone; check whether something removes images"
            ) from None

    async def stop(self, cell_id: str, signal: str, grace_seconds: float) -> None:
        await self._listening()
        await self._settled(cell_id)
        containers = await self._run(self._lanes.look, self._engine.containers_of, cell_id)
        ends = (self._end(container_id, signal, grace_seconds) for container_id in containers)
        for failure in await asyncio.gather(*ends, return_exceptions=True):
            if failure is not None:
                raise failure

    async def watch(self) -> AsyncIterator[Exited | Relisted | Stirred]:
        """Ends when the runtime is closed. A death is reported after the ``start`` of its cell has returned."""
        await self._listening()
        while (news := await self._news.get()) is not None:
            yield news

    async def logs(self, cell_id: str, tail: int, *, follow: bool) -> AsyncIterator[bytes]:
        if self._log_readers >= LOG_READERS:
            raise RuntimeFailure(
                f"{LOG_READERS} logs are already being read on this server, its limit; close one of them"
            )
        self._log_readers += 1
        try:
            chunks = read_logs(self._engine, self._lanes.logs, cell_id, tail, follow=follow)
            async with contextlib.aclosing(chunks):
                async for chunk in chunks:
                    yield chunk
        finally:
            self._log_readers -= 1

    async def execute(
        self, cell_id: str, command: Sequence[str], timeout_seconds: float, begun: Begun = nobody_waits
    ) -> tuple[int, str]:
        loop = asyncio.get_running_loop()

        def begun_in_thread() -> None:
            with contextlib.suppress(RuntimeError):  # the event loop has ended, so nobody listens
                loop.call_soon_threadsafe(begun)

        args = (self._engine, cell_id, command, timeout_seconds, begun_in_thread)
        working = self._lanes.execute.submit(service_of(cell_id), execute, *args)
        return await self._bounded(working, asyncio.wrap_future(working))

    async def open_shell(
        self, cell_id: str, command: Sequence[str], term: str, window: Window | None
    ) -> Shell:
        threads = self._lanes.shells
        return await self._run(threads, open_shell, self._engine, threads, cell_id, command, term, window)

    async def compare(self, order: link_pb2.Order, runtime_id: str) -> tuple[str, ...]:
        return await self._run(self._lanes.compare, self._comparer.compare, order, runtime_id)

    async def ping(self) -> float:
        return await self._run(self._lanes.ping, self._engine.ping)

    async def close(self) -> None:
        events, self._events = self._events, None
        if events is not None:
            await self._run(self._lanes.bury, events.close)
        self._lanes.close()
        self._engine.forget_client()
        self._empty_news()
        self._news.put_nowait(None)

    async def _run(self, lane: ThreadPoolExecutor, work: Callable[[*_Args], _T], *args: *_Args) -> _T:
        """Run it in that lane's threads. Raises RuntimeUnavailable if they are too busy to begin in time."""
        try:
            working = lane.submit(work, *args)
        except RuntimeError as error:
            raise not_begun(error) from error
        return await self._bounded(working, asyncio.wrap_future(working))

    async def _bounded(self, working: Future[_T], result: asyncio.Future[_T]) -> _T:
        """Wait for the result. If the caller is cancelled, work that has begun runs to its end."""
        try:
            await asyncio.wait([result], timeout=self._timeout_seconds)
        except asyncio.CancelledError:
            working.cancel()
            raise
        if working.cancel():
            raise NotBegun(
                f"the Docker engine is too slow: no earlier call ended within {self._timeout_seconds} s"
            )
        try:
            return await asyncio.shield(result)
        except RuntimeError as error:
            raise not_begun(error) from error

    # Making

    async def _make(self, order: link_pb2.Order) -> Running:
        """One at a time for each cell. If the caller is cancelled, the thread removes the new container."""
        await self._settled(order.cell_id)
        abandoned = threading.Event()
        try:
            working = self._lanes.make.submit(self._engine.make, order, abandoned)
        except RuntimeError as error:  # the lane may have kept the work
            abandoned.set()
            raise not_begun(error) from error
        making = asyncio.wrap_future(working)
        self._making[order.cell_id] = making
        making.add_done_callback(lambda done: self._made(order.cell_id, done))
        try:
            return await self._bounded(working, making)
        except asyncio.CancelledError:
            abandoned.set()
            raise

    def _made(self, cell_id: str, making: asyncio.Future[Running]) -> None:
        del self._making[cell_id]
        if not making.cancelled():
            making.exception()  # retrieved, because the caller may be gone

    async def _settled(self, cell_id: str) -> None:
        """Wait until no start of this cell is under way; bounded by the time limits of the engine's calls."""
        while (making := self._making.get(cell_id)) is not None:
            await asyncio.wait([making])

    def _without_unfinished(self, found: Sequence[Found]) -> tuple[Found, ...]:
        """Leave out containers that are being created: they look like containers that never ran."""
        return tuple(cell for cell in found if cell.running or cell.order.cell_id not in self._making)

    # Ending

    async def _end(self, container_id: str, signal: str, grace_seconds: float) -> None:
        """End and remove a container. Its death is not reported, unless this fails before the container has ended."""
        life = self._engine.alive.pop(container_id, None)
        ended = self._ends.setdefault(container_id, asyncio.get_running_loop().create_future())
        try:
            if await self._run(self._lanes.bury, self._engine.kill, container_id, signal):
                await asyncio.wait([ended], timeout=grace_seconds)
            await self._run(self._lanes.bury, self._engine.remove, container_id)
        except BaseException:
            if life is not None and not ended.done():
                self._engine.alive[container_id] = life
            raise
        finally:
            self._ends.pop(container_id, None)

    # Watching

    async def _listening(self) -> None:
        """Start the events thread and wait for its first attempt to subscribe. Lists and starts come after that, so
        that no death is missed."""
        if self._subscribed is None:
            loop = asyncio.get_running_loop()
            self._subscribed = loop.create_future()
            self._events = EventThread(self._engine, self._listing, self._hearers(loop))
            self._events.start()
        await asyncio.shield(self._subscribed)

    def _hearers(self, loop: asyncio.AbstractEventLoop) -> Hearers:
        def on_loop(call: Callable[..., None], *args: object) -> None:
            with contextlib.suppress(RuntimeError):  # the event loop has ended, so nobody listens
                loop.call_soon_threadsafe(call, *args)

        def death(death: Death) -> None:
            on_loop(self._on_end, death.container_id)
            life = self._engine.alive.pop(death.container_id, None)
            if life is None:
                return
            autopsy = autopsy_at_once(life, death)
            if autopsy is not None:
                on_loop(self._tell, Exited(life.cell_id, autopsy))
                return
            with contextlib.suppress(RuntimeError):  # the runtime is closed, so nobody listens
                self._lanes.look.submit(lambda: on_loop(self._tell, self._examined(life, death)))

        def out_of_memory(container_id: str, at: float) -> None:
            life = self._engine.alive.get(container_id)
            if life is not None:
                life.lacked_at = at

        def touched(touch: Touch) -> None:
            life = self._engine.alive.get(touch.container_id)
            if life is not None and touch.is_kill:
                life.lacked_at = -math.inf  # whatever ran out before, this is what ends it
                return
            # For a change from before this agent's start it is unknown who made it.
            if life is None or touch.at < self._born_at or touch.exec_id in self._engine.execs:
                return
            if touch.line:
                life.touches.add([touch.line])
            on_loop(self._on_touched, life.cell_id)

        return Hearers(
            death=death,
            touched=touched,
            out_of_memory=out_of_memory,
            relisted=lambda found: on_loop(self._on_relisted, found),
            connected=lambda _: on_loop(self._on_connected),
        )

    def _examined(self, life: Life, death: Death) -> Exited:
        """Ask the engine, in a thread. The death is reported even if the autopsy fails."""
        try:
            autopsy = self._engine.examine(death.container_id)
        except RuntimeFailure as error:
            _log.warning("incomplete autopsy of %s: %s", life.cell_id, error)
            autopsy = None
        lived_seconds = max(death.at - life.started_at, 0.0) if life.started_at else 0.0
        return Exited(life.cell_id, autopsy or autopsy_of_exit(death.exit_code, lived_seconds))

    def _on_connected(self) -> None:
        if self._subscribed is not None and not self._subscribed.done():
            self._subscribed.set_result(None)

    def _on_end(self, container_id: str) -> None:
        ended = self._ends.get(container_id)
        if ended is not None and not ended.done():
            ended.set_result(None)

    def _on_relisted(self, found: Sequence[Found]) -> None:
        running = {cell.running.runtime_id if cell.running else cell.runtime_id for cell in found}
        for container_id in set(self._ends) - running:
            self._on_end(container_id)
        self._empty_news()
        self._news.put_nowait(Relisted(self._without_unfinished(found)))

    def _on_touched(self, cell_id: str) -> None:
        """If the queue is half full, the room is kept for deaths: the next comparison shows the change too."""
        if self._news.qsize() < NEWS_LIMIT // 2:
            self._news.put_nowait(Stirred(cell_id))

    def _tell(self, exited: Exited) -> None:
        if exited.cell_id in self._starting:
            self._deferred[exited.cell_id] = exited
            return
        try:
            self._news.put_nowait(exited)
        except asyncio.QueueFull:
            _log.warning("the queue of %d deaths is full; listing all containers instead", NEWS_LIMIT)
            if self._events is not None:
                self._events.interrupt()

    def _tell_deferred(self, cell_id: str) -> None:
        """After the last start of the cell has returned, report the death that waited for it."""
        if self._starting[cell_id]:
            return
        del self._starting[cell_id]
        exited = self._deferred.pop(cell_id, None)
        if exited is not None:
            self._tell(exited)

    def _empty_news(self) -> None:
        while not self._news.empty():
            self._news.get_nowait()
