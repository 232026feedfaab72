"""``make lab``: a fleet of several hosts on this machine to experiment with, and commands that cause faults.

    python -m deploy.lab up             run a scheduler, a pool of four hosts and a service, until Ctrl-C
    python -m deploy.lab hosts          list the hosts
    python -m deploy.lab kill HOST      kill all processes of the host at once, like a loss of power
    python -m deploy.lab cut HOST       cut its link; --inwards, --outwards: one way; --scheduler: only to the scheduler
    python -m deploy.lab join HOST      connect its link again
    python -m deploy.lab blind          cut the scheduler off from all hosts
    python -m deploy.lab lose PERCENT   drop this share of all packets
    python -m deploy.lab calm           connect all links again and drop no packets
    python -m deploy.lab down           remove the remains of a lab that was killed

HOST is a server's id, as shown by ``galactica servers``. Exit code 1: refused or failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from deploy.lab.host import Host, hosts_of
from deploy.lab.switch import (
    LabError,
    Switch,
    cut,
    cut_from_scheduler,
    cut_in,
    cut_out,
    cut_scheduler_off,
    lose,
    remember,
    remembered,
)

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
DIRECTORY = Path(tempfile.gettempdir()) / "galactica-lab"
PORT = 7_400
HOSTS = 4
CELLS = 8
PATIENCE_SECONDS = 90.0


def main() -> int:
    arguments = parser().parse_args()
    switch = Switch(arguments.directory.absolute())
    try:
        arguments.act(switch, arguments)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        prog="python -m deploy.lab",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
    )
    command.add_argument(
        "--directory", type=Path, default=DIRECTORY, help=f"directory of the lab (default: {DIRECTORY})"
    )
    actions = command.add_subparsers(required=True, metavar="ACTION")

    def add(name: str, act: Callable[[Switch, argparse.Namespace], None]) -> argparse.ArgumentParser:
        action = actions.add_parser(name)
        action.set_defaults(act=act)
        return action

    up = add("up", run)
    up.add_argument("--hosts", type=int, default=HOSTS, help=f"number of hosts (default: {HOSTS})")
    up.add_argument("--docker", action="store_true", help="give each host its own Docker Engine")
    add("hosts", show)
    add("kill", lambda switch, options: host_of(switch, options.host).lose_power()).add_argument("host")
    links = add("cut", cut_link)
    links.add_argument("host")
    way = links.add_mutually_exclusive_group()
    for name in ("inwards", "outwards", "scheduler"):
        way.add_argument(f"--{name}", dest="way", action="store_const", const=name, default="")
    add("join", join_link).add_argument("host")
    add("blind", lambda switch, _: switch.drop(*cut_scheduler_off()))
    losing = add("lose", lambda switch, options: switch.drop(*lose(options.percent / 100)))
    losing.add_argument("percent", type=int)
    add("calm", lambda switch, _: switch.drop_nothing())
    add("down", lambda switch, _: remove(switch))
    return command


# --- faults of hosts --------------------------------------------------------------------------------------------------


def host_of(switch: Switch, name: str) -> Host:
    for host in hosts_of(switch):
        if host.cell == name and host.is_on:
            return host
    running = ", ".join(host.cell for host in hosts_of(switch) if host.is_on) or "none"
    raise LabError(f"no running host {name}; running hosts: {running}")


def show(switch: Switch, _: argparse.Namespace) -> None:
    row = "{:12} {:12} {:14} {:>8} {:>8}  {}"
    print(row.format("HOST", "ADDRESS", "NAMESPACE", "INIT", "AGENT", "FILES"))
    for host in hosts_of(switch):
        first, agent = host.first_process, host.agent
        pids = (str(process.pid) if process else "-" for process in (first, agent))
        print(row.format(host.cell, host.address, host.namespace, *pids, host.path))


def cut_link(switch: Switch, options: argparse.Namespace) -> None:
    ways = {"": cut, "inwards": cut_in, "outwards": cut_out, "scheduler": cut_from_scheduler}
    switch.drop(*ways[options.way](host_of(switch, options.host).number))


def join_link(switch: Switch, options: argparse.Namespace) -> None:
    number = host_of(switch, options.host).number
    for drop in (*cut(number), *cut_from_scheduler(number)):
        with contextlib.suppress(LabError):  # the link was not cut in this way
            switch.drop_no_more(drop)


# --- the lab itself ---------------------------------------------------------------------------------------------------


def run(switch: Switch, options: argparse.Namespace) -> None:
    """Run until Ctrl-C. In any case the lab is removed at the end."""
    if (switch.directory / "network").exists():
        raise LabError(
            f"there is already a lab in {switch.directory}: end it with Ctrl-C, or remove its remains with "
            "python -m deploy.lab down"
        )
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        switch.up()
        scheduler = start_scheduler(switch)
        populate(switch, options)
        print(what_to_type(switch), flush=True)
        scheduler.wait()
        raise LabError(f"the scheduler has ended; its log is {switch.directory / 'scheduler.log'}")
    except KeyboardInterrupt:
        print("\nRemoving the lab …", flush=True)
    finally:
        remove(switch)


def start_scheduler(switch: Switch) -> subprocess.Popen[bytes]:
    """Start the scheduler in its own session, so that Ctrl-C reaches only this program."""
    data = switch.directory / "scheduler"
    data.mkdir()
    words = ["-m", "deploy.lab.provider", "--directory", str(switch.directory)]
    options = {"program": [sys.executable, *words], "environment": {"PYTHONPATH": str(ROOT)}}
    providers = {"providers": {"lab": {"kind": "exec", "options": options}}}
    (data / "providers.yaml").write_text(json.dumps(providers))
    command = [str(BIN / "galactica"), "scheduler", "--data", str(data), "--fleet", "lab"]
    command += ["--listen", f"{switch.address()}:{PORT}"]
    with (switch.directory / "scheduler.log").open("wb") as log:
        scheduler = subprocess.Popen(
            command,
            env=environment(switch),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    remember(psutil.Process(scheduler.pid), switch.directory / "scheduler.pid")
    wait(lambda: galactica(switch, "events", "-n", "0") is not None, "the scheduler to answer")
    return scheduler


def populate(switch: Switch, options: argparse.Namespace) -> None:
    server = {"engine": True} if options.docker else {}
    pool = {"kind": "pool", "name": "rack", "size": options.hosts, "provider": "lab", "server": server}
    web = {
        "kind": "service",
        "name": "web",
        "replicas": CELLS,
        "runtime": "process",
        "command": [sys.executable, "-S", "-m", "http.server", "{port.http}"],
        "ports": {"http": "auto"},
        "health": {"http": {"port": "http", "path": "/"}, "every": "1s", "timeout": "2s"},
    }
    for group in (pool,) if options.docker else (pool, web):
        file = switch.directory / f"{group['name']}.yaml"
        file.write_text(json.dumps(group))  # JSON is YAML
        if galactica(switch, "apply", str(file)) is None:
            raise LabError(f"{file} was refused; see scheduler.log in {switch.directory}")
        patience = ["--ready", "--timeout", f"{PATIENCE_SECONDS:g}s"]
        if galactica(switch, "wait", f"{group['kind']}/{group['name']}", *patience) is None:
            raise LabError(f"{group['name']} was not ready within {PATIENCE_SECONDS:g} s")


def what_to_type(switch: Switch) -> str:
    context = switch.directory / "context.json"
    return f"""The lab is up: {switch.network}, the scheduler at {switch.address()}:{PORT}, files in {switch.directory}

