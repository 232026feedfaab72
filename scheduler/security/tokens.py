"""Join tokens: a person carries one from the scheduler to a new host.

The text is ``gal1.<id>.<secret>.<ca digest>``. The id is public and names the token in the journal. The secret is
shown once. The digest pins the CA, so that a host can verify the scheduler before it sends the secret.
The secret never leaves this module: ``parse_token`` returns its hash.
"""

from __future__ import annotations

import hashlib
import re
import secrets

from msgspec import Struct

PREFIX = "gal1"

_ID_BYTES = 6
_SECRET_BYTES = 24
"""192 bits: nobody can guess it, so one plain SHA-256 is enough to store it."""

_ID = re.compile(r"[0-9a-f]{12}")
_SECRET = re.compile(r"[A-Za-z0-9_-]{32}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class TokenError(ValueError):
    """The text is not a join token. The message is for people and never contains any of the text."""


class ParsedToken(Struct, frozen=True):
    """What the core needs to check a token, and the SHA-256 (hex) of the CA in the token."""

    id: str
    secret_sha256: str
    ca_digest: str


def hash_secret(secret: str) -> str:
    """SHA-256 (hex) of a token's secret: the only form that is stored or compared."""
    return hashlib.sha256(secret.encode()).hexdigest()


def new_token(ca_digest: str) -> tuple[str, str, str]:
    """A new token: its text (to be shown once), its id and the hash of its secret."""
    token_id = secrets.token_hex(_ID_BYTES)
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    return f"{PREFIX}.{token_id}.{secret}.{ca_digest}", token_id, hash_secret(secret)


def parse_token(text: str) -> ParsedToken:
    """Split a token's text into its parts. Raises TokenError."""
    parts = text.strip().split(".")
    if parts[0] != PREFIX:
        raise TokenError(
            f"this is not a join token: a token begins with '{PREFIX}.'; make one with 'galactica token create'"
        )
    if len(parts) != 4:
        raise TokenError(
            f"the join token has {len(parts)} parts instead of 4; was it cut off when it was copied?"
        )
    _, token_id, secret, ca_digest = parts
    for pattern, part, name in (
        (_ID, token_id, "id"),
        (_SECRET, secret, "secret"),
        (_DIGEST, ca_digest, "CA digest"),
    ):
        if pattern.fullmatch(part) is None:
            raise TokenError(f"the join token's {name} is malformed; was it damaged when it was copied?")
    return ParsedToken(id=token_id, secret_sha256=hash_secret(secret), ca_digest=ca_digest)
