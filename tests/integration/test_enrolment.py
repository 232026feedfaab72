"""Enrolment, renewal and who gets in: real gRPC and TLS on loopback, the agent's side as its own process."""

import json
import stat

import grpc
import pytest

from galactica.agent.link.identity import Identity, channel_options
from galactica.scheduler.core.model import requests
from galactica.scheduler.security.ca import CertificateAuthority, new_key_and_csr
from galactica.scheduler.security.identities import Role, ServerIdentity
from galactica.scheduler.security.tokens import new_token, parse_token
from galactica.scheduler.serve.listeners import enrolment_credentials
from galactica.v1 import link_pb2, link_pb2_grpc
from tests.support.enrolment_world import (
    CALL_SECONDS,
    LOOPBACK,
    House,
    Link,
    TokenBook,
    enrolment_server,
    link_server,
    run_agent_enrol,
    secret_of,
    serving,
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

    async def test_clock_that_cannot_be_right_costs_no_token_and_the_agent_may_try_again(self, house):
        token = house.book.create_token(house.ca)
        house.ca.now = lambda: 31_536_000.0

        with pytest.raises(grpc.aio.AioRpcError, match="shows 1971-01-01") as refusal:
            await house.enrol(token, "web-1")

        assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
        assert house.book.asked == []

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
                "the join token is for a scheduler with another CA; create a token with this scheduler",
            ),
            (
                grpc.StatusCode.UNAUTHENTICATED,
                "this is not a join token: a token begins with 'gal1.'; make one with 'galactica token create'",
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
