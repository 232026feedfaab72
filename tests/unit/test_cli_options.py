"""What ``up`` and ``scheduler`` are told reaches the servers as plain data, or is refused as wrong usage."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from galactica.scheduler.cli.app import build
from galactica.scheduler.settings.options import (
    Address,
    RuntimeChoice,
    SchedulerOptions,
    UpOptions,
    next_port,
    parse_address,
    parse_labels,
)
from galactica.scheduler.units import format_bytes, format_duration


@dataclass
class Served:
    """What the servers were started with."""

    options: list[UpOptions | SchedulerOptions] = field(default_factory=list)

    def run_up(self, options: UpOptions) -> None:
        self.options.append(options)

    def run_scheduler(self, options: SchedulerOptions) -> None:
        self.options.append(options)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    """A stand-in for the module with the servers, which these tests do not start."""
    served = Served()
    module = ModuleType("galactica.scheduler.serve.run")
    vars(module).update(run_up=served.run_up, run_scheduler=served.run_scheduler)
    monkeypatch.setitem(sys.modules, "galactica.scheduler.serve.run", module)
    monkeypatch.setenv("GALACTICA_CONTEXT", "/c/context.json")
    return served


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(build(), list(arguments))
    return result.exit_code, result.output


def test_up_takes_its_defaults(served: Served, monkeypatch: pytest.MonkeyPatch):
    assert run("up", "--data", "/d") == (0, "")
    assert served.options == [
        UpOptions(
            Path("/d"), Path("/c/context.json"), Address("127.0.0.1", 7_400), None, {}, stop_cells=False
        )
    ]


def test_up_passes_on_everything_that_it_is_told(served: Served):
    code, _ = run(
        "up", "--data", "/d", "--runtime", "process", "--listen", "[::1]:0", "--label", "zone=a",
        "--label", "disk=ssd=x", "--stop-cells",
    )  # fmt: skip
    assert code == 0
    assert served.options == [
        UpOptions(
            Path("/d"),
            Path("/c/context.json"),
            Address("::1", 0),
            RuntimeChoice.PROCESS,
            {"zone": "a", "disk": "ssd=x"},
            stop_cells=True,
        )
    ]


def test_the_scheduler_lets_servers_enrol_on_the_next_port(served: Served):
    assert run("scheduler", "--data", "/d", "--listen", "0.0.0.0:9000", "--fleet", "prod")[0] == 0
    assert served.options == [
        SchedulerOptions(
            Path("/d"), Path("/c/context.json"), "prod", Address("0.0.0.0", 9_000), Address("0.0.0.0", 9_001)
        )
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["up", "--listen", "7400"], "invalid address '7400'"),
        (["up", "--listen", "host:70000"], "invalid address 'host:70000'"),
        (["up", "--label", "zone"], "invalid label 'zone'"),
        (["up", "--label", "a=1", "--label", "a=2"], "duplicate label 'a'"),
        (["up", "--runtime", "vm"], "--runtime"),
        (["scheduler", "--listen", "host:65535"], "--enrol-listen"),
    ],
)
def test_wrong_options_are_wrong_usage(served: Served, arguments: list[str], said: str):
    code, output = run(*arguments)
    assert code == 2
    assert said in output
    assert served.options == []


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:7400", Address("127.0.0.1", 7_400)),
        ("[fe80::1]:1", Address("fe80::1", 1)),
        ("a.b-c:0", Address("a.b-c", 0)),
    ],
)
def test_an_address_is_written_as_it_was_read(text: str, address: Address):
    assert parse_address(text) == address
    assert str(address) == text


def test_a_free_port_is_followed_by_a_free_port():
    assert next_port(Address("h", 0)) == Address("h", 0)


def test_labels_may_have_empty_values():
    assert parse_labels(["zone="]) == {"zone": ""}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0004, "1ms"),
        (0.5, "500ms"),
        (4, "4s"),
        (4.25, "4.2s"),
        (59.6, "1m"),
        (185, "3m 5s"),
        (90_000, "1d 1h"),
        (-5, "-5s"),
    ],
)
def test_durations_are_short_for_people(seconds: float, text: str):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(("amount", "text"), [(0, "0 B"), (2**26, "64 MiB"), (3 * 2**29, "1.5 GiB")])
def test_amounts_are_short_for_people(amount: int, text: str):
    assert format_bytes(amount) == text
