"""Enrolment, renewal and who gets in: real gRPC and TLS on loopback, the agent's side as its own process."""

import asyncio
import contextlib
import json
import os
import stat
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from galactica.agent.link.identity import Identity, IdentityError, channel_options, store, store_renewed
from galactica.scheduler.core.model import requests
from galactica.scheduler.security.ca import CertificateAuthority, new_key_and_csr
from galactica.scheduler.security.enrolment import EnrolmentService
from galactica.scheduler.security.identities import Role, ServerIdentity, identity_of
from galactica.scheduler.security.tokens import new_token, parse_token
from galactica.scheduler.serve.listeners import enrolment_credentials, link_credentials, make_enrolment_server
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


@pytest.fixture
def ca(tmp_path):
    return CertificateAuthority.open_or_create(tmp_path / "ca", "alpha")


@pytest.fixture
def other_ca(tmp_path):
    return CertificateAuthority.open_or_create(tmp_path / "other-ca", "alpha")


@pytest.fixture
async def house(ca):
    key, certificate = ca.issue_scheduler()
    book, link = TokenBook(), Link(ca)
    async with (
        enrolment_server(ca, book, enrolment_credentials(ca, key, certificate)) as enrolment_address,
        link_server(ca, link, key, certificate) as link_address,
    ):
        yield House(ca, book, link, enrolment_address, link_address)


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


