"""The identity in a certificate: one SAN URI, ``galactica:server:ID`` or ``galactica:operator:NAME:ROLE``.

Reading it proves nothing. TLS or the CA must check that the certificate is from this fleet and valid.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from urllib.parse import quote, unquote

from cryptography import x509
from msgspec import Struct

from galactica.scheduler.core.model.fleet import SERVER_ID
from galactica.scheduler.core.model.requests import Asker

OPERATOR_NAME = re.compile(r"[A-Za-z0-9][-A-Za-z0-9._@+]{0,63}")

_SAN_KEY = "x509_subject_alternative_name"


class IdentityError(Exception):
    """The certificate does not name a server or an operator of this fleet."""


class Role(StrEnum):
    """What an operator may do. Each role includes the roles before it."""

    VIEWER = "viewer"
    DEPLOYER = "deployer"
    ADMIN = "admin"

    def allows(self, needed: Role) -> bool:
        """Whether this role includes the role ``needed``."""
        ranks = list(Role)
        return ranks.index(self) >= ranks.index(needed)


class ServerIdentity(Struct, frozen=True):
    server_id: str

    @property
    def asker(self) -> Asker:
        return Asker.server(self.server_id)

    def __str__(self) -> str:
        return str(self.asker)


class OperatorIdentity(Struct, frozen=True):
    name: str
    role: Role

    @property
    def asker(self) -> Asker:
        return Asker.operator(self.name)

    def __str__(self) -> str:
        return str(self.asker)


Identity = ServerIdentity | OperatorIdentity


def uri_of(identity: Identity) -> str:
    """The SAN URI for the identity."""
    match identity:
        case ServerIdentity(server_id):
            return f"galactica:server:{_quote(server_id)}"
        case OperatorIdentity(name, role):
            return f"galactica:operator:{_quote(name)}:{role.value}"


def identity_of(source: Mapping[str, Iterable[bytes]] | bytes) -> Identity:
    """Who the peer is: from gRPC's ``context.auth_context()`` or from one SAN URI. Raises IdentityError.

    TLS has already verified the certificate; this function only reads it."""
    names = [source] if isinstance(source, bytes) else list(source.get(_SAN_KEY, ()))
    if len(names) != 1:
        raise IdentityError(
            f"the caller's certificate has {len(names)} names; it must have exactly one, of a server or an operator"
        )
    identity = _parse(names[0].decode("utf-8", "replace"))
    if identity is None:
        raise IdentityError("the caller's certificate does not name a server or an operator")
    return identity


def identity_in(certificate: x509.Certificate) -> Identity:
    """The identity in a certificate that did not come from a TLS handshake. Raises IdentityError."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError) as error:
        raise IdentityError("the certificate has no name") from error
    return identity_of({_SAN_KEY: [str(name.value).encode() for name in names]})


def _parse(uri: str) -> Identity | None:
    match uri.split(":"):
        case ["galactica", "server", quoted]:
            server_id = unquote(quoted)
            if SERVER_ID.fullmatch(server_id) and _quote(server_id) == quoted:
                return ServerIdentity(server_id)
        case ["galactica", "operator", quoted, role]:
            name = unquote(quoted)
            if OPERATOR_NAME.fullmatch(name) and _quote(name) == quoted and role in set(Role):
                return OperatorIdentity(name, Role(role))
    return None


def _quote(text: str) -> str:
    return quote(text, safe="")
