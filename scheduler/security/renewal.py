"""Decides whether a server whose certificate has expired gets a new one without a token.

Certificates are short-lived, so that a stolen one soon becomes useless. But an outage of the scheduler must not
become an outage of the fleet. So for ``LATEST_SECONDS`` an expired certificate still identifies its server, together
with a request (CSR) signed by the certificate's own key. An agent sends the same request again and again, so
somebody who has seen the pair can replay it. They gain nothing: the new certificate is for the same key and useless
without it. If the key itself is stolen, drain the server; this shuts out the thief, as it does on the link.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import ExtendedKeyUsageOID

from galactica.scheduler.core.membership import ShutOut, shut_out_of_renewal
from galactica.scheduler.core.model.fleet import Fleet
from galactica.scheduler.security.ca import CertificateAuthority, CsrError, public_key_of
from galactica.scheduler.security.identities import IdentityError, ServerIdentity, identity_in

LATEST_SECONDS = 30 * 86_400.0
"""How long after its end a certificate can be renewed: longer than a real outage, but short enough that an old disk
is not accepted as a server."""

_HINT = "make a token with 'galactica token create' at the scheduler and start the agent with it (--token-file FILE)"


TOO_OLD = "too_old"
"""The rule that refuses for the time alone. An agent whose own clock says otherwise tries again."""


class NotRenewed(Exception):
    """Refused; the message says why and what to do. ``server``: empty if the certificate does not prove one. ``rule``:
    for the agent; empty if nothing but a new enrolment helps."""

    def __init__(self, reason: str, server: str = "", rule: str = "") -> None:
        super().__init__(f"{reason}; {_HINT}")
        self.server = server
        self.rule = rule


def server_to_renew(
    ca: CertificateAuthority, fleet: Fleet, certificate_pem: bytes, csr_pem: bytes, now: float
) -> str:
    """The id of the server that gets the new certificate. ``now``: Unix seconds. Raises NotRenewed."""
    certificate = _of_a_client(ca, certificate_pem)
    server = _server_in(certificate)
    _check_key(certificate, csr_pem, server)
    if now > certificate.not_valid_after_utc.timestamp() + LATEST_SECONDS:
        ended = certificate.not_valid_after_utc.strftime("%Y-%m-%d %H:%M:%S UTC")
        days = LATEST_SECONDS / 86_400
        raise NotRenewed(
            f"the certificate of server {server} expired at {ended}, more than {days:g} days ago",
            server,
            TOO_OLD,
        )
    _check_member(fleet, server)
    return server


def _of_a_client(ca: CertificateAuthority, certificate_pem: bytes) -> x509.Certificate:
    """The client certificate in the request. Checks our CA's signature before reading anything else from it."""
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise NotRenewed("the request does not contain a valid certificate in PEM form") from error
    if not ca.has_issued(certificate):
        raise NotRenewed("the certificate was not issued by this fleet's CA")
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound as error:
        raise NotRenewed("the certificate belongs to the CA itself, not to a server") from error
    if list(usages) != [ExtendedKeyUsageOID.CLIENT_AUTH]:
        raise NotRenewed("the certificate belongs to a scheduler, not to a server")
    return certificate


def _server_in(certificate: x509.Certificate) -> str:
    try:
        identity = identity_in(certificate)
    except IdentityError as error:
        raise NotRenewed(str(error)) from error
    if not isinstance(identity, ServerIdentity):
        raise NotRenewed(f"the certificate belongs to {identity}, not to a server")
    return identity.server_id


def _check_key(certificate: x509.Certificate, csr_pem: bytes, server: str) -> None:
    try:
        key = public_key_of(csr_pem)
    except CsrError as error:
        raise NotRenewed(str(error), server) from error
    if key != certificate.public_key():
        raise NotRenewed(
            f"the certificate request has another key than the certificate of server {server}", server
        )


def _check_member(fleet: Fleet, server: str) -> None:
    """Accepts the same servers as renewal over the link."""
    match shut_out_of_renewal(fleet, server):
        case ShutOut.UNKNOWN:
            raise NotRenewed(f"server {server} is not in this fleet", server)
        case ShutOut.DRAINED:
            raise NotRenewed(f"server {server} was drained", server)
