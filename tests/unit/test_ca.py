import ssl
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from galactica.scheduler.security.ca import (
    AUTHORITY_FILE,
    AuthorityError,
    CertificateAuthority,
    ClockError,
    CsrError,
    new_key_and_csr,
)
from galactica.scheduler.security.identities import (
    IdentityError,
    OperatorIdentity,
    Role,
    ServerIdentity,
    identity_of,
)
from galactica.scheduler.security.times import EARLIEST

NOW = 1_800_000_000.0
YEAR = 365 * 86_400.0


def clock():
    return NOW


@pytest.fixture
def ca(tmp_path):
    return CertificateAuthority.open_or_create(tmp_path / "ca", "alpha", clock)


def csr_of(key, subject=(), extensions=()):
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(list(subject)))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)


def san_of(certificate_pem):
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


def usages_of(certificate_pem):
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


class TestKeeping:
    def test_first_start_makes_a_ca_that_only_its_owner_can_read(self, tmp_path, ca):
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "ca").iterdir()}

        assert modes == {AUTHORITY_FILE: 0o600}
        assert stat.S_IMODE((tmp_path / "ca").stat().st_mode) == 0o700

    def test_next_start_finds_the_same_ca(self, tmp_path, ca):
        again = CertificateAuthority.open_or_create(tmp_path / "ca", "alpha", clock)

        assert (again.digest, again.certificate_pem) == (ca.digest, ca.certificate_pem)
        assert (
            ca.digest == x509.load_pem_x509_certificate(ca.certificate_pem).fingerprint(hashes.SHA256()).hex()
        )

    def test_starts_at_the_same_moment_agree_on_one_ca(self, tmp_path):
        def digest(_):
            return CertificateAuthority.open_or_create(tmp_path / "ca", "alpha", clock).digest

        with ThreadPoolExecutor(8) as pool:
            digests = set(pool.map(digest, range(8)))

        assert len(digests) == 1
        assert [path.name for path in (tmp_path / "ca").iterdir()] == [AUTHORITY_FILE]

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
    def test_key_that_others_can_read_is_refused(self, tmp_path, ca, mode):
        (tmp_path / "ca" / AUTHORITY_FILE).chmod(mode)

        with pytest.raises(AuthorityError, match=r"users other than its owner can read it; .*chmod 600"):
            CertificateAuthority.open_or_create(tmp_path / "ca", "alpha", clock)

    def test_key_of_another_certificate_is_refused(self, tmp_path, ca):
        CertificateAuthority.open_or_create(tmp_path / "other", "alpha", clock)
        path = tmp_path / "ca" / AUTHORITY_FILE
        begins = b"-----BEGIN CERTIFICATE-----"
        other = (tmp_path / "other" / AUTHORITY_FILE).read_bytes()
        path.write_bytes(path.read_bytes().partition(begins)[0] + begins + other.partition(begins)[2])

        with pytest.raises(AuthorityError, match="does not belong to the certificate"):
            CertificateAuthority.open_or_create(tmp_path / "ca", "alpha", clock)

    @pytest.mark.parametrize("content", [b"", b"no key", b"\x00\xff"])
    def test_damaged_file_is_refused_and_left_as_it_is(self, tmp_path, ca, content):
        path = tmp_path / "ca" / AUTHORITY_FILE
        path.write_bytes(content)

        with pytest.raises(AuthorityError, match=r"is damaged.*backup"):
            CertificateAuthority.open_or_create(tmp_path / "ca", "alpha", clock)
        assert path.read_bytes() == content

    def test_key_without_its_certificate_is_refused(self, tmp_path, ca):
        path = tmp_path / "ca" / AUTHORITY_FILE
        path.write_bytes(path.read_bytes().partition(b"-----BEGIN CERTIFICATE-----")[0])

        with pytest.raises(AuthorityError, match=r"is damaged.*backup"):
            CertificateAuthority.open_or_create(tmp_path / "ca", "alpha", clock)

    def test_expired_ca_is_refused(self, tmp_path, ca):
        with pytest.raises(AuthorityError, match=r"expired at 20.* make a new CA"):
            CertificateAuthority.open_or_create(tmp_path / "ca", "alpha", lambda: NOW + 11 * YEAR)

    def test_ca_of_another_fleet_is_refused(self, tmp_path, ca):
        with pytest.raises(AuthorityError, match="belongs to the fleet 'alpha', not to 'beta'"):
            CertificateAuthority.open_or_create(tmp_path / "ca", "beta", clock)

    def test_directory_that_cannot_be_made_is_a_clear_error(self, tmp_path):
        (tmp_path / "file").write_text("")

        with pytest.raises(AuthorityError, match="cannot open the CA in .*: Not a directory"):
            CertificateAuthority.open_or_create(tmp_path / "file" / "ca", "alpha", clock)


