"""Enrolment of this host. It runs as a short process of its own, so that the daemon does not load its libraries.

    python -m galactica.agent.link.enrol --scheduler-enrol HOST:PORT --server-id ID --directory DIR [--token-file FILE]

The host does not know the scheduler yet. It trusts only its join token, which contains the digest of the CA. So it
first reads the other side's certificates without verification and picks the one with this digest. Then it opens a
second connection with that CA as its only root, and sends the token over it. The host creates its own key, which
never leaves it. A token in a file or in GALACTICA_TOKEN does not show in ``ps``.

Exit codes: 0 enrolled, 1 refused or failed, 2 wrong usage, 3 scheduler not reachable or busy (try again).
"""

from __future__ import annotations

import argparse
import os
import re
import select
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Never

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL

from galactica.agent.link.identity import SCHEDULER_NAME, Identity, channel_options, prepare, store
from galactica.agent.log import open_standard_streams, tell
from galactica.v1 import link_pb2, link_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3

TOKEN_VARIABLE = "GALACTICA_TOKEN"  # noqa: S105 (a name, no token)

_TOKEN = re.compile(r"gal1\.[0-9a-f]+\.[A-Za-z0-9_-]+\.(?P<ca_digest>[0-9a-f]{64})")
"""The scheduler's format. Only the digest is used here."""
_TOKEN_BYTES_LIMIT = 4_096
_TRY_AGAIN = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}
)


class EnrolmentError(Exception):
    """The host is not enrolled and nothing was written. The message is for people, ``exit_code`` for programs."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Application:
    """A host's request. ``enrolment``: "HOST:PORT". ``scheduler``: the address of the link, which is only stored for
    the daemon."""

    enrolment: str
    server_id: str
    token: str = field(repr=False)
    scheduler: str = ""
    timeout_seconds: float = 30.0


def enrol(application: Application) -> Identity:
    """Enrol at the scheduler. Writes nothing. Blocks up to ``timeout_seconds``. Raises EnrolmentError."""
    token = _TOKEN.fullmatch(application.token)
    if token is None:
        raise EnrolmentError("invalid join token: check that it was copied completely", EXIT_USAGE)
    deadline = time.monotonic() + application.timeout_seconds
    ca = _pinned(_presented_chain(application.enrolment, deadline), token["ca_digest"], application.enrolment)
    ca_pem = ca.public_bytes(serialization.Encoding.PEM)
    key = ec.generate_private_key(ec.SECP256R1())
    csr_pem = _request_for(key)
    response = _call(application, ca_pem, csr_pem, deadline)
    _check_answer(response, key, application.enrolment)
    return Identity(
        server_id=application.server_id,
        fleet=response.fleet,
        scheduler=application.scheduler,
        enrolment=application.enrolment,
        issued_at=time.time(),
        expires_at=response.expires_at,
        key_pem=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        csr_pem=csr_pem,
        certificate_pem=response.certificate_pem,
        ca_pem=ca_pem,
    )


def _presented_chain(address: str, deadline: float) -> list[x509.Certificate]:
    """The other side's certificates, leaf first. They are not verified."""
    host, port = _host_and_port(address)
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_verify(SSL.VERIFY_NONE, lambda *_: True)
    context.set_alpn_protos([b"h2"])
    try:
        with socket.create_connection((host, port), timeout=_left(deadline)) as plain:
            plain.setblocking(False)
            connection = SSL.Connection(context, plain)
            connection.set_tlsext_host_name(SCHEDULER_NAME.encode())
            connection.set_connect_state()
            _handshake(connection, plain, deadline)
            return connection.get_peer_cert_chain(as_cryptography=True) or []
    except TimeoutError as error:
        raise EnrolmentError(
            f"no answer from {address}: check that it is the scheduler's enrolment port", EXIT_UNREACHABLE
        ) from error
    except OSError as error:
        message = f"cannot reach the scheduler at {address}: {error.strerror or error}"
        raise EnrolmentError(message, EXIT_UNREACHABLE) from error
    except SSL.Error as error:
        raise EnrolmentError(
            f"TLS handshake with {address} failed: check that it is the scheduler's enrolment port"
        ) from error


def _handshake(connection: SSL.Connection, plain: socket.socket, deadline: float) -> None:
    while True:
        try:
            connection.do_handshake()
        except SSL.WantReadError:
            ready, _, _ = select.select([plain], [], [], _left(deadline))
        except SSL.WantWriteError:
            _, ready, _ = select.select([], [plain], [], _left(deadline))
        else:
            return
        if not ready:
            raise TimeoutError


def _pinned(chain: Sequence[x509.Certificate], ca_digest: str, address: str) -> x509.Certificate:
    for certificate in chain:
        if certificate.fingerprint(hashes.SHA256()).hex() == ca_digest:
            _check_leaf(chain[0], certificate, address)
            return certificate
    raise EnrolmentError(
        f"the scheduler at {address} does not have the CA to which the token is pinned; "
        "check the address, or create a token with this scheduler"
    )


def _check_leaf(leaf: x509.Certificate, ca: x509.Certificate, address: str) -> None:
    """TLS checks this again, and more. This check gives a better message if the other side shows a CA that did not
    issue its certificate."""
    try:
        leaf.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise EnrolmentError(
            f"the scheduler at {address} presents the token's CA, but that CA did not issue its certificate: "
            "somebody may be intercepting the connection; the token was not sent"
        ) from error


def _request_for(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A certificate request with the key only: the scheduler chooses the certificate's subject."""
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def _call(application: Application, ca_pem: bytes, csr_pem: bytes, deadline: float) -> link_pb2.EnrolResponse:
    request = link_pb2.EnrolRequest(token=application.token, server_id=application.server_id, csr_pem=csr_pem)
    credentials = grpc.ssl_channel_credentials(root_certificates=ca_pem)
    with grpc.secure_channel(application.enrolment, credentials, options=channel_options()) as channel:
        try:
            return link_pb2_grpc.EnrolmentServiceStub(channel).Enrol(request, timeout=_left(deadline))
        except grpc.RpcError as error:
            raise _failure_of(error, application.enrolment) from None


def _failure_of(error: grpc.RpcError, address: str) -> EnrolmentError:
    if not isinstance(error, grpc.Call):
        return EnrolmentError(f"the scheduler at {address} did not enrol this host")
    code = error.code()
    message = f"the scheduler at {address} did not enrol this host: {error.details()} ({code.name})"
    return EnrolmentError(message, EXIT_UNREACHABLE if code in _TRY_AGAIN else EXIT_FAILED)


def _check_answer(response: link_pb2.EnrolResponse, key: ec.EllipticCurvePrivateKey, address: str) -> None:
    """Check the certificate before it replaces an identity that may still work."""
    try:
        certificate = x509.load_pem_x509_certificate(response.certificate_pem)
    except ValueError as error:
        raise EnrolmentError(f"the scheduler at {address} returned an unreadable certificate") from error
    if certificate.public_key() != key.public_key():
        raise EnrolmentError(f"the scheduler at {address} returned a certificate for another key")


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise EnrolmentError(f"invalid address '{address}': use HOST:PORT", EXIT_USAGE)
    return host, int(port)


def _left(deadline: float) -> float:
    """Seconds until the deadline. Never 0, which makes a socket non-blocking."""
    return max(0.001, deadline - time.monotonic())


def _token_of(arguments: argparse.Namespace) -> str:
    if arguments.token:
        return str(arguments.token).strip()
    if arguments.token_file:
        try:
            return (
                Path(arguments.token_file)
                .read_bytes()[:_TOKEN_BYTES_LIMIT]
                .decode("ascii", "replace")
                .strip()
            )
        except OSError as error:
            raise EnrolmentError(
                f"cannot read the token from {arguments.token_file}: {error.strerror}", EXIT_USAGE
            ) from error
    if token := os.environ.get(TOKEN_VARIABLE, "").strip():
        return token
    raise EnrolmentError(
        f"no join token given: use --token-file FILE, {TOKEN_VARIABLE} or --token; "
        "create a token with 'galactica token create'",
        EXIT_USAGE,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m galactica.agent.link.enrol",
        description="Enrol this host in a fleet: create its key and get its first certificate.",
        epilog="Exit codes: 0 enrolled, 1 refused or failed, 2 wrong usage, "
        "3 scheduler not reachable or busy (try again).",
    )
    add = parser.add_argument
    add(
        "--scheduler-enrol",
        required=True,
        metavar="HOST:PORT",
        help="address of the scheduler's enrolment port",
    )
    add(
        "--scheduler",
        default="",
        metavar="HOST:PORT",
        help="address of the scheduler's port for agents; stored for the agent",
    )
    add("--server-id", required=True, metavar="ID", help="name of this server in the fleet")
    add("--directory", required=True, type=Path, metavar="DIR", help="directory for the identity (mode 0700)")
    token = parser.add_mutually_exclusive_group()
    token.add_argument("--token-file", metavar="FILE", help="file with the join token")
    token.add_argument("--token", help=f"join token; visible in ps, unlike the variable {TOKEN_VARIABLE}")
    add(
        "--timeout",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="maximum time for the enrolment (default: 30)",
    )
    return parser


def run(argv: Sequence[str]) -> int:
    """Enrol and store the identity. Returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        application = Application(
            enrolment=arguments.scheduler_enrol,
            server_id=arguments.server_id,
            token=_token_of(arguments),
            scheduler=arguments.scheduler,
            timeout_seconds=arguments.timeout,
        )
        prepare(arguments.directory)  # before the token is spent
        identity = enrol(application)
        store(arguments.directory, identity)
    except EnrolmentError as failure:
        return _say(str(failure), failure.exit_code)
    except OSError as error:
        return _say(
            f"cannot store the identity in {arguments.directory}: {error.strerror or error}", EXIT_FAILED
        )
    return _say(f"enrolled as server {identity.server_id} in fleet {identity.fleet}", EXIT_DONE)


def _say(message: str, exit_code: int) -> int:
    tell(message if exit_code == EXIT_DONE else f"error: {message}")
    return exit_code


def main() -> Never:
    open_standard_streams()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # our messages say more than gRPC's log
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
