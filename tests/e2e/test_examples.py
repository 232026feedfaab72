"""Each manifest in ``examples/`` is applied as it is to a real fleet, becomes ready, and goes again."""

from __future__ import annotations

import contextlib
import re
import socket

import docker.errors
import pytest

from galactica.scheduler.core.model.spec import GroupKind, RuntimeKind
from galactica.scheduler.manifest.loading import load
from tests.support.docker_cells import client_of, remove_fleet
from tests.support.fleet import a_fleet
from tests.support.processes import ROOT, answer_of

EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
LABELS = {"earth": {"zone": "a"}, "mars": {"zone": "b"}}


def needs_an_engine(example):
    return any(group.spec.runtime is RuntimeKind.DOCKER for group in load([str(example)]))


def named(examples):
    return [pytest.param(example, id=example.stem) for example in examples]


CONTAINERS = named(filter(needs_an_engine, EXAMPLES))
PROCESSES = named(example for example in EXAMPLES if not needs_an_engine(example))


def labels_as_words(name):
    return [word for key, value in LABELS[name].items() for word in ("--label", f"{key}={value}")]


@pytest.fixture(scope="module")
def fleet():
    """Two servers in two zones."""
    with a_fleet() as fleet:
        for name in LABELS:
            fleet.start_agent(name, *labels_as_words(name))
        yield fleet


@pytest.fixture(scope="module")
def engine_with_busybox(engine, busybox_image):
    """The image that the examples name. An engine that lacks it gets a busybox of ours under that name."""
    with contextlib.closing(client_of(engine)) as client:
        try:
            client.inspect_image("busybox:1.36")
        except docker.errors.ImageNotFound:
            client.tag(busybox_image, "busybox", "1.36")
            yield engine
            client.remove_image("busybox:1.36")
        else:
            yield engine


@pytest.fixture(scope="module")
def fleet_with_engine(engine_with_busybox):
    with a_fleet() as fleet:
        try:
            fleet.start_agent("venus", runtime="docker", DOCKER_HOST=engine_with_busybox)
            yield fleet
        finally:
            for agent in fleet.agents.values():
                agent.kill()
                agent.wait()
            remove_fleet(engine_with_busybox, fleet.name)


def apply_and_delete(fleet, example):
    groups = load([str(example)])
    assert len(applied(fleet, example)) == len(groups)
    for group in groups:
        assert_it_is_ready(fleet, group)
    before = [cell["id"] for cell in fleet.cells()]
    assert applied(fleet, example) == [], "the same once more changes nothing"
    assert [cell["id"] for cell in fleet.cells()] == before
    # A pool goes last, since its servers carry the cells.
    for group in reversed(groups):
        fleet.done("delete", f"{group.kind}/{group.name}")
    fleet.until(lambda: not fleet.cells(), "all cells are gone")
    fleet.until(lambda: {server["id"] for server in fleet.servers()} == set(fleet.agents), "and pools too")


def applied(fleet, example):
    """The groups that applying it has changed."""
    position = fleet.position()
    fleet.done("apply", str(example))
    return [event["group"] for event in fleet.events("GroupApplied", after=position)]


def assert_it_is_ready(fleet, group):
    match group.kind:
        case GroupKind.POOL:
            fleet.until(lambda: len(servers_of(fleet, group)) == group.replicas, f"{group.name} is ready")
            assert all(one["labels"] == group.spec.server.labels for one in servers_of(fleet, group))
        case GroupKind.SERVICE:
            for cell in fleet.until_ready(group.name, group.replicas):
                assert_it_serves(fleet, group, cell)


def servers_of(fleet, pool):
    return [one for one in fleet.servers() if (one["pool"], one["phase"]) == (pool.name, "READY")]


def assert_it_serves(fleet, group, cell):
    """It is on a server that the manifest allows, and each of its ports answers."""
    labels = fleet.server(cell["server"])["labels"]
    assert group.spec.placement.require.items() <= labels.items()
    assert set(cell["endpoints"]) == set(group.spec.ports)
    for port, endpoint in cell["endpoints"].items():
        if port == "http":
            assert answer_of(endpoint)[0] == 200
        else:
            host, _, number = endpoint.rpartition(":")
            socket.create_connection((host, int(number)), timeout=5).close()


@pytest.mark.xdist_group("e2e-examples")
@pytest.mark.parametrize("example", PROCESSES)
def test_an_example_becomes_ready_as_it_is(fleet, example):
    apply_and_delete(fleet, example)


@pytest.mark.parametrize("example", CONTAINERS)
def test_an_example_with_containers_becomes_ready_as_it_is(fleet_with_engine, engine, example):
    apply_and_delete(fleet_with_engine, example)


def test_there_are_six_and_both_kinds_of_cells_are_among_them():
    assert len(EXAMPLES) == 6
    assert CONTAINERS
    assert PROCESSES


def test_the_page_lists_each_example():
    page = (ROOT / "examples/README.md").read_text()
    assert sorted(set(re.findall(r"\]\(([a-z]+\.yaml)\)", page))) == [example.name for example in EXAMPLES]
