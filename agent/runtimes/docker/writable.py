"""Gives the places that a manifest makes writable to the user as whom the container runs.

The engine makes a volume for a path that the image lacks as root's. An image with a USER could not write there. The
owner is set before the container starts, through a second container that shares its volumes and never starts: the
engine extracts nothing into a read-only container but below its volumes. Everything here blocks.
"""

import contextlib
import io
import posixpath
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import docker
import requests

from galactica.agent.runtimes.docker.spec import TMP
from galactica.agent.runtimes.port import StartFailed

ARCHIVE_SECONDS = 30.0
ACCOUNTS_BYTES = 1 << 20
"""Limit for the part of /etc/passwd and /etc/group that is read."""
WRITE_AND_ENTER = 0o3


@dataclass(frozen=True, slots=True)
class User:
    uid: int
    gid: int

    def may_write(self, place: tarfile.TarInfo) -> bool:
        """Whether it may make files in that directory."""
        shift = 6 if place.uid == self.uid else 3 if place.gid == self.gid else 0
        return (place.mode >> shift) & WRITE_AND_ENTER == WRITE_AND_ENTER


def hand_over(client: docker.APIClient, inspected: Mapping[str, Any], writable: Sequence[str]) -> None:
    """``inspected``: the inspection of a container that was created and has not started. Raises StartFailed."""
    paths = [path for path in writable if posixpath.normpath(path) != TMP]
    user = _user_of(client, inspected) if paths else None
    if user is None or not user.uid:
        return
    places = {path: _first_of(client, inspected["Id"], path) for path in paths}
    barred = {path: place for path, place in places.items() if place and not user.may_write(place)}
    if barred:
        _give(client, inspected, barred, user)


def _give(
    client: docker.APIClient, inspected: Mapping[str, Any], places: Mapping[str, tarfile.TarInfo], user: User
) -> None:
    """The directories alone: what the image has in them stays as it is."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for path, place in places.items():
            place.name, place.uid, place.gid, place.uname, place.gname = path, user.uid, user.gid, "", ""
            place.mode |= 0o700
            archive.addfile(place)
    create: Any = client.create_container_from_config  # untyped in the SDK's stubs
    put: Any = client.put_archive
    helper = create(_helper(inspected))["Id"]
    try:
        if not put(helper, "/", data.getvalue()):
            raise StartFailed(f"the engine cannot give {', '.join(places)} to the image's user {user.uid}")
    finally:
        client.remove_container(helper, force=True)


def _helper(inspected: Mapping[str, Any]) -> dict[str, Any]:
    """With the labels of the cell: should the agent end now, it goes when the cell is removed."""
    return {
        "Image": inspected["Image"],
        "Labels": inspected["Config"]["Labels"],
        "Cmd": ["true"],
        "HostConfig": {"VolumesFrom": [inspected["Id"]], "NetworkMode": "none"},
    }


def _user_of(client: docker.APIClient, inspected: Mapping[str, Any]) -> User | None:
    """As the engine reads it: "name", "uid", "name:group", "uid:gid". None: root, or a user that the engine will not
    find either."""
    name, _, group = str(inspected["Config"].get("User") or "").partition(":")
    if name in {"", "0", "root"}:
        return None
    container_id = inspected["Id"]
    accounts = _accounts(client, container_id, "/etc/passwd")
    account = next((one for one in accounts if len(one) > 3 and name in {one[0], one[2]}), None)
    uid = _number(name) if account is None else _number(account[2])
    gid = 0 if account is None else _number(account[3])
    if group:
        groups = _accounts(client, container_id, "/etc/group")
        gid = next((_number(one[2]) for one in groups if len(one) > 2 and one[0] == group), _number(group))
    return None if uid is None or gid is None else User(uid, gid)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() else None


def _accounts(client: docker.APIClient, container_id: str, path: str) -> list[list[str]]:
    with _archive(client, container_id, path) as archive:
        member = archive and archive.next()
        file = archive.extractfile(member) if archive and member else None
        text = file.read(ACCOUNTS_BYTES) if file else b""
    return [line.split(":") for line in text.decode(errors="replace").splitlines()]


def _first_of(client: docker.APIClient, container_id: str, path: str) -> tarfile.TarInfo | None:
    """The directory itself; None if there is none."""
    with _archive(client, container_id, f"{path.rstrip('/')}/.") as archive:
        place = archive and archive.next()
        return place if place and place.isdir() else None


@contextlib.contextmanager
def _archive(client: docker.APIClient, container_id: str, path: str) -> Iterator[tarfile.TarFile | None]:
    """What is at that path, as far as it is read; None if there is nothing."""
    url = f"{client.base_url}/v{client.api_version}/containers/{container_id}/archive"
    plain = {"Accept-Encoding": "identity"}
    with client.get(
        url, params={"path": path}, headers=plain, timeout=ARCHIVE_SECONDS, stream=True
    ) as answer:
        if answer.status_code == requests.codes.not_found:
            yield None
            return
        answer.raise_for_status()
        with tarfile.open(fileobj=answer.raw, mode="r|") as archive:
            yield archive
