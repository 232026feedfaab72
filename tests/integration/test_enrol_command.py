"""The agent's enrolment as a process of its own, and who gets in with the certificate."""

import asyncio
import time
from dataclasses import replace

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from galactica.scheduler.security.ca import CertificateAuthority, new_key_and_csr
from galactica.scheduler.security.identities import Role, ServerIdentity
from galactica.scheduler.security.tokens import new_token
from galactica.scheduler.serve.listeners import enrolment_credentials
from tests.support.enrolment_world import (
    LOOPBACK,
    House,
    Link,
    TokenBook,
    enrolment_server,
    link_server,
    run_agent_enrol,
    server_credentials,
)


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
