"""Who gets a fresh certificate for one that has ended: the enrolment's real port, with the real core behind it."""

import contextlib
import time
from dataclasses import dataclass

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from galactica.agent.link.identity import channel_options
from galactica.scheduler.core.model.requests import Asker, DrainServer
from galactica.scheduler.core.sight.observations import Attached, Detached, ServerFacts
from galactica.scheduler.security.ca import CertificateAuthority, new_key_and_csr
from galactica.scheduler.security.enrolment import EnrolmentService
from galactica.scheduler.security.identities import Role, ServerIdentity, identity_in
from galactica.scheduler.serve.listeners import enrolment_credentials, make_enrolment_server
from galactica.v1 import link_pb2, link_pb2_grpc
from tests.support.memory_mind import MemoryMind

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
DAY = 86_400.0
ANEW = "; make a token with 'galactica token create' at the scheduler and start the agent with it (--token-file FILE)"


class Mind(MemoryMind):
    """Its time passes by hand."""

    def __init__(self):
        self.at = time.time()
        super().__init__()

    def now(self):
        return self.at

    def pass_seconds(self, seconds):
        end = self.at + seconds
        while self.at < end:
            self.at += 0.5
            self._finish(self.core.turn([], self.at))
            self.settle()

    async def attach(self, server):
        await self.observe(Attached(server, f"s-{server}", self.now(), ServerFacts()))


@dataclass
class House:
    """A scheduler's enrolment port; "web-1" is in the fleet."""

    ca: CertificateAuthority
    mind: Mind
    address: str

    def ended(self, seconds_ago, server="web-1", ca=None):
        """A certificate that ended so long ago (still holds: negative), and the request it was made for."""
        _, csr = new_key_and_csr()
        return (ca or self.ca).issue_server(csr, server, -seconds_ago).certificate_pem, csr

    async def renew(self, certificate_pem, csr_pem):
        credentials = grpc.ssl_channel_credentials(self.ca.certificate_pem)
        async with grpc.aio.secure_channel(self.address, credentials, channel_options()) as channel:
            request = link_pb2.RenewExpiredRequest(certificate_pem=certificate_pem, csr_pem=csr_pem)
            return await link_pb2_grpc.EnrolmentServiceStub(channel).RenewExpired(request, timeout=20)

    async def refused(self, certificate_pem, csr_pem):
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await self.renew(certificate_pem, csr_pem)
        return refusal.value.code(), refusal.value.details()


def earlier(directory, seconds):
    """The CA in ``directory`` as it was so long ago."""
    return CertificateAuthority.open_or_create(directory, "alpha", lambda: time.time() - seconds)


@pytest.fixture
def old_ca(tmp_path):
    """The fleet's CA, 40 days ago: certificates that ended long ago come from it."""
    return earlier(tmp_path / "ca", 40 * DAY)


@pytest.fixture
async def house(tmp_path, old_ca):
    ca = CertificateAuthority.open_or_create(tmp_path / "ca", "alpha")
    assert ca.digest == old_ca.digest
    mind = Mind()
    await mind.enrol("web-1")
    await mind.attach("web-1")
    server, port = make_enrolment_server(
        EnrolmentService(ca, mind, "alpha", 3_600),
        "127.0.0.1:0",
        enrolment_credentials(ca, *ca.issue_scheduler()),
    )
    async with contextlib.AsyncExitStack() as stack:
        await server.start()
        stack.push_async_callback(server.stop, None)
        yield House(ca, mind, f"127.0.0.1:{port}")


def facts_of(certificate_pem):
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    return identity_in(certificate), certificate.public_key()


class TestWhoGetsOne:
    @pytest.mark.parametrize("seconds_ago", [-600.0, 1.0, 3_600.0, 10 * DAY, 30 * DAY - 60.0])
    async def test_server_of_the_fleet_for_thirty_days_after_its_certificate_ended(
        self, house, old_ca, seconds_ago
    ):
        certificate, csr = house.ended(seconds_ago - 40 * DAY, ca=old_ca)

        earliest = int(time.time()) + 3_600  # certificates count whole seconds
        answer = await house.renew(certificate, csr)
        latest = time.time() + 3_600

        assert facts_of(answer.certificate_pem) == facts_of(certificate)
        assert house.ca.has_issued(x509.load_pem_x509_certificate(answer.certificate_pem))
        assert earliest <= answer.expires_at <= latest

    async def test_server_that_was_lost_meanwhile(self, house):
        await house.mind.observe(Detached("web-1", "s-web-1", house.mind.now(), "cut off"))
        house.mind.pass_seconds(30.0)
        server = house.mind.view().fleet.servers["web-1"]
        assert (server.phase, server.is_lost) == ("DECOMMISSIONED", True)

        answer = await house.renew(*house.ended(60.0))

        assert facts_of(answer.certificate_pem)[0] == ServerIdentity("web-1")

    async def test_nobody_while_the_schedulers_clock_cannot_be_right_and_the_agent_may_try_again(self, house):
        pair = house.ended(60.0)
        right, house.ca.now = house.ca.now, lambda: 31_536_000.0

        code, details = await house.refused(*pair)

        assert code is grpc.StatusCode.UNAVAILABLE
        assert "shows 1971-01-01" in details
        house.ca.now = right
        assert (await house.renew(*pair)).certificate_pem

    async def test_same_request_may_come_again(self, house):
        pair = house.ended(60.0)

        answers = [await house.renew(*pair) for _ in range(2)]

        assert [facts_of(one.certificate_pem) for one in answers] == [facts_of(pair[0])] * 2


