"""Whether a server whose certificate has ended may have a fresh one without a token.

Certificates are short-lived so that a stolen one is soon worth nothing; that must not make an outage of the
scheduler one of the fleet. So an ended certificate still names its server for ``LATEST_SECONDS``, together with a
request (CSR) that its own key has signed. Requests are made once and sent again, so such a pair may be replayed
by whoever saw it; that gains them nothing, since what is issued is for the same key and of no use without it.
A thief of the key itself is shut out as with the link: by draining the server.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import ExtendedKeyUsageOID

from galactica.scheduler.core.model.fleet import Fleet, Phase
from galactica.scheduler.security.ca import CertificateAuthority, CsrError, public_key_of
from galactica.scheduler.security.identities import IdentityError, ServerIdentity, identity_in

LATEST_SECONDS = 30 * 86_400.0
"""How long after its end a certificate can be renewed: longer than any outage that somebody means to end, and
short enough that a disk found in a drawer is no server any more."""

_ANEW = "make a token with 'galactica token create' at the scheduler and start the agent with it (--token-file FILE)"


class NotRenewed(Exception):
    """Refused; the message says why and what to do. ``server``: empty where the certificate proves none."""

    def __init__(self, reason: str, server: str = "") -> None:
        super().__init__(f"{reason}; {_ANEW}")
        self.server = server


def server_to_renew(
    ca: CertificateAuthority, fleet: Fleet, certificate_pem: bytes, csr_pem: bytes, now: float
) -> str:
    """The id of the server that a fresh certificate is for. ``now``: Unix seconds. Raises NotRenewed."""
    certificate = _of_a_client(ca, certificate_pem)
    server = _server_in(certificate)
    _check_key(certificate, csr_pem, server)
    if now > certificate.not_valid_after_utc.timestamp() + LATEST_SECONDS:
        ended = certificate.not_valid_after_utc.strftime("%Y-%m-%d %H:%M:%S UTC")
        days = LATEST_SECONDS / 86_400
        raise NotRenewed(
            f"the certificate of server {server} ended at {ended}, more than {days:g} days ago", server
        )
    _check_member(fleet, server)
    return server


def _of_a_client(ca: CertificateAuthority, certificate_pem: bytes) -> x509.Certificate:
    """Our own CA's signature comes before anything that the certificate says."""
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise NotRenewed("what was sent is no readable certificate in PEM form") from error
    if not ca.has_issued(certificate):
        raise NotRenewed("the certificate was not issued by this fleet's CA")
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound as error:
        raise NotRenewed("the certificate is no server's: it is the CA's own") from error
    if list(usages) != [ExtendedKeyUsageOID.CLIENT_AUTH]:
        raise NotRenewed("the certificate is no server's: it is a scheduler's")
    return certificate


def _server_in(certificate: x509.Certificate) -> str:
    try:
        identity = identity_in(certificate)
    except IdentityError as error:
        raise NotRenewed(str(error)) from error
    if not isinstance(identity, ServerIdentity):
        raise NotRenewed(f"the certificate is no server's: it is that of {identity}")
    return identity.server_id


def _check_key(certificate: x509.Certificate, csr_pem: bytes, server: str) -> None:
    try:
        key = public_key_of(csr_pem)
    except CsrError as error:
        raise NotRenewed(str(error), server) from error
    if key != certificate.public_key():
        raise NotRenewed(
            f"the certificate request is for another key than the certificate of server {server}", server
        )


def _check_member(fleet: Fleet, server: str) -> None:
    """Whoever could renew over the link; lost ones too, for they may join again."""
    known = fleet.servers.get(server)
    if known is None:
        raise NotRenewed(f"server {server} is not in this fleet", server)
    if known.phase is Phase.DECOMMISSIONED and known.is_drained:
        raise NotRenewed(f"server {server} was drained", server)
