"""The context file: which scheduler to talk to, and the operator's credentials. One JSON file with mode 0600.

``galactica up`` and ``galactica scheduler`` write the admin's file, ``galactica operator create`` those of others.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from galactica.scheduler.settings.errors import CommandFailed, ExitCode

CONTEXT_VARIABLE = "GALACTICA_CONTEXT"
SIZE_LIMIT = 262_144


@dataclass(frozen=True, slots=True)
class Context:
    """``scheduler``: "HOST:PORT". Certificates and key are PEM text. ``role``: viewer, deployer or admin."""

    scheduler: str
    ca_pem: str = field(repr=False)
    cert_pem: str = field(repr=False)
    key_pem: str = field(repr=False)
    fleet: str
    operator: str
    role: str


def context_path() -> Path:
    """The path of the context file: GALACTICA_CONTEXT, or the default path."""
    given = os.environ.get(CONTEXT_VARIABLE)
    return Path(given) if given else Path.home() / ".config" / "galactica" / "context.json"


def read_context(path: Path) -> Context:
    """Raises CommandFailed, which says how to get a context file or what is wrong with this one."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise CommandFailed(
                    f"{path} contains a private key, and users other than its owner can read it",
                    ExitCode.UNAUTHORISED,
                    f"If nobody has read it: chmod 600 {path}. Otherwise ask for a new one: galactica operator create",
                )
            data = file.read(SIZE_LIMIT)
    except FileNotFoundError as error:
        raise CommandFailed(
            f"no context file: {path} does not exist",
            ExitCode.UNREACHABLE,
            "It says where the scheduler is. Start a fleet on this machine: galactica up. Or ask an admin of a fleet "
            f"for a context file (galactica operator create) and save it there, or set {CONTEXT_VARIABLE} to its path.",
        ) from error
    except OSError as error:
        raise CommandFailed(
            f"cannot read the context file {path}: {error.strerror or error}",
            ExitCode.USAGE,
            f"Check its owner and mode, or set {CONTEXT_VARIABLE} to another file.",
        ) from error
    return _parse(path, data)


def _parse(path: Path, data: bytes) -> Context:
    names = [field.name for field in fields(Context)]
    try:
        content = json.loads(data)
        values = {name: content[name] for name in names}
        if not all(isinstance(value, str) for value in values.values()):
            raise ValueError("a value is not a text")
        return Context(**values)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CommandFailed(
            f"invalid context file {path}: it must be JSON with the texts {', '.join(names)}",
            ExitCode.USAGE,
            "galactica up writes one for its own fleet; galactica operator create makes one for a person.",
        ) from error


def write_context(path: Path, context: Context) -> None:
    """Write the file atomically, with mode 0600. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = _temporary_beside(path, context)
    try:
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def create_context(path: Path, context: Context) -> None:
    """Like ``write_context``, but it never replaces an existing file. Raises FileExistsError, OSError."""
    temporary = _temporary_beside(path, context)
    try:
        path.hardlink_to(temporary)
    finally:
        temporary.unlink()


def _temporary_beside(path: Path, context: Context) -> Path:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # 0600 from the start
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(context), file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    return Path(name)
