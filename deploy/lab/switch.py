"""The lab's network: a switch with a port for each host and one for the scheduler, all on this machine.

The switch is a bridge in its own network namespace. So this machine's packet filter and Docker Engine do not affect it,
and packets that it drops affect nothing else. Each host is a namespace with one address. The scheduler stays in the
machine's own namespace, behind a port of the switch::

    machine's own namespace          namespace PREFIXsw                namespace PREFIX-2
    PREFIXup 10.77.N.1  ───────────  uplink ── br0 ── port2  ────────  eth0 10.77.N.2

All names begin with a prefix that is derived from the lab's directory. So several labs can be up at once, and the
remains of a killed lab can be found.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2s
from pathlib import Path
from typing import NamedTuple

import psutil

NAMESPACES = Path("/run/netns")
CONTROL_GROUPS = Path("/sys/fs/cgroup")
NETWORKS = ipaddress.IPv4Network("10.77.0.0/16")
SCHEDULER = 1
FIRST_HOST, LAST_HOST = 2, 254
END_SECONDS = 20.0
UPLINK = "uplink"
BRIDGE_FILTER = "/proc/sys/net/bridge/bridge-nf-call-iptables"


class LabError(Exception):
    """A part of the lab cannot be created or found; the message is for people."""


class Drop(NamedTuple):
    """Packets that the switch drops: a share of those that enter at one port, leave at another, or both."""

    enters: str = ""
    leaves: str = ""
    share: float = 1.0

    def rule(self) -> list[str]:
        words = ["FORWARD"]
        if self.enters or self.leaves:
            words += ["-m", "physdev"]
        words += ["--physdev-in", self.enters] if self.enters else []
        words += ["--physdev-out", self.leaves] if self.leaves else []
        if self.share < 1:
            words += ["-m", "statistic", "--mode", "random", "--probability", str(self.share)]
        return [*words, "-j", "DROP"]


@dataclass(frozen=True, slots=True)
class Switch:
    """``directory``: the lab's directory. All names are derived from it."""

    directory: Path

    @property
    def prefix(self) -> str:
        """Eight characters: the kernel allows fifteen for the name of an interface."""
        return "lab" + blake2s(str(self.directory.absolute()).encode(), digest_size=3).hexdigest()[:5]

    @property
    def namespace(self) -> str:
        return f"{self.prefix}sw"

    @property
    def scheduler_interface(self) -> str:
        return f"{self.prefix}up"

    def host_namespace(self, number: int) -> str:
        return f"{self.prefix}-{number}"

    @property
    def network(self) -> ipaddress.IPv4Network:
        """Raises LabError if the lab is not up."""
        try:
            return ipaddress.IPv4Network((self.directory / "network").read_text())
        except FileNotFoundError:
            raise LabError(f"no lab in {self.directory}") from None

    def address(self, number: int = SCHEDULER) -> str:
        return str(self.network[number])

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time: the provider's program runs for several hosts at once."""
        with self._lock("lock", fcntl.LOCK_EX):
            yield

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the lab up meanwhile: a program of the provider may outlive the scheduler that started it.

        Raises LabError if the lab is not up."""
        with self._lock("use", fcntl.LOCK_SH):
            _ = self.network
            yield

    @contextlib.contextmanager
    def _lock(self, name: str, how: int) -> Iterator[None]:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.directory / name).open("w") as lock:
            fcntl.flock(lock, how)
            yield

    # --- up and down ----------------------------------------------------------------------------------------------

    def up(self) -> None:
        """Raises LabError."""
        if os.geteuid() != 0:
            raise LabError("only root can create network namespaces: run the lab as root")
        with self.locked():
            network = _free_network()
            (self.directory / "network").write_text(str(network))
            run("ip", "netns", "add", self.namespace)
            self._ip("link", "add", "br0", "type", "bridge")
            self._ip("link", "set", "dev", "br0", "up")
            words = ["ip", "link", "add", "name", self.scheduler_interface, "type", "veth"]
            run(*words, "peer", "name", UPLINK, "netns", self.namespace)
            self._attach(UPLINK)
            address = f"{network[SCHEDULER]}/{network.prefixlen}"
            run("ip", "address", "add", address, "dev", self.scheduler_interface)
            run("ip", "link", "set", "dev", self.scheduler_interface, "up")
            self._filter_on_the_bridge()

    def _filter_on_the_bridge(self) -> None:
        """The lab's faults are iptables rules. With br_netfilter loaded and switched on, iptables sees the bridge's
        packets."""
        try:
            if not Path(BRIDGE_FILTER).exists():
                run("modprobe", "br_netfilter")
            run("nsenter", f"--net={NAMESPACES / self.namespace}", "sh", "-c", f"echo 1 > {BRIDGE_FILTER}")
        except (LabError, OSError) as error:
            raise LabError(
                f"iptables cannot filter the packets of a bridge on this kernel (br_netfilter): {error}"
            ) from None

    def down(self) -> None:
        """Remove everything with this lab's prefix; does nothing if there is nothing. The caller removes the directory
        and its files."""
        with self._lock("use", fcntl.LOCK_EX):
            namespaces = sorted(path for path in NAMESPACES.glob(f"{self.prefix}*"))
            end_processes(namespaces)
            for path in namespaces:
                run("ip", "netns", "delete", path.name)
            _delete_link(self.scheduler_interface)
            for group in _control_groups(f"{self.prefix}-*"):
                _remove_group(group)
            (self.directory / "network").unlink(missing_ok=True)

    # --- hosts ----------------------------------------------------------------------------------------------------

    def plug_in(self, number: int) -> None:
        """Create a namespace with an address, at its own port of the switch. Raises LabError."""
        name, port = self.host_namespace(number), port_of(number)
        run("ip", "netns", "add", name)
        words = ["link", "add", "name", port, "type", "veth", "peer", "name", "eth0", "netns", name]
        self._ip(*words)
        address = f"{self.address(number)}/{self.network.prefixlen}"
        run("ip", "-n", name, "address", "add", address, "dev", "eth0")
        for interface in ("lo", "eth0"):
            run("ip", "-n", name, "link", "set", "dev", interface, "up")
        self._attach(port)

    def unplug(self, number: int) -> None:
        """Remove everything that is left of a host. Does nothing if nothing is left."""
        path = NAMESPACES / self.host_namespace(number)
        with contextlib.suppress(LabError):
            self._ip("link", "delete", port_of(number))
        if path.exists():
            end_processes([path])
            run("ip", "netns", "delete", path.name)
        for group in _control_groups(self.host_namespace(number)):
            _remove_group(group)

    def pull_cable(self, number: int) -> None:
        """Like a loss of power: no packet leaves the host any more, not even those that close connections."""
        self._ip("link", "set", "dev", port_of(number), "down")

    def _attach(self, port: str) -> None:
        self._ip("link", "set", "dev", port, "master", "br0", "up")

    def _ip(self, *words: str) -> None:
        run("ip", "-n", self.namespace, *words)

    # --- faults ---------------------------------------------------------------------------------------------------

    def drop(self, *drops: Drop) -> None:
        for drop in drops:
            self._iptables("--append", *drop.rule())

    def drop_no_more(self, *drops: Drop) -> None:
        for drop in drops:
            self._iptables("--delete", *drop.rule())

    def drop_nothing(self) -> None:
        self._iptables("--flush", "FORWARD")

    def dropped(self) -> int:
        """How many packets the current rules have dropped."""
        rules = self._iptables("--list", "FORWARD", "--verbose", "--numeric", "--exact").splitlines()[2:]
        return sum(int(rule.split()[0]) for rule in rules)

    def _iptables(self, *words: str) -> str:
        return run("nsenter", f"--net={NAMESPACES / self.namespace}", "iptables", "--wait", *words)


def port_of(number: int) -> str:
    return f"port{number}"


def cut(number: int) -> tuple[Drop, ...]:
    """Cut a host's link, both ways."""
    return cut_in(number) + cut_out(number)


