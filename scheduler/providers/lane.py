"""The lane of one provider: carries out commands, in order for each cell, and lists the provider's servers. The results
return as observations.

A cell's first command starts a task, which ends after its last one. Calls are bounded in number and time. A call that
fails temporarily is tried again a bounded number of times, after pauses that double, with jitter. Then the failure is
reported, and the core decides again.
"""

from __future__ import annotations

import asyncio
import random
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import structlog
from msgspec import Struct

from galactica.scheduler.core.model.commands import DecommissionServer, OrderServer, ProviderCommand
from galactica.scheduler.core.model.fleet import parse_cell_id
from galactica.scheduler.core.ports import Mind
from galactica.scheduler.core.sight.observations import (
    ProviderListed,
    ProviderNews,
    ProviderServer,
    ProviderSilent,
    ProviderState,
    ServerMade,
    ServerNotMade,
    ServerUnmade,
)
from galactica.scheduler.providers.port import (
    REASON_CHARACTERS,
    Provider,
    ProviderError,
    ProviderRefused,
    ProviderUnavailable,
    UserData,
    WatchingProvider,
    unreadable,
)

REF_CHARACTERS = 256
LIST_GAP_SECONDS = 0.02
"""Least time from one list to the next."""
JITTER = 0.25
"""Pauses are longer or shorter by up to this fraction, so that calls that failed together are not repeated together."""

T = TypeVar("T")

log = structlog.get_logger("scheduler.providers")


class RunnerLimits(Struct, frozen=True):
    """Limits for each provider. ``waiting``: cells with commands at once. ``sweep_seconds``: from list to list."""

    concurrency: int = 8
    waiting: int = 10_000
    tries: int = 6
    pause_first_seconds: float = 0.5
    pause_limit_seconds: float = 30.0
    call_seconds: float = 120.0
    list_seconds: float = 30.0
    sweep_seconds: float = 10.0
    sweep_after_change_seconds: float = 0.3
    servers: int = 100_000


class Lane:
    """``user_data`` returns the facts that the agent of an ordered server needs."""

    def __init__(
        self,
        name: str,
        provider: Provider,
        mind: Mind,
        user_data: Callable[[OrderServer], UserData],
        limits: RunnerLimits,
    ) -> None:
        self._name = name
        self._provider = provider
        self._mind = mind
        self._user_data = user_data
        self._limits = limits
        self._cells: dict[str, deque[ProviderCommand]] = {}
        """Each cell's commands: at most an order and the decommission after it. The first one is under way."""
        self._slots = asyncio.Semaphore(limits.concurrency)
        self._tasks: asyncio.TaskGroup | None = None
        self._next_list_at = 0.0
        self._list_sooner = asyncio.Event()

    def take(self, command: ProviderCommand) -> None:
        """Never waits. A repeated command replaces the earlier one, so that the newest counts."""
        commands = self._cells.get(command.cell)
        if commands is None:
            self._begin(command)
        elif type(commands[-1]) is type(command):
            commands[-1] = command
        elif isinstance(command, DecommissionServer):
            commands.append(command)
        # else: an order after its decommission. Ids are never used twice, so the order is outdated.

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                for cell in self._cells:
                    tasks.create_task(self._serve(cell), name=f"server {cell}")
                if isinstance(self._provider, WatchingProvider):
                    tasks.create_task(self._watch(self._provider), name=f"watch {self._name}")
                await self._sweep()
            finally:
                self._tasks = None

    # --- commands -------------------------------------------------------------------------------------------------

    def _begin(self, command: ProviderCommand) -> None:
        if len(self._cells) >= self._limits.waiting:
            # The core decides again, as long as it wants the server and does not see it.
            log.warning("command_dropped", provider=self._name, cell=command.cell, waiting=len(self._cells))
            return
        self._cells[command.cell] = deque([command])
        if self._tasks is not None:
            self._tasks.create_task(self._serve(command.cell), name=f"server {command.cell}")

    async def _serve(self, cell: str) -> None:
        """Carry out the cell's commands in their order."""
        commands = self._cells[cell]
        while commands:
            await self._mind.observe(await self._carry_out(commands))
            commands.popleft()
            self._list_within(self._limits.sweep_after_change_seconds)
        del self._cells[cell]

    async def _carry_out(self, commands: deque[ProviderCommand]) -> ProviderNews:
        """Try the first command until it succeeds, is refused or has failed too often."""
        limits = self._limits
        for number in range(1, limits.tries + 1):
            command = commands[0]
            try:
                async with self._slots:
                    return await self._attempt(command)
            except ProviderRefused as error:
                return self._failed(command, str(error))
            except ProviderUnavailable as error:
                reason = _without_token(command, str(error))
                log.warning(
                    "try_failed", provider=self._name, cell=command.cell, number=number, reason=reason
                )
            if len(commands) > 1:
                return self._failed(command, f"gave up, because the server is to be decommissioned: {reason}")
            if number < limits.tries:
                pause = min(limits.pause_limit_seconds, limits.pause_first_seconds * 2 ** (number - 1))
                await asyncio.sleep(_jittered(pause))
        return self._failed(commands[0], f"gave up after {limits.tries} tries: {reason}")

    async def _attempt(self, command: ProviderCommand) -> ProviderNews:
        """Raises ProviderRefused, ProviderUnavailable."""
        provider, now = self._provider, self._mind.now
        match command:
            case OrderServer():
                if command.spec.server is None:
                    raise ProviderRefused("the spec does not describe a server")
                order = provider.order(command.cell, command.spec.server, self._user_data(command))
                ref = _checked_ref(await self._bounded(order, self._limits.call_seconds, "the order"))
                return ServerMade(self._name, command.cell, ref, now())
            case DecommissionServer():
                decommission = provider.decommission(command.ref, command.cell)
                ended = await self._bounded(decommission, self._limits.call_seconds, "the decommission")
                return ServerUnmade(self._name, command.cell, now(), is_gone=ended is True)

    def _failed(self, command: ProviderCommand, reason: str) -> ProviderNews:
        reason = _without_token(command, reason)[:REASON_CHARACTERS]
        if isinstance(command, OrderServer):
            return ServerNotMade(self._name, command.cell, reason, self._mind.now())
        return ProviderSilent(self._name, f"{command.cell} was not deleted: {reason}", self._mind.now())

    # --- the list of servers --------------------------------------------------------------------------------------

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            # Set before the list is requested, so that a change during the request causes another list.
            self._next_list_at = loop.time() + _jittered(self._limits.sweep_seconds)
            await self._mind.observe(await self._listed())
            await asyncio.sleep(LIST_GAP_SECONDS)
            while (left := self._next_list_at - loop.time()) > 0:
                self._list_sooner.clear()
                await _wait(self._list_sooner, left)

    async def _listed(self) -> ProviderListed | ProviderSilent:
        asked_at = self._mind.now()
        try:
            answer = await self._bounded(self._provider.list(), self._limits.list_seconds, "the list")
            servers = believable(answer, self._limits.servers)
        except ProviderError as error:
            return ProviderSilent(self._name, str(error)[:REASON_CHARACTERS], self._mind.now())
        return ProviderListed(self._name, servers, asked_at, self._mind.now())

    async def _watch(self, provider: WatchingProvider) -> None:
        while True:
            try:
                async for _ in provider.watch():
                    self._list_within(0.0)
            except Exception as error:  # noqa: BLE001 - foreign code; the regular lists go on without it
                log.warning("watch_failed", provider=self._name, reason=repr(error)[:REASON_CHARACTERS])
            await asyncio.sleep(_jittered(self._limits.sweep_seconds))

    def _list_within(self, seconds: float) -> None:
        self._next_list_at = min(self._next_list_at, asyncio.get_running_loop().time() + seconds)
        self._list_sooner.set()

    async def _bounded(self, call: Awaitable[T], seconds: float, what: str) -> T:
        """Limit a call's time and translate its errors. Raises only ProviderRefused and ProviderUnavailable."""
        try:
            async with asyncio.timeout(seconds):
                return await call
        except ProviderError:
            raise
        except TimeoutError as error:
            raise ProviderUnavailable(f"{what} took longer than {seconds:g} s") from error
        except Exception as error:
            # The traceback without local variables: one may be a token.
            trace = "".join(traceback.format_exception(error))
            log.error("provider_failed", provider=self._name, call=what, traceback=trace)  # noqa: TRY400
            raise ProviderUnavailable(f"{what} failed: {type(error).__name__}: {error}") from error


