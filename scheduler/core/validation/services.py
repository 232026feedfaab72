"""The rules for a valid service: one table for manifests and for calls.

Pure. A problem's path uses the manifest's keys (``health.http.port``). Every field of a group has a limit here.
"""

from __future__ import annotations

import posixpath
import re
import signal
from collections.abc import Iterator
from urllib.parse import quote

from galactica.scheduler.core.model.spec import (
    ExecProbe,
    Group,
    GrpcProbe,
    HttpProbe,
    Probe,
    RuntimeKind,
    Spec,
    Spread,
    TcpProbe,
)
from galactica.scheduler.core.validation.problems import (
    CONTROL,
    DAY_SECONDS,
    ENTRIES_LIMIT,
    Path,
    Problem,
    did_you_mean,
    duration_problems,
    healthy_for_problems,
    label_problems,
    max_age_problems,
    name_problems,
    shown,
)
from galactica.scheduler.core.validation.references import flaw_of_reference

REPLICAS_LIMIT = 100_000
WORDS_LIMIT = 256
TEXT_BYTES_LIMIT = 65_536
"""The total size of a command or of an environment. The kernel's own limit for one argument is 128 KiB."""
PORTS_LIMIT = 64
WRITABLE_LIMIT = 64
PATH_LIMIT = 1_024
IMAGE_LIMIT = 512
CPU_MILLIS_LIMIT = 1_024_000
MEMORY_BYTES_LIMIT = 2**50
DOCKER_MEMORY_BYTES_LEAST = 6 * 2**20
"""The engine refuses less."""
DOCKER_CPU_MILLIS_LEAST = 10
"""The kernel takes no smaller share of the engine's period."""
PIDS_LIMIT = 2**22
"""The kernel's own limit (PID_MAX_LIMIT)."""
SICK_AFTER_LIMIT = 1_000
GRPC_SERVICE_BYTES_LIMIT = 127
"""What an agent can ask for."""