class TestEnrolling:
    async def test_host_with_a_token_enrols_and_is_let_in_as_the_server_it_named(self, house, tmp_path):
        directory = tmp_path / "state" / "identity"
        token = house.book.create_token(house.ca)

        code, said = await run_agent_enrol(
            "--server-id", "rack-1/web", "--directory", str(directory), "--scheduler", house.link_address,
            environment={"GALACTICA_TOKEN": token}, address=house.enrolment_address,
        )  # fmt: skip

        assert (code, said) == (0, "enrolled as server rack-1/web in fleet alpha\n")
        identity = Identity.load(directory)
        assert identity is not None
        assert (identity.server_id, identity.fleet, identity.scheduler, identity.enrolment) == (
            "rack-1/web",
            "alpha",
            house.link_address,
            house.enrolment_address,
        )
        assert identity.ca_pem == house.ca.certificate_pem
        async with grpc.aio.secure_channel(
            house.link_address, identity.credentials, channel_options()
        ) as channel:
            await link_pb2_grpc.AgentLinkServiceStub(channel).RenewCertificate(
                link_pb2.RenewCertificateRequest(csr_pem=identity.csr_pem), timeout=CALL_SECONDS
            )
        assert house.link.callers == [ServerIdentity("rack-1/web")]

    async def test_identity_is_for_the_agents_own_eyes(self, house, tmp_path):
        directory = tmp_path / "identity"
        token_file = tmp_path / "token"
        token_file.write_text(house.book.create_token(house.ca) + "\n")

        code, said = await run_agent_enrol(
            "--server-id", "web-1", "--directory", str(directory), "--token-file", str(token_file),
            address=house.enrolment_address,
        )  # fmt: skip

        assert code == 0, said
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert {
            path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()
        } == dict.fromkeys(["key.pem", "csr.pem", "cert.pem", "ca.pem", "identity.json"], 0o600)
        facts = json.loads((directory / "identity.json").read_text())
        assert sorted(facts) == ["enrolment", "expires_at", "fleet", "issued_at", "scheduler", "server_id"]
        assert 3_590 < facts["expires_at"] - facts["issued_at"] <= 3_600

    async def test_token_is_spent_in_the_name_of_the_server_and_only_its_hash_goes_to_the_core(self, house):
        token = house.book.create_token(house.ca)

        await house.enrol(token, "web-1")

        parsed = parse_token(token)
        assert house.book.asked == [
            (
                requests.Enrol(token=parsed.id, secret_sha256=parsed.secret_sha256, server="web-1"),
                requests.Asker.server("web-1"),
            )
        ]

    async def test_counted_token_enrols_as_many_servers_as_it_counts(self, house):
        token = house.book.create_token(house.ca, uses=3)

        for number in range(3):
            await house.enrol(token, f"web-{number}")

        assert await house.refused(token, "web-3") == (
            grpc.StatusCode.UNAUTHENTICATED,
            "the token is used up",
        )

    async def test_wrong_expired_and_used_up_tokens_are_refused_by_reason(self, house):
        right = house.book.create_token(house.ca)
        wrong = right.replace(secret_of(right), "x" * 32)
        used_up = house.book.create_token(house.ca, uses=0)
        expired = house.book.create_token(house.ca, ttl_seconds=10)
        house.book.at += 10
        elsewhere, _, _ = new_token("0" * 64)

        assert [await house.refused(token) for token in (wrong, used_up, expired, elsewhere, "hello")] == [
            (grpc.StatusCode.UNAUTHENTICATED, "the token is not known here"),
            (grpc.StatusCode.UNAUTHENTICATED, "the token is used up"),
            (grpc.StatusCode.UNAUTHENTICATED, "the token has expired"),
            (
                grpc.StatusCode.UNAUTHENTICATED,
                ("the join token is for a scheduler with another CA; create a token with this scheduler"),
            ),
            (
                grpc.StatusCode.UNAUTHENTICATED,
                (
                    "this is not a join token: a token begins with 'gal1.'; make one with 'galactica "
                    "token create'"
                ),
            ),
        ]
        assert house.book.servers == []

    async def test_second_server_of_the_same_id_is_refused(self, house):
        token = house.book.create_token(house.ca, uses=2)
        await house.enrol(token, "web-1")

        code, says = await house.refused(token, "web-1")

        assert (code, says) == (grpc.StatusCode.ALREADY_EXISTS, "a live server has the id web-1")

    @pytest.mark.parametrize(
        ("refusal", "code"),
        [
            (requests.JournalRefuses("the disk is full"), grpc.StatusCode.UNAVAILABLE),
            (requests.Refused("drained", "no"), grpc.StatusCode.FAILED_PRECONDITION),
        ],
    )
    async def test_refusal_of_the_core_reaches_the_host(self, house, refusal, code):
        house.book.refusal = refusal

        assert await house.refused(house.book.create_token(house.ca)) == (code, str(refusal))

    @pytest.mark.parametrize(
        ("server_id", "csr_pem", "says"),
        [
            ("web 1", None, "invalid server id"),
            ("", None, "invalid server id"),
            ("web-1", b"no request", "not a valid PKCS#10 request"),
        ],
    )
    async def test_bad_request_costs_no_use_of_the_token(self, house, server_id, csr_pem, says):
        token = house.book.create_token(house.ca)

        code, details = await house.refused(token, server_id, csr_pem)

        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert says in details
        assert house.book.asked == []

    async def test_oversized_request_is_refused_before_it_is_read(self, house):
        code, _ = await house.refused(house.book.create_token(house.ca), csr_pem=b"x" * 100_000)

        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert house.book.asked == []

    async def test_guessing_is_slowed_down_and_good_hosts_get_in_again_soon(self, house):
        good = house.book.create_token(house.ca, uses=100)
        bad, _, _ = new_token(house.ca.digest)
        for number in range(60):
            await house.enrol(good, f"web-{number}")

        codes = [(await house.refused(bad))[0] for _ in range(52)]
        code, says = await house.refused(good, "late")
        house.book.at += 1.0
        await house.enrol(good, "late")

        assert codes == [grpc.StatusCode.UNAUTHENTICATED] * 50 + [grpc.StatusCode.RESOURCE_EXHAUSTED] * 2
        assert (code, says) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "too many failed enrolments; try again in 0.2 s",
        )


