"""A way to a Docker Engine on which the inspection of chosen containers goes wrong, as it does for a broken layer."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from enum import StrEnum
from urllib.parse import unquote, urlsplit


class Spoiling(StrEnum):
    """What comes of an inspection."""

    ERROR = "error"
    GARBAGE = "garbage"
    SILENCE = "silence"


_ANSWERS = {
    Spoiling.ERROR: (500, b'{"message": "layer does not exist"}'),
    Spoiling.GARBAGE: (200, b'["not what' ),
}  # fmt: skip


class SpoiledEngine:
    """Listens on a unix socket, ``url``, and passes on each connection to the engine."""

    def __init__(self, engine: str) -> None:
        self._target = engine.removeprefix("unix://")
        self._directory = tempfile.mkdtemp(prefix="gt-", dir="/tmp")  # a socket's path must be short
        self.url = f"unix://{self._directory}/s"
        self._spoiled: dict[str, Spoiling] = {}
        self.asked: list[str] = []
        """The containers whose inspection went wrong, one for each time."""
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(f"{self._directory}/s")
        self._listening.listen(128)
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._begin(self._accept)

    def spoil(self, container_id: str, how: Spoiling) -> None:
        self._spoiled[container_id] = how

    def mend(self) -> None:
        self._spoiled.clear()

    def close(self) -> None:
        for one in (self._listening, *self._sockets):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for one in (self._listening, *self._sockets):
            one.close()
        shutil.rmtree(self._directory)

    def _begin(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                self._sockets.append(client)
                self._begin(self._converse, client)

    def _converse(self, client: socket.socket) -> None:
        """One request for each connection: the answer ends it, so that the next request comes on another one."""
        with contextlib.suppress(OSError):
            head, rest = _request(client)
            container_id = _inspected(head)
            how = self._spoiled.get(container_id)
            if how is None:
                self._pass_on(client, head, rest)
                return
            self.asked.append(container_id)
            if how is not Spoiling.SILENCE:
                status, body = _ANSWERS[how]
                words = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
                client.sendall(f"{words}Connection: close\r\n\r\n".encode() + body)
                client.shutdown(socket.SHUT_RDWR)

    def _pass_on(self, client: socket.socket, head: bytes, rest: bytes) -> None:
        engine = socket.socket(socket.AF_UNIX)
        self._sockets.append(engine)
        engine.connect(self._target)
        if b"upgrade" not in head.lower():
            lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
            head = b"\r\n".join([*lines, b"Connection: close"])
        engine.sendall(head + b"\r\n\r\n" + rest)
        self._begin(_pump, client, engine)
        _pump(engine, client)


def _request(client: socket.socket) -> tuple[bytes, bytes]:
    """Head, and what came of the body. Raises ConnectionError if it ends before."""
    got = b""
    while b"\r\n\r\n" not in got:
        data = client.recv(65_536)
        if not data:
            raise ConnectionError("no request")
        got += data
    head, _, rest = got.partition(b"\r\n\r\n")
    return head, rest


def _inspected(head: bytes) -> str:
    """The container that the request inspects; empty if it asks for something else."""
    method, target = head.split(b" ", 2)[:2]
    parts = unquote(urlsplit(target.decode()).path).strip("/").split("/")
    is_one = method == b"GET" and len(parts) >= 3 and parts[-3] == "containers" and parts[-1] == "json"
    return parts[-2] if is_one else ""


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def spoiled_engine(engine: str) -> Iterator[SpoiledEngine]:
    spoiled = SpoiledEngine(engine)
    try:
        yield spoiled
    finally:
        spoiled.close()
