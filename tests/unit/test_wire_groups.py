"""Groups over the wire: nothing is lost, and no client is trusted."""

from __future__ import annotations

import re

import pytest

from galactica.scheduler.core.model.spec import (
    ExecProbe,
    Group,
    GroupKind,
    GrpcProbe,
    HealthSpec,
    HttpProbe,
    Placement,
    Replace,
    Resources,
    RuntimeKind,
    ServerBody,
    Spec,
    Stop,
    TcpProbe,
    digest_of,
)
from galactica.scheduler.wire.operator import group_from_proto, group_to_proto
from galactica.v1 import cell_pb2, operator_pb2

PORTS = {"http": 8080, "rpc": 9090}


@pytest.mark.parametrize(
    "probe", [None, HttpProbe("http", "/x"), TcpProbe("rpc"), ExecProbe(("true",)), GrpcProbe("rpc", "a.B")]
)
def test_a_group_comes_back_as_it_went(probe):
    spec = Spec(
        runtime=RuntimeKind.DOCKER,
        image="hello:1",
        command=("serve", "{port.http}"),
        ports=PORTS,
        env={"A": "1"},
        resources=Resources(100, 2**26, 64),
        health=HealthSpec(probe, 0.333, 0.1, 5, 12.345),
        stop=Stop("SIGINT", 1.001),
        writable=("/data",),
        placement=Placement("none", {"zone": "a"}),
        exclusive=True,
    )
    group = Group(
        GroupKind.SERVICE, "web", 100_000, spec, max_age_seconds=30 * 86_400.0 + 0.001, replace_touched=False
    )
    sent = operator_pb2.Group.FromString(group_to_proto(group).SerializeToString())
    assert group_from_proto(sent) == group
    assert digest_of(group_from_proto(sent).spec) == digest_of(spec)


def test_what_a_client_leaves_out_has_the_defaults_of_the_model():
    sent = operator_pb2.Group(
        kind=operator_pb2.GROUP_KIND_SERVICE,
        name="web",
        replicas=1,
        spec=cell_pb2.Spec(runtime=cell_pb2.RUNTIME_KIND_PROCESS, command=["serve"]),
    )
    spec = Spec(runtime=RuntimeKind.PROCESS, command=("serve",))
    assert group_from_proto(sent) == Group(GroupKind.SERVICE, "web", 1, spec)


def test_a_group_that_says_nothing_is_refused_with_all_that_is_missing():
    with pytest.raises(ValueError) as caught:
        group_from_proto(operator_pb2.Group())
    assert str(caught.value) == (
        "a group without a name: kind: this scheduler does not know kind 0; "
        "runtime: this scheduler does not know runtime 0; name: is missing; every service needs a name"
    )


def test_every_problem_is_told_with_its_path():
    sent = operator_pb2.Group(
        kind=operator_pb2.GROUP_KIND_SERVICE,
        name="web",
        replicas=4_000_000_000,
        spec=cell_pb2.Spec(
            runtime=cell_pb2.RUNTIME_KIND_DOCKER,
            image="hello:1",
            ports={"http": 70_000, "any": 0},
            health=cell_pb2.Health(http=cell_pb2.HttpProbe(port="nope", path="x")),
            stop=cell_pb2.Stop(signal="SIGNOPE"),
            writable=["/../etc"],
        ),
    )
    with pytest.raises(ValueError) as caught:
        group_from_proto(sent)
    # A protobuf map has no order, so the two ports may come either way.
    assert sorted(re.findall(r"(?:^|; )([a-z_.]+(?:\[0\])?): ", str(caught.value).removeprefix("web: "))) == [
        "health.boot_within",
        "health.every",
        "health.http.path",
        "health.http.port",
        "health.sick_after",
        "health.timeout",
        "ports.any",
        "ports.http",
        "replicas",
        "stop.signal",
        "writable[0]",
    ]


def test_a_hostile_group_gets_a_short_answer():
    sent = operator_pb2.Group(
        kind=operator_pb2.GROUP_KIND_SERVICE,
        name="x" * 100_000,
        spec=cell_pb2.Spec(
            runtime=cell_pb2.RUNTIME_KIND_PROCESS, env={f"{n}\n" * 1_000: "" for n in range(5_000)}
        ),
    )
    with pytest.raises(ValueError) as caught:
        group_from_proto(sent)
    assert len(str(caught.value)) < 10_000