class TestPinning:
    async def test_host_tells_its_token_to_no_other_fleet(self, house, other_ca, tmp_path):
        token, _, _ = new_token(other_ca.digest)

        code, said = await run_agent_enrol(
            "--server-id", "web-1", "--directory", str(tmp_path / "identity"),
            environment={"GALACTICA_TOKEN": token}, address=house.enrolment_address,
        )  # fmt: skip

        assert code == 1
        assert said == (
            f"error: the scheduler at {house.enrolment_address} does not have the CA "
            "to which the token is pinned; check the address, or create a token with this scheduler\n"
        )
        assert house.book.asked == []
        assert Identity.load(tmp_path / "identity") is None

    async def test_impostor_that_shows_our_ca_without_having_its_key_learns_no_token(
        self, ca, other_ca, tmp_path
    ):
        book = TokenBook()
        key, leaf = other_ca.issue_scheduler()
        impostor = grpc.ssl_server_credentials([(key, leaf + ca.certificate_pem)])
        async with enrolment_server(ca, book, impostor) as address:
            code, said = await run_agent_enrol(
                "--server-id", "web-1", "--directory", str(tmp_path / "identity"), "--timeout", "5",
                environment={"GALACTICA_TOKEN": book.create_token(ca)}, address=address,
            )  # fmt: skip

        assert code == 1
        assert "that CA did not issue its certificate" in said
        assert said.count("\n") == 1
        assert book.asked == []

    @pytest.mark.parametrize("kind", ["server", "operator"])
    async def test_no_server_or_operator_of_the_fleet_can_collect_tokens(self, ca, tmp_path, kind):
        book = TokenBook()
        key, csr = new_key_and_csr()
        issued = (
            ca.issue_server(csr, "eve") if kind == "server" else ca.issue_operator(csr, "eve", Role.ADMIN, 60)
        )
        impostor = enrolment_credentials(ca, key, issued.certificate_pem)
        async with enrolment_server(ca, book, impostor) as address:
            code, said = await run_agent_enrol(
                "--server-id", "web-1", "--directory", str(tmp_path / "identity"), "--timeout", "10",
                environment={"GALACTICA_TOKEN": book.create_token(ca)}, address=address,
            )  # fmt: skip

        assert code == 3, said
        assert "CERTIFICATE_VERIFY_FAILED" in said
        assert book.asked == []

    async def test_host_notices_a_certificate_for_another_key(self, ca, tmp_path):
        class WrongKey(link_pb2_grpc.EnrolmentServiceServicer):
            async def Enrol(self, request, context):  # noqa: N802
                _, csr = new_key_and_csr()
                issued = ca.issue_server(csr, request.server_id)
                return link_pb2.EnrolResponse(certificate_pem=issued.certificate_pem, fleet="alpha")

        server = grpc.aio.server()
        link_pb2_grpc.add_EnrolmentServiceServicer_to_server(WrongKey(), server)
        port = server.add_secure_port(f"{LOOPBACK}:0", enrolment_credentials(ca, *ca.issue_scheduler()))
        async with serving(server):
            code, said = await run_agent_enrol(
                "--server-id", "web-1", "--directory", str(tmp_path / "identity"),
                environment={"GALACTICA_TOKEN": new_token(ca.digest)[0]}, address=f"{LOOPBACK}:{port}",
            )  # fmt: skip

        assert (code, said.endswith("returned a certificate for another key\n")) == (1, True)
        assert Identity.load(tmp_path / "identity") is None


