"""Who may not come in, and what they are told: through the real binaries, on the real ports."""

from __future__ import annotations

import json
import shutil
import time

import grpc
import pytest

from galactica.scheduler.security.ca import CertificateAuthority, Role, new_key_and_csr
from galactica.v1 import cell_pb2, link_pb2, link_pb2_grpc, operator_pb2, operator_pb2_grpc
from tests.support.fleet import WAIT_SECONDS, a_fleet
from tests.support.processes import is_alive, pids

pytestmark = pytest.mark.xdist_group("e2e-strangers")


@pytest.fixture(scope="module")
def fleet():
    with a_fleet("earth") as fleet:
        yield fleet


@pytest.fixture(scope="module")
def authority(fleet):
    """The fleet's own CA: whoever has its key may be anybody."""
    return CertificateAuthority.open_or_create(fleet.data / "ca", fleet.name)


@pytest.fixture(scope="module")
def another_authority(fleet):
    return CertificateAuthority.open_or_create(fleet.directory / "another-ca", fleet.name)


def hello(version=1):
    facts = cell_pb2.Capacity(cpu_millis=1_000, memory_bytes=2**30, disk_bytes=2**30)
    runtimes = [cell_pb2.RUNTIME_KIND_PROCESS]
    greeting = link_pb2.Hello(wire_version=version, agent_version="9.9", capacity=facts, runtimes=runtimes)
    return link_pb2.AttachRequest(hello=greeting)


def attach(channel, *requests, timeout_seconds=3.0):
    """The status with which the scheduler ends a link that begins so, or its first answer."""
    with channel:
        call = link_pb2_grpc.AgentLinkServiceStub(channel).Attach(iter(requests), timeout=timeout_seconds)
        try:
            return next(call)
        except grpc.RpcError as error:
            return error.code(), error.details()


def server_channel(fleet, authority, server, ttl_seconds=600.0):
    key, csr = new_key_and_csr()
    return fleet.channel(key, authority.issue_server(csr, server, ttl_seconds).certificate_pem)


def ended(fleet, name):
    """Exit code and last words of an agent that cannot stay."""
    code = fleet.agents[name].wait(WAIT_SECONDS)
    return code, fleet.log(name).splitlines()[-1]


def not_enrolled(fleet, why):
    where = f"error: the scheduler at {fleet.enrol_address} did not enrol this host"
    return f"{where}: {why}; ask an operator for a new one (UNAUTHENTICATED)"


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_wrong_token_is_refused(fleet):
    token = fleet.token()
    head, identity, secret, pin = token.split(".")
    wrong = ".".join([head, identity, secret[::-1], pin])
    fleet.begin_agent("wrong", GALACTICA_TOKEN=wrong)
    assert ended(fleet, "wrong") == (1, not_enrolled(fleet, "the join token is unknown, wrong or used up"))
    fleet.begin_agent("wrong", GALACTICA_TOKEN=token)
    fleet.until(lambda: fleet.is_attached("wrong"), "the right one still works")


def test_token_of_another_fleet_is_never_shown_to_this_one(fleet, another_authority):
    head, identity, secret, _ = fleet.token().split(".")
    fleet.begin_agent("alien", GALACTICA_TOKEN=f"{head}.{identity}.{secret}.{another_authority.digest}")
    code, words = ended(fleet, "alien")
    assert code == 1
    assert "CA" in words
    assert fleet.events("ServerEnrolled")[-1]["server"] != "alien"


def test_used_up_token_is_refused(fleet):
    token = fleet.token("--uses", "1")
    fleet.begin_agent("first", GALACTICA_TOKEN=token)
    fleet.until(lambda: fleet.is_attached("first"), "the first one is in")
    fleet.begin_agent("second", GALACTICA_TOKEN=token)
    assert ended(fleet, "second") == (1, not_enrolled(fleet, "the join token is unknown, wrong or used up"))
    assert "second" not in [server["id"] for server in fleet.servers()]


def test_expired_token_is_refused(fleet):
    token = fleet.token("--ttl", "1s")
    time.sleep(1.1)  # its whole life
    fleet.begin_agent("late", GALACTICA_TOKEN=token)
    assert ended(fleet, "late") == (1, not_enrolled(fleet, "the join token has expired"))


def test_server_that_lives_cannot_be_enrolled_again_by_somebody_else(fleet):
    fleet.begin_agent("double", "--id", "earth", GALACTICA_TOKEN=fleet.token())
    code, words = ended(fleet, "double")
    assert code == 1
    assert "this fleet already has a server with the id earth (READY)" in words
    assert fleet.is_attached("earth")


# --- certificates of servers ------------------------------------------------------------------------------------------


def test_certificate_of_another_ca_opens_nothing(fleet, another_authority):
    code, _ = attach(server_channel(fleet, another_authority, "earth"), hello())
    assert code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
    assert fleet.is_attached("earth")


def test_expired_certificate_opens_nothing(fleet, authority):
    channel = server_channel(fleet, authority, "earth", ttl_seconds=1.0)
    time.sleep(1.1)  # its whole life
    code, _ = attach(channel, hello())
    assert code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
    assert fleet.is_attached("earth")


