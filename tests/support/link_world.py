"""The scheduler's mTLS port on loopback with a mind behind it, and hands to play agents and operators."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from galactica.scheduler.link.dispatcher import Dispatcher
from galactica.scheduler.link.session import LinkLimits
from galactica.scheduler.operators.api import OperatorApi
from galactica.scheduler.security.ca import SCHEDULER_NAME, CertificateAuthority, new_key_and_csr
from galactica.scheduler.security.identities import Role
from galactica.scheduler.serve.listeners import make_server
from galactica.scheduler.wire.versions import OLDEST_WIRE_VERSION, WIRE_VERSION
from galactica.v1 import cell_pb2, link_pb2, link_pb2_grpc, operator_pb2_grpc
from tests.support.memory_mind import MemoryMind

LOOPBACK = "127.0.0.1"
LIMIT_SECONDS = 15.0


@dataclass
class LinkWorld:
    mind: MemoryMind
    ca: CertificateAuthority
    dispatcher: Dispatcher
    address: str
    channels: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    async def channel(self, key: bytes, certificate: bytes) -> grpc.aio.Channel:
        credentials = grpc.ssl_channel_credentials(self.ca.certificate_pem, key, certificate)
        options = [
            ("grpc.ssl_target_name_override", SCHEDULER_NAME),
            ("grpc.enable_http_proxy", 0),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", 128 * 2**20),
        ]
        channel = grpc.aio.secure_channel(self.address, credentials, options=options)
        return await self.channels.enter_async_context(channel)

    async def server_channel(self, server: str) -> grpc.aio.Channel:
        key, csr = new_key_and_csr()
        return await self.channel(key, self.ca.issue_server(csr, server).certificate_pem)

    async def operator_channel(self, name: str = "ann", role: Role = Role.ADMIN) -> grpc.aio.Channel:
        key, csr = new_key_and_csr()
        return await self.channel(key, self.ca.issue_operator(csr, name, role, 600).certificate_pem)

    async def operator(self, name: str = "ann", role: Role = Role.ADMIN):
        return operator_pb2_grpc.OperatorServiceStub(await self.operator_channel(name, role))

    async def agent(self, server: str, *, attached: bool = True, **hello: object) -> PlayedAgent:
        """A server that is enrolled (if it was not) and whose agent has said Hello."""
        fleet = self.mind.core.fleet
        if server not in fleet.servers and fleet.regrowth is None:
            await self.mind.enrol(server)
        agent = PlayedAgent(server, link_pb2_grpc.AgentLinkServiceStub(await self.server_channel(server)))
        if attached:
            await agent.attach(**hello)
        return agent


class PlayedAgent:
    """An agent played by hand."""

    def __init__(self, server: str, stub: link_pb2_grpc.AgentLinkServiceStub) -> None:
        self.server = server
        self.stub = stub
        self.call = stub.Attach()
        self.welcome = link_pb2.Welcome()
        self.sequence = 0
        self.reporting = asyncio.Lock()

    async def attach(self, **hello: object) -> link_pb2.Welcome:
        fields: dict[str, object] = {
            "wire_version": OLDEST_WIRE_VERSION,
            "newest_wire_version": WIRE_VERSION,
            "agent_version": "0.1.0",
            "runtimes": [cell_pb2.RUNTIME_KIND_PROCESS],
            "capacity": cell_pb2.Capacity(cpu_millis=8_000, memory_bytes=2**34, disk_bytes=2**36),
        }
        await self.say(hello=link_pb2.Hello(**{**fields, **hello}))
        first = await self.hear()
        assert first.WhichOneof("message") == "welcome"
        self.welcome = first.welcome
        return first.welcome

    async def say(self, **message: object) -> None:
        async with asyncio.timeout(LIMIT_SECONDS):
            await self.call.write(link_pb2.AttachRequest(**message))

    async def hear(self) -> link_pb2.AttachResponse:
        async with asyncio.timeout(LIMIT_SECONDS):
            answer = await self.call.read()
        if answer is grpc.aio.EOF:
            raise AssertionError(f"the stream ended: {await self.call.code()} {await self.call.details()}")
        return answer

    async def instructions(self) -> list[link_pb2.Instruction]:
        answer = await self.hear()
        assert answer.WhichOneof("message") == "instructions", answer
        return list(answer.instructions.instructions)

    async def report(self, *cells: cell_pb2.CellReport, **fields: object) -> None:
        async with self.reporting:
            self.sequence += 1
            given = {"session": self.welcome.session, "sequence": self.sequence, "cells": cells, **fields}
            await self.say(report=link_pb2.Report(**given))

    async def ending(self) -> tuple[grpc.StatusCode, str]:
        """The stream's status, which comes behind everything that was written to it."""
        async with asyncio.timeout(LIMIT_SECONDS):
            with contextlib.suppress(grpc.aio.AioRpcError):
                while await self.call.read() is not grpc.aio.EOF:
                    pass
            return await self.call.code(), await self.call.details()

    async def obey(self, *, state: int = cell_pb2.CELL_STATE_RUNNING) -> None:
        """Take orders and report them as running, and decommissions as gone, until cancelled."""
        while True:
            answer = await self.call.read()
            if answer is grpc.aio.EOF:
                return
            reports = [_done(one, state) for one in answer.instructions.instructions]
            await self.report(*(report for report in reports if report is not None))


def _done(instruction: link_pb2.Instruction, state: int) -> cell_pb2.CellReport | None:
    match instruction.WhichOneof("verb"):
        case "order":
            return running(instruction.order.cell_id, state)
        case "decommission":
            return cell_pb2.CellReport(
                cell_id=instruction.decommission.cell_id, state=cell_pb2.CELL_STATE_GONE
            )
    return None


def running(cell: str, state: int = cell_pb2.CELL_STATE_RUNNING) -> cell_pb2.CellReport:
    probe = cell_pb2.ProbeStatus(has_passed=True)
    return cell_pb2.CellReport(
        cell_id=cell, state=state, probe=probe, runtime_id="42", endpoints={"http": "127.0.0.1:8080"}
    )


@contextlib.asynccontextmanager
async def link_world(
    directory: Path, mind: MemoryMind | None = None, limits: LinkLimits | None = None
) -> AsyncIterator[LinkWorld]:
    mind = mind or MemoryMind()
    ca = CertificateAuthority.open_or_create(directory / "ca", "alpha")
    dispatcher = Dispatcher(mind, ca, fleet="alpha", epoch=7, start="this start", limits=limits)
    mind.outbox = dispatcher
    api = OperatorApi(
        mind,
        mind,
        dispatcher,
        ca,
        fleet="alpha",
        version="0.1.0",
        advertised=lambda: "scheduler.example:7400",
        genomes=dispatcher.genomes,
        providers=lambda: ("cloud", "local"),
    )
    key, certificate = ca.issue_scheduler()
    server, port = await make_server(mind, ca, dispatcher, api, f"{LOOPBACK}:0", key, certificate)
    await server.start()
    world = LinkWorld(mind, ca, dispatcher, f"{LOOPBACK}:{port}")
    try:
        async with world.channels:
            yield world
    finally:
        dispatcher.close()
        await server.stop(grace=1.0)