class TestIssuing:
    def test_server_certificate_names_its_server_and_lasts_an_hour(self, ca):
        _, csr = new_key_and_csr()

        issued = ca.issue_server(csr, "rack-1/host_a.example")

        certificate = x509.load_pem_x509_certificate(issued.certificate_pem)
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(ca.certificate_pem))
        assert san_of(issued.certificate_pem) == ["galactica:server:rack-1%2Fhost_a.example"]
        assert usages_of(issued.certificate_pem) == [ExtendedKeyUsageOID.CLIENT_AUTH]
        assert issued.expires_at == NOW + 3_600 == certificate.not_valid_after_utc.timestamp()
        assert (
            certificate.not_valid_before_utc.timestamp() == 0
        )  # whatever the clock of the host that reads it

    def test_operator_certificate_names_operator_and_role(self, ca):
        _, csr = new_key_and_csr()

        issued = ca.issue_operator(csr, "ann@example", Role.DEPLOYER, 86_400)

        assert san_of(issued.certificate_pem) == ["galactica:operator:ann%40example:deployer"]
        assert usages_of(issued.certificate_pem) == [ExtendedKeyUsageOID.CLIENT_AUTH]
        assert issued.expires_at == NOW + 86_400

    def test_scheduler_certificate_is_for_serving_only_and_carries_its_names(self, ca):
        key, certificate = ca.issue_scheduler(["10.1.2.3", "fleet.example", "localhost"])

        assert usages_of(certificate) == [ExtendedKeyUsageOID.SERVER_AUTH]
        assert san_of(certificate) == [
            "scheduler.galactica",
            "localhost",
            "127.0.0.1",
            "::1",
            "10.1.2.3",
            "fleet.example",
        ]
        assert (
            serialization.load_pem_private_key(key, None).public_key()
            == x509.load_pem_x509_certificate(certificate).public_key()
        )

    def test_nothing_issued_outlives_the_ca(self, tmp_path, ca):
        late = CertificateAuthority.open_or_create(tmp_path / "ca", "alpha", lambda: ca.expires_at - 60)
        _, csr = new_key_and_csr()

        assert late.issue_server(csr, "a", 3_600).expires_at == ca.expires_at

    def test_ca_that_expired_while_in_use_issues_nothing(self, tmp_path):
        now = [NOW]
        ca = CertificateAuthority.open_or_create(tmp_path / "ca", "alpha", lambda: now[0])
        _, csr = new_key_and_csr()
        now[0] = ca.expires_at

        with pytest.raises(AuthorityError, match="expired"):
            ca.issue_server(csr, "a")

    def test_what_a_request_says_of_itself_is_ignored(self, ca):
        csr = csr_of(
            ec.generate_private_key(ec.SECP256R1()),
            [x509.NameAttribute(NameOID.COMMON_NAME, "root")],
            [
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier("galactica:operator:eve:admin")]),
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
                x509.BasicConstraints(ca=True, path_length=None),
            ],
        )

        certificate_pem = ca.issue_server(csr, "a").certificate_pem

        certificate = x509.load_pem_x509_certificate(certificate_pem)
        assert san_of(certificate_pem) == ["galactica:server:a"]
        assert usages_of(certificate_pem) == [ExtendedKeyUsageOID.CLIENT_AUTH]
        assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert "root" not in certificate.subject.rfc4514_string()

    @pytest.mark.parametrize(
        "make_key",
        [
            lambda: rsa.generate_private_key(65_537, 1_024),
            lambda: ec.generate_private_key(ec.SECP192R1()),
            ed25519.Ed25519PrivateKey.generate,
        ],
        ids=["rsa-1024", "p-192", "ed25519"],
    )
    def test_request_with_an_unfit_key_is_refused(self, ca, make_key):
        with pytest.raises(CsrError, match="unsupported key"):
            ca.issue_server(csr_of(make_key()), "a")

    def test_request_with_a_common_rsa_key_is_served(self, ca):
        issued = ca.issue_server(csr_of(rsa.generate_private_key(65_537, 2_048)), "a")

        assert san_of(issued.certificate_pem) == ["galactica:server:a"]

    def test_request_for_somebody_elses_key_is_refused(self, ca):
        def der(key):
            return x509.load_pem_x509_csr(csr_of(key)).public_bytes(serialization.Encoding.DER)

        def point(key):
            form = (serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
            return key.public_key().public_bytes(*form)

        mine, theirs = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        forged = x509.load_der_x509_csr(der(mine).replace(point(mine), point(theirs)))

        with pytest.raises(CsrError, match="signature is invalid"):
            ca.issue_server(forged.public_bytes(serialization.Encoding.PEM), "a")

    @pytest.mark.parametrize("csr", [b"", b"\xff\x00", b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n"])
    def test_unreadable_request_is_refused(self, ca, csr):
        with pytest.raises(CsrError, match="not a valid PKCS"):
            ca.issue_server(csr, "a")

    def test_oversized_request_is_refused(self, ca):
        with pytest.raises(CsrError, match="longer than"):
            ca.issue_server(new_key_and_csr()[1] + b"\n" * 20_000, "a")

    @pytest.mark.parametrize("server_id", ["", "-a", "a:b", "a b", "a" * 129, "ä"])
    def test_nobody_gets_a_certificate_for_what_is_no_server_id(self, ca, server_id):
        with pytest.raises(AuthorityError, match="invalid server id"):
            ca.issue_server(new_key_and_csr()[1], server_id)

    @pytest.mark.parametrize("name", ["", "a:admin", "a b", "a/b", "a" * 65])
    def test_nobody_gets_a_certificate_for_what_is_no_operator_name(self, ca, name):
        with pytest.raises(AuthorityError, match="invalid operator name"):
            ca.issue_operator(new_key_and_csr()[1], name, Role.VIEWER, 60)


class TestPurpose:
    """By OpenSSL and without a host name, so that the purpose alone decides."""

    def verify(self, tmp_path, ca, kind):
        key, csr = new_key_and_csr()
        match kind:
            case "scheduler":
                key, certificate = ca.issue_scheduler()
            case "operator":
                certificate = ca.issue_operator(csr, "eve", Role.ADMIN, 60).certificate_pem
            case _:
                certificate = ca.issue_server(csr, "a").certificate_pem
        (tmp_path / "chain.pem").write_bytes(key + certificate)
        serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        serving.load_cert_chain(tmp_path / "chain.pem")
        calling = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        calling.check_hostname = False
        calling.load_verify_locations(cadata=ca.certificate_pem.decode())
        up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = calling.wrap_bio(down, up)
        server = serving.wrap_bio(up, down, server_side=True)
        for _ in range(4):
            for side in (client, server):
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    continue
        return client.version()

    @pytest.fixture
    def ca(self, tmp_path):
        return CertificateAuthority.open_or_create(tmp_path / "ca", "alpha")

    def test_scheduler_is_accepted_as_scheduler(self, tmp_path, ca):
        assert self.verify(tmp_path, ca, "scheduler") == "TLSv1.3"

    @pytest.mark.parametrize("kind", ["operator", "server"])
    def test_operators_and_servers_cannot_pass_as_scheduler(self, tmp_path, ca, kind):
        with pytest.raises(
            ssl.SSLCertVerificationError, match=r"(unsuitable|unsupported) certificate purpose"
        ):
            self.verify(tmp_path, ca, kind)


class TestWho:
    @pytest.mark.parametrize(
        ("uri", "identity"),
        [
            (b"galactica:server:web-1", ServerIdentity("web-1")),
            (b"galactica:server:rack%2F1", ServerIdentity("rack/1")),
            (b"galactica:operator:ann:admin", OperatorIdentity("ann", Role.ADMIN)),
        ],
    )
    def test_certificate_says_who_its_holder_is(self, uri, identity):
        assert identity_of(uri) == identity
        assert identity_of({"x509_subject_alternative_name": [uri]}) == identity

    @pytest.mark.parametrize(
        "source",
        [
            b"",
            b"web-1",
            b"galactica:server:",
            b"galactica:server:a:b",
            b"galactica:server:rack/1",
            b"galactica:server:%61",
            b"galactica:operator:ann",
            b"galactica:operator:ann:root",
            b"galactica:operator:ann:admin:",
            b"galactica:operator:ann%3Aadmin:viewer",
            b"spiffe://galactica/server/a",
            b"\xff\xfe",
            {},
            {"x509_subject_alternative_name": []},
            {"x509_subject_alternative_name": [b"galactica:server:a", b"galactica:operator:ann:admin"]},
            {"x509_common_name": [b"galactica:server:a"]},
        ],
    )
    def test_anything_else_is_nobody(self, source):
        with pytest.raises(IdentityError, match="certificate"):
            identity_of(source)

    def test_roles_include_the_lesser_ones(self):
        allowed = {role: [needed for needed in Role if role.allows(needed)] for role in Role}

        assert allowed == {
            Role.VIEWER: [Role.VIEWER],
            Role.DEPLOYER: [Role.VIEWER, Role.DEPLOYER],
            Role.ADMIN: [Role.VIEWER, Role.DEPLOYER, Role.ADMIN],
        }

    def test_identities_print_as_causes(self):
        assert [str(ServerIdentity("a")), str(OperatorIdentity("ann", Role.VIEWER))] == [
            "server:a",
            "operator:ann",
        ]


class TestClockThatCannotBeRight:
    """A machine whose clock has no battery: 1970, 1971 or 2000 when it starts."""

    WRONG = (1.0, 31_536_000.0, 946_684_800.0, EARLIEST - 1.0)

    @pytest.mark.parametrize("now", WRONG)
    def test_no_ca_is_made_by_it(self, tmp_path, now):
        with pytest.raises(
            ClockError, match=r"shows \d{4}-.*cannot be right.*Set the clock, then start again"
        ):
            CertificateAuthority.open_or_create(tmp_path / "ca", "alpha", lambda: now)

        assert not (tmp_path / "ca").exists()

    @pytest.mark.parametrize("now", WRONG)
    def test_a_ca_is_opened_and_stays_as_it_is_but_issues_nothing_that_lasts(self, tmp_path, ca, now):
        path = tmp_path / "ca" / AUTHORITY_FILE
        before = path.read_bytes()

        again = CertificateAuthority.open_or_create(tmp_path / "ca", "alpha", lambda: now)

        assert (again.digest, path.read_bytes()) == (ca.digest, before)
        _, csr = new_key_and_csr()
        for issue in (
            lambda: again.check(csr),
            lambda: again.issue_server(csr, "a"),
            lambda: again.issue_operator(csr, "ann", Role.ADMIN, YEAR),
        ):
            with pytest.raises(ClockError, match="cannot be right"):
                issue()

    def test_the_schedulers_own_certificate_ends_with_the_ca_whatever_the_clock_shows(self, tmp_path, ca):
        again = CertificateAuthority.open_or_create(tmp_path / "ca", "alpha", lambda: 1.0)
        _, certificate = again.issue_scheduler()

        ends = x509.load_pem_x509_certificate(certificate).not_valid_after_utc.timestamp()
        assert ends == again.expires_at

    def test_from_the_release_on_a_clock_may_be_right(self, tmp_path):
        ca = CertificateAuthority.open_or_create(tmp_path / "ca", "alpha", lambda: EARLIEST)
        ca.check(new_key_and_csr()[1])
