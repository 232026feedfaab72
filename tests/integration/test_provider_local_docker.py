"""What a local server leaves behind in a real engine when its agent is killed."""

import docker
import pytest

from galactica.scheduler.providers.local import containers
from tests.support.provider_world import CELL


@pytest.fixture
def client(engine):
    made = docker.DockerClient(base_url=engine)
    yield made
    made.close()


def run(client, image, fleet, server, fleet_id=None):
    labels = {"galactica.fleet": fleet, "galactica.server": server}
    labels |= {} if fleet_id is None else {"galactica.fleet-id": fleet_id}
    return client.containers.run(image, ["/bin/busybox", "sleep", "600"], detach=True, labels=labels)


def test_containers_of_a_killed_server_are_removed_and_those_of_others_live_on(
    client, busybox_image, tmp_path, monkeypatch, engine
):
    monkeypatch.setenv("DOCKER_HOST", engine)
    fleet = tmp_path.parent.name
    owned = [
        (fleet, CELL),
        (fleet, CELL, "ours"),
        (fleet, "pool/0.2"),
        (fleet + "x", CELL),
        (fleet, CELL, "b"),
    ]
    running = [run(client, busybox_image, *owner) for owner in owned]
    try:
        containers.remove_all_of(fleet, "ours", CELL)
        there = {one.id for one in client.containers.list()}
        assert [one.id in there for one in running] == [False, False, True, True, True]
    finally:
        containers.remove_all_of(fleet, "", "pool/0.2")
        containers.remove_all_of(fleet + "x", "", CELL)
        containers.remove_all_of(fleet, "b", CELL)


def test_engine_that_does_not_answer_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(containers.EngineUnavailable, match="the engine does not answer"):
        containers.remove_all_of("f", "", CELL)