In another terminal, in this directory:
  export GALACTICA_CONTEXT={context} PATH={BIN}:$PATH
  galactica servers                                 # hosts, their neighbours' testimonies, the evidence
  galactica top
  python -m deploy.lab hosts                        # addresses, namespaces, process ids
  python -m deploy.lab kill rack/0.1                # like a loss of power
  kill -9 AGENT                                     # only its agent; see hosts for the pid
  python -m deploy.lab cut rack/1.1                 # cut its link; --inwards, --outwards, --scheduler
  python -m deploy.lab join rack/1.1
  python -m deploy.lab blind                        # the scheduler hears nobody: see galactica storms
  python -m deploy.lab calm
  galactica why rack/0.1                            # its death certificate

Ctrl-C ends and removes everything."""


def remove(switch: Switch) -> None:
    """End the scheduler first, so that it orders no new hosts; then remove everything."""
    scheduler = remembered(switch.directory / "scheduler.pid")
    if scheduler is not None:
        scheduler.kill()
        scheduler.wait()
    switch.down()
    shutil.rmtree(switch.directory, ignore_errors=True)


def galactica(switch: Switch, *words: str) -> str | None:
    """The output of the command; None if it failed."""
    command = [str(BIN / "galactica"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(switch))
    return done.stdout if done.returncode == 0 else None


def environment(switch: Switch) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("GALACTICA_")}
    return inherited | {"GALACTICA_CONTEXT": str(switch.directory / "context.json")}


def wait(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise LabError(f"timeout: waited {PATIENCE_SECONDS:g} s for {what}")
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