def cut_in(number: int) -> tuple[Drop, ...]:
    """No packet reaches the host."""
    return (Drop(leaves=port_of(number)),)


def cut_out(number: int) -> tuple[Drop, ...]:
    """No packet from the host arrives."""
    return (Drop(enters=port_of(number)),)


def cut_from_scheduler(number: int) -> tuple[Drop, ...]:
    return Drop(port_of(number), UPLINK), Drop(UPLINK, port_of(number))


def cut_scheduler_off() -> tuple[Drop, ...]:
    """Cut the scheduler off from all hosts. The hosts still reach each other."""
    return Drop(enters=UPLINK), Drop(leaves=UPLINK)


def lose(share: float) -> tuple[Drop, ...]:
    """Drop this share of all packets."""
    return (Drop(share=share),)


def end_processes(namespaces: list[Path]) -> None:
    """Kill all processes in these network namespaces. Raises LabError if some do not end."""
    wanted = {path.stat().st_ino for path in namespaces}
    for _ in range(100):
        left = [process for process in psutil.process_iter() if _namespace_of(process.pid) in wanted]
        if not left:
            return
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, END_SECONDS / 100)
    raise LabError(f"processes do not end on SIGKILL: {[process.pid for process in left]}")


def remember(process: psutil.Process, file: Path) -> None:
    """Store pid and start time: another process may get the pid later."""
    file.write_text(f"{process.pid} {process.create_time()}")


def remembered(file: Path) -> psutil.Process | None:
    """The stored process; None if it has ended or none was stored."""
    try:
        pid, started = file.read_text().split()
        process = psutil.Process(int(pid))
        is_it = str(process.create_time()) == started and process.status() != psutil.STATUS_ZOMBIE
    except (FileNotFoundError, psutil.NoSuchProcess):
        return None
    return process if is_it else None


def _namespace_of(pid: int) -> int:
    """The inode of the process's network namespace; 0 if the process has ended."""
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except OSError:
        return 0


def _free_network() -> ipaddress.IPv4Network:
    """A /24 network that overlaps no route of this machine. Raises LabError."""
    routes = json.loads(run("ip", "-json", "-4", "route", "show", "table", "all"))
    taken = [
        ipaddress.ip_network(route["dst"], strict=False) for route in routes if route["dst"] != "default"
    ]
    for network in NETWORKS.subnets(new_prefix=24):
        if not any(network.overlaps(other) for other in taken if other.prefixlen > 0):
            return network
    raise LabError(f"no free network in {NETWORKS}: remove a route from it")


def _delete_link(name: str) -> None:
    if Path(f"/sys/class/net/{name}").exists():
        with contextlib.suppress(
            LabError
        ):  # the kernel removes it together with its other end, perhaps just now
            run("ip", "link", "delete", name)


def _control_groups(pattern: str) -> list[Path]:
    """The groups in each hierarchy (version 1) or in the only one (version 2)."""
    return [*CONTROL_GROUPS.glob(f"*/{pattern}"), *CONTROL_GROUPS.glob(pattern)]


def _remove_group(group: Path) -> None:
    inner = [path for path in group.rglob("*") if path.is_dir()]
    for path in (*sorted(inner, key=lambda path: len(path.parts), reverse=True), group):
        with contextlib.suppress(OSError):
            path.rmdir()


def run(*command: str) -> str:
    """Run a command and return its output. Raises LabError."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise LabError(f"{' '.join(command)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout
