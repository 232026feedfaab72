"""Enrolment of this host: a short process of its own, so that the daemon never loads what it needs.

    python -m agent.enrol --scheduler-enrol HOST:PORT --server-id ID --directory DIR [--token-file FILE]

The host does not know the scheduler yet; all it trusts is its join token, which holds the digest of the CA.
So it first looks, unverified, at the certificates which the other side presents, takes the one that has this
digest, and only then opens the connection over which it tells the token, with that CA as its only root. It
makes its own key, which never leaves it. The token comes from a file or from GALACTICA_TOKEN where ``ps``
must not show it.

Exit codes: 0 enrolled, 1 refused or failed, 2 wrong usage, 3 scheduler not reachable or busy: try again.
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
from galactica.v1 import link_pb2, link_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3

TOKEN_VARIABLE = "GALACTICA_TOKEN"  # noqa: S105 (a name, no token)

_TOKEN = re.compile(r"gal1\.[0-9a-f]+\.[A-Za-z0-9_-]+\.(?P<ca_digest>[0-9a-f]{64})")
"""The scheduler's format, of which only the digest matters here."""
_TOKEN_BYTES_LIMIT = 4_096
_TRY_AGAIN = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}
)


class EnrolmentError(Exception):
    """Not enrolled; nothing was written. The message is for people, ``exit_code`` for programs."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Application:
    """What a host asks for. ``enrolment``: "HOST:PORT". ``scheduler``: that of the link, only to be kept for
    the daemon."""

    enrolment: str
    server_id: str
    token: str = field(repr=False)
    scheduler: str = ""
    timeout_seconds: float = 30.0


def enrol(application: Application) -> Identity:
    """Apply at the scheduler. Writes nothing. Blocks up to ``timeout_seconds``. Raises EnrolmentError."""
    token = _TOKEN.fullmatch(application.token)
    if token is None:
        raise EnrolmentError("this is no join token; was it cut off when it was copied?", EXIT_USAGE)
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
    """The certificates that the other side shows, leaf first. They prove nothing by themselves."""
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
            f"{address} does not answer; is it the enrolment's port?", EXIT_UNREACHABLE
        ) from error
    except OSError as error:
        message = f"the scheduler at {address} cannot be reached: {error.strerror or error}"
        raise EnrolmentError(message, EXIT_UNREACHABLE) from error
    except SSL.Error as error:
        raise EnrolmentError(
            f"{address} does not speak TLS as a scheduler does; is it the enrolment's port?"
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
        f"the scheduler at {address} does not hold the CA that the token is pinned to; "
        "check the address, or make a token with this scheduler"
    )


def _check_leaf(leaf: x509.Certificate, ca: x509.Certificate, address: str) -> None:
    """TLS checks this again, and more. Here it is for the message: somebody shows a CA that is not theirs."""
    try:
        leaf.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise EnrolmentError(
            f"the scheduler at {address} shows the CA of the token but is not certified by it: "
            "somebody may stand in between; the token was not sent"
        ) from error


def _request_for(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A request that says nothing but the key: whom the certificate is for is the scheduler's to say."""
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
    """An identity that could not open the link must not take the place of one that can."""
    try:
        certificate = x509.load_pem_x509_certificate(response.certificate_pem)
    except ValueError as error:
        raise EnrolmentError(f"the scheduler at {address} answered without a readable certificate") from error
    if certificate.public_key() != key.public_key():
        raise EnrolmentError(f"the scheduler at {address} answered with a certificate for another key")


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise EnrolmentError(f"'{address}' is not HOST:PORT", EXIT_USAGE)
    return host, int(port)


def _left(deadline: float) -> float:
    """Seconds until the deadline, never 0, which would mean something else to sockets."""
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
                f"the token cannot be read from {arguments.token_file}: {error.strerror}", EXIT_USAGE
            ) from error
    if token := os.environ.get(TOKEN_VARIABLE, "").strip():
        return token
    raise EnrolmentError(
        f"a join token is needed: --token-file FILE, {TOKEN_VARIABLE} or --token; "
        "make one with 'galactica token create'",
        EXIT_USAGE,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m agent.enrol",
        description="Enrol this host in a fleet: make its key and get its first certificate.",
        epilog="Exit codes: 0 enrolled, 1 refused or failed, 2 wrong usage, "
        "3 scheduler not reachable or busy (try again).",
    )
    add = parser.add_argument
    add("--scheduler-enrol", required=True, metavar="HOST:PORT", help="the scheduler's enrolment port")
    add("--scheduler", default="", metavar="HOST:PORT", help="the scheduler's link, kept for the agent")
    add("--server-id", required=True, metavar="ID", help="what this server is called in the fleet")
    add("--directory", required=True, type=Path, metavar="DIR", help="where the identity is kept (mode 0700)")
    token = parser.add_mutually_exclusive_group()
    token.add_argument("--token-file", metavar="FILE", help="a file that holds the join token")
    token.add_argument("--token", help=f"the join token; others can see it in ps, unlike in {TOKEN_VARIABLE}")
    add("--timeout", type=float, default=30.0, metavar="SECONDS", help="how long all of it may take (30)")
    return parser


def run(argv: Sequence[str]) -> int:
    """The command: enrol and keep the identity. Answers the exit code."""
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
            f"the identity cannot be kept in {arguments.directory}: {error.strerror or error}", EXIT_FAILED
        )
    return _say(f"enrolled as {identity.server_id} in the fleet {identity.fleet}", EXIT_DONE)


def _say(message: str, exit_code: int) -> int:
    sys.stderr.write(f"{message}\n" if exit_code == EXIT_DONE else f"error: {message}\n")
    return exit_code


def main() -> Never:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own lines say less than ours
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
