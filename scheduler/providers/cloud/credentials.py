"""A cloud's credentials: from a file that only its owner can read, or from the environment. Never from a manifest."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from msgspec import Struct

SIZE_LIMIT = 65_536


class CredentialsError(Exception):
    """The credentials are missing, invalid or readable by others. The message says where, but never shows them."""


class Credentials(Struct, frozen=True):
    key: str
    secret: str

    def __repr__(self) -> str:
        return "Credentials(…)"


def read_credentials(path: Path | None, provider: str) -> Credentials:
    """Read ``path``, a JSON object with ``key`` and ``secret``; without a path, the environment. Blocks. Raises
    CredentialsError."""
    return _from_environment(provider) if path is None else _from_file(path)


def _from_environment(provider: str) -> Credentials:
    prefix = f"GALACTICA_PROVIDER_{provider.upper().replace('-', '_')}"
    try:
        return Credentials(os.environ[f"{prefix}_KEY"], os.environ[f"{prefix}_SECRET"])
    except KeyError as error:
        raise CredentialsError(
            f"no credentials: set {prefix}_KEY and {prefix}_SECRET, or give a file in the option 'credentials'"
        ) from error


def _from_file(path: Path) -> Credentials:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise CredentialsError(f"other users can read the credentials {path}: run chmod 600 {path}")
            content = json.loads(file.read(SIZE_LIMIT))
    except OSError as error:
        raise CredentialsError(f"cannot read the credentials {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError):
        content = None
    if isinstance(content, dict):
        key, secret = content.get("key"), content.get("secret", "")
        if isinstance(key, str) and isinstance(secret, str):
            return Credentials(key, secret)
    raise CredentialsError(f'invalid credentials {path}: use a JSON object {{"key": TEXT, "secret": TEXT}}')
