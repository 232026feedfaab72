"""A scheduler's enrolment port and link, with a book of tokens that a test fills."""

import asyncio
import contextlib
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from galactica.agent.link.identity import channel_options
from galactica.scheduler.core.model import requests
from galactica.scheduler.security.ca import CertificateAuthority, new_key_and_csr
from galactica.scheduler.security.enrolment import EnrolmentService
from galactica.scheduler.security.identities import ServerIdentity, identity_of
from galactica.scheduler.security.tokens import new_token
from galactica.scheduler.serve.listeners import link_credentials, make_enrolment_server
from galactica.v1 import link_pb2, link_pb2_grpc

REPOSITORY = Path(__file__).parents[2]

LOOPBACK = "127.0.0.1"

CALL_SECONDS = 20.0


@dataclass
class TokenBook:
    """The part of the mind that enrolment talks to: it keeps tokens and servers as the core does."""

    at: float = 1_000.0
    uses_left: dict[str, int] = field(default_factory=dict)
    expires_at: dict[str, float] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    servers: list[str] = field(default_factory=list)
    asked: list[tuple[requests.Request, str]] = field(default_factory=list)
    refusal: requests.Refused | None = None

    def now(self):
        return self.at

    def create_token(self, ca, uses=1, ttl_seconds=60.0):
        text, token_id, secret_sha256 = new_token(ca.digest)
        self.uses_left[token_id] = uses
        self.expires_at[token_id] = self.at + ttl_seconds
        self.hashes[token_id] = secret_sha256
        return text

    async def ask(self, request, by):
        self.asked.append((request, by))
        if self.refusal is not None:
            raise self.refusal
        if self.hashes.get(request.token) != request.secret_sha256:
            raise requests.Refused("token", "the token is not known here")
        if self.expires_at[request.token] <= self.at:
            raise requests.Refused("token", "the token has expired")
        if self.uses_left[request.token] == 0:
            raise requests.Refused("token", "the token is used up")
        if request.server in self.servers:
            raise requests.Refused("server_exists", f"a live server has the id {request.server}")
        self.uses_left[request.token] -= 1
        self.servers.append(request.server)
        return requests.Accepted(position=len(self.asked))


class Link(link_pb2_grpc.AgentLinkServiceServicer):
    """As much of the dispatcher as renewal needs."""

    def __init__(self, ca):
        self.ca = ca
        self.callers = []

    async def Attach(self, request_iterator, context):  # noqa: N802
        raise NotImplementedError

    async def RenewCertificate(self, request, context):  # noqa: N802
        caller = identity_of(context.auth_context())
        self.callers.append(caller)
        if not isinstance(caller, ServerIdentity):
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"{caller} is no server")
        issued = self.ca.issue_server(request.csr_pem, caller.server_id)
        return link_pb2.RenewCertificateResponse(
            certificate_pem=issued.certificate_pem, expires_at=issued.expires_at
        )


@dataclass
class House:
    """A scheduler's two ports, with a real CA behind them."""

    ca: CertificateAuthority
    book: TokenBook
    link: Link
    enrolment_address: str
    link_address: str

    async def enrol(self, token, server_id="web-1", csr_pem=None):
        credentials = grpc.ssl_channel_credentials(self.ca.certificate_pem)
        async with grpc.aio.secure_channel(self.enrolment_address, credentials, channel_options()) as channel:
            request = link_pb2.EnrolRequest(
                token=token,
                server_id=server_id,
                csr_pem=new_key_and_csr()[1] if csr_pem is None else csr_pem,
            )
            return await link_pb2_grpc.EnrolmentServiceStub(channel).Enrol(request, timeout=CALL_SECONDS)

    async def refused(self, *arguments, **named):
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await self.enrol(*arguments, **named)
        return refusal.value.code(), refusal.value.details()

    async def renew(self, key_pem, certificate_pem, csr_pem=b"", ca_pem=None):
        credentials = grpc.ssl_channel_credentials(
            ca_pem or self.ca.certificate_pem, key_pem, certificate_pem
        )
        async with grpc.aio.secure_channel(self.link_address, credentials, channel_options()) as channel:
            request = link_pb2.RenewCertificateRequest(csr_pem=csr_pem or new_key_and_csr()[1])
            return await link_pb2_grpc.AgentLinkServiceStub(channel).RenewCertificate(
                request, timeout=CALL_SECONDS
            )


@contextlib.asynccontextmanager
async def serving(server):
    await server.start()
    try:
        yield
    finally:
        await server.stop(None)


@contextlib.asynccontextmanager
async def link_server(ca, service, key, certificate):
    server = grpc.aio.server()
    link_pb2_grpc.add_AgentLinkServiceServicer_to_server(service, server)
    port = server.add_secure_port(f"{LOOPBACK}:0", link_credentials(ca, key, certificate))
    async with serving(server):
        yield f"{LOOPBACK}:{port}"


@contextlib.asynccontextmanager
async def enrolment_server(ca, book, credentials):
    service = EnrolmentService(ca, book, "alpha", 3_600)
    server, port = make_enrolment_server(service, f"{LOOPBACK}:0", credentials)
    async with serving(server):
        yield f"{LOOPBACK}:{port}"


async def run_agent_enrol(*arguments, environment=None, address=None):
    """The real process: its exit code and all that it said."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "galactica.agent.link.enrol",
        *arguments,
        *(["--scheduler-enrol", address] if address else []),
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": ".", "GALACTICA_TOKEN": "", **(environment or {})},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, said.decode()


def secret_of(token):
    return token.split(".")[2]


def server_credentials(ca, server_id="web-1"):
    key, csr = new_key_and_csr()
    return key, ca.issue_server(csr, server_id).certificate_pem
