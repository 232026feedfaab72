"""The configured providers: read from a YAML (or JSON) file, and created by entry points.

    providers:
      local: {kind: local}
      lab:
        kind: exec
        scheduler: 10.77.0.1:7400        # the scheduler's address for its servers; default: the advertised one
        options: {program: [/usr/local/bin/lab-provider], timeout: 30}

``kind`` is the name of an entry point. ``options`` are checked by the provider itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from msgspec import Struct
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from galactica.scheduler.core.model.spec import NAME, RuntimeKind
from galactica.scheduler.providers.options import mistakes_in
from galactica.scheduler.providers.port import MakeProvider, Provider, ProviderRefused, Setting

ENTRY_POINT_GROUP = "galactica.providers"
FILE_NAME = "providers.yaml"
SIZE_LIMIT = 262_144
PROVIDERS_LIMIT = 64
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^:\[\]]+):[0-9]{1,5}")


class ConfigurationError(Exception):
    """The providers' file is wrong, or uses a kind that is not installed. The message has a line for each mistake."""


class Entry(BaseModel):
    """One provider in the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str = Field(min_length=1)
    scheduler: str = ""
    enrolment: str = ""
    runtimes: tuple[RuntimeKind, ...] = ()
    arguments: tuple[str, ...] = ()
    options: dict[str, Any] = {}

    @field_validator("scheduler", "enrolment")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        if value and not _ADDRESS.fullmatch(value):
            raise ValueError(f"invalid address '{value}': use HOST:PORT, or [ADDRESS]:PORT for IPv6")
        return value

    @field_validator("runtimes")
    @classmethod
    def _an_agent_has_them(cls, value: tuple[RuntimeKind, ...]) -> tuple[RuntimeKind, ...]:
        if RuntimeKind.SERVER in value:
            raise ValueError("invalid runtime 'server': an agent runs process or docker cells")
        return value


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    providers: dict[str, Entry] = Field(max_length=PROVIDERS_LIMIT)

    @field_validator("providers")
    @classmethod
    def _names(cls, value: dict[str, Entry]) -> dict[str, Entry]:
        if wrong := [name for name in value if not NAME.fullmatch(name)]:
            raise ValueError(f"invalid name {', '.join(wrong)}: use lower-case letters, digits and '-'")
        return value


class Supplier(Struct, frozen=True):
    """A provider and how its servers reach the scheduler. ``scheduler``, ``enrolment`` empty: the advertised addresses.
    ``arguments``: further command-line arguments for its agents."""

    provider: Provider
    scheduler: str = ""
    enrolment: str = ""
    runtimes: tuple[RuntimeKind, ...] = ()
    arguments: tuple[str, ...] = ()


def read_providers(given: Path | None, data: Path) -> dict[str, Entry]:
    """The file's entries by name. ``given`` None: the file in the data directory; without one there is only ``local``.
    ``local`` is always configured; the file may override it. Blocks. Raises ConfigurationError."""
    path = given or data / FILE_NAME
    default = {"local": Entry(kind="local")}
    try:
        with path.open("rb") as file:
            text = file.read(SIZE_LIMIT + 1)
    except FileNotFoundError as error:
        if given is None:
            return default
        raise ConfigurationError(f"no such providers' file: {path}") from error
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror or error}") from error
    if len(text) > SIZE_LIMIT:
        raise ConfigurationError(f"{path} is too large: the limit is {SIZE_LIMIT} bytes")
    return default | _checked(path, _parsed(path, text))


def make_suppliers(
    entries: Mapping[str, Entry], fleet: str, data: Path, fleet_id: str = ""
) -> dict[str, Supplier]:
    """Suppliers by name. ``data``: the scheduler's directory; each provider has its own below ``providers/``. Raises
    ConfigurationError with all mistakes."""
    kinds = {entry_point.name: entry_point for entry_point in entry_points(group=ENTRY_POINT_GROUP)}
    suppliers: dict[str, Supplier] = {}
    mistakes: list[str] = []
    for name, entry in entries.items():
        setting = Setting(name, fleet, data / "providers" / name, entry.options, fleet_id)
        try:
            provider = _make_of(entry.kind, kinds)(setting)
        except ProviderRefused as error:
            mistakes.append(f"provider '{name}': {error}")
            continue
        suppliers[name] = Supplier(
            provider, entry.scheduler, entry.enrolment, entry.runtimes, entry.arguments
        )
    if mistakes:
        raise ConfigurationError("\n".join(mistakes))
    return suppliers


def _make_of(kind: str, kinds: Mapping[str, EntryPoint]) -> MakeProvider:
    entry_point = kinds.get(kind)
    if entry_point is None:
        installed = ", ".join(sorted(kinds)) or "none, so Galactica itself is not installed here"
        raise ProviderRefused(
            f"the provider kind '{kind}' is not installed (installed: {installed}). Choose one of these, or "
            f"install the package that offers it as an entry point of the group {ENTRY_POINT_GROUP}"
        )
    try:
        make: MakeProvider = entry_point.load()
    except ImportError as error:
        raise ProviderRefused(
            f"cannot load the provider kind '{kind}' ({entry_point.value}): {error}. "
            f"A library that it needs is missing; for the cloud kind: pip install 'galactica[cloud]'"
        ) from error
    return make


def _parsed(path: Path, text: bytes) -> object:
    try:
        return YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigurationError(f"{path}{where}: {error.problem or error.context}") from error
    except (YAMLError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}: invalid YAML: {error}") from error


def _checked(path: Path, content: object) -> dict[str, Entry]:
    if not isinstance(content, dict):
        raise ConfigurationError(
            f"{path}: it must begin with 'providers:', with a name below it for each provider"
        )
    try:
        return _File.model_validate(content).providers
    except ValidationError as error:
        raise ConfigurationError("\n".join(f"{path}: {mistake}" for mistake in mistakes_in(error))) from None
