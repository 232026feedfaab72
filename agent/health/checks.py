"""One attempt of a probe: http and tcp over plain sockets, grpc over its own channel.

Plain sockets instead of asyncio's streams save processor time: an agent probes each of its cells every second, and
this is most of its work. A socket check never blocks: ``begin`` starts an attempt, and ``collect`` is called until
there is an outcome. An outcome is an error text, empty for a success; None means not yet.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import time
from typing import TYPE_CHECKING, Protocol

import grpc

from galactica.agent.starved import LACKS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from galactica.v1 import cell_pb2

ANSWER_BYTES = 64 * 1024
"""Limit for the part of an answer that is read. Only its first line counts."""
READ_BYTES = 4 * 1024
USES_OF_A_CONNECTION = 10
"""A kept connection is closed after this many probes, to notice a server that no longer accepts connections."""

AT_ONCE_SECONDS = 0.1
"""The engine's forwarder closes a connection sooner than this if nothing listens in the container."""
LAST_LOOK = 0.9
"""The last moment for that, as a share of the timeout."""

_HEAD = re.compile(rb"HTTP/1\.[01] (\d{3})[ \r]")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,12})[ \t]*\r\n", re.IGNORECASE)
_KEEPS = re.compile(rb"\r\nconnection:[ \t]*keep-alive[ \t]*[\r,]", re.IGNORECASE)
_UNDER_WAY = {0, errno.EINPROGRESS}
_NOT_CONNECTED = "failed to connect to all addresses"
_SERVING = b"\x08\x01"
"""HealthCheckResponse{status: SERVING}: field 1, varint 1 (grpc.health.v1)."""


class ProbeError(Exception):
    """The probe is not possible at all; the message is for people."""


class SocketCheck(Protocol):
    """The http or tcp check of one cell; it makes attempt after attempt."""

    wants_write: bool
    """Whether the check waits for the socket to be writable; otherwise it waits for it to be readable."""

    look_at: float | None
    """When to collect again although the socket may not be ready (time.monotonic); None: at its end."""

    def begin(self) -> str | None:
        """Raises OSError, as ``collect`` does, if the agent itself fails at it."""

    def collect(self) -> str | None: ...

    def fileno(self) -> int: ...

    def close(self) -> None:
        """Cancel the attempt, if one is under way."""


class TcpCheck:
    """The server must accept a connection.

    ``is_go_between``: who listens at the address accepts in the name of the cell. A connection that it closes
    at once, without a word, was not accepted by the cell."""

    def __init__(self, address: tuple[str, int], timeout_seconds: float, *, is_go_between: bool) -> None:
        self._address = address
        self._socket: socket.socket | None = None
        self._timeout_seconds = timeout_seconds
        self._is_go_between = is_go_between
        self._last_look_at = 0.0
        self.look_at: float | None = None
        self.wants_write = True

    def begin(self) -> str | None:
        self.wants_write, self.look_at = True, None
        self._last_look_at = time.monotonic() + LAST_LOOK * self._timeout_seconds
        self._socket = _socket_for(self._address)
        code = self._socket.connect_ex(self._address)
        if code not in _UNDER_WAY:
            self.close()
            if code in LACKS:
                raise OSError(code, os.strerror(code))
            return _refusal(code, self._address)
        return self.collect()

    def collect(self) -> str | None:
        if self._socket is None:
            return "closed"
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code == 0:
            try:
                self._socket.getpeername()
            except OSError as error:
                # A connection that was made, and reset since, has no peer any more.
                if self.look_at is None or error.errno != errno.ENOTCONN:
                    return None
                code = errno.ECONNRESET
            else:
                if self._is_go_between:
                    return self._stays(self._socket)
        self.close()
        return _refusal(code, self._address) if code else ""

    def _stays(self, connected: socket.socket) -> str | None:
        """Whether the connection is still there after a moment."""
        now = time.monotonic()
        if self.look_at is None:
            self.wants_write = False
            self.look_at = min(now + AT_ONCE_SECONDS, self._last_look_at)
        try:
            is_closed = not connected.recv(READ_BYTES)
        except BlockingIOError:
            if now < self.look_at:
                return None
            is_closed = False
        except OSError:
            is_closed = True
        self.close()
        return f"closed at once: nothing listens behind {_spell(self._address)}" if is_closed else ""

    def fileno(self) -> int:
        return self._socket.fileno() if self._socket else -1

    def close(self) -> None:
        if self._socket:
            self._socket.close()
            self._socket = None