_PORT_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")
_IMAGE = re.compile(r"[A-Za-z0-9][-A-Za-z0-9._/:@+]*")
_PLACEHOLDER = re.compile(r"\{port\.([^{}]*)\}")
_RESERVED_ENV = frozenset({"CELL_ID", "CELL_DIRECTORY"})
_STOPPING = {"SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU"}
_SIGNALS = frozenset(signal.Signals.__members__) - {*_STOPPING, "SIGCONT", "SIGCHLD", "SIGCLD"}
"""The signals that ask a program to end. A program that gets SIGSTOP would only wait until its grace ends."""
_SENT = "/?#[]@!$&'()*+,;=:%"
"""Characters of a path that are sent as they are."""
_KERNELS_TREES = ("/proc/", "/sys/")
_ENGINES_PLACES = frozenset(
    {"/dev", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/.dockerenv", "/sbin", "/sbin/docker-init"}
)
"""Where the engine mounts something itself. No container starts with a volume there."""


def problems_of(group: Group) -> tuple[Problem, ...]:
    """All problems of a service; empty for a valid one. For pools see ``pools``."""
    spec = group.spec
    return tuple(
        problem
        for rules in (
            name_problems(group),
            _replicas(group),
            max_age_problems(group),
            healthy_for_problems(group),
            _runtime(spec),
            _command(spec),
            _ports(spec),
            _env(spec),
            _placeholders(spec),
            _resources(spec),
            _health(spec),
            _stop(spec),
            _placement(spec),
            _writable(spec),
        )
        for problem in rules
    )


def _replicas(group: Group) -> Iterator[Problem]:
    if not 0 <= group.replicas <= REPLICAS_LIMIT:
        yield Problem(("replicas",), f"{group.replicas} is not between 0 and {REPLICAS_LIMIT:,}")


def _runtime(spec: Spec) -> Iterator[Problem]:
    needs = frozenset({"runtime", "image"})
    if spec.runtime is RuntimeKind.SERVER:
        yield Problem(("runtime",), "servers belong to a pool, not to a service; write kind: pool")
        return
    if spec.runtime is RuntimeKind.PROCESS:
        if spec.image:
            yield Problem(
                ("image",), "a process has no image; remove it, or write runtime: docker", needs=needs
            )
        if not spec.command:
            yield Problem(
                ("command",),
                'is missing; a process needs one, for example ["program", "argument"]',
                needs=needs,
            )
        return
    if not spec.image:
        yield Problem(("image",), "is missing; the docker runtime needs one", needs=needs)
    elif len(spec.image) > IMAGE_LIMIT or _IMAGE.fullmatch(spec.image) is None:
        yield Problem(
            ("image",), f"invalid image {shown(spec.image)}: write a reference, for example hello:1"
        )
    elif flaw := flaw_of_reference(spec.image):
        yield Problem(("image",), f"invalid image {shown(spec.image)}: {flaw}")


def _command(spec: Spec) -> Iterator[Problem]:
    yield from _words(("command",), spec.command)


def _words(path: Path, words: tuple[str, ...]) -> Iterator[Problem]:
    if len(words) > WORDS_LIMIT:
        yield Problem(path, f"has {len(words)} words; the limit is {WORDS_LIMIT}")
    size = sum(len(word.encode()) for word in words)
    if size > TEXT_BYTES_LIMIT:
        yield Problem(path, f"is {size:,} bytes long; the limit is {TEXT_BYTES_LIMIT:,}")
    if words and not words[0]:
        yield Problem((*path, 0), "the program's name is empty")
    elif words and (words[0].endswith(("/", "/.", "/..")) or words[0] in {".", ".."}):
        yield Problem((*path, 0), f"{shown(words[0])} is a directory; name a program in it")
    elif words and _is_too_long(words[0]):
        yield Problem((*path, 0), f"{shown(words[0])} is longer than a path may be")
    for index, word in enumerate(words):
        if "\0" in word:
            yield Problem((*path, index), "contains a NUL character")


def _is_too_long(path: str) -> bool:
    """The kernel's limits (PATH_MAX, NAME_MAX)."""
    return len(path.encode()) > 4_095 or any(len(part.encode()) > 255 for part in path.split("/"))


def _ports(spec: Spec) -> Iterator[Problem]:
    if len(spec.ports) > PORTS_LIMIT:
        yield Problem(("ports",), f"has {len(spec.ports)} entries; the limit is {PORTS_LIMIT}")
    name_of: dict[int, str] = {}
    for name, number in spec.ports.items():
        if _PORT_NAME.fullmatch(name) is None:
            yield Problem(
                ("ports", name),
                f"invalid port name {shown(name)}: use 1 to 32 lower-case letters, digits and '-'; "
                "begin and end with a letter or digit",
                at_key=True,
            )
        if number == 0:
            if spec.runtime is RuntimeKind.DOCKER:
                yield Problem(
                    ("ports", name),
                    "auto is for processes only; write the port number that the container listens on "
                    "(the agent publishes it on a free port of the server)",
                    needs=frozenset({"runtime", "image"}),
                )
        elif not 1 <= number <= 65_535:
            yield Problem(("ports", name), f"{number} is not between 1 and 65535")
        elif number in name_of:
            yield Problem(("ports", name), f"port {number} is already used by {name_of[number]!r}")
        else:
            name_of[number] = name


def _env(spec: Spec) -> Iterator[Problem]:
    if len(spec.env) > ENTRIES_LIMIT:
        yield Problem(("env",), f"has {len(spec.env)} entries; the limit is {ENTRIES_LIMIT}")
    size = sum(len(name.encode()) + len(value.encode()) + 2 for name, value in spec.env.items())
    if size > TEXT_BYTES_LIMIT:
        yield Problem(("env",), f"is {size:,} bytes long; the limit is {TEXT_BYTES_LIMIT:,}")
    reserved = _RESERVED_ENV | {f"PORT_{name.upper().replace('-', '_')}" for name in spec.ports}
    for name, value in spec.env.items():
        if _ENV_NAME.fullmatch(name) is None:
            yield Problem(
                ("env", name),
                f"invalid variable name {shown(name)}: use 1 to 256 letters, digits and '_'; "
                "do not begin with a digit",
                at_key=True,
            )
        elif name in reserved:
            yield Problem(("env", name), f"the agent sets {name}; choose another name", at_key=True)
        if "\0" in value:
            yield Problem(("env", name), "contains a NUL character")


def _placeholders(spec: Spec) -> Iterator[Problem]:
    texts: list[tuple[Path, str]] = [(("command", index), word) for index, word in enumerate(spec.command)]
    texts += [(("env", name), value) for name, value in spec.env.items()]
    for path, text in texts:
        for match in _PLACEHOLDER.finditer(text):
            if match[1] not in spec.ports:
                yield Problem(
                    path,
                    f"no such port: {match[0]}{_port_hint(match[1], spec)}",
                    needs=frozenset({"ports"}),
                )


def _port_hint(name: str, spec: Spec) -> str:
    names = ", ".join(sorted(spec.ports))
    return did_you_mean(name, spec.ports) or (
        f"; the ports are: {names}" if names else "; the service has no ports"
    )


def _resources(spec: Spec) -> Iterator[Problem]:
    limits = spec.resources
    if not 0 <= limits.cpu_millis <= CPU_MILLIS_LIMIT:
        yield Problem(("resources", "cpu"), f"must be between 0.001 and {CPU_MILLIS_LIMIT // 1_000} cores")
    elif spec.runtime is RuntimeKind.DOCKER and 0 < limits.cpu_millis < DOCKER_CPU_MILLIS_LEAST:
        yield Problem(
            ("resources", "cpu"),
            "a container needs at least 0.01 cores",
            needs=frozenset({"runtime", "image"}),
        )
    if not 0 <= limits.memory_bytes <= MEMORY_BYTES_LIMIT:
        yield Problem(("resources", "memory"), "must be at most 1024 TiB")
    elif spec.runtime is RuntimeKind.DOCKER and 0 < limits.memory_bytes < DOCKER_MEMORY_BYTES_LEAST:
        yield Problem(
            ("resources", "memory"),
            "a container needs at least 6MiB",
            needs=frozenset({"runtime", "image"}),
        )
    if not 0 <= limits.pids <= PIDS_LIMIT:
        yield Problem(("resources", "pids"), f"{limits.pids} is not between 1 and {PIDS_LIMIT:,}")


def _health(spec: Spec) -> Iterator[Problem]:
    health = spec.health
    if health.probe is not None:
        yield from _probe(health.probe, spec)
    # A timeout longer than `every` is valid: probes of one cell never overlap, they only run less often.
    yield from duration_problems(("health", "every"), health.every_seconds, 0.01, 3_600.0)
    yield from duration_problems(("health", "timeout"), health.timeout_seconds, 0.001, 3_600.0)
    yield from duration_problems(("health", "boot_within"), health.boot_within_seconds, 0.001, DAY_SECONDS)
    if not 1 <= health.sick_after <= SICK_AFTER_LIMIT:
        yield Problem(
            ("health", "sick_after"),
            f"{health.sick_after} is not between 1 and {SICK_AFTER_LIMIT:,} failures",
        )


def _probe(probe: Probe, spec: Spec) -> Iterator[Problem]:
    match probe:
        case HttpProbe(port=port, path=path):
            yield from _probe_port("http", port, spec)
            if path.startswith("/") and not path.isascii():
                yield Problem(
                    ("health", "http", "path"),
                    f"invalid path {shown(path)}: write it as it is sent, for example {quote(path, _SENT)[:80]!r}",
                )
            elif not path.startswith("/") or len(path) > PATH_LIMIT or CONTROL.search(path) or " " in path:
                yield Problem(
                    ("health", "http", "path"),
                    f"invalid path {shown(path)}: begin with '/', no blanks, at most {PATH_LIMIT:,} characters",
                )
        case TcpProbe(port=port):
            yield from _probe_port("tcp", port, spec)
        case GrpcProbe(port=port, service=service):
            yield from _probe_port("grpc", port, spec)
            if len(service.encode()) > GRPC_SERVICE_BYTES_LIMIT or CONTROL.search(service):
                yield Problem(
                    ("health", "grpc", "service"),
                    f"invalid service name {shown(service)}: use at most {GRPC_SERVICE_BYTES_LIMIT} bytes, "
                    "no control characters",
                )
        case ExecProbe(command=command):
            if not command:
                yield Problem(("health", "exec", "command"), 'is missing; write ["program", "argument"]')
            yield from _words(("health", "exec", "command"), command)


def _probe_port(kind: str, port: str, spec: Spec) -> Iterator[Problem]:
    path = ("health", kind, "port")
    if not port:
        yield Problem(path, "is missing; name one of the service's ports")
    elif port not in spec.ports:
        yield Problem(
            path, f"no such port: {shown(port)}{_port_hint(port, spec)}", needs=frozenset({"ports"})
        )


def _stop(spec: Spec) -> Iterator[Problem]:
    name = spec.stop.signal
    if name not in _SIGNALS:
        meant = f"; did you mean 'SIG{name.upper()}'?" if f"SIG{name.upper()}" in _SIGNALS else ""
        hint = meant or did_you_mean(name.upper(), _SIGNALS) or "; write SIGTERM, SIGINT or SIGQUIT"
        yield Problem(("stop", "signal"), f"{shown(name)} is not a signal that ends a program{hint}")
    yield from duration_problems(("stop", "grace"), spec.stop.grace_seconds, 0.0, 3_600.0)


def _placement(spec: Spec) -> Iterator[Problem]:
    if spec.placement.spread not in set(Spread):
        hint = (
            did_you_mean(spec.placement.spread, [spread.value for spread in Spread])
            or "; write server or none"
        )
        yield Problem(("placement", "spread"), f"invalid value {shown(spec.placement.spread)}{hint}")
    yield from label_problems(("placement", "require"), spec.placement.require)


def _writable(spec: Spec) -> Iterator[Problem]:
    if spec.writable and spec.runtime is RuntimeKind.PROCESS:
        yield Problem(
            ("writable",),
            "is for containers only; a process writes below its own directory ($CELL_DIRECTORY)",
            needs=frozenset({"runtime", "image"}),
        )
    if len(spec.writable) > WRITABLE_LIMIT:
        yield Problem(("writable",), f"has {len(spec.writable)} paths; the limit is {WRITABLE_LIMIT}")
    for index, path in enumerate(spec.writable):
        if not _is_plain_path(path):
            yield Problem(
                ("writable", index),
                f"invalid path {shown(path)}: write an absolute path below '/', without '..'",
            )
        elif _plain(path) in _ENGINES_PLACES or f"{_plain(path)}/".startswith(_KERNELS_TREES):
            yield Problem(("writable", index), f"{shown(path)} is the engine's own; choose another path")
        elif _plain(path) in map(_plain, spec.writable[:index]):
            yield Problem(("writable", index), f"duplicate path {shown(path)}")


def _plain(path: str) -> str:
    return path.removesuffix("/")


def _is_plain_path(path: str) -> bool:
    if not path.startswith("/") or path.startswith("//") or len(path) > PATH_LIMIT or CONTROL.search(path):
        return False
    if _is_too_long(path):
        return False
    return posixpath.normpath(path) == path.removesuffix("/") != ""