class TestEnrolCommand:
    async def test_refusal_is_one_line_for_people_without_the_secret(self, house, tmp_path):
        token = house.book.create_token(house.ca, uses=0)

        code, said = await run_agent_enrol(
            "--server-id", "web-1", "--directory", str(tmp_path / "identity"), "--token", token,
            address=house.enrolment_address,
        )  # fmt: skip

        assert code == 1
        assert said == (
            f"error: the scheduler at {house.enrolment_address} did not enrol this host: "
            "the token is used up (UNAUTHENTICATED)\n"
        )

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["--server-id", "a", "--directory", "unused"], "no join token given"),
            (["--server-id", "a", "--directory", "unused", "--token", "gal1.00"], "invalid join token"),
            (["--server-id", "a", "--directory", "unused", "--token-file", "missing"], "No such file"),
            (["--directory", "unused"], "--server-id"),
        ],
    )
    async def test_wrong_usage_is_told_with_exit_code_2(self, arguments, says, tmp_path):
        arguments = [str(tmp_path / word) if word in ("unused", "missing") else word for word in arguments]

        code, said = await run_agent_enrol(*arguments, address="127.0.0.1:1")

        assert code == 2
        assert says in said
        assert "Traceback" not in said

    async def test_address_that_is_none_is_wrong_usage(self, ca, tmp_path):
        code, said = await run_agent_enrol(
            "--server-id", "a", "--directory", str(tmp_path / "identity"), "--token", new_token(ca.digest)[0],
            address="nowhere",
        )  # fmt: skip

        assert (code, said) == (2, "error: invalid address 'nowhere': use HOST:PORT\n")

    @pytest.mark.parametrize(
        ("behaviour", "exit_code", "says"),
        [
            ("closed", 3, "cannot reach the scheduler"),
            ("silent", 3, "no answer from"),
            ("plain", 1, "TLS handshake with"),
        ],
    )
    async def test_what_is_no_scheduler_is_told_apart(self, ca, tmp_path, behaviour, exit_code, says):
        done = asyncio.Event()

        async def behave(reader, writer):
            if behaviour == "plain":
                writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                await writer.drain()
            else:
                await done.wait()
            writer.close()

        listener = await asyncio.start_server(behave, LOOPBACK, 0)
        port = listener.sockets[0].getsockname()[1]
        if behaviour == "closed":
            listener.close()
            await listener.wait_closed()
        try:
            code, said = await run_agent_enrol(
                "--server-id", "a", "--directory", str(tmp_path / "identity"), "--timeout", "1",
                environment={"GALACTICA_TOKEN": new_token(ca.digest)[0]}, address=f"{LOOPBACK}:{port}",
            )  # fmt: skip
        finally:
            done.set()
            listener.close()

        assert code == exit_code, said
        assert says in said
        assert said.count("\n") == 1

    async def test_directory_that_cannot_be_written_costs_no_token(self, house, tmp_path):
        (tmp_path / "file").write_text("")

        code, said = await run_agent_enrol(
            "--server-id", "a", "--directory", str(tmp_path / "file" / "identity"),
            "--token", house.book.create_token(house.ca), address=house.enrolment_address,
        )  # fmt: skip

        assert code == 1
        assert said.startswith("error: cannot store the identity in")
        assert house.book.asked == []


