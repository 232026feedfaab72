"""The agent's identity: its key, its certificate and the CA that it trusts, as files in one private directory.

The daemon imports this module, so it needs only the standard library and grpc. For the same reason a renewal sends
the stored request (CSR) again: creating keys and requests needs a cryptography library, and a light daemon should not
spend its memory on one call an hour. So the key lasts as long as the enrolment; only certificates are short-lived.

``identity.json`` is written last: it shows that the other files are complete. Without it there is no identity.
All functions that use files block: call them outside of the event loop.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import ssl
import stat
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc

from galactica.agent.files import replace_secret_file

SCHEDULER_NAME = "scheduler.galactica"
"""The name in every scheduler's certificate, independent of its address."""

_IDENTITY = "identity.json"
_KEY = "key.pem"
_CSR = "csr.pem"
_CERTIFICATE = "cert.pem"
_CA = "ca.pem"

_FLEET_ID = re.compile(r"[0-9a-f]{16}")
_FLEET_ID_FIELD = "serialNumber"
"""The attribute of the CA's subject (X.520) with the fleet's id."""

_RENEW_AFTER_FRACTION = 2 / 3
_LIFETIME_FLOOR_SECONDS = 60.0
"""Least lifetime to assume. To a clock that is far ahead every certificate seems to end soon; this limits how often
the agent renews it."""


class IdentityError(Exception):
    """The identity's files are missing, damaged or readable by others; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Everything that the agent needs to connect. Times are Unix seconds: ``issued_at`` by this machine's clock,
    ``expires_at`` by the scheduler's. ``scheduler``: "HOST:PORT" of the link, empty if unknown. ``enrolment``:
    "HOST:PORT" of the port that enrolled this host, which also renews an expired certificate."""

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
        """The identity in ``directory``; None if this host is not enrolled. Raises IdentityError."""
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
    def fleet_id(self) -> str:
        """What tells this fleet from another of the same name: 16 hexadecimal characters from the certificate of the CA
        that this host trusts. A CA whose certificate has no id stands for one by its digest. Raises IdentityError."""
        try:
            ca_pem = self.ca_pem.decode("ascii")
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(cadata=ca_pem)
            (certificate,) = context.get_ca_certs()
            digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(ca_pem.strip())).hexdigest()
        except (ssl.SSLError, ValueError) as error:
            raise IdentityError(
                f"the CA's certificate in this host's identity is damaged ({error}); "
                "remove the identity's directory and enrol this host again with a new token"
            ) from error
        subject = certificate.get("subject", ())
        named = dict(pair for names in subject for pair in names if isinstance(pair, tuple))
        given = str(named.get(_FLEET_ID_FIELD, ""))
        return given if _FLEET_ID.fullmatch(given) else digest[:16]

    @property
    def credentials(self) -> grpc.ChannelCredentials:
        """Credentials for the link. Use them with ``channel_options``."""
        return grpc.ssl_channel_credentials(
            root_certificates=self.ca_pem, private_key=self.key_pem, certificate_chain=self.certificate_pem
        )

    def renew_at(self, now: float) -> float:
        """When to ask for the next certificate: after two thirds of this one's life, or ``now``."""
        lifetime_seconds = max(self.expires_at - self.issued_at, _LIFETIME_FLOOR_SECONDS)
        return max(now, self.issued_at + lifetime_seconds * _RENEW_AFTER_FRACTION)

    def has_expired(self, now: float) -> bool:
        """Whether the certificate has expired by our own clock, which may be wrong (see ``renewal``). An expired
        certificate cannot open a link."""
        return now >= self.expires_at


def channel_options() -> list[tuple[str, str | int]]:
    """Options of every channel to a scheduler: its fixed name, and no proxy."""
    return [("grpc.ssl_target_name_override", SCHEDULER_NAME), ("grpc.enable_http_proxy", 0)]


def prepare(directory: Path) -> None:
    """Create the directory, for its owner alone. Raises OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)


def store(directory: Path, identity: Identity) -> None:
    """Write a new identity; it replaces an older one. Raises OSError."""
    prepare(directory)
    (directory / _IDENTITY).unlink(
        missing_ok=True
    )  # after a crash from here on there is no identity, never a mixed one
    replace_secret_file(directory / _KEY, identity.key_pem)
    replace_secret_file(directory / _CSR, identity.csr_pem)
    replace_secret_file(directory / _CA, identity.ca_pem)
    replace_secret_file(directory / _CERTIFICATE, identity.certificate_pem)
    replace_secret_file(directory / _IDENTITY, _facts(identity))


def store_renewed(
    directory: Path, certificate_pem: bytes, expires_at: float, issued_at: float | None = None
) -> Identity:
    """Store a renewed certificate. Returns the identity with it. ``issued_at``: by default now.

    A crash can leave the new certificate with the older times; then the next renewal only comes early. Raises
    IdentityError, OSError."""
    identity = Identity.load(directory)
    if identity is None:
        raise IdentityError(f"no identity to renew in {directory}: enrol this host first")
    renewed = replace(
        identity,
        certificate_pem=certificate_pem,
        expires_at=expires_at,
        issued_at=time.time() if issued_at is None else issued_at,
    )
    replace_secret_file(directory / _CERTIFICATE, certificate_pem)
    replace_secret_file(directory / _IDENTITY, _facts(renewed))
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


def _read_private(path: Path) -> bytes:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise IdentityError(
                f"other users can read this host's private key {path}: if nobody has read it, "
                f"run 'chmod 600 {path}', else enrol this host again with a new token"
            )
        return file.read()


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("text expected")
    return value


def _damaged(directory: Path, error: Exception) -> IdentityError:
    return IdentityError(
        f"the identity in {directory} is damaged ({type(error).__name__}: {error}); "
        "remove that directory and enrol this host again with a new token"
    )