class TestWhoDoesNot:
    async def test_server_of_another_ca_of_the_same_name(self, house, tmp_path):
        other = CertificateAuthority.open_or_create(tmp_path / "other", "alpha")

        assert await house.refused(*house.ended(60.0, ca=other)) == (
            UNAUTHENTICATED,
            "the certificate was not issued by this fleet's CA" + ANEW,
        )

    async def test_operator(self, house):
        _, csr = new_key_and_csr()
        certificate = house.ca.issue_operator(csr, "ann", Role.ADMIN, -60.0).certificate_pem

        assert await house.refused(certificate, csr) == (
            UNAUTHENTICATED,
            "the certificate belongs to operator:ann, not to a server" + ANEW,
        )

    async def test_scheduler_and_ca_themselves(self, house):
        _, csr = new_key_and_csr()
        _, schedulers = house.ca.issue_scheduler()

        assert [await house.refused(one, csr) for one in (schedulers, house.ca.certificate_pem)] == [
            (UNAUTHENTICATED, "the certificate belongs to a scheduler, not to a server" + ANEW),
            (UNAUTHENTICATED, "the certificate belongs to the CA itself, not to a server" + ANEW),
        ]

    async def test_holder_of_another_key(self, house):
        certificate, _ = house.ended(60.0)
        _, csr = new_key_and_csr()

        assert await house.refused(certificate, csr) == (
            UNAUTHENTICATED,
            "the certificate request has another key than the certificate of server web-1" + ANEW,
        )

    async def test_request_that_its_key_did_not_sign(self, house):
        certificate, csr = house.ended(60.0)
        whole = x509.load_pem_x509_csr(csr)
        body = bytearray(whole.public_bytes(Encoding.DER))
        body[-1] ^= 1
        forged = x509.load_der_x509_csr(bytes(body)).public_bytes(Encoding.PEM)

        code, says = await house.refused(certificate, forged)

        assert (code, "signature is invalid" in says) == (UNAUTHENTICATED, True)

    async def test_server_whose_certificate_ended_more_than_thirty_days_ago(self, house, old_ca):
        code, says = await house.refused(*house.ended(30 * DAY + 60.0 - 40 * DAY, ca=old_ca))

        assert code == UNAUTHENTICATED
        assert says.startswith("the certificate of server web-1 expired at ")
        assert says.endswith(" UTC, more than 30 days ago" + ANEW)

    async def test_server_that_was_drained(self, house):
        await house.mind.ask(DrainServer("web-1"), Asker.operator("ann"))
        house.mind.settle()
        assert house.mind.view().fleet.servers["web-1"].phase == "DECOMMISSIONED"

        assert await house.refused(*house.ended(60.0)) == (UNAUTHENTICATED, "server web-1 was drained" + ANEW)

    async def test_server_that_the_fleet_does_not_know(self, house):
        assert await house.refused(*house.ended(60.0, "web-2")) == (
            UNAUTHENTICATED,
            "server web-2 is not in this fleet" + ANEW,
        )

    @pytest.mark.parametrize("damaged", ["certificate", "request"])
    async def test_what_cannot_be_read(self, house, damaged):
        certificate, csr = house.ended(60.0)
        pair = (b"nothing", csr) if damaged == "certificate" else (certificate, b"nothing")

        code, says = await house.refused(*pair)

        assert (code, "in PEM form" in says, says.endswith(ANEW)) == (UNAUTHENTICATED, True, True)

    async def test_anybody_for_a_moment_while_too_many_failed(self, house):
        codes = [(await house.refused(b"nothing", b""))[0] for _ in range(51)]
        pair = house.ended(60.0)
        held_back = await house.refused(*pair)
        house.mind.at += 1.0
        answer = await house.renew(*pair)

        assert codes == [UNAUTHENTICATED] * 50 + [grpc.StatusCode.RESOURCE_EXHAUSTED]
        assert held_back == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "too many failed enrolments; try again in 0.2 s",
        )
        assert facts_of(answer.certificate_pem) == facts_of(pair[0])
