"""Who supplies servers: the port and its adapters. A server is a cell too; here its order is carried out.

- ``runner`` takes the core's commands for servers, carries them out and returns what came of it as observations.
- ``local`` makes servers out of processes of this machine, ``exec`` asks the operator's own program, ``cloud`` any
  cloud that Apache Libcloud knows. Others ship theirs: an entry point of the group ``galactica.providers`` whose
  object is called with a ``Setting`` and answers a ``Provider``.
- ``configuration`` reads which providers there are from a file and makes them.

A provider decides nothing. It makes a server, deletes one, and tells what there is. Only the wiring in ``serve``
imports this package; it knows model, commands, observations and ports.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from msgspec import Struct

from galactica.scheduler.core.model.spec import RuntimeKind, ServerBody
from galactica.scheduler.core.sight.observations import ProviderServer

REASON_CHARACTERS = 500
"""What a provider says of a failure is cut to this; it is shown to people and kept in the journal."""


class ProviderError(Exception):
    """The provider did not do it. The message is for people: what is wrong, where, what to do."""


class ProviderRefused(ProviderError):
    """Final: the order itself is wrong, or more servers are not allowed. Trying again would not help."""


class ProviderUnavailable(ProviderError):
    """Not now, or nobody knows: no answer, garbage, a limit of calls. It may be tried again."""


class UserData(Struct, frozen=True):
    """Everything that the agent on the new server needs to join. ``scheduler``, ``enrolment``: "HOST:PORT" as the
    new server reaches them. ``token``: a join token for this one server, in plain text. ``runtimes`` empty: what
    the server offers. ``more``: further words for its agent, such as --bus."""

    cell_id: str
    fleet: str
    scheduler: str
    enrolment: str
    token: str
    labels: Mapping[str, str] = {}
    runtimes: tuple[RuntimeKind, ...] = ()
    more: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Without the token: this may end up in a log."""
        return f"UserData(cell_id={self.cell_id!r}, fleet={self.fleet!r}, scheduler={self.scheduler!r})"

    def agent_arguments(self) -> list[str]:
        """The agent's command line, without the program and what depends on the place (data, host)."""
        words = ["--scheduler", self.scheduler, "--enrol", self.enrolment, "--id", self.cell_id]
        for runtime in self.runtimes:
            words += ["--runtime", runtime.value]
        for name, value in self.labels.items():
            words += ["--label", f"{name}={value}"]
        return [*words, *self.more]


class Setting(Struct, frozen=True):
    """What a provider is made from. ``options``: its own part of the configuration, not checked yet.
    ``data``: a directory that it may make and use alone."""

    name: str
    fleet: str
    data: Path
    options: Mapping[str, Any] = {}


class Provider(Protocol):
    """Methods are idempotent by cell id, never block the event loop, and may be cancelled at any await."""

    @property
    def name(self) -> str: ...

    async def order(self, cell_id: str, spec: ServerBody, user_data: UserData) -> str:
        """Make the server; its ref. Where there is one of this cell id already, dead or alive, that one's ref:
        a repeated order never makes two. Raises ProviderRefused, ProviderUnavailable."""

    async def decommission(self, ref: str, cell_id: str) -> None:
        """Delete the server and all that belongs to it. ``ref`` may be empty: nobody knows whether there is one.
        Fine where there is none. Raises ProviderUnavailable, ProviderRefused."""

    async def list(self) -> tuple[ProviderServer, ...]:
        """Every server of this fleet that this provider has, whoever ordered it. One that has ended may be shown
        as GONE for as long as it is known, after its decommission too. Raises ProviderUnavailable."""

    async def close(self) -> None:
        """Let go of files and connections. Servers live on."""


@runtime_checkable
class WatchingProvider(Protocol):
    """A provider that notices by itself when a server changes."""

    def watch(self) -> AsyncIterator[ProviderServer]:
        """Changes as they happen. Whatever comes makes the runner ask for the whole list at once."""


class MakeProvider(Protocol):
    """What an entry point of the group ``galactica.providers`` loads."""

    def __call__(self, setting: Setting, /) -> Provider:
        """Raises ProviderRefused where the options are wrong. Opens nothing yet, and does not block."""
