"""The port of the providers, which create and delete servers.

``local``, ``exec`` and ``cloud`` implement it. Other packages can add providers: by an entry point of the group
``galactica.providers``, a function that takes a ``Setting`` and returns a ``Provider``.

A provider decides nothing. It creates servers, deletes servers, and lists its servers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from msgspec import Struct

from galactica.scheduler.core.model.spec import RuntimeKind, ServerBody
from galactica.scheduler.core.sight.observations import ProviderServer, ProviderState

REASON_CHARACTERS = 500
"""Limit for the reason of a failure. It is shown to people and recorded in the journal."""


class ProviderError(Exception):
    """The provider failed. The message is for people: it says what is wrong, where, and what to do."""


class ProviderRefused(ProviderError):
    """Final: the order itself is wrong, or more servers are not allowed. Another attempt would not help."""


class ProviderUnavailable(ProviderError):
    """Temporary or unknown: no answer, an invalid answer, a rate limit. Another attempt may succeed."""


def unreadable(cell: str, reason: str) -> ProviderServer:
    """An entry of a list that cannot be read. ``cell`` empty: it names no server."""
    return ProviderServer(cell, "", ProviderState.UNREADABLE, reason[:REASON_CHARACTERS])


class UserData(Struct, frozen=True):
    """Everything that the agent on the new server needs to join. ``scheduler``, ``enrolment``: "HOST:PORT" for the new
    server. ``token``: a join token for this one server, in plain text. ``runtimes`` empty: those that the server
    offers. ``more``: further command-line arguments for its agent, such as --bus."""

    cell_id: str
    fleet: str
    scheduler: str
    enrolment: str
    token: str
    labels: Mapping[str, str] = {}
    runtimes: tuple[RuntimeKind, ...] = ()
    more: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Without the token: this text may be logged."""
        return f"UserData(cell_id={self.cell_id!r}, fleet={self.fleet!r}, scheduler={self.scheduler!r})"

    def agent_arguments(self) -> list[str]:
        """The agent's command-line arguments, without those that depend on the machine (data, host)."""
        words = ["--scheduler", self.scheduler, "--enrol", self.enrolment, "--id", self.cell_id]
        for runtime in self.runtimes:
            words += ["--runtime", runtime.value]
        for name, value in self.labels.items():
            words += ["--label", f"{name}={value}"]
        return [*words, *self.more]


class Setting(Struct, frozen=True):
    """The input for creating a provider. ``fleet_id`` tells the fleet from another of the same name. ``options``: its
    own part of the configuration, not checked yet. ``data``: a directory that it may create and that only it uses."""

    name: str
    fleet: str
    data: Path
    options: Mapping[str, Any] = {}
    fleet_id: str = ""


class Provider(Protocol):
    """Methods are idempotent by cell id, never block the event loop, and may be cancelled at any await."""

    @property
    def name(self) -> str: ...

    async def order(self, cell_id: str, spec: ServerBody, user_data: UserData) -> str:
        """Create the server and return its ref. If there is already one with this cell id, dead or alive, return its
        ref: a repeated order never creates two servers. Raises ProviderRefused, ProviderUnavailable."""

    async def decommission(self, ref: str, cell_id: str) -> bool | None:
        """Delete the server and everything that belongs to it. ``ref`` may be empty if it is unknown whether there is
        one. Does nothing if there is none.

        True only if it waited for the end itself. Otherwise the server counts as there until ``list`` leaves it out or
        says GONE. It may be asked again meanwhile. Raises ProviderUnavailable, ProviderRefused."""

    async def list(self) -> tuple[ProviderServer, ...]:
        """All servers of this fleet at this provider, no matter who ordered them. A server that has ended may be listed
        as GONE, even after its decommission. Raises ProviderUnavailable."""

    async def close(self) -> None:
        """Close files and connections. Servers live on."""


@runtime_checkable
class WatchingProvider(Protocol):
    """A provider that notices changes of its servers by itself."""

    def watch(self) -> AsyncIterator[ProviderServer]:
        """Changes as they happen. After each change the runner requests the whole list at once."""


class MakeProvider(Protocol):
    """The function that an entry point of the group ``galactica.providers`` loads."""

    def __call__(self, setting: Setting, /) -> Provider:
        """Raises ProviderRefused if the options are wrong. Opens no connection and does not block."""