def test_certificate_of_a_server_that_never_enrolled_is_refused_by_name(fleet, authority):
    assert attach(server_channel(fleet, authority, "ghost"), hello()) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "server ghost is not in this fleet: enrol it again with a new token",
    )


def test_server_is_who_its_certificate_says_and_cannot_speak_of_anothers_cells(fleet, authority):
    fleet.start_agent("venus", "--label", "for=theft")
    (cell,) = fleet.apply("theft", placement={"require": {"for": "theft"}})
    death = cell_pb2.CellReport(
        cell_id=cell["id"],
        digest=cell["digest"],
        state=cell_pb2.CELL_STATE_EXITED,
        autopsy=cell_pb2.Autopsy(reason="so says a thief"),
    )
    fleet.start_agent("thief")
    fleet.end_agent("thief")
    lie = hello()
    lie.hello.inventory.append(death)
    welcome = attach(server_channel(fleet, authority, "thief"), lie)
    assert welcome.WhichOneof("message") == "welcome"
    fleet.until(
        lambda: "unknown_cell" in {held["rule"] for held in fleet.status()["held"]}, "its claim is shown"
    )
    assert pids(fleet.cells("theft")) == pids([cell])
    assert is_alive(int(cell["runtime_id"]))
    assert fleet.events("CellCondemned") == fleet.events("OrphanRemoved") == []
    fleet.done("condemn", "--unknown")
    assert is_alive(int(cell["runtime_id"]))


@pytest.mark.parametrize(("version", "who"), [(0, "agent"), (3, "scheduler")])
def test_agent_of_another_wire_version_is_refused_with_both_versions(fleet, authority, version, who):
    fleet.start_agent("old")
    fleet.end_agent("old")
    code, words = attach(server_channel(fleet, authority, "old"), hello(version))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert words == (
        f"the agent uses wire version {version}, but this scheduler uses 2 and serves 1: install a newer {who}"
    )


def test_agent_with_another_servers_identity_is_refused_by_name(fleet):
    shutil.copytree(fleet.directory / "earth" / "identity", fleet.directory / "mask" / "identity")
    fleet.begin_agent("mask")
    code, words = ended(fleet, "mask")
    assert code == 2
    assert "belongs to server earth, not mask" in words
    assert fleet.is_attached("earth")


# --- operators --------------------------------------------------------------------------------------------------------


@pytest.fixture
def viewer(fleet):
    file = fleet.directory / "vera.json"
    if not file.exists():
        fleet.done("operator", "create", "vera", "--role", "viewer", "--file", str(file))
    return file


def test_operator_without_the_right_is_refused_by_name_and_that_is_on_record(fleet, viewer):
    cells = fleet.apply("precious", 1)
    calls = {
        "CondemnCell": ["condemn", cells[0]["id"]],
        "DeleteGroup": ["delete", "service/precious"],
        "ApplyGroups": ["apply", str(fleet.service("precious", 0))],
        "DrainServer": ["drain", "earth"],
        "CreateToken": ["token", "create"],
    }
    position = fleet.position()
    for call, words in calls.items():
        refused = fleet.run(*words, context=viewer)
        assert (refused.code, refused.out) == (4, "")
        assert f"operator vera has the role viewer, but {call} needs the role" in refused.err
    recorded = fleet.events("CallRefused", after=position)
    assert [(e["caller"], e["role"], e["call"]) for e in recorded] == [
        ("operator:vera", "viewer", call) for call in calls
    ]
    assert [cell["phase"] for cell in fleet.cells("precious")] == ["READY"]
    read = fleet.run("cells", "precious", "-o", "json", context=viewer)
    assert (read.code, [cell["id"] for cell in read.json]) == (0, ["precious/0.1"])


@pytest.mark.parametrize("trouble", ["another CA", "expired"])
def test_operator_whose_certificate_does_not_hold_is_told_so(
    fleet, viewer, authority, another_authority, trouble
):
    issuer = another_authority if trouble == "another CA" else authority
    key, csr = new_key_and_csr()
    certificate = issuer.issue_operator(csr, "vera", Role.VIEWER, 1.0 if trouble == "expired" else 600.0)
    facts = json.loads(viewer.read_text())
    file = fleet.directory / f"{trouble}.json"
    file.touch(0o600)
    file.write_text(
        json.dumps({**facts, "key_pem": key.decode(), "cert_pem": certificate.certificate_pem.decode()})
    )
    time.sleep(1.1 if trouble == "expired" else 0.0)  # its whole life
    refused = fleet.run("status", context=file)
    assert (refused.code, refused.out) == (4, "")
    assert "does not accept the certificate of vera" in refused.err


def test_server_cannot_ask_what_operators_ask_and_that_is_on_record(fleet, authority):
    with server_channel(fleet, authority, "earth") as channel:
        operators = operator_pb2_grpc.OperatorServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            operators.GetStatus(operator_pb2.GetStatusRequest(), timeout=WAIT_SECONDS)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert (
        refused.value.details()
        == "server earth may not call GetStatus: the call needs an operator's certificate"
    )
    recorded = fleet.events("CallRefused")[-1]
    assert (recorded["caller"], recorded["role"], recorded["call"]) == ("server:earth", "server", "GetStatus")
