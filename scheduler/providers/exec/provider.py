"""The ``exec`` provider: the operator's own program makes and deletes servers.

Each call runs the program once: one JSON object on its standard input, one on its standard output. What goes in and
out, and what exit codes mean, is in ``docs/providers.md`` with a worked example. In short:

- ``{"version": 1, "action": "create", "fleet", "cell", "body", "user_data"}`` is answered by ``{"ref": TEXT}``,
- ``{"version": 1, "action": "delete", "fleet", "cell", "ref"}`` by ``{}``,
- ``{"version": 1, "action": "list", "fleet"}`` by ``{"servers": [{"cell", "ref", "state", "reason"?}]}``.

Exit code 0: done; 65: refused for good; anything else: not now. Standard error is for people.

Which program runs is the configuration's to say and never a manifest's: who may order servers may not therefore run
programs on the scheduler's machine.
"""

from __future__ import annotations

import json
import os
import signal
from typing import Any, TypeVar

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
)

CONTRACT_VERSION = 1
EXIT_REFUSED = 65
"""sysexits.h: EX_DATAERR. Shells and argument parsers do not end with it by themselves."""
HANDED_ON = ("PATH", "HOME", "LANG", "TMPDIR")
"""What a program gets of the scheduler's environment, where there is much that is none of its business."""
SHOWN_BYTES = 80


class Options(BaseModel):
    """``timeout``: seconds for one call. ``environment``: what the program gets besides ``HANDED_ON``."""

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
    state: ProviderState
    reason: str = ""


class _Listed(BaseModel):
    model_config = ConfigDict(extra="forbid")

    servers: list[_ListedServer]


class _Deleted(BaseModel):
    model_config = ConfigDict(extra="forbid")


Answer = TypeVar("Answer", _Created, _Listed, _Deleted)


class ExecProvider:
    """Implements ``Provider``."""

    def __init__(self, setting: Setting, options: Options) -> None:
        self._name = setting.name
        self._fleet = setting.fleet
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
        return tuple(
            ProviderServer(one.cell, one.ref, one.state, one.reason[:REASON_CHARACTERS])
            for one in listed.servers
        )

    async def close(self) -> None:
        """Nothing is held between calls."""

    async def _ask(self, shape: type[Answer], action: str, **more: object) -> Answer:
        """Raises ProviderRefused, ProviderUnavailable."""
        what = f"the program {self._options.program[0]} ({action})"
        question = {"version": CONTRACT_VERSION, "action": action, "fleet": self._fleet, **more}
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


def _check_code(what: str, ended: Ended) -> None:
    """Raises ProviderRefused, ProviderUnavailable."""
    said = f": {ended.words}" if ended.words else ", without a word on standard error"
    if ended.code == EXIT_REFUSED:
        raise ProviderRefused(f"{what} refuses{said}")
    if ended.code < 0:
        raise ProviderUnavailable(f"{what} was ended by {signal.Signals(-ended.code).name}{said}")
    if ended.code > 0:
        raise ProviderUnavailable(f"{what} ended with exit code {ended.code}{said}")


def _answer(shape: type[Answer], what: str, output: bytes) -> Answer:
    """Raises ProviderUnavailable: what a program does not say well, nobody may take for a no."""
    try:
        content: Any = json.loads(output)
    except (ValueError, RecursionError) as error:
        raise ProviderUnavailable(f"{what} answered no JSON but {output[:SHOWN_BYTES]!r}: {error}") from error
    try:
        return shape.model_validate(content)
    except ValidationError as error:
        raise ProviderUnavailable(
            f"{what} did not answer as agreed: {'; '.join(mistakes_in(error))}"
        ) from None
