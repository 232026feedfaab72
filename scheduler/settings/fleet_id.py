"""A fleet's id: what tells it from another fleet of the same name.

The id is made at the birth of the fleet's CA and stands in the CA's certificate, so whoever trusts a fleet knows its
id without asking. If the certificate has none, its digest takes that place. Agents derive the same id in the same way.
"""

from __future__ import annotations

import hashlib
import re
import ssl

FLEET_ID = re.compile(r"[0-9a-f]{16}")

_SUBJECT_FIELD = "serialNumber"
"""The subject's attribute (X.520) with the id. It is not the certificate's own serial number."""


def fleet_id_of(ca_pem: str) -> str:
    """The id in a CA's certificate: 16 hexadecimal characters. Raises ValueError if it is no CA's certificate."""
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=ca_pem)
        (certificate,) = context.get_ca_certs()
        digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(ca_pem.strip())).hexdigest()
    except (ssl.SSLError, ValueError) as error:
        raise ValueError("not the certificate of one CA in PEM form") from error
    subject = certificate.get("subject", ())
    named = dict(pair for names in subject for pair in names if isinstance(pair, tuple))
    given = str(named.get(_SUBJECT_FIELD, ""))
    return given if FLEET_ID.fullmatch(given) else digest[:16]
