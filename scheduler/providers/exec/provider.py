"""The ``exec`` provider: the operator's own program creates and deletes servers.

Each call runs the program once: one JSON object on its standard input, one on its standard output.
``docs/providers.md`` describes input, output and exit codes, with a worked example. In short:

- ``{"version": 1, "action": "create", "fleet", "fleet_id", "cell", "body", "user_data"}`` is answered by
  ``{"ref": TEXT}``,
- ``{"version": 1, "action": "delete", "fleet", "fleet_id", "cell", "ref"}`` by ``{}``,
- ``{"version": 1, "action": "list", "fleet", "fleet_id"}`` by ``{"servers": [{"cell", "ref", "state", "reason"?}]}``.

Exit code 0: done; 65: refused for good; any other: a temporary failure. Standard error is for people.

Only the configuration names the program, never a manifest: operators who may order servers must not be able to run
programs on the scheduler's machine.
"""

from __future__ import annotations

import json
import os
import signal
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from galactica.scheduler.core.model.spec import ServerBody
from galactica.scheduler.core.sight.observations import ProviderServer, ProviderState
from galactica.scheduler.providers.exec.call import CallFailed, Ended, call
from galactica.scheduler.providers.options import body_of, checked_options, mistakes_in
from galactica.scheduler.providers.port import (
    REASON_CHARACTERS,
    ProviderRefused,
    ProviderUnavailable,
    Setting,
    UserData,
    unreadable,
)

CONTRACT_VERSION = 1
EXIT_REFUSED = 65
"""sysexits.h: EX_DATAERR. Shells and argument parsers do not use this code by themselves."""
HANDED_ON = ("PATH", "HOME", "LANG", "TMPDIR")
"""The variables of the scheduler's environment that a program gets. It must not see the others."""
SHOWN_BYTES = 80


class Options(BaseModel):
    """``timeout``: seconds for one call. ``environment``: variables for the program in addition to ``HANDED_ON``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    program: tuple[str, ...] = Field(min_length=1)
    timeout: float = Field(default=60.0, gt=0, le=3_600)
    environment: dict[str, str] = {}


class _Created(BaseModel):
    model_config = ConfigDict(extra="forbid")

    ref: str


class _ListedServer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    cell: str
    ref: str
    state: Literal["pending", "running", "gone"]
    reason: str = ""


class _Listed(BaseModel):
    model_config = ConfigDict(extra="forbid")

    servers: list[Any]


class _Deleted(BaseModel):
    model_config = ConfigDict(extra="forbid")


Answer = TypeVar("Answer", _Created, _Listed, _Deleted)


class ExecProvider:
    """Implements ``Provider``."""

    def __init__(self, setting: Setting, options: Options) -> None:
        self._name = setting.name
        self._fleet, self._fleet_id = setting.fleet, setting.fleet_id
        self._options = options

    @property
    def name(self) -> str:
        return self._name

    async def order(self, cell_id: str, spec: ServerBody, user_data: UserData) -> str:
        about = {
            "scheduler": user_data.scheduler,
            "enrolment": user_data.enrolment,
            "token": user_data.token,
            "labels": dict(user_data.labels),
            "runtimes": [runtime.value for runtime in user_data.runtimes],
            "arguments": user_data.agent_arguments(),
        }
        created = await self._ask(_Created, "create", cell=cell_id, body=body_of(spec), user_data=about)
        return created.ref

    async def decommission(self, ref: str, cell_id: str) -> None:
        await self._ask(_Deleted, "delete", cell=cell_id, ref=ref)

    async def list(self) -> tuple[ProviderServer, ...]:
        listed = await self._ask(_Listed, "list")
        return tuple(map(_server_of, listed.servers))

    async def close(self) -> None:
        """Does nothing: no resources are kept between calls."""

    async def _ask(self, shape: type[Answer], action: str, **more: object) -> Answer:
        """Raises ProviderRefused, ProviderUnavailable."""
        what = f"the program {self._options.program[0]} ({action})"
        fleet = {"fleet": self._fleet, "fleet_id": self._fleet_id}
        question = {"version": CONTRACT_VERSION, "action": action, **fleet, **more}
        inherited = {name: os.environ[name] for name in HANDED_ON if name in os.environ}
        environment = {**inherited, **self._options.environment}
        try:
            ended = await call(
                self._options.program, json.dumps(question).encode(), environment, self._options.timeout
            )
        except CallFailed as error:
            raise ProviderUnavailable(f"{what} {error}") from error
        _check_code(what, ended)
        return _answer(shape, what, ended.output)


def make(setting: Setting, /) -> ExecProvider:
    """The entry point. Raises ProviderRefused."""
    return ExecProvider(setting, checked_options(Options, setting.options))


def _server_of(entry: Any) -> ProviderServer:
    """One entry of the list. An invalid one does not spoil the others."""
    try:
        server = _ListedServer.model_validate(entry)
    except ValidationError as error:
        cell = entry.get("cell") if isinstance(entry, dict) else ""
        named = cell if isinstance(cell, str) else ""
        return unreadable(named, f"{named or 'no cell'}: {'; '.join(mistakes_in(error))}")
    return ProviderServer(
        server.cell, server.ref, ProviderState(server.state), server.reason[:REASON_CHARACTERS]
    )


def _check_code(what: str, ended: Ended) -> None:
    """Raises ProviderRefused, ProviderUnavailable."""
    details = f": {ended.words}" if ended.words else "; nothing on standard error"
    if ended.code == EXIT_REFUSED:
        raise ProviderRefused(f"{what} refused{details}")
    if ended.code < 0:
        raise ProviderUnavailable(f"{what} was killed by {signal.Signals(-ended.code).name}{details}")
    if ended.code > 0:
        raise ProviderUnavailable(f"{what} failed with exit code {ended.code}{details}")


def _answer(shape: type[Answer], what: str, output: bytes) -> Answer:
    """The program's answer. Raises ProviderUnavailable: an invalid answer is never a refusal."""
    try:
        content: Any = json.loads(output)
    except (ValueError, RecursionError) as error:
        raise ProviderUnavailable(
            f"{what} gave an invalid answer, not JSON: {output[:SHOWN_BYTES]!r}: {error}"
        ) from error
    try:
        return shape.model_validate(content)
    except ValidationError as error:
        raise ProviderUnavailable(f"{what} gave an invalid answer: {'; '.join(mistakes_in(error))}") from None
