"""A cloud's credentials: from a file that its owner alone can read, or from the environment. Never from a manifest."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from msgspec import Struct

SIZE_LIMIT = 65_536


class CredentialsError(Exception):
    """There are none, or they lie open. The message names the place, never what is in it."""


class Credentials(Struct, frozen=True):
    key: str
    secret: str

    def __repr__(self) -> str:
        return "Credentials(…)"


def read_credentials(path: Path | None, provider: str) -> Credentials:
    """From ``path``, a JSON object with ``key`` and ``secret``; without a path from the environment. Blocks.
    Raises CredentialsError."""
    return _from_environment(provider) if path is None else _from_file(path)


def _from_environment(provider: str) -> Credentials:
    prefix = f"GALACTICA_PROVIDER_{provider.upper().replace('-', '_')}"
    try:
        return Credentials(os.environ[f"{prefix}_KEY"], os.environ[f"{prefix}_SECRET"])
    except KeyError as error:
        raise CredentialsError(
            f"no credentials: set {prefix}_KEY and {prefix}_SECRET, or name a file with 'credentials'"
        ) from error


def _from_file(path: Path) -> Credentials:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise CredentialsError(f"others than its owner can read {path}: chmod 600 {path}")
            content = json.loads(file.read(SIZE_LIMIT))
    except OSError as error:
        raise CredentialsError(f"the credentials {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError):
        content = None
    if isinstance(content, dict):
        key, secret = content.get("key"), content.get("secret", "")
        if isinstance(key, str) and isinstance(secret, str):
            return Credentials(key, secret)
    raise CredentialsError(f'{path} is no JSON object {{"key": TEXT, "secret": TEXT}}')
