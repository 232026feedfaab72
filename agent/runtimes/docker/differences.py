"""How a container differs from its order. Pure: takes the engine's inspection, returns short lines for people.

It compares what somebody can change from outside while the cell lives, and what differs in a container that another
program created. It does not compare what depends on the agent's version (log options, capabilities): a newer agent
would find every cell touched. No line contains a value of the environment or an argument of a command.
"""

from __future__ import annotations

import posixpath
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from galactica.agent.runtimes.docker.spec import TMP, Scope, body_of
from galactica.v1 import link_pb2

TOUCHES_LIMIT = 10
TOUCH_CHARACTERS = 200
PATHS_TOLD = 5
EXECS_KEPT = 4_096

OURS_KEYS = "ctrl-^,ctrl-_,ctrl-^"
"""Detach keys for the agent's own commands. Nobody types them: they are a mark that the engine stores."""
OURS_MARK = "Hh8e"
"""How the engine reports these keys."""

ENGINES_PLACES = (
    *("/proc", "/sys", "/dev", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/.dockerenv"),
    "/sbin/docker-init",
)
"""Files that the engine itself adds to every container."""

DEFAULT_NETWORKS = frozenset({"bridge", "none"})
"""Networks of a container without a network of its own choice; an engine without a bridge has only "none"."""
_CHANGES = {0: "changed", 1: "added", 2: "removed"}
_LIMITS = {
    "Memory": "memory limit",
    "MemorySwap": "limit of memory and swap",
    "MemoryReservation": "memory reservation",
    "NanoCpus": "cpu limit",
    "CpuQuota": "cpu quota",
    "CpuPeriod": "cpu period",
    "CpuShares": "cpu shares",
    "CpuRealtimeRuntime": "real-time share",
    "CpusetCpus": "set of cpus",
    "CpusetMems": "set of memory nodes",
    "PidsLimit": "limit of processes",
    "BlkioWeight": "weight of input and output",
}


class Touches:
    """Changes to one container. They are kept as long as it lives: a cell stays touched if somebody reverts a change.

    Used by the events thread and the comparing thread."""

    def __init__(self) -> None:
        self._lines: dict[str, None] = {}
        self._lock = threading.Lock()

    def add(self, lines: Iterable[str]) -> None:
        with self._lock:
            for line in map(_plain, lines):
                if line not in self._lines:
                    self._lines[line if len(self._lines) < TOUCHES_LIMIT else "and more"] = None

    def __iter__(self) -> Iterator[str]:
        with self._lock:
            return iter(tuple(self._lines))


class OwnExecs:
    """The newest commands that the agent itself started inside containers, by the engine's ids.

    An id is noted before its command starts, and the engine sends its event when it starts."""

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}
        self._lock = threading.Lock()

    def note(self, exec_id: str) -> None:
        with self._lock:
            self._ids[exec_id] = None
            if len(self._ids) > EXECS_KEPT:
                del self._ids[next(iter(self._ids))]

    def __contains__(self, exec_id: str) -> bool:
        with self._lock:
            return exec_id in self._ids


def ran(program: str) -> str:
    """The line for a command that somebody ran in the container."""
    return f"somebody ran {program or 'a command'} in it (docker exec)"


def signalled(name: str) -> str:
    """The line for a signal that somebody sent it."""
    return f"somebody sent it {name} (docker kill)"


COPIED = "somebody copied files into it (docker cp)"
PAUSED = "somebody paused it (docker pause)"


def differences(
    scope: Scope,
    order: link_pb2.Order,
    inspected: Mapping[str, Any],
    changes: Sequence[Mapping[str, Any]],
    image_now: Mapping[str, Any] | None,
    image_environment: Sequence[str] | None,
) -> list[str]:
    """``inspected``: the inspection of a running container. ``changes``: the changes of its filesystem. ``image_now``:
    the image that the spec's image name has on this engine now; None: there is no such image. ``image_environment``:
    the environment of the container's own image; None: unknown."""
    body = body_of(scope, order, init=False)
    return [
        *_state(inspected),
        *_name(scope, order, inspected),
        *_image(order, inspected, image_now),
        *_limits(body["HostConfig"], inspected["HostConfig"]),
        *_freedoms(inspected["HostConfig"]),
        *_networks(inspected),
        *_mounts(order, inspected),
        *_command(body, inspected["Config"]),
        *_environment(body["Env"], inspected["Config"].get("Env") or [], image_environment),
        *_files(order, inspected, changes),
    ]


def _state(inspected: Mapping[str, Any]) -> Iterator[str]:
    if (inspected.get("State") or {}).get("Paused"):
        yield PAUSED


def _name(scope: Scope, order: link_pb2.Order, inspected: Mapping[str, Any]) -> Iterator[str]:
    name = str(inspected["Name"]).removeprefix("/")
    if name != scope.name_of(order.cell_id):
        yield f"it was renamed to {name}"


