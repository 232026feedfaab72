"""Renewing a certificate while it holds, and the files that keep an agent's identity."""

import asyncio
import os
import sys
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from galactica.agent.link.identity import Identity, IdentityError, store, store_renewed
from galactica.scheduler.security.ca import CertificateAuthority, new_key_and_csr
from galactica.scheduler.security.identities import ServerIdentity
from galactica.scheduler.security.tokens import new_token
from galactica.scheduler.serve.listeners import enrolment_credentials
from tests.support.enrolment_world import (
    REPOSITORY,
    House,
    Link,
    TokenBook,
    enrolment_server,
    link_server,
    run_agent_enrol,
    secret_of,
    server_credentials,
)


@pytest.fixture
def ca(tmp_path):
    return CertificateAuthority.open_or_create(tmp_path / "ca", "alpha")


@pytest.fixture
async def house(ca):
    key, certificate = ca.issue_scheduler()
    book, link = TokenBook(), Link(ca)
    async with (
        enrolment_server(ca, book, enrolment_credentials(ca, key, certificate)) as enrolment_address,
        link_server(ca, link, key, certificate) as link_address,
    ):
        yield House(ca, book, link, enrolment_address, link_address)


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
