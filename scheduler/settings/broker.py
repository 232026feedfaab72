"""The broker's address and credentials. Does not import the bus's library, so options can be read without it."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

PASSWORD_VARIABLE = "GALACTICA_BUS_PASSWORD"  # noqa: S105 - a name, no password
PASSWORD_BYTES_LIMIT = 4_096
_PORTS = {"mqtt": 1_883, "mqtts": 8_883}


@dataclass(frozen=True, slots=True)
class BusAddress:
    """``user`` empty: no user. ``url``: the text as the user wrote it."""

    url: str
    host: str
    port: int
    user: str = ""
    is_tls: bool = False


@dataclass(frozen=True, slots=True)
class BusOptions:
    """``ca_file`` None: use the CAs that this machine trusts."""

    address: BusAddress
    ca_file: Path | None = None
    password_file: Path | None = None
    password: str = field(default="", repr=False)


def bus_options(
    url: str, ca_file: Path | None, password_file: Path | None, environment: Mapping[str, str]
) -> BusOptions:
    """The options from the command line and the environment. Reads the password's file. Raises ValueError."""
    address = parse_bus(url)
    if ca_file is not None and not address.is_tls:
        raise ValueError(f"a CA file needs TLS; write mqtts:// instead of mqtt:// in {url}")
    password = _password(password_file, environment)
    if password_file is not None and not address.user:
        raise ValueError(f"a password needs a user; write {url.partition('://')[0]}://USER@{address.host}")
    options = BusOptions(address, ca_file, password_file, password if address.user else "")
    tls_context(options)
    return options


def parse_bus(text: str) -> BusAddress:
    """``mqtt://[USER@]HOST[:PORT]`` or ``mqtts://…`` for TLS. Raises ValueError."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"invalid broker address {text!r}: {error}") from error
    if parts.scheme not in _PORTS or not host or parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ValueError(
            f"invalid broker address {text!r}: write mqtt://[USER@]HOST[:PORT], or mqtts:// for TLS"
        )
    if parts.password is not None:
        raise ValueError(
            "do not write the password in the address, because ps shows it to everybody; "
            f"set {PASSWORD_VARIABLE} or use a file"
        )
    return BusAddress(
        text, host, port or _PORTS[parts.scheme], unquote(parts.username or ""), parts.scheme == "mqtts"
    )


def tls_context(options: BusOptions) -> ssl.SSLContext | None:
    """None without TLS. Reads the CA file. Raises ValueError if the file is unusable."""
    if not options.address.is_tls:
        return None
    try:
        return ssl.create_default_context(cafile=options.ca_file)
    except OSError as error:  # ssl.SSLError too
        raise ValueError(f"cannot use the CA file {options.ca_file}: {error.strerror or error}") from error


def _password(file: Path | None, environment: Mapping[str, str]) -> str:
    if file is None:
        return environment.get(PASSWORD_VARIABLE, "")
    try:
        with file.open("rb") as opened:
            return opened.read(PASSWORD_BYTES_LIMIT).decode().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the file is not UTF-8 text"
        raise ValueError(f"cannot read the password from {file}: {reason}") from error
