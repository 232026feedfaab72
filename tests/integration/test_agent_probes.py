"""Probes against real servers on loopback: what passes, what does not, and how soon that is known."""

import asyncio
import socket
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from galactica.agent.runtimes.port import RuntimeFailure
from galactica.v1 import cell_pb2
from tests.support.agent_world import until
from tests.support.probing import (
    OK,
    Probing,
    Serve,
    a_prober,
    answering,
    http,
    server,
    silent,
)


@pytest.fixture
async def probing() -> AsyncIterator[Probing]:
    async with a_prober() as probing:
        yield probing


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (OK, ""),
        (b"HTTP/1.0 204 No Content\r\n\r\n", ""),
        (b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", ""),
        (b"HTTP/1.1 399 Odd\r\n\r\n", ""),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "answered 404"),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 3\r\n\r\nno!", "answered 500"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "answered 100"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "no HTTP answer from 127.0.0.1:{port}"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 500000\r\n\r\n" + b"x" * 500_000, ""),
        (b"", "Connection reset by peer: 127.0.0.1:{port}"),
    ],
)
async def test_http_probe_judges_by_the_status(probing: Probing, answer: bytes, outcome: str) -> None:
    async with server(answering(answer)) as port:
        probing.start(port, **http())
        assert await probing.next_outcome() == outcome.format(port=port)


async def test_http_probe_asks_for_its_path_on_a_new_connection_each_time(probing: Probing) -> None:
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(OK)
        await writer.drain()
        assert await reader.read() == b""

    async with server(serve) as port:
        probing.start(port, **http("/health?deep=1"))
        await until(lambda: len(asked) >= 3, "three requests")
        assert asked[0].startswith(f"GET /health?deep=1 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n".encode())
        assert set(probing.outcomes["web/1.1"]) == {""}


async def test_http_probe_keeps_a_connection_for_a_while_where_the_server_likes_that(
    probing: Probing,
) -> None:
    uses: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        uses.append(0)
        while True:
            request = await reader.readuntil(b"\r\n\r\n")
            uses[-1] += 1
            word = b"close" if b"Connection: close" in request else b"keep-alive"
            writer.write(OK.replace(b"\r\n\r\n", b"\r\nConnection: " + word + b"\r\n\r\n"))
            await writer.drain()

    async with server(serve) as port:
        probing.start(port, every_ms=50, **http())
        await until(lambda: len(uses) == 3, "the third connection")
        assert uses[:2] == [10, 10]
        assert set(probing.outcomes["web/1.1"]) == {""}


async def test_kept_connection_that_the_server_closed_is_no_failure(probing: Probing) -> None:
    connections: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(1)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n"))
        await writer.drain()

    async with server(serve) as port:
        probing.start(port, every_ms=50, **http())
        await until(lambda: len(connections) >= 5, "five connections")
        assert set(probing.outcomes["web/1.1"]) == {""}


@pytest.mark.parametrize("kind", ["http", "grpc"])
async def test_probe_that_hangs_has_failed_when_its_time_is_up(probing: Probing, kind: str) -> None:
    probe = {"http": cell_pb2.HttpProbe(port="http"), "grpc": cell_pb2.GrpcProbe(port="http")}[kind]
    async with server(silent) as port:
        probing.start(port, **{kind: probe})
        assert await probing.next_outcome() == "no answer within 200 ms"


@pytest.mark.parametrize("kind", ["http", "tcp"])
async def test_port_where_nobody_listens_fails_at_once(probing: Probing, kind: str) -> None:
    probe = {"http": cell_pb2.HttpProbe(port="http"), "tcp": cell_pb2.TcpProbe(port="http")}[kind]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    probing.start(port, **{kind: probe})
    assert await probing.next_outcome() == f"Connection refused: 127.0.0.1:{port}"


async def test_tcp_probe_passes_where_a_connection_is_accepted(probing: Probing) -> None:
    async with server(silent) as port:
        probing.start(port, tcp=cell_pb2.TcpProbe(port="http"))
        assert await probing.next_outcome() == ""


