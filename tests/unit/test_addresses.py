"""At which address a container is probed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from galactica.agent.runtimes.docker.addresses import direct, is_own_address, published, shares_network
from galactica.v1 import cell_pb2

SPEC = cell_pb2.Spec(ports={"http": 8080, "admin": 9})
BRIDGE = {"IPAddress": "172.17.0.2", "Gateway": "172.17.0.1"}
SIX = {"GlobalIPv6Address": "fd00::2", "IPv6Gateway": "fd00::1"}
NONE = {"IPAddress": "", "Gateway": "", "GlobalIPv6Address": "", "IPv6Gateway": ""}


@pytest.mark.parametrize(
    ("networks", "own", "reached"),
    [
        ({"bridge": BRIDGE}, {"172.17.0.1"}, {"http": "172.17.0.2:8080", "admin": "172.17.0.2:9"}),
        ({"six": SIX}, {"fd00::1"}, {"http": "[fd00::2]:8080", "admin": "[fd00::2]:9"}),
        ({"bridge": BRIDGE | SIX}, {"fd00::1"}, {"http": "[fd00::2]:8080", "admin": "[fd00::2]:9"}),
        ({"bridge": BRIDGE}, set(), {}),  # the engine is elsewhere, or in another network namespace
        ({"none": NONE}, {""}, {}),
        ({"host": NONE}, {""}, {}),
        ({}, {"172.17.0.1"}, {}),
        (None, {"172.17.0.1"}, {}),
    ],
)
def test_own_address_is_used_where_the_gateway_is_this_host(
    networks: dict[str, dict[str, str]] | None, own: set[str], reached: dict[str, str]
) -> None:
    inspected = {"NetworkSettings": {"Networks": networks}}
    assert direct(SPEC, inspected, own.__contains__) == reached


def test_published_ports_are_those_that_the_engine_bound() -> None:
    bound = {"8080/tcp": [{"HostIp": "::1", "HostPort": "32768"}], "9/tcp": None}
    assert published("::1", SPEC, {"NetworkSettings": {"Ports": bound}}) == {"http": "[::1]:32768"}
    assert published("::1", SPEC, {"NetworkSettings": {"Ports": None}}) == {}


def test_address_of_this_host_is_told_from_others() -> None:
    assert is_own_address("127.0.0.1")
    assert not is_own_address("192.0.2.1")


def test_engine_that_listens_in_this_network_shares_it(tmp_path: Path) -> None:
    path = tmp_path / "engine.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        assert shares_network(f"unix://{path}")
        assert shares_network(f"http+unix://{str(path).replace('/', '%2F')}")


@pytest.mark.root
def test_engine_in_another_network_does_not_share_it(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can make a network namespace; run the tests as root")
    path = tmp_path / "engine.sock"
    program = (
        "import socket,sys; s=socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); "
        "print(flush=True); s.accept(); sys.stdin.read()"
    )
    command = ["unshare", "--net", sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as engine:
        assert engine.stdout
        engine.stdout.readline()
        assert not shares_network(f"unix://{path}")
        engine.communicate()


@pytest.mark.parametrize("url", ["tcp://127.0.0.1:2375", "unix:///nowhere.sock", "ssh://host", ""])
def test_engine_that_cannot_be_looked_at_shares_nothing_for_sure(url: str) -> None:
    assert not shares_network(url)