class HttpCheck:
    """GET must answer with a status from 200 to 399.

    Each probe opens a new connection, unless the server says that it keeps connections: an idle connection would block
    a server that serves only one connection at a time."""

    def __init__(self, address: tuple[str, int], path: str) -> None:
        self._address = address
        host, port = address
        spelt = f"[{host}]" if ":" in host else host
        self._request = (
            f"GET {path or '/'} HTTP/1.1\r\nHost: {spelt}:{port}\r\nUser-Agent: galactica-agent\r\n"
            "Accept: */*\r\nConnection: %s\r\n\r\n"
        )
        self._keep = (self._request % "keep-alive").encode("ascii", "replace")
        self._last = (self._request % "close").encode("ascii", "replace")
        self._socket: socket.socket | None = None
        self._uses = 0
        self._answer = b""
        self.look_at: float | None = None
        self.wants_write = False

    def begin(self) -> str | None:
        self._answer = b""
        if self._socket is None:
            return self._connect()
        self._uses += 1
        return self._send()

    def _connect(self) -> str | None:
        self.close()
        self._uses = 1
        self._socket = _socket_for(self._address)
        code = self._socket.connect_ex(self._address)
        if code not in _UNDER_WAY:
            self.close()
            if code in LACKS:
                raise OSError(code, os.strerror(code))
            return _refusal(code, self._address)
        return self._send()

    def _send(self) -> str | None:
        if self._socket is None:
            return "closed"
        self.wants_write = False
        try:
            # The request is smaller than any socket's buffer, so it is sent completely or not at all.
            self._socket.send(self._last if self._uses >= USES_OF_A_CONNECTION else self._keep)
        except BlockingIOError:
            self.wants_write = True
        except OSError as error:
            return self._broken(error.errno or errno.EIO)
        return None

    def collect(self) -> str | None:
        if self.wants_write:
            return self._send()
        if self._socket is None:
            return "closed"
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return None
        except OSError as error:
            return self._broken(error.errno or errno.EIO)
        self._answer += data
        return self._judge(is_over=not data or len(self._answer) > ANSWER_BYTES)

    def _broken(self, code: int) -> str | None:
        """A server may close a kept connection at any time, which is no failure: try again with a new one."""
        if self._uses > 1 and not self._answer:
            return self._connect()
        self.close()
        return _refusal(code, self._address)

    def _judge(self, *, is_over: bool) -> str | None:
        head, blank, body = self._answer.partition(b"\r\n\r\n")
        if not blank and not is_over:
            return None
        if not self._answer:
            return self._broken(errno.ECONNRESET)
        match = _HEAD.match(head + b"\r")
        if match is None:
            self.close()
            return f"no HTTP answer from {_spell(self._address)}"
        length = _LENGTH.search(head + b"\r\n")
        if length and len(body) < int(length[1]) and not is_over:
            return None
        is_whole = length is not None and len(body) == int(length[1])
        if not (is_whole and self._uses < USES_OF_A_CONNECTION and _KEEPS.search(head + b"\r")):
            self.close()
        status = int(match[1])
        return "" if 200 <= status <= 399 else f"answered {status}"

    def fileno(self) -> int:
        return self._socket.fileno() if self._socket else -1

    def close(self) -> None:
        if self._socket:
            self._socket.close()
            self._socket = None


class GrpcCheck:
    """grpc.health.v1.Health/Check must answer SERVING. Its two messages are tiny, so they are encoded by hand."""

    def __init__(self, address: tuple[str, int], service: str) -> None:
        host, port = address
        name = service.encode()
        if len(name) > 127:
            raise ProbeError(f"the service name of the grpc probe has {len(name)} bytes; the limit is 127")
        self._channel = grpc.aio.insecure_channel(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        self._request = b"\x0a" + bytes([len(name)]) + name if name else b""
        self._check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
            "/grpc.health.v1.Health/Check"
        )

    async def attempt(self, timeout_seconds: float) -> str:
        """The outcome. Raises OSError if the agent itself lacks something for it."""
        try:
            answer = await self._check(self._request, timeout=timeout_seconds, wait_for_ready=False)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return timed_out(timeout_seconds)
            raise_if_lacking(error.details() or "")
            return f"{error.code().name}: {error.details()}"
        return "" if answer.startswith(_SERVING) else "the answer is not SERVING"

    async def close(self) -> None:
        await self._channel.close()


def raise_if_lacking(details: str) -> None:
    """gRPC tells only in words that this side lacked something for a connection. Raises OSError for it."""
    if details.startswith(_NOT_CONNECTED):
        for number in LACKS:
            if os.strerror(number) in details:
                raise OSError(number, os.strerror(number))


def timed_out(timeout_seconds: float) -> str:
    return f"no answer within {timeout_seconds * 1_000:.0f} ms"


def address_of(endpoints: Mapping[str, str], port: str) -> tuple[str, int]:
    """Host and number of a named port. Raises ProbeError if the cell does not have it."""
    endpoint = endpoints.get(port)
    if endpoint is None:
        names = ", ".join(sorted(endpoints)) or "none"
        raise ProbeError(f"the probe uses port {port!r}, which the cell does not have; its ports: {names}")
    host, _, number = endpoint.rpartition(":")
    host = host.strip("[]")
    if not _is_numeric(host):
        raise ProbeError(f"cannot probe the endpoint {endpoint}: its host is not an IP address")
    return host, int(number)


def socket_check(
    health: cell_pb2.Health, endpoints: Mapping[str, str], direct: Mapping[str, str], timeout_seconds: float
) -> SocketCheck | None:
    """The check of an http or tcp probe; None for other kinds. ``direct``: the ports at the cell's own address, as far
    as they can be reached. An HTTP answer comes from the cell, whoever carries it; that somebody accepts a connection
    proves something only at the cell's own address. Raises ProbeError."""
    match health.WhichOneof("probe"):
        case "http":
            return HttpCheck(address_of(endpoints, health.http.port), health.http.path)
        case "tcp":
            port = health.tcp.port
            is_direct = port in direct
            address = address_of(direct if is_direct else endpoints, port)
            return TcpCheck(address, timeout_seconds, is_go_between=not is_direct)
        case _:
            return None


def _is_numeric(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return True
    return False


def _socket_for(address: tuple[str, int]) -> socket.socket:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


def _refusal(code: int, address: tuple[str, int]) -> str:
    return f"{os.strerror(code)}: {_spell(address)}" if code else ""


def _spell(address: tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}"
