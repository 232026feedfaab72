"""A fleet is more than its name: its id is born with its CA, and everybody who trusts the CA derives the same id."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from galactica.agent.link.identity import Identity, IdentityError
from galactica.agent.runtimes.docker.spec import Scope, body_of
from galactica.scheduler.bus.messages import Topics
from galactica.scheduler.providers.cloud.nodes import Names
from galactica.scheduler.security.ca import AUTHORITY_FILE, CertificateAuthority
from galactica.scheduler.settings.fleet_id import FLEET_ID, fleet_id_of
from galactica.v1 import link_pb2

OURS, THEIRS = "0123456789abcdef", "fedcba9876543210"


def ca_without_an_id(directory: Path) -> CertificateAuthority:
    """As an earlier release made them."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "alpha")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(0x0123456789ABCDEF)  # the certificate's own number is not the fleet's id
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    directory.mkdir(mode=0o700)
    file = directory / AUTHORITY_FILE
    file.touch(mode=0o600)
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    file.write_bytes(
        key.private_bytes(encoding, form, serialization.NoEncryption()) + certificate.public_bytes(encoding)
    )
    return CertificateAuthority.open_or_create(directory, "alpha")


def identity_of(ca_pem: bytes) -> Identity:
    return Identity("host1", "alpha", "s:1", "s:2", time.time(), time.time() + 60, b"", b"", b"", ca_pem)


def test_two_fleets_of_one_name_have_different_ids_that_stay(tmp_path: Path):
    cas = [CertificateAuthority.open_or_create(tmp_path / name, "alpha") for name in ("a", "b", "a")]
    first, other, again = (ca.fleet_id for ca in cas)
    assert first == again != other
    assert FLEET_ID.fullmatch(first)


def test_a_ca_without_an_id_stands_for_one_by_its_digest(tmp_path: Path):
    ca = ca_without_an_id(tmp_path / "ca")
    assert ca.fleet_id == ca.digest[:16]


@pytest.mark.parametrize("has_id", [True, False])
def test_agents_find_the_same_id_in_the_ca_that_they_trust(tmp_path: Path, has_id: bool):
    make = CertificateAuthority.open_or_create if has_id else lambda path, _: ca_without_an_id(path)
    ca = make(tmp_path / "ca", "alpha")
    assert identity_of(ca.certificate_pem).fleet_id == ca.fleet_id == fleet_id_of(ca.certificate_pem.decode())


@pytest.mark.parametrize("text", ["", "ca", "-----BEGIN CERTIFICATE-----\nxx\n-----END CERTIFICATE-----\n"])
def test_what_is_no_ca_has_no_id(text: str):
    with pytest.raises(ValueError, match="not the certificate of one CA"):
        fleet_id_of(text)
    with pytest.raises(IdentityError, match="enrol this host again"):
        _ = identity_of(text.encode()).fleet_id


# --- what carries it ----------------------------------------------------------------------------------------------


def labels(fleet: str, fleet_id: str | None, server: str = "host1") -> dict[str, str]:
    ident = {} if fleet_id is None else {"galactica.fleet-id": fleet_id}
    return {"galactica.fleet": fleet, **ident, "galactica.server": server}


@pytest.mark.parametrize(
    ("given", "is_of_fleet", "is_own"),
    [
        (labels("alpha", OURS), True, True),
        (labels("renamed", OURS), True, True),
        (labels("alpha", None), True, True),  # from before containers had an id
        (labels("alpha", OURS, "host2"), True, False),
        (labels("alpha", THEIRS), False, False),
        (labels("alpha", ""), False, False),
        (labels("beta", None), False, False),
    ],
)
def test_a_container_is_ours_by_its_fleets_id_and_by_the_name_only_without_one(given, is_of_fleet, is_own):
    scope = Scope("alpha", OURS, "host1", "127.0.0.1")
    assert (scope.is_of_fleet(given), scope.owns(given)) == (is_of_fleet, is_own)


def test_containers_of_two_fleets_of_one_name_have_different_names_and_their_own_ids():
    order = link_pb2.Order(cell_id="web/2.7", digest="d")
    scopes = [Scope("alpha", fleet_id, "host1", "127.0.0.1") for fleet_id in (OURS, THEIRS)]
    assert [scope.name_of("web/2.7") for scope in scopes] == [
        "galactica.alpha.01234567.web.2.7",
        "galactica.alpha.fedcba98.web.2.7",
    ]
    made = [body_of(scope, order, init=True)["Labels"] for scope in scopes]
    assert [scope.owns(one) for scope in scopes for one in made] == [True, False, False, True]


def test_topics_of_two_fleets_of_one_name_never_meet():
    ours, theirs = Topics("alpha", OURS), Topics("alpha", THEIRS)
    assert ours.will("host1") == f"galactica/alpha/{OURS}/wills/host1"
    assert ours.server_of_will(theirs.will("host1")) is None
    assert not set(ours.heard) & set(theirs.heard)


def test_a_cloud_that_two_fleets_of_one_name_share_tells_their_nodes_and_requests_apart():
    ours, theirs = Names("alpha", OURS), Names("alpha", THEIRS)
    assert ours.tags("pool/0.1")["galactica-fleet-id"] == OURS
    assert ours.once("pool/0.1") != theirs.once("pool/0.1")


class Driver:
    """A cloud whose nodes have tags."""

    def create_node(self, name: str, ex_metadata: object = None) -> None: ...


@pytest.mark.parametrize(("fleet_id", "cell"), [(OURS, "pool/0.1"), (None, "pool/0.1"), (THEIRS, "")])
def test_a_node_is_ours_by_its_fleets_id_and_by_the_name_only_without_one(fleet_id: str | None, cell: str):
    tags = Names("alpha", fleet_id or "").tags("pool/0.1")
    if fleet_id is None:
        del tags["galactica-fleet-id"]
    node = SimpleNamespace(name="alpha-pool-0-1", extra={"tags": tags})
    assert Names("alpha", OURS).cell_of(Driver(), node) == cell
