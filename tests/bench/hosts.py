"""Hosts for measurements: agents without a provider, each in a network namespace on the lab's switch.

The scheduler stays on this machine. What the switch drops neither end learns of, as in a bad network.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from deploy.lab.switch import FIRST_HOST, NAMESPACES, Switch, cut_scheduler_off, lose


class Host(NamedTuple):
    """``prefix``: what comes before a command that is to run there."""

    name: str
    number: int
    prefix: list[str]


@dataclass(frozen=True, slots=True)
class Hosts:
    switch: Switch
    all: list[Host]

    @property
    def address(self) -> str:
        """This machine's own on that network."""
        return self.switch.address()

    @property
    def prefixes(self) -> dict[str, list[str]]:
        return {host.name: host.prefix for host in self.all}

    def cut(self, host: Host) -> None:
        """Pull its cable."""
        self.switch.pull_cable(host.number)

    def lose(self, share: float) -> None:
        """That share of all packets from now on, each way."""
        self.switch.drop(*lose(share))

    def cut_scheduler_off(self) -> None:
        """Nobody reaches it, and it reaches nobody; hosts still reach each other."""
        self.switch.drop(*cut_scheduler_off())

    def let_scheduler_in(self) -> None:
        self.switch.drop_no_more(*cut_scheduler_off())


@contextlib.contextmanager
def some_hosts(count: int) -> Iterator[Hosts]:
    with tempfile.TemporaryDirectory(prefix="galactica-bench-") as directory:
        switch = Switch(Path(directory))
        try:
            switch.up()
            yield Hosts(switch, [_plugged_in(switch, FIRST_HOST + number) for number in range(count)])
        finally:
            switch.down()


def _plugged_in(switch: Switch, number: int) -> Host:
    switch.plug_in(number)
    # Not ``ip netns exec``, which hides the control groups.
    prefix = ["nsenter", f"--net={NAMESPACES / switch.host_namespace(number)}"]
    return Host(f"host-{number}", number, prefix)


def udp_datagrams(pid: int) -> int:
    """How many the network of that process has sent and received."""
    lines = Path(f"/proc/{pid}/net/snmp").read_text().splitlines()
    names, numbers = (line.split()[1:] for line in lines if line.startswith("Udp:"))
    counts = dict(zip(names, map(int, numbers), strict=True))
    return counts["InDatagrams"] + counts["OutDatagrams"]