class TestWhoGetsIn:
    async def test_server_of_the_fleet_gets_in(self, house):
        await house.renew(*server_credentials(house.ca, "web-1"))

        assert house.link.callers == [ServerIdentity("web-1")]

    async def shut_out(self, house, key, certificate):
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await house.renew(key, certificate)
        assert refusal.value.code() == grpc.StatusCode.UNAVAILABLE
        assert house.link.callers == []

    async def test_certificate_of_another_ca_is_refused_by_tls(self, house, other_ca):
        await self.shut_out(house, *server_credentials(other_ca))

    async def test_no_certificate_is_refused_by_tls(self, house):
        await self.shut_out(house, None, None)

    async def test_expired_certificate_is_refused_by_tls(self, house, tmp_path):
        earlier = CertificateAuthority.open_or_create(tmp_path / "ca", "alpha", lambda: time.time() - 7_200)
        assert earlier.digest == house.ca.digest

        await self.shut_out(house, *server_credentials(earlier))

    async def test_self_made_certificate_with_a_servers_name_is_refused_by_tls(self, house):
        key = ec.generate_private_key(ec.SECP256R1())
        genuine = x509.load_pem_x509_certificate(server_credentials(house.ca)[1])
        builder = (
            x509.CertificateBuilder()
            .subject_name(genuine.subject)
            .issuer_name(genuine.issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(genuine.not_valid_before_utc)
            .not_valid_after(genuine.not_valid_after_utc)
        )
        for extension in genuine.extensions:
            builder = builder.add_extension(extension.value, extension.critical)
        forged = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        key_pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

        await self.shut_out(house, key_pem, forged)

    async def test_scheduler_certificate_is_not_accepted_as_a_client(self, house):
        await self.shut_out(house, *house.ca.issue_scheduler())

    async def test_operator_certificate_is_known_as_an_operators(self, house):
        key, csr = new_key_and_csr()
        certificate = house.ca.issue_operator(csr, "ann", Role.ADMIN, 60).certificate_pem

        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await house.renew(key, certificate)

        assert (refusal.value.code(), refusal.value.details()) == (
            grpc.StatusCode.PERMISSION_DENIED,
            "operator:ann is no server",
        )

    @pytest.mark.parametrize("kind", ["operator", "server"])
    async def test_agent_does_not_take_an_operator_or_a_server_for_its_scheduler(self, house, kind):
        key, csr = new_key_and_csr()
        issued = (
            house.ca.issue_operator(csr, "eve", Role.ADMIN, 60)
            if kind == "operator"
            else house.ca.issue_server(csr, "eve")
        )
        async with link_server(house.ca, house.link, key, issued.certificate_pem) as address:
            await self.shut_out(replace(house, link_address=address), *server_credentials(house.ca))

    async def test_agent_does_not_take_another_fleets_scheduler_for_its_own(self, house, other_ca):
        async with link_server(house.ca, house.link, *other_ca.issue_scheduler()) as address:
            await self.shut_out(replace(house, link_address=address), *server_credentials(house.ca))


class TestRenewing:
    async def enrolled(self, house, directory):
        key, csr = new_key_and_csr()
        response = await house.enrol(house.book.create_token(house.ca), "web-1", csr)
        identity = Identity(
            server_id="web-1",
            fleet=response.fleet,
            scheduler=house.link_address,
            enrolment=house.enrolment_address,
            issued_at=1_000.0,
            expires_at=response.expires_at,
            key_pem=key,
            csr_pem=csr,
            certificate_pem=response.certificate_pem,
            ca_pem=response.ca_pem,
        )
        store(directory, identity)
        return identity

    async def test_stored_request_gets_a_fresh_certificate_that_works(self, house, tmp_path):
        identity = await self.enrolled(house, tmp_path / "identity")

        answer = await house.renew(identity.key_pem, identity.certificate_pem, identity.csr_pem)
        renewed = store_renewed(
            tmp_path / "identity", answer.certificate_pem, answer.expires_at, issued_at=2_000.0
        )
        await house.renew(renewed.key_pem, renewed.certificate_pem)

        assert renewed.certificate_pem != identity.certificate_pem
        assert renewed == Identity.load(tmp_path / "identity")
        assert renewed == replace(
            identity, certificate_pem=answer.certificate_pem, expires_at=answer.expires_at, issued_at=2_000.0
        )
        assert house.link.callers == [ServerIdentity("web-1")] * 2

    async def test_server_that_asks_for_another_servers_name_gets_its_own(self, house):
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.UniformResourceIdentifier("galactica:server:web-2")]
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        csr = request.add_extension(x509.SubjectAlternativeName(names), critical=True).sign(
            key, hashes.SHA256()
        )

        answer = await house.renew(
            *server_credentials(house.ca, "web-1"), csr.public_bytes(serialization.Encoding.PEM)
        )

        certificate = x509.load_pem_x509_certificate(answer.certificate_pem)
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert [name.value for name in san] == ["galactica:server:web-1"]


