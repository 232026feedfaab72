"""The context file: which schedulers to talk to, and the operator's credentials for each. One JSON file with mode 0600.

It holds one context for each fleet, and one of them is the current one. ``galactica up`` and ``galactica scheduler``
put the admin's context of their own fleet there and leave those of other fleets alone. ``galactica operator create``
writes a file for another person, who adds it with ``galactica context add``.

The current context's fields are at the top of the file, and the others are below ``others`` by name::

    {"scheduler": …, "ca_pem": …, …, "name": "prod", "others": {"test": {"scheduler": …, …}}}

So a file with one context needs neither ``name`` nor ``others``, and a program that knows only one context finds it.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from galactica.scheduler.settings.errors import CommandFailed, ExitCode

CONTEXT_VARIABLE = "GALACTICA_CONTEXT"
FLEET_VARIABLE = "GALACTICA_FLEET"
SIZE_LIMIT = 4 * 1024 * 1024
_SUFFIX_CHARACTERS = 8
_NAME, _OTHERS = "name", "others"


@dataclass(frozen=True, slots=True)
class Context:
    """``scheduler``: "HOST:PORT". Certificates and key are PEM text. ``role``: viewer, deployer or admin.
    ``fleet_id``: what tells the fleet from another of the same name; empty if the file does not say it and its CA
    cannot be read."""

    scheduler: str
    ca_pem: str = field(repr=False)
    cert_pem: str = field(repr=False)
    key_pem: str = field(repr=False)
    fleet: str
    operator: str
    role: str
    fleet_id: str = ""


@dataclass(frozen=True, slots=True)
class Contexts:
    """What a context file holds: contexts by name. ``current``: the name of the one that commands use."""

    current: str
    by_name: Mapping[str, Context]

    def named(self, wanted: str) -> str | None:
        """The name of the context with this name or this fleet id."""
        if wanted in self.by_name:
            return wanted
        return next((name for name, one in self.by_name.items() if wanted and one.fleet_id == wanted), None)

    def using(self, name: str) -> Contexts:
        """The same with another current one, which must be there."""
        return Contexts(name, self.by_name)

    def without(self, name: str) -> Contexts:
        """The same without a context that is not the current one."""
        return Contexts(self.current, {other: one for other, one in self.by_name.items() if other != name})

    def joined_by(self, context: Context) -> tuple[Contexts, str]:
        """With one more context, and its name. It takes the place of the one of the same fleet, and otherwise becomes
        the current one. If a fleet of the same name is there, it gets a name with the beginning of its id."""
        for name, other in self.by_name.items():
            if _is_of_one_fleet(other, context):
                return Contexts(self.current, {**self.by_name, name: context}), name
        names = [context.fleet, f"{context.fleet}-{context.fleet_id[:_SUFFIX_CHARACTERS]}", context.fleet_id]
        name = next(name for name in names if name not in self.by_name)
        return Contexts(name, {**self.by_name, name: context}), name


@dataclass(frozen=True, slots=True)
class Kept:
    """Where a context was put. ``aside``: where a damaged file was moved that was in the way."""

    name: str
    contexts: Contexts
    aside: Path | None = None

    @property
    def is_current(self) -> bool:
        return self.contexts.current == self.name


def context_path() -> Path:
    """The path of the context file: GALACTICA_CONTEXT, or the default path."""
    given = os.environ.get(CONTEXT_VARIABLE)
    return Path(given) if given else Path.home() / ".config" / "galactica" / "context.json"


def read_context(path: Path, wanted: str = "") -> Context:
    """The context of that name or fleet id; by default the current one. Raises CommandFailed, which says how to get a
    context file or what is wrong with this one."""
    contexts = read_contexts(path)
    name = contexts.named(wanted) if wanted else contexts.current
    if name is None:
        raise _no_such(path, wanted, contexts)
    return contexts.by_name[name]


def read_contexts(path: Path) -> Contexts:
    """Raises CommandFailed."""
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
            "for a context file (galactica operator create) and add it: galactica context add FILE.",
        ) from error
    except OSError as error:
        raise CommandFailed(
            f"cannot read the context file {path}: {error.strerror or error}",
            ExitCode.USAGE,
            f"Check its owner and mode, or set {CONTEXT_VARIABLE} to another file.",
        ) from error
    try:
        return _parse(data)
    except ValueError as error:
        raise CommandFailed(
            f"invalid context file {path}: {error}",
            ExitCode.USAGE,
            "galactica up writes one for its own fleet; galactica operator create makes one for a person.",
        ) from error


def _no_such(path: Path, wanted: str, contexts: Contexts) -> CommandFailed:
    return CommandFailed(
        f"{path} has no context '{wanted}'; it has {', '.join(sorted(contexts.by_name))}",
        ExitCode.USAGE,
        f"Choose one with galactica context use NAME, or with {FLEET_VARIABLE}=NAME for one command.",
    )


def _parse(data: bytes) -> Contexts:
    """Raises ValueError."""
    needed = [one.name for one in fields(Context) if one.name != "fleet_id"]
    try:
        content = json.loads(data)
        others = content.get(_OTHERS, {})
        current = _context_in(content)
        name = _text(content.get(_NAME, current.fleet))
        by_name = {name: current, **{other: _context_in(others[other]) for other in others if other != name}}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"it must be JSON with the texts {', '.join(needed)}") from error
    return Contexts(name, by_name)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a value is not a text")
    return value


def _context_in(content: Any) -> Context:
    """Raises KeyError, TypeError."""
    context = Context(
        **{one.name: _text(content[one.name]) for one in fields(Context) if one.name in content}
    )
    return context if context.fleet_id else replace(context, fleet_id=_id_of(context.ca_pem))


def _id_of(ca_pem: str) -> str:
    from galactica.scheduler.settings.fleet_id import fleet_id_of  # noqa: PLC0415 - only for older files

    with suppress(ValueError):
        return fleet_id_of(ca_pem)
    return ""


def _is_of_one_fleet(one: Context, other: Context) -> bool:
    return one.fleet_id == other.fleet_id if one.fleet_id else one.ca_pem == other.ca_pem


# --- writing ------------------------------------------------------------------------------------------------------


def keep_context(path: Path, context: Context) -> Kept:
    """Add the context to the file, or put it in the place of the same fleet's. Contexts of other fleets stay. A file
    that cannot be understood is moved aside, because it may hold keys. Raises OSError."""
    with _locked(path):
        aside = None
        try:
            before = _parse(path.read_bytes())
        except FileNotFoundError:
            before = None
        except ValueError:
            before, aside = None, _moved_aside(path)
        contexts, name = (before or Contexts("", {})).joined_by(context)
        _write(path, contexts)
    return Kept(name, contexts, aside)


def kept_before(path: Path, fleet_id: str) -> Kept | None:
    """Where the context of that fleet is already; None where it is not. Raises CommandFailed."""
    if not path.exists():
        return None
    contexts = read_contexts(path)
    name = contexts.named(fleet_id)
    return None if name is None else Kept(name, contexts)


def use_context(path: Path, wanted: str) -> str:
    """Make another context the current one; its name. Raises CommandFailed, OSError."""
    with _locked(path):
        contexts = read_contexts(path)
        name = contexts.named(wanted)
        if name is None:
            raise _no_such(path, wanted, contexts)
        _write(path, contexts.using(name))
    return name


def forget_context(path: Path, wanted: str) -> str:
    """Remove a context from the file, with its key; its name. Raises CommandFailed, OSError."""
    with _locked(path):
        contexts = read_contexts(path)
        name = contexts.named(wanted)
        if name is None:
            raise _no_such(path, wanted, contexts)
        if name == contexts.current:
            raise CommandFailed(
                f"'{name}' is the current context",
                hint="Choose another one first: galactica context use NAME. If it is the only one, remove the file.",
            )
        _write(path, contexts.without(name))
    return name


def create_context(path: Path, context: Context) -> None:
    """Write a new file with this context alone. It never replaces an existing file. Raises FileExistsError, OSError."""
    temporary = _temporary_beside(path, asdict(context))
    try:
        path.hardlink_to(temporary)
    finally:
        temporary.unlink()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Whoever reads the file in order to write it does so alone: starts at the same moment lose no context."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _moved_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    path.rename(aside)
    return aside


def _write(path: Path, contexts: Contexts) -> None:
    """Write the file atomically, with mode 0600. Raises OSError."""
    content: dict[str, Any] = asdict(contexts.by_name[contexts.current])
    content[_NAME] = contexts.current
    content[_OTHERS] = {
        name: asdict(one) for name, one in contexts.by_name.items() if name != contexts.current
    }
    temporary = _temporary_beside(path, content)
    try:
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _temporary_beside(path: Path, content: Mapping[str, Any]) -> Path:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # 0600 from the start
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    return Path(name)
