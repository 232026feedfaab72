"""The ``cloud`` provider: servers of any cloud for which Apache Libcloud has a driver.

A node is identified by its tags, or by its name if the driver has no tags; both contain fleet and cell id. The provider
looks for the node before it creates one, so that a repeated order never creates two. Cloud-init installs the agent.

The body of a pool's ``server``: ``{"image": ID, "size": ID, "location": ID?, "arguments": {"ex_…": …}?}``. The driver
defines the arguments (``create_node``). Credentials come only from a file or from the environment.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from libcloud.common.exceptions import BaseHTTPError
from libcloud.common.types import InvalidCredsError
from libcloud.compute.base import Node, NodeDriver
from libcloud.compute.types import NodeState
from msgspec import Struct
from pydantic import BaseModel, ConfigDict, Field, field_validator

from galactica.scheduler.core.model.spec import ServerBody
from galactica.scheduler.core.sight.observations import ProviderServer, ProviderState
from galactica.scheduler.providers.cloud import user_data as cloud_init
from galactica.scheduler.providers.cloud.credentials import CredentialsError, read_credentials
from galactica.scheduler.providers.cloud.nodes import Body, Names, create, driver_class
from galactica.scheduler.providers.options import checked_body, checked_options
from galactica.scheduler.providers.port import (
    ProviderError,
    ProviderRefused,
    ProviderUnavailable,
    Setting,
    UserData,
)

T = TypeVar("T")

THREADS = 4
_STATES = {
    NodeState.RUNNING: ProviderState.RUNNING,
    NodeState.TERMINATED: ProviderState.GONE,
    # Nothing runs on these, and Galactica never starts them again.
    NodeState.STOPPED: ProviderState.GONE,
    NodeState.STOPPING: ProviderState.GONE,
    NodeState.SUSPENDED: ProviderState.GONE,
    NodeState.ERROR: ProviderState.GONE,
}
"""Every other state of a driver becomes PENDING."""

_NOT_FINAL_CODES = frozenset({401, 403, 408, 409, 423, 425, 429})
_NOT_FINAL_WORDS = ("throttl", "requestlimit", "rate limit", "capacity", "try again", "unavailable")
"""Some clouds use status 400 for temporary errors; these words identify them."""


class Options(BaseModel):
    """``driver``: its name in Libcloud, such as "ec2". ``settings``: arguments of its constructor (region, host, …).
    ``timeout``: seconds for one request. ``template``, ``install``: see ``user_data``. ``user_data_argument``: the
    argument of the driver's ``create_node``, if it has an unusual name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    driver: str = Field(min_length=1)
    settings: dict[str, Any] = {}
    credentials: Path | None = None
    timeout: float = Field(default=30.0, gt=0, le=600)
    template: Path | None = None
    install: str = cloud_init.DEFAULT_INSTALL
    user_data_argument: str = ""

    @field_validator("settings")
    @classmethod
    def _no_secrets(cls, value: dict[str, Any]) -> dict[str, Any]:
        if secret := sorted({"key", "secret", "password"} & set(value)):
            raise ValueError(f"{', '.join(secret)}: put secrets into the credentials' file")
        return value


class _Running(Struct, frozen=True):
    """A call about one cell that is under way in a thread, even if its caller is gone."""

    action: str
    future: Future[Any]


