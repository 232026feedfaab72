"""The fleet's certificate authority.

One CA per fleet, made at the first start. It issues three kinds of certificates, and none of them can replace
another: the scheduler's is only valid for a TLS server (EKU serverAuth), those of servers and operators only for
TLS clients (clientAuth). One SAN URI identifies a client (``identities``); subjects are only for people to read.
From a request (CSR) only the public key is used: the identity comes from the caller of this module, never from the
request.

The CA's own certificate also contains the fleet's id (``settings.fleet_id``).

Times are Unix seconds; certificates round them down to whole seconds.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
import secrets
import stat
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from msgspec import Struct

from galactica.scheduler.core.model.fleet import SERVER_ID
from galactica.scheduler.security.identities import (
    OPERATOR_NAME,
    OperatorIdentity,
    Role,
    ServerIdentity,
    uri_of,
)
from galactica.scheduler.security.parts import key_usage, name_of
from galactica.scheduler.security.times import doubt_of, moment, words
from galactica.scheduler.settings.fleet_id import fleet_id_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

SCHEDULER_NAME = "scheduler.galactica"
"""The DNS name in every scheduler certificate. Clients check this name (``grpc.ssl_target_name_override``), not the
address that they dial, so a scheduler can be reached by any name and can move."""

AUTHORITY_FILE = "authority.pem"
"""Key and certificate in one file, so the file is either complete or absent. It is the only file of the CA that needs
a backup."""

SERVER_TTL_SECONDS = 3_600.0

_CA_TTL_SECONDS = 10 * 365 * 86_400.0
_BEGIN = 0.0
"""From when on certificates are valid: always. Only their end means something. A host whose clock is behind must not
shut out what is newer than its clock, nor may one that was ahead for a moment make what nobody accepts for weeks."""

_CSR_BYTES_LIMIT = 16_384
_RSA_BITS = range(2_048, 8_193)
"""Shorter keys can be broken; longer keys would let anybody keep the scheduler busy."""
_FLEET_ID_BYTES = 8
_KEY_BYTES = 32
_FLEET_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,64}")
"""64 is X.520's limit for an organisation name (ub-organization-name)."""
_CERTIFICATE_BEGINS = b"-----BEGIN CERTIFICATE-----"


class AuthorityError(Exception):
    """The CA cannot be opened or cannot issue; the message says what to do."""


class CsrError(AuthorityError):
    """The certificate request is malformed, its signature is invalid or its key is too weak."""


class ClockError(Exception):
    """The wall clock cannot be right, so nothing that lasts is made by it. All that was made before stays valid."""


class Issued(Struct, frozen=True):
    certificate_pem: bytes
    expires_at: float


