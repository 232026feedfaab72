"""Seals the fleet's genome, so that agents can keep it: who holds the CA's private key can read it, and nobody else.

A sealed genome begins with a header in the clear: this format's version, the fleet's id and the genome's mark. The
header is authenticated together with the rest (AES-256-GCM, NIST SP 800-38D): it can be shown before the seal is open,
and nobody can change it. The key is derived (HKDF-SHA256, RFC 5869) from the CA's private key and the fleet's id. Each
seal draws a nonce of 96 bits, which is enough for 2^32 seals under one key: one a second for 136 years.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from galactica.scheduler.core.genome import GenomeDamaged, decode, encode
from galactica.scheduler.core.model.genome import Genome, GenomeMark
from galactica.scheduler.security.ca import CertificateAuthority

PURPOSE = b"galactica genome"
VERSION = 1
SEALED_BYTES_LIMIT = 1024 * 1024
_MAGIC = b"GALGENOM"
_HEADER = struct.Struct(">8sH16sQQ")
"""Magic, version, the fleet's id, epoch, position."""
_NONCE_BYTES = 12


class SealBroken(Exception):
    """The bytes are no genome that this fleet's CA has sealed; the message says why."""


class Header(NamedTuple):
    version: int
    fleet_id: str
    mark: GenomeMark


def seal(ca: CertificateAuthority, genome: Genome, mark: GenomeMark) -> bytes:
    header = _HEADER.pack(_MAGIC, VERSION, ca.fleet_id.encode("ascii"), mark.epoch, mark.position)
    nonce = os.urandom(_NONCE_BYTES)
    return header + nonce + AESGCM(ca.key_for(PURPOSE)).encrypt(nonce, encode(genome), header)


def unseal(ca: CertificateAuthority, sealed: bytes) -> tuple[GenomeMark, Genome]:
    """Raises SealBroken."""
    header = header_of(sealed)
    if header.fleet_id != ca.fleet_id:
        raise SealBroken(f"it is of the fleet with the id {header.fleet_id}, not of {ca.fleet_id}")
    start = _HEADER.size + _NONCE_BYTES
    key = AESGCM(ca.key_for(PURPOSE))
    try:
        content = key.decrypt(sealed[_HEADER.size : start], sealed[start:], sealed[: _HEADER.size])
        return header.mark, decode(content)
    except InvalidTag:
        raise SealBroken("it was changed, or another CA sealed it") from None
    except GenomeDamaged as error:
        raise SealBroken(str(error)) from error


def header_of(sealed: bytes) -> Header:
    """What a sealed genome says of itself. Nothing is proven by that before it is unsealed. Raises SealBroken."""
    if len(sealed) > SEALED_BYTES_LIMIT:
        raise SealBroken(f"it is larger than {SEALED_BYTES_LIMIT} bytes")
    if len(sealed) < _HEADER.size + _NONCE_BYTES or not sealed.startswith(_MAGIC):
        raise SealBroken("it is no sealed genome, or not all of one")
    _, version, fleet_id, epoch, position = _HEADER.unpack_from(sealed)
    if version != VERSION:
        raise SealBroken(
            f"it has version {version}, but this program reads version {VERSION}: use the galactica that wrote it"
        )
    return Header(version, fleet_id.decode("ascii", "replace"), GenomeMark(epoch, position))