def believable(answer: object, limit: int) -> tuple[ProviderServer, ...]:
    """The list; it may be empty. Invalid entries are UNREADABLE. Raises ProviderUnavailable if it is no list."""
    if not isinstance(answer, Sequence) or isinstance(answer, (str, bytes)):
        raise ProviderUnavailable(f"invalid list: a {type(answer).__name__} instead of a list of servers")
    if len(answer) > limit:
        raise ProviderUnavailable(f"invalid list: {len(answer)} servers, the limit is {limit}")
    servers: dict[tuple[str, str], ProviderServer] = {}
    for server in map(_readable, answer):
        twin = servers.get((server.cell, server.ref))
        if twin is not None and twin != server:
            server = unreadable(server.cell, f"{server.cell} ({server.ref}) is in the list twice")  # noqa: PLW2901
        servers[server.cell, server.ref if twin is None else twin.ref] = server
    return tuple(servers.values())


def _readable(entry: object) -> ProviderServer:
    """The entry. An invalid one is UNREADABLE: the others count, and the list does not read as if it were not there."""
    if not isinstance(entry, ProviderServer):
        return unreadable("", f"an entry is not a server: {entry!r}")
    cell = entry.cell if isinstance(entry.cell, str) and parse_cell_id(entry.cell) is not None else ""
    if entry.state is ProviderState.UNREADABLE:
        return unreadable(cell, str(entry.reason))
    if not cell:
        return unreadable("", f"'{entry.cell!s:.100}' is not a cell id")
    if not isinstance(entry.state, ProviderState) or not isinstance(entry.reason, str):
        return unreadable(cell, f"state or reason of {cell} is invalid: {entry.state!r:.100}")
    try:
        _checked_ref(entry.ref)
    except ProviderUnavailable as error:
        return unreadable(cell, f"{cell}: {error}")
    return entry


def _checked_ref(ref: object) -> str:
    if not isinstance(ref, str) or not 0 < len(ref) <= REF_CHARACTERS or not ref.isprintable():
        raise ProviderUnavailable(
            f"invalid ref {ref!r:.100}: it must be a printable text of 1 to {REF_CHARACTERS} characters"
        )
    return ref


def _without_token(command: ProviderCommand, text: str) -> str:
    """The text without the token: a provider's message may repeat it, and a token must not be logged."""
    token = command.token if isinstance(command, OrderServer) else ""
    return text.replace(token, "(the token)") if token else text


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - no secret


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