class CertificateAuthority:
    """Signs with the fleet's key. Made by ``open_or_create``; keeps the key in memory."""

    def __init__(
        self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, now: Callable[[], float]
    ) -> None:
        self._key = key
        self._certificate = certificate
        self.now = now
        """The wall clock in Unix seconds: whoever checks a certificate goes by it too."""
        self.certificate_pem = certificate.public_bytes(serialization.Encoding.PEM)
        self.digest = hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()
        """SHA-256 (hex) of the certificate's DER form. Join tokens contain it."""
        self.fleet_id = fleet_id_of(self.certificate_pem.decode())
        """What tells this fleet from another of the same name."""
        self.expires_at = certificate.not_valid_after_utc.timestamp()

    @classmethod
    def open_or_create(cls, directory: Path, fleet: str, now: Callable[[], float] = time.time) -> Self:
        """The CA of ``fleet`` in ``directory``; a new one if there is none. Blocks on the disk.

        Raises AuthorityError: the key can be read by others or does not belong to its certificate, the CA has
        expired or is another fleet's, the file is damaged or the directory cannot be written. Raises ClockError: there
        is none, and the clock is wrong."""
        path = directory / AUTHORITY_FILE
        try:
            if not path.exists():
                _create(path, fleet, now())
            key, certificate = _read(path)
        except OSError as error:
            raise AuthorityError(f"cannot open the CA in {directory}: {error.strerror or error}") from error
        _check(path, key, certificate, fleet, now())
        return cls(key, certificate, now)

    def secret_for(self, purpose: str) -> bytes:
        """32 secret bytes derived from the fleet's key: the same for every scheduler that has the key."""
        encoding, form = serialization.Encoding.DER, serialization.PrivateFormat.PKCS8
        key = self._key.private_bytes(encoding, form, serialization.NoEncryption())
        return hmac.digest(key, purpose.encode(), "sha256")

    def key_for(self, purpose: bytes) -> bytes:
        """256 bits for what outlives this program: made from the private number, not from how a library writes it."""
        number = self._key.private_numbers().private_value
        material = number.to_bytes((self._key.key_size + 7) // 8, "big")
        salt = self.fleet_id.encode("ascii")
        return HKDF(hashes.SHA256(), _KEY_BYTES, salt, purpose).derive(material)

    def check(self, csr_pem: bytes) -> None:
        """Raises the same errors as issuing a certificate for this request, but issues nothing."""
        public_key_of(csr_pem)
        _check_clock(self.now())
        self._validity(1.0)

    def has_issued(self, certificate: x509.Certificate) -> bool:
        """Whether this CA's key signed the certificate. It does not check whether the certificate is still valid."""
        try:
            certificate.verify_directly_issued_by(self._certificate)
        except (InvalidSignature, ValueError, TypeError):  # another name, signature or kind of key
            return False
        return True

    def issue_server(self, csr_pem: bytes, server_id: str, ttl_seconds: float = SERVER_TTL_SECONDS) -> Issued:
        """A client certificate for ``server_id``. Raises CsrError, AuthorityError, ClockError."""
        if SERVER_ID.fullmatch(server_id) is None:
            raise AuthorityError("cannot issue a certificate: invalid server id")
        return self._issue_client(csr_pem, "server", uri_of(ServerIdentity(server_id)), ttl_seconds)

    def issue_operator(self, csr_pem: bytes, name: str, role: Role, ttl_seconds: float) -> Issued:
        """A client certificate for an operator. Raises CsrError, AuthorityError, ClockError."""
        if OPERATOR_NAME.fullmatch(name) is None:
            raise AuthorityError(
                "invalid operator name: use 1 to 64 letters, digits and - . _ @ +; "
                "begin with a letter or digit"
            )
        return self._issue_client(csr_pem, "operator", uri_of(OperatorIdentity(name, role)), ttl_seconds)

    def issue_scheduler(self, hosts: Iterable[str] = ()) -> tuple[bytes, bytes]:
        """A new key and certificate (PEM) for the scheduler's own ports, valid as long as the CA.

        Each start makes a new one and its key stays in memory, so it may live long, and it does not need the right
        time. ``hosts``: names and addresses that clients may verify, besides SCHEDULER_NAME and those of localhost."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = dict.fromkeys([SCHEDULER_NAME, "localhost", "127.0.0.1", "::1", *hosts])
        certificate = self._issue(
            key.public_key(),
            "scheduler",
            [_general_name(name) for name in names],
            ExtendedKeyUsageOID.SERVER_AUTH,
            self.expires_at - self.now(),
        )
        return _key_pem(key), certificate.certificate_pem

    def _issue_client(self, csr_pem: bytes, kind: str, uri: str, ttl_seconds: float) -> Issued:
        _check_clock(self.now())
        names = [x509.UniformResourceIdentifier(uri)]
        return self._issue(public_key_of(csr_pem), kind, names, ExtendedKeyUsageOID.CLIENT_AUTH, ttl_seconds)

    def _issue(
        self,
        public_key: PublicKey,
        kind: str,
        names: Sequence[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        ttl_seconds: float,
    ) -> Issued:
        not_before, not_after = self._validity(ttl_seconds)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name_of(_fleet_of(self._certificate), kind))
            .issuer_name(self._certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(not_before)
            .not_valid_after(not_after)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(is_ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        return Issued(certificate.public_bytes(serialization.Encoding.PEM), not_after.timestamp())

    def _validity(self, ttl_seconds: float) -> tuple[datetime, datetime]:
        now = self.now()
        if now >= self.expires_at:
            raise AuthorityError(
                f"the CA expired at {words(self.expires_at)} and can no longer issue certificates"
            )
        return moment(_BEGIN), moment(min(now + ttl_seconds, self.expires_at))


def new_key_and_csr() -> tuple[bytes, bytes]:
    """A new private key and a request for it, both PEM. The request contains nothing but the public key."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return _key_pem(key), request.public_bytes(serialization.Encoding.PEM)


def public_key_of(csr_pem: bytes) -> PublicKey:
    """The public key of a request. Raises CsrError, also if the request is not signed with this key."""
    if len(csr_pem) > _CSR_BYTES_LIMIT:
        raise CsrError(f"the certificate request is longer than {_CSR_BYTES_LIMIT} bytes")
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        key = request.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CsrError("the certificate request is not a valid PKCS#10 request in PEM form") from error
    match key:
        case ec.EllipticCurvePublicKey(curve=ec.SECP256R1() | ec.SECP384R1()):
            pass
        case rsa.RSAPublicKey(key_size=bits) if bits in _RSA_BITS:
            pass
        case _:
            raise CsrError(
                "unsupported key in the certificate request: use EC P-256, EC P-384 or RSA with 2048 to 8192 bits"
            )
    try:
        is_valid = request.is_signature_valid
    except (InvalidSignature, ValueError, UnsupportedAlgorithm):
        is_valid = False
    if not is_valid:
        raise CsrError(
            "the certificate request's signature is invalid: it was not made with the request's key"
        )
    return key


def _create(path: Path, fleet: str, now: float) -> None:
    """Make the CA. If two processes try at once, the first CA stays, because a link never replaces a file."""
    if _FLEET_NAME.fullmatch(fleet) is None:
        raise AuthorityError("invalid fleet name: use 1 to 64 printable characters")
    _check_clock(now)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _self_signed(key, fleet, now).public_bytes(serialization.Encoding.PEM)
    descriptor, temporary = tempfile.mkstemp(prefix=".new-", dir=path.parent)  # 0600 from the start
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(_key_pem(key) + certificate)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
    finally:
        Path(temporary).unlink()
    _sync_directory(path.parent)


def _self_signed(key: ec.EllipticCurvePrivateKey, fleet: str, now: float) -> x509.Certificate:
    fleet_id = x509.NameAttribute(NameOID.SERIAL_NUMBER, secrets.token_hex(_FLEET_ID_BYTES))
    name = x509.Name([*name_of(fleet, "Galactica CA"), fleet_id])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment(_BEGIN))
        .not_valid_after(moment(now + _CA_TTL_SECONDS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(is_ca=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )


def _read(path: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise AuthorityError(
                f"{path} contains the CA's private key, and users other than its owner can read it; "
                f"if nobody has read it, run 'chmod 600 {path}', otherwise make a new CA"
            )
        key_pem, begins, certificate_pem = file.read().partition(_CERTIFICATE_BEGINS)
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
        certificate = x509.load_pem_x509_certificate(begins + certificate_pem)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise AuthorityError(
            f"{path} is damaged: it does not contain a key and a certificate; restore it from a backup"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise AuthorityError(
            f"the key in {path} is not an elliptic curve key; restore the file from a backup"
        )
    return key, certificate


def _check(
    path: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, fleet: str, now: float
) -> None:
    if certificate.public_key() != key.public_key():
        raise AuthorityError(
            f"the private key in {path} does not belong to the certificate there; restore the file from a backup"
        )
    if now >= certificate.not_valid_after_utc.timestamp():
        ended = words(certificate.not_valid_after_utc.timestamp())
        raise AuthorityError(
            f"the CA in {path} expired at {ended}; move the file away to make a new CA, "
            "then enrol every agent again"
        )
    if _fleet_of(certificate) != fleet:
        raise AuthorityError(
            f"the CA in {path} belongs to the fleet '{_fleet_of(certificate)}', not to '{fleet}'; "
            "use the right fleet name or another directory"
        )


def _check_clock(now: float) -> None:
    if doubt := doubt_of(now):
        raise ClockError(f"{doubt}. Set the clock, then start again")


def _fleet_of(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return str(names[0].value) if names else ""


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host.encode("idna").decode("ascii"))
    except ValueError as error:
        raise AuthorityError(f"invalid host '{host}': use an IP address or a host name") from error


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