async def closing(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A go-between behind which nothing listens."""


async def resetting(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def greeting_once(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 ready\r\n")
    await writer.drain()


@pytest.mark.parametrize("serve", [closing, resetting])
async def test_connection_that_a_go_between_closes_at_once_was_not_accepted_by_the_cell(
    probing: Probing, serve: Serve
) -> None:
    async with server(serve) as port:
        probing.start(port, tcp=cell_pb2.TcpProbe(port="http"))
        outcome = await probing.next_outcome()
        assert outcome == f"closed at once: nothing listens behind 127.0.0.1:{port}"


async def test_server_that_says_its_word_and_closes_has_accepted(probing: Probing) -> None:
    async with server(greeting_once) as port:
        probing.start(port, tcp=cell_pb2.TcpProbe(port="http"))
        assert await probing.next_outcome() == ""


async def test_tcp_probe_asks_at_the_cells_own_address_where_that_is_known(probing: Probing) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        deaf = taken.getsockname()[1]
    async with server(silent) as go_between, server(closing) as own:
        probing.start(go_between, direct=deaf, tcp=cell_pb2.TcpProbe(port="http"))
        assert await probing.next_outcome() == f"Connection refused: 127.0.0.1:{deaf}"
        probing.start(go_between, "web/2.1", direct=own, tcp=cell_pb2.TcpProbe(port="http"))
        assert await probing.next_outcome("web/2.1") == ""


async def test_port_that_the_cell_does_not_have_is_named(probing: Probing) -> None:
    probing.start(1, http=cell_pb2.HttpProbe(port="web"))
    assert (
        await probing.next_outcome()
        == "the probe uses port 'web', which the cell does not have; its ports: http"
    )


@pytest.mark.parametrize(
    ("ended", "outcome"),
    [
        ((0, "fine"), ""),
        ((3, "no disk"), "exited with 3: no disk"),
        ((3, ""), "exited with 3"),
        (TimeoutError(), "no answer within 200 ms"),
        (RuntimeFailure("the engine is away"), "the engine is away"),
    ],
)
async def test_exec_probe_judges_by_the_exit_code(
    probing: Probing, ended: tuple[int, str] | Exception, outcome: str
) -> None:
    probing.exit = ended
    probing.start(1, exec=cell_pb2.ExecProbe(command=["check", "-q"]))
    assert await probing.next_outcome() == outcome
    assert set(probing.executed) == {("web/1.1", ("check", "-q"))}


@pytest.mark.parametrize(
    ("service", "status", "outcome"),
    [
        ("", health_pb2.HealthCheckResponse.SERVING, ""),
        ("shop", health_pb2.HealthCheckResponse.SERVING, ""),
        ("shop", health_pb2.HealthCheckResponse.NOT_SERVING, "the answer is not SERVING"),
    ],
)
async def test_grpc_probe_speaks_the_standard_health_protocol(
    probing: Probing, service: str, status: int, outcome: str
) -> None:
    servicer = health.aio.HealthServicer()
    await servicer.set(service, status)
    real = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, real)
    port = real.add_insecure_port("127.0.0.1:0")
    await real.start()
    try:
        probing.start(port, grpc=cell_pb2.GrpcProbe(port="http", service=service))
        assert await probing.next_outcome() == outcome
        probing.start(port, "web/2.1", grpc=cell_pb2.GrpcProbe(port="http", service="unknown"))
        assert (await probing.next_outcome("web/2.1")).startswith("NOT_FOUND")
    finally:
        probing.prober.stop("web/1.1")
        probing.prober.stop("web/2.1")
        await real.stop(0)


async def test_probing_stops_when_told(probing: Probing) -> None:
    async with server(answering(OK)) as port:
        probing.start(port, every_ms=50, **http())
        probing.start(port, "web/2.1", every_ms=50, **http())
        await probing.next_outcome()
        probing.prober.stop("web/1.1")
        count = len(probing.outcomes["web/1.1"])
        for _ in range(3):
            await probing.next_outcome("web/2.1")
        assert len(probing.outcomes["web/1.1"]) == count


async def test_slow_neighbour_delays_nobody(probing: Probing) -> None:
    async with server(silent) as slow, server(answering(OK)) as quick:
        for n in range(20):
            probing.start(slow, f"slow/{n}.1", **http())
        probing.start(quick, every_ms=50, **http())
        await until(lambda: len(probing.outcomes["web/1.1"]) >= 10, "ten outcomes")
        assert set(probing.outcomes["web/1.1"]) == {""}
        assert sum(len(probing.outcomes[f"slow/{n}.1"]) for n in range(20)) < 10 * 20


async def test_cell_that_comes_up_is_seen_long_before_its_next_full_interval(probing: Probing) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    probing.start(port, every_ms=60_000, **http())
    await until(lambda: probing.outcomes["web/1.1"], "a first failure")
    listening = await asyncio.start_server(answering(OK), "127.0.0.1", port)
    try:
        await until(lambda: probing.outcomes["web/1.1"][-1] == "", "a pass", seconds=10)
    finally:
        listening.close()


async def test_exec_probe_that_waits_for_its_turn_has_no_outcome_yet_and_then_its_whole_time(
    probing: Probing,
) -> None:
    probing.may_begin.clear()
    probing.start(1, exec=cell_pb2.ExecProbe(command=["check"]))
    async with server(silent) as port:
        probing.start(port, "other/0.1", **http())
        for _ in range(3):  # each takes the time that the waiting probe may take
            assert await probing.next_outcome("other/0.1") == "no answer within 200 ms"
    assert (len(probing.executed), probing.outcomes["web/1.1"]) == (1, [])
    probing.may_end.clear()
    probing.may_begin.set()
    assert await probing.next_outcome() == "no answer within 200 ms"