class CloudProvider:
    """Implements ``Provider``. Libcloud blocks and is not thread-safe: it runs in a few threads, each with its own
    driver."""

    def __init__(self, setting: Setting, options: Options) -> None:
        self._name = setting.name
        self._options = options
        self._names = Names(setting.fleet, setting.fleet_id)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix=f"provider-{setting.name}")
        self._thread_local = threading.local()
        self._running: dict[str, _Running] = {}

    @property
    def name(self) -> str:
        return self._name

    async def order(self, cell_id: str, spec: ServerBody, user_data: UserData) -> str:
        body = checked_body(Body, spec)
        return await self._alone(cell_id, "order", lambda driver: self._order(driver, body, user_data))

    async def decommission(self, ref: str, cell_id: str) -> None:  # noqa: ARG002 - the tags are enough
        await self._alone(cell_id, "decommission", lambda driver: self._decommission(driver, cell_id))

    async def list(self) -> tuple[ProviderServer, ...]:
        return await asyncio.wrap_future(self._submit(self._list))

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    # --- threads --------------------------------------------------------------------------------------------------

    async def _alone(self, cell: str, action: str, work: Callable[[NodeDriver], T]) -> T:
        """One call at a time for each cell. A thread cannot be cancelled, so a repeated call gets the result of the one
        under way, and another action waits for its end. Otherwise a late order could create a node after a decommission
        has found none."""
        while (running := self._running.get(cell)) is not None and not running.future.done():
            if running.action == action:
                break
            await asyncio.wait([asyncio.wrap_future(running.future)])
        else:
            running = _Running(action, self._submit(work))
            self._running[cell] = running
        try:
            answer: T = await asyncio.shield(asyncio.wrap_future(running.future))
            return answer
        finally:
            if running.future.done() and self._running.get(cell) is running:
                del self._running[cell]

    def _submit(self, work: Callable[[NodeDriver], T]) -> Future[T]:
        try:
            return self._threads.submit(self._in_thread, work)
        except RuntimeError as error:
            raise ProviderUnavailable("the scheduler is shutting down") from error

    def _in_thread(self, work: Callable[[NodeDriver], T]) -> T:
        """Raises ProviderRefused, ProviderUnavailable."""
        try:
            driver = getattr(self._thread_local, "driver", None) or self._connect()
            self._thread_local.driver = driver
            return work(driver)
        except Exception as error:
            # The next call connects again and reads the credentials again.
            self._thread_local.driver = None
            raise failure_of(error) from error

    def _connect(self) -> NodeDriver:
        credentials = read_credentials(self._options.credentials, self._name)
        settings = {"timeout": self._options.timeout, **self._options.settings}
        return driver_class(self._options.driver)(credentials.key, credentials.secret, **settings)

    # --- in a thread ----------------------------------------------------------------------------------------------

    def _order(self, driver: NodeDriver, body: Body, user_data: UserData) -> str:
        nodes = self._nodes_of(driver, user_data.cell_id)
        if nodes:
            return str(nodes[0].id)
        text = cloud_init.render(user_data, self._options.template, self._options.install)
        node = create(driver, self._names, user_data.cell_id, body, text, self._options.user_data_argument)
        return str(node.id)

    def _decommission(self, driver: NodeDriver, cell: str) -> None:
        for node in self._nodes_of(driver, cell):
            if node.state == NodeState.TERMINATED:
                continue
            try:
                done = driver.destroy_node(node)
            except BaseHTTPError as error:
                # Never final: as long as the cloud lists the node, it must be deleted.
                raise ProviderUnavailable(f"cannot delete node {node.id}: {error}") from error
            if not done:
                raise ProviderUnavailable(f"the cloud did not delete node {node.id}")

    def _nodes_of(self, driver: NodeDriver, cell: str) -> tuple[Node, ...]:
        """The nodes of a cell, living ones first."""
        nodes = [node for node in driver.list_nodes() if self._names.cell_of(driver, node) == cell]
        return tuple(sorted(nodes, key=lambda node: (node.state == NodeState.TERMINATED, str(node.id))))

    def _list(self, driver: NodeDriver) -> tuple[ProviderServer, ...]:
        nodes = [(self._names.cell_of(driver, node), node) for node in driver.list_nodes()]
        return tuple(_seen(cell, node) for cell, node in nodes if cell)


def make(setting: Setting, /) -> CloudProvider:
    """The entry point. Raises ProviderRefused."""
    options = checked_options(Options, setting.options)
    driver_class(options.driver)
    try:
        read_credentials(options.credentials, setting.name)
        cloud_init.read_template(options.template)
    except (CredentialsError, OSError) as error:
        raise ProviderRefused(str(error)) from error
    return CloudProvider(setting, options)


def failure_of(error: Exception) -> ProviderError:
    """Translate an error of Libcloud to one of the port's errors."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ProviderError):
        return error
    if isinstance(error, InvalidCredsError):
        return ProviderUnavailable(f"the cloud does not accept the credentials: {text}")
    if isinstance(error, CredentialsError):
        return ProviderUnavailable(text)
    if isinstance(error, NotImplementedError):
        return ProviderRefused(f"the Libcloud driver does not support this: {text}")
    if isinstance(error, BaseHTTPError) and _is_final(error.code, text):
        return ProviderRefused(f"the cloud refused the request ({error.code}): {text}")
    return ProviderUnavailable(f"the request to the cloud failed: {type(error).__name__}: {text}")


def _is_final(code: int, text: str) -> bool:
    says_later = any(word in text.lower() for word in _NOT_FINAL_WORDS)
    return 400 <= code < 500 and code not in _NOT_FINAL_CODES and not says_later


def _seen(cell: str, node: Node) -> ProviderServer:
    state = _STATES.get(node.state, ProviderState.PENDING)
    plain = node.state in {NodeState.RUNNING, NodeState.PENDING}
    return ProviderServer(cell, str(node.id), state, "" if plain else f"state at the cloud: {node.state}")
