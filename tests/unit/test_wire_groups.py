"""Groups over the wire: nothing is lost, and no client is trusted."""

from __future__ import annotations

import re

import pytest
from galactica.v1 import cell_pb2, operator_pb2

from scheduler.model import (
    ExecProbe,
    Group,
    GroupKind,
    GrpcProbe,
    HealthSpec,
    HttpProbe,
    Placement,
    Resources,
    RuntimeKind,
    Spec,
    Stop,
    TcpProbe,
    digest_of,
)
from scheduler.wire_groups import group_from_proto, group_to_proto

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
        "a group without a name: kind: 0 is not known to this scheduler; "
        "runtime: 0 is not known to this scheduler; name: is missing; every service needs a name"
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