def _image(
    order: link_pb2.Order, inspected: Mapping[str, Any], image_now: Mapping[str, Any] | None
) -> Iterator[str]:
    used, wanted = inspected["Config"].get("Image"), order.spec.image
    if used != wanted:
        yield f"its image is {used} instead of {wanted}"
    elif image_now is not None and image_now["Id"] != inspected["Image"]:
        yield (
            f"image {wanted} is now {_short(image_now['Id'])} on this server, "
            f"but the cell runs {_short(inspected['Image'])}"
        )


def _short(image_id: str) -> str:
    return image_id.removeprefix("sha256:")[:12]


def _limits(wanted: Mapping[str, Any], there: Mapping[str, Any]) -> Iterator[str]:
    for key, name in _LIMITS.items():
        before, after = _limit(wanted.get(key)), _limit(there.get(key))
        if before != after:
            yield f"its {name} is {_amount(key, after)} instead of {_amount(key, before)}"
    policy = (there.get("RestartPolicy") or {}).get("Name") or "no"
    if policy != "no":
        yield f"its restart policy is {policy} instead of no"


def _limit(value: Any) -> Any:
    """The limit; 0 for all values that mean no limit."""
    return value if isinstance(value, str) and value else value if isinstance(value, int) and value > 0 else 0


def _amount(key: str, value: Any) -> str:
    if not value:
        return "none"
    if key.startswith("Memory"):
        return f"{value / 2**20:g} MiB"
    return f"{value / 1e9:g} cores" if key == "NanoCpus" else str(value)


def _freedoms(there: Mapping[str, Any]) -> Iterator[str]:
    if not there.get("ReadonlyRootfs"):
        yield "its root filesystem is not read-only"
    if there.get("Privileged"):
        yield "it is privileged"


def _networks(inspected: Mapping[str, Any]) -> Iterator[str]:
    mode = inspected["HostConfig"].get("NetworkMode") or "default"
    if mode not in {"default", *DEFAULT_NETWORKS}:
        yield f"its network mode is {mode}"
        return
    there = set(inspected["NetworkSettings"].get("Networks") or {})
    for network in sorted(there - DEFAULT_NETWORKS):
        yield f"it was connected to network {network}"
    if not there & DEFAULT_NETWORKS:
        yield "it was disconnected from network bridge"


def _mounts(order: link_pb2.Order, inspected: Mapping[str, Any]) -> Iterator[str]:
    wanted = _volumes(order, inspected)
    there = {_path(mount["Destination"]): mount for mount in inspected.get("Mounts") or []}
    for path, mount in sorted(there.items()):
        if path not in wanted:
            yield f"{mount['Type']} mounted at {path}"
        elif mount["Type"] != "volume":
            yield f"{mount['Type']} instead of a volume at {path}"
    for path in sorted(wanted - set(there)):
        yield f"no volume at {path}"


def _volumes(order: link_pb2.Order, inspected: Mapping[str, Any]) -> set[str]:
    """The paths that the spec makes writable, and the volumes that the image declares."""
    declared = inspected["Config"].get("Volumes") or {}
    return {_path(path) for path in (*order.spec.writable, *declared)} - {TMP}


def _path(path: str) -> str:
    return path.rstrip("/") or "/"


def _command(body: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    if "Cmd" in body and (config.get("Cmd") or []) != body["Cmd"]:
        yield "its command differs from the spec"


def _environment(ours: Sequence[str], there: Sequence[str], image: Sequence[str] | None) -> Iterator[str]:
    wanted = _variables(ours) if image is None else _variables(image) | _variables(ours)
    actual = _variables(there)
    for name in sorted(wanted.keys() | actual.keys()):
        if name not in actual:
            yield f"environment variable {name} was removed"
        elif name not in wanted:
            if image is not None:
                yield f"environment variable {name} was added"
        elif wanted[name] != actual[name]:
            yield f"environment variable {name} was changed"


def _variables(words: Iterable[str]) -> dict[str, str]:
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def _files(
    order: link_pb2.Order, inspected: Mapping[str, Any], changes: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """The engine lists each changed path and the directories above it. Only the paths themselves get a line."""
    places = {*_volumes(order, inspected), TMP, *ENGINES_PLACES}
    changed = {
        change["Path"]: _CHANGES.get(change["Kind"], "changed")
        for change in changes
        if not any(_is_within(change["Path"], place) or _is_within(place, change["Path"]) for place in places)
    }
    # A directory above an expected place may contain another changed file; that file is listed by its own path.
    above = {parent for path in changed for parent in _parents(path)}
    paths = sorted(set(changed) - above)
    for path in paths[:PATHS_TOLD]:
        yield f"{path} was {changed[path]}"
    if len(paths) > PATHS_TOLD:
        yield f"and {len(paths) - PATHS_TOLD} more files"


def _is_within(path: str, place: str) -> bool:
    return path == place or path.startswith(f"{place}/")


def _parents(path: str) -> Iterator[str]:
    while (path := posixpath.dirname(path)) != "/":
        yield path


def _plain(line: str) -> str:
    """A printable line of limited length: names of files may contain any characters."""
    line = "".join(character if character.isprintable() else "?" for character in line)
    return line if len(line) <= TOUCH_CHARACTERS else f"{line[: TOUCH_CHARACTERS - 1]}…"