# --- pools ------------------------------------------------------------------------------------------------------------


def sent_pool(**changes: object) -> operator_pb2.Group:
    spec = cell_pb2.Spec(
        runtime=cell_pb2.RUNTIME_KIND_SERVER, server=cell_pb2.ServerBody(provider="local", body_json="{}")
    )
    fields = {"kind": operator_pb2.GROUP_KIND_POOL, "name": "rack", "replicas": 3, "spec": spec, **changes}
    return operator_pb2.Group(**fields)


def refusal_of(message: operator_pb2.Group) -> str:
    with pytest.raises(ValueError) as caught:
        group_from_proto(message)
    return str(caught.value)


def test_a_pool_comes_back_as_it_went():
    spec = Spec(
        runtime=RuntimeKind.SERVER,
        health=HealthSpec(boot_within_seconds=123.456),
        server=ServerBody("cloud", '{"image":"a","size":[1,2.5,null]}', {"zone": "a"}),
    )
    pool = Group(
        GroupKind.POOL,
        "rack",
        10_000,
        spec,
        max_age_seconds=86_400.001,
        replace=Replace(0, 2, 7, 90.5),
        lease_seconds=15.5,
        cut_off_after_seconds=601.0,
    )
    sent = operator_pb2.Group.FromString(group_to_proto(pool).SerializeToString())
    assert group_from_proto(sent) == pool
    assert digest_of(group_from_proto(sent).spec) == digest_of(spec)


def test_what_a_client_leaves_out_of_a_pool_has_the_defaults_of_the_model():
    spec = Spec(runtime=RuntimeKind.SERVER, server=ServerBody("local"))
    assert group_from_proto(sent_pool()) == Group(GroupKind.POOL, "rack", 3, spec)


def test_a_servers_description_is_taken_in_any_spelling_and_kept_in_one():
    sent = sent_pool()
    sent.spec.server.body_json = ' { "b" : [ 1 ], "a": "\\u00e9" } '
    body = group_from_proto(sent).spec.server
    assert body is not None
    assert body.body_json == '{"a":"\\u00e9","b":[1]}'


def test_of_a_pools_spec_only_what_a_server_has_counts():
    sent = sent_pool()
    sent.spec.image, sent.spec.exclusive = "hello:1", True
    sent.spec.command.append("serve")
    assert group_from_proto(sent) == group_from_proto(sent_pool())


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("[1]", "server: must be a JSON object"),
        ("{", "server: is not valid standard JSON"),
        ('{"a": NaN}', "server: is not valid standard JSON"),
        ('{"a": 1e999}', "server: is not valid standard JSON"),
        ("[" * 60_000, "server: is not valid standard JSON"),
        ('{"a": "' + "x" * 70_000 + '"}', "server: is more than 65,536 bytes long"),
    ],
)
def test_a_description_that_is_no_json_object_is_refused(body, said):
    sent = sent_pool()
    sent.spec.server.body_json = body
    assert refusal_of(sent) == f"rack: {said}"


def test_every_problem_of_a_pool_is_told_with_its_path():
    sent = sent_pool(
        replicas=4_000_000_000,
        lease_ms=1,
        cut_off_after_ms=1,
        max_age_ms=1,
        replace=operator_pb2.Replace(count=4_000_000_000),
    )
    sent.spec.CopyFrom(
        cell_pb2.Spec(
            runtime=cell_pb2.RUNTIME_KIND_DOCKER,
            health=cell_pb2.Health(),
            server=cell_pb2.ServerBody(provider="A B", labels={"-": ""}),
        )
    )
    assert re.findall(r"(?:^|; )([a-z_.-]+): ", refusal_of(sent).removeprefix("rack: ")) == [
        "size",
        "runtime",
        "provider",
        "labels.-",
        "boot_within",
        "max_age",
        "lease",
        "cut_off_after",
        "replace",
        "replace.per.count",
        "replace.per.window",
    ]


def test_a_service_of_servers_is_refused():
    assert "servers belong to a pool" in refusal_of(sent_pool(kind=operator_pb2.GROUP_KIND_SERVICE))