class TestIdentityFiles:
    @pytest.fixture
    def identity(self, ca):
        key, csr = new_key_and_csr()
        issued = ca.issue_server(csr, "web-1")
        return Identity(
            "web-1",
            "alpha",
            "s:1",
            "s:2",
            1_000.0,
            4_600.0,
            key,
            csr,
            issued.certificate_pem,
            ca.certificate_pem,
        )

    def test_host_that_has_not_enrolled_has_no_identity(self, tmp_path):
        assert Identity.load(tmp_path / "nothing") is None

    def test_identity_is_read_as_it_was_stored_even_over_an_older_one(self, tmp_path, identity):
        store(tmp_path, replace(identity, server_id="old", key_pem=b"old"))
        store(tmp_path, identity)

        assert Identity.load(tmp_path) == identity

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
    def test_key_that_others_can_read_is_refused(self, tmp_path, identity, mode):
        store(tmp_path, identity)
        (tmp_path / "key.pem").chmod(mode)

        with pytest.raises(IdentityError, match="other users can read this host's private key"):
            Identity.load(tmp_path)

    @pytest.mark.parametrize("name", ["key.pem", "csr.pem", "cert.pem", "ca.pem"])
    def test_missing_file_is_a_clear_error(self, tmp_path, identity, name):
        store(tmp_path, identity)
        (tmp_path / name).unlink()

        with pytest.raises(IdentityError, match=r"is damaged .*enrol this host again"):
            Identity.load(tmp_path)

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"server_id": 1}', "nonsense"])
    def test_damaged_facts_are_a_clear_error(self, tmp_path, identity, content):
        store(tmp_path, identity)
        (tmp_path / "identity.json").write_text(content)

        with pytest.raises(IdentityError, match=r"is damaged .*enrol this host again"):
            Identity.load(tmp_path)

    def test_renewal_is_due_after_two_thirds_of_the_life(self, identity):
        assert [identity.renew_at(now) for now in (1_000.0, 3_400.0, 3_500.0)] == [3_400.0, 3_400.0, 3_500.0]

    def test_clock_far_ahead_does_not_make_the_agent_renew_without_pause(self, identity):
        assert replace(identity, issued_at=9_000.0).renew_at(9_000.0) == 9_040.0

    def test_identity_expires_when_its_certificate_does(self, identity):
        assert [identity.has_expired(now) for now in (4_599.9, 4_600.0)] == [False, True]

    def test_key_is_not_shown_when_an_identity_is_printed(self, identity):
        assert "PRIVATE KEY" not in repr(identity)

    async def test_daemon_loads_no_cryptographic_library_for_its_identity(self):
        code = (
            "import sys, galactica.agent.link.identity; "
            "print([name for name in ('cryptography', 'OpenSSL', 'cffi') if name in sys.modules])"
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            code,
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": "."},
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await process.communicate()

        assert said.decode().strip() == "[]"


async def test_no_secret_is_ever_logged(house, caplog, capfd, tmp_path):
    caplog.set_level("DEBUG")
    spent, right = house.book.create_token(house.ca), house.book.create_token(house.ca)
    wrong = right.replace(secret_of(right), "w" * 32)
    damaged = right[:-1]
    elsewhere, _, _ = new_token("0" * 64)
    await house.enrol(spent, "web-1")

    told = [await house.refused(token) for token in (spent, wrong, damaged, elsewhere)]
    code, said = await run_agent_enrol(
        "--server-id", "web-2", "--directory", str(tmp_path / "identity"), "--token", right,
        environment={"GRPC_VERBOSITY": "INFO"}, address=house.enrolment_address,
    )  # fmt: skip

    assert code == 0
    logged = caplog.text + "".join(capfd.readouterr())
    assert "enrolment refused" in logged
    assert "server enrolled" in logged
    everything = f"{told} {said} {logged}"
    assert [token for token in (spent, right, wrong, elsewhere) if secret_of(token) in everything] == []
