"""Servers on loopback and an agent's prober in front of them."""

import asyncio
import contextlib
import os
import resource
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path

from galactica.agent.health.probes import Prober
from galactica.agent.starved import Lacks
from galactica.v1 import cell_pb2, link_pb2
from tests.support.agent_world import until

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Probing:
    """A prober at work, and what it said of each cell."""

    def __init__(self) -> None:
        self.outcomes: dict[str, list[str]] = defaultdict(list)
        self.executed: list[tuple[str, tuple[str, ...]]] = []
        self.exit: tuple[int, str] | Exception = (0, "")
        self.may_begin, self.may_end = asyncio.Event(), asyncio.Event()
        self.may_begin.set()
        self.may_end.set()
        self.lacks = Lacks()
        self.prober = Prober(
            self._execute, lambda cell_id, error: self.outcomes[cell_id].append(error), self.lacks
        )

    async def _execute(
        self,
        kind: int,
        cell_id: str,
        command: Sequence[str],
        timeout_seconds: float,
        begun: Callable[[], None],
    ) -> tuple[int, str]:
        self.executed.append((cell_id, tuple(command)))
        await self.may_begin.wait()
        begun()
        await self.may_end.wait()
        if isinstance(self.exit, Exception):
            raise self.exit
        return self.exit

    def start(
        self,
        port: int,
        cell_id: str = "web/1.1",
        every_ms: int = 100,
        direct: int | None = None,
        **kind: object,
    ) -> None:
        probe = cell_pb2.Health(every_ms=every_ms, timeout_ms=200, sick_after=3, **kind)  # type: ignore[arg-type]
        order = link_pb2.Order(cell_id=cell_id, spec=cell_pb2.Spec(health=probe))
        own = {"http": f"127.0.0.1:{direct}"} if direct else {}
        self.prober.start(order, {"http": f"127.0.0.1:{port}"}, own)

    async def next_outcome(self, cell_id: str = "web/1.1") -> str:
        """The outcome of an attempt that began after this call, or nearly so."""
        count = len(self.outcomes[cell_id])
        await until(lambda: len(self.outcomes[cell_id]) > count + 1, "an outcome")
        return self.outcomes[cell_id][-1]


@contextlib.asynccontextmanager
async def a_prober() -> AsyncIterator[Probing]:
    """It runs until the block ends."""
    probing = Probing()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(probing.prober.run())
        yield probing
        task.cancel()


@contextlib.asynccontextmanager
async def server(serve: Serve) -> AsyncIterator[int]:
    async def serve_and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await serve(reader, writer)
        writer.close()

    listening = await asyncio.start_server(serve_and_close, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()


def answering(answer: bytes) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    return serve


@contextlib.contextmanager
def no_free_descriptor() -> Iterator[None]:
    """For this process, which is the agent's too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def every_descriptor_taken() -> Iterator[None]:
    """The same for what is opened from now on; what somebody closes can be opened again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY)]
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (max(int(path.name) for path in Path("/proc/self/fd").iterdir()) + 4, hard)
    )
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(taken[0]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


def http(path: str = "/") -> dict[str, object]:
    return {"http": cell_pb2.HttpProbe(port="http", path=path)}
