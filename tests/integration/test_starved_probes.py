"""Probes that could not begin, because the agent itself lacks what they need: they say nothing about their cells."""

import asyncio
import errno
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from galactica.agent.runtimes.port import NotBegun, RuntimeFailure, RuntimeUnavailable
from galactica.v1 import cell_pb2
from tests.support.agent_world import until
from tests.support.probing import (
    OK,
    Probing,
    a_prober,
    answering,
    http,
    no_free_descriptor,
    server,
)


@pytest.fixture
async def probing() -> AsyncIterator[Probing]:
    async with a_prober() as probing:
        yield probing


def caused_by(error: Exception) -> RuntimeFailure:
    """As a runtime tells that a command could not be run, whatever kept it from running."""
    failure = RuntimeFailure("cannot run check")
    failure.__cause__ = error
    return failure


@pytest.mark.parametrize(
    "failure",
    [
        NotBegun("no lane"),
        RuntimeUnavailable("the engine is away"),
        OSError(errno.EMFILE, "no descriptor"),
        MemoryError(),
        caused_by(OSError(errno.EMFILE, "no descriptor")),
    ],
)
async def test_exec_probe_that_could_not_begin_says_nothing_about_its_cell(
    probing: Probing, failure: Exception
) -> None:
    probing.exit = failure
    probing.start(1, exec=cell_pb2.ExecProbe(command=["check"]))
    await until(lambda: len(probing.executed) >= 3, "three attempts")
    assert probing.outcomes["web/1.1"] == []
    probing.exit = (0, "")
    assert await probing.next_outcome() == ""


@pytest.mark.parametrize("kind", ["http", "tcp"])
async def test_probe_without_a_free_descriptor_says_nothing_about_its_cell(
    probing: Probing, kind: str
) -> None:
    probe = {"http": cell_pb2.HttpProbe(port="http"), "tcp": cell_pb2.TcpProbe(port="http")}[kind]
    async with server(answering(OK)) as port:
        with no_free_descriptor():
            probing.start(port, **{kind: probe})
            lack = await until(probing.lacks.take, "a lack")
        assert lack == "EMFILE"
        assert await probing.next_outcome() == ""
        assert set(probing.outcomes["web/1.1"]) == {""}


async def test_grpc_probe_without_a_free_descriptor_says_nothing_about_its_cell(probing: Probing) -> None:
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    real = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, real)
    port = real.add_insecure_port("127.0.0.1:0")
    await real.start()
    try:
        with no_free_descriptor():
            probing.start(port, grpc=cell_pb2.GrpcProbe(port="http"))
            assert await until(probing.lacks.take, "a lack") == "EMFILE"
        assert await probing.next_outcome() == ""
        assert set(probing.outcomes["web/1.1"]) == {""}
    finally:
        await real.stop(None)


async def test_kept_connection_that_ends_while_there_is_no_descriptor_says_nothing_about_its_cell(
    probing: Probing,
) -> None:
    """The next one is opened where an answer is collected: an error there ends neither the probe nor all of them."""
    ends = asyncio.Event()

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not ends.is_set():
            await reader.readuntil(b"\r\n\r\n")
            if not ends.is_set():
                writer.write(b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok")

    async with server(keep) as port:
        probing.start(port, **http())
        assert await probing.next_outcome() == ""
        with no_free_descriptor():
            ends.set()
            assert await until(probing.lacks.take, "a lack") == "EMFILE"
        ends.clear()
        assert await probing.next_outcome() == ""
        assert set(probing.outcomes["web/1.1"]) == {""}
