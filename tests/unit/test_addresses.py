"""At which address a container is probed."""

from __future__ import annotations

import pytest

from galactica.agent.runtimes.docker.addresses import direct, is_own_address, published
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
