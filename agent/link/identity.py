"""Who this agent is: its key, its certificate and the CA that it trusts, as files in one private directory.

The daemon imports this, so it needs nothing but the standard library and grpc. That is also why a renewal
sends the stored request (CSR) again instead of making a new one: making keys and requests needs a
cryptographic library, whose memory a light daemon should not carry for one call an hour. So the key lives as
long as the enrolment, and only the certificate's life is short.

``identity.json`` is written last and is the word that the rest is whole; without it there is no identity.
Everything here that touches files blocks: call it outside of the event loop.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc

SCHEDULER_NAME = "scheduler.galactica"
"""The name in every scheduler's certificate, whatever address it is dialled by."""

_IDENTITY = "identity.json"
_KEY = "key.pem"
_CSR = "csr.pem"
_CERTIFICATE = "cert.pem"
_CA = "ca.pem"

_RENEW_AFTER_FRACTION = 2 / 3
_LIFETIME_FLOOR_SECONDS = 60.0
"""To a clock that is far ahead every certificate seems about to end; this keeps renewals apart."""


class IdentityError(Exception):
    """The files are not what they should be; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Identity:
    """All that the agent needs to be let in. Times are Unix seconds: ``issued_at`` by this machine's clock,
    ``expires_at`` by the scheduler's. ``scheduler``: "HOST:PORT" of the link, empty where it was not told;
    ``enrolment``: of the port that enrolled it, which also renews a certificate that has ended."""

    server_id: str
    fleet: str
    scheduler: str
    enrolment: str
    issued_at: float
    expires_at: float
    key_pem: bytes = field(repr=False)
    csr_pem: bytes = field(repr=False)
    certificate_pem: bytes = field(repr=False)
    ca_pem: bytes = field(repr=False)

    @classmethod
    def load(cls, directory: Path) -> Identity | None:
        """The identity in ``directory``; None where this host has not enrolled. Raises IdentityError."""
        try:
            text = (directory / _IDENTITY).read_text("utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise _damaged(directory, error) from error
        try:
            facts = json.loads(text)
            return cls(
                server_id=_text(facts["server_id"]),
                fleet=_text(facts["fleet"]),
                scheduler=_text(facts["scheduler"]),
                enrolment=_text(facts["enrolment"]),
                issued_at=float(facts["issued_at"]),
                expires_at=float(facts["expires_at"]),
                key_pem=_read_private(directory / _KEY),
                csr_pem=(directory / _CSR).read_bytes(),
                certificate_pem=(directory / _CERTIFICATE).read_bytes(),
                ca_pem=(directory / _CA).read_bytes(),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(directory, error) from error

    @property
    def credentials(self) -> grpc.ChannelCredentials:
        """For the link; to be used with ``channel_options``."""
        return grpc.ssl_channel_credentials(
            root_certificates=self.ca_pem, private_key=self.key_pem, certificate_chain=self.certificate_pem
        )

    def renew_at(self, now: float) -> float:
        """When to ask for the next certificate: after two thirds of this one's life, or ``now``."""
        lifetime_seconds = max(self.expires_at - self.issued_at, _LIFETIME_FLOOR_SECONDS)
        return max(now, self.issued_at + lifetime_seconds * _RENEW_AFTER_FRACTION)

    def has_expired(self, now: float) -> bool:
        """Expired certificates open no link; by our own clock, which may be wrong (see ``renewal``)."""
        return now >= self.expires_at


def channel_options() -> list[tuple[str, str | int]]:
    """What every channel to a scheduler needs: its fixed name, and no proxy in between."""
    return [("grpc.ssl_target_name_override", SCHEDULER_NAME), ("grpc.enable_http_proxy", 0)]


def prepare(directory: Path) -> None:
    """Make the directory, for its owner alone. Raises OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)


def store(directory: Path, identity: Identity) -> None:
    """Write a new identity, in place of an older one if there is any. Raises OSError."""
    prepare(directory)
    (directory / _IDENTITY).unlink(
        missing_ok=True
    )  # a crash from here on leaves no identity, never a mixed one
    _write(directory / _KEY, identity.key_pem)
    _write(directory / _CSR, identity.csr_pem)
    _write(directory / _CA, identity.ca_pem)
    _write(directory / _CERTIFICATE, identity.certificate_pem)
    _write(directory / _IDENTITY, _facts(identity))


def store_renewed(
    directory: Path, certificate_pem: bytes, expires_at: float, issued_at: float | None = None
) -> Identity:
    """Keep a renewed certificate; answers the identity that has it. ``issued_at``: by default now.

    A crash in between leaves the new certificate with the older times, which only makes the next renewal come
    early. Raises IdentityError, OSError."""
    identity = Identity.load(directory)
    if identity is None:
        raise IdentityError(f"there is no identity in {directory} to renew; enrol this host first")
    renewed = replace(
        identity,
        certificate_pem=certificate_pem,
        expires_at=expires_at,
        issued_at=time.time() if issued_at is None else issued_at,
    )
    _write(directory / _CERTIFICATE, certificate_pem)
    _write(directory / _IDENTITY, _facts(renewed))
    return renewed


def _facts(identity: Identity) -> bytes:
    facts = {
        "server_id": identity.server_id,
        "fleet": identity.fleet,
        "scheduler": identity.scheduler,
        "enrolment": identity.enrolment,
        "issued_at": identity.issued_at,
        "expires_at": identity.expires_at,
    }
    return json.dumps(facts, indent=2).encode() + b"\n"


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all, durable, and for nobody else to read from its first moment."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _read_private(path: Path) -> bytes:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise IdentityError(
                f"{path} is this host's private key and others than its owner can read it; "
                f"if nobody did, 'chmod 600 {path}', else enrol anew with a new token"
            )
        return file.read()


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a text was expected")
    return value


def _damaged(directory: Path, error: Exception) -> IdentityError:
    return IdentityError(
        f"the identity in {directory} is damaged ({type(error).__name__}: {error}); "
        "remove that directory and enrol this host anew with a new token"
    )
