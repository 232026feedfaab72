"""``make lab``: a fleet of several hosts on this machine to play with, until Ctrl-C; and what can be done to a host.

    python -m deploy.lab up             scheduler, a pool of four hosts and a service on it, in the foreground
    python -m deploy.lab hosts          what there is
    python -m deploy.lab kill HOST      all of it at once, as when the power goes
    python -m deploy.lab cut HOST       its link; --inwards, --outwards: one way; --scheduler: from the scheduler alone
    python -m deploy.lab join HOST      its link is whole again
    python -m deploy.lab blind          the scheduler is cut off from all hosts
    python -m deploy.lab lose PERCENT   that share of all packets is lost
    python -m deploy.lab calm           every link is whole again, and nothing is lost
    python -m deploy.lab down           remove what a lab has left that was killed

HOST is a server's id, as ``galactica servers`` shows it. Exit code 1: refused or failed.
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
    command.add_argument("--directory", type=Path, default=DIRECTORY, help=f"the lab's ({DIRECTORY})")
    actions = command.add_subparsers(required=True, metavar="ACTION")

    def add(name: str, act: Callable[[Switch, argparse.Namespace], None]) -> argparse.ArgumentParser:
        action = actions.add_parser(name)
        action.set_defaults(act=act)
        return action

    up = add("up", run)
    up.add_argument("--hosts", type=int, default=HOSTS)
    up.add_argument("--docker", action="store_true", help="each host has a Docker Engine of its own")
    add("hosts", show)
    add("kill", lambda switch, said: host_of(switch, said.host).lose_power()).add_argument("host")
    links = add("cut", cut_link)
    links.add_argument("host")
    way = links.add_mutually_exclusive_group()
    for name in ("inwards", "outwards", "scheduler"):
        way.add_argument(f"--{name}", dest="way", action="store_const", const=name, default="")
    add("join", join_link).add_argument("host")
    add("blind", lambda switch, _: switch.drop(*cut_scheduler_off()))
    add("lose", lambda switch, said: switch.drop(*lose(said.percent / 100))).add_argument("percent", type=int)
    add("calm", lambda switch, _: switch.drop_nothing())
    add("down", lambda switch, _: remove(switch))
    return command


# --- what happens to hosts --------------------------------------------------------------------------------------------


def host_of(switch: Switch, name: str) -> Host:
    for host in hosts_of(switch):
        if host.cell == name and host.is_on:
            return host
    there = ", ".join(host.cell for host in hosts_of(switch) if host.is_on) or "none"
    raise LabError(f"no host {name} is on; there are: {there}")


def show(switch: Switch, _: argparse.Namespace) -> None:
    row = "{:12} {:12} {:14} {:>8} {:>8}  {}"
    print(row.format("HOST", "ADDRESS", "NAMESPACE", "INIT", "AGENT", "FILES"))
    for host in hosts_of(switch):
        first, agent = host.first_process, host.agent
        pids = (str(process.pid) if process else "-" for process in (first, agent))
        print(row.format(host.cell, host.address, host.namespace, *pids, host.path))


def cut_link(switch: Switch, said: argparse.Namespace) -> None:
    ways = {"": cut, "inwards": cut_in, "outwards": cut_out, "scheduler": cut_from_scheduler}
    switch.drop(*ways[said.way](host_of(switch, said.host).number))


def join_link(switch: Switch, said: argparse.Namespace) -> None:
    number = host_of(switch, said.host).number
    for drop in (*cut(number), *cut_from_scheduler(number)):
        with contextlib.suppress(LabError):  # it was not cut so
            switch.drop_no_more(drop)


# --- the lab itself ---------------------------------------------------------------------------------------------------


def run(switch: Switch, said: argparse.Namespace) -> None:
    """Until Ctrl-C; whatever happens, all of it is removed."""
    if (switch.directory / "network").exists():
        raise LabError(
            f"there is a lab in {switch.directory}; end it with Ctrl-C, or remove what it left: "
            "python -m deploy.lab down"
        )
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        switch.up()
        scheduler = start_scheduler(switch)
        populate(switch, said)
        print(what_to_type(switch), flush=True)
        scheduler.wait()
        raise LabError(f"the scheduler has ended; its words are in {switch.directory / 'scheduler.log'}")
    except KeyboardInterrupt:
        print("\nThe lab is taken down …", flush=True)
    finally:
        remove(switch)


def start_scheduler(switch: Switch) -> subprocess.Popen[bytes]:
    """In a session of its own, so that Ctrl-C reaches this program alone."""
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
    wait(lambda: galactica(switch, "status") is not None, "the scheduler to answer")
    return scheduler


def populate(switch: Switch, said: argparse.Namespace) -> None:
    server = {"engine": True} if said.docker else {}
    pool = {"kind": "pool", "name": "rack", "size": said.hosts, "provider": "lab", "server": server}
    web = {
        "kind": "service",
        "name": "web",
        "replicas": CELLS,
        "runtime": "process",
        "command": [sys.executable, "-S", "-m", "http.server", "{port.http}"],
        "ports": {"http": "auto"},
        "health": {"http": {"port": "http", "path": "/"}, "every": "1s", "timeout": "2s"},
    }
    for group in (pool,) if said.docker else (pool, web):
        file = switch.directory / f"{group['name']}.yaml"
        file.write_text(json.dumps(group))  # JSON is YAML
        if galactica(switch, "apply", str(file)) is None:
            raise LabError(f"{file} was refused; the scheduler's words are in {switch.directory}")
        patience = ["--ready", "--timeout", f"{PATIENCE_SECONDS:g}s"]
        if galactica(switch, "wait", f"{group['kind']}/{group['name']}", *patience) is None:
            raise LabError(f"{group['name']} did not get ready within {PATIENCE_SECONDS:g} s")


def what_to_type(switch: Switch) -> str:
    context = switch.directory / "context.json"
    return f"""The lab is up: {switch.network}, the scheduler at {switch.address()}:{PORT}, files in {switch.directory}

In another terminal, here:
  export GALACTICA_CONTEXT={context} PATH={BIN}:$PATH
  galactica servers                                 # hosts, what their neighbours say, the evidence
  galactica top
  python -m deploy.lab hosts                        # addresses, namespaces, process ids
  python -m deploy.lab kill rack/0.1                # the power goes
  kill -9 AGENT                                     # its agent alone, as hosts shows it
  python -m deploy.lab cut rack/1.1                 # its link; --inwards, --outwards, --scheduler
  python -m deploy.lab join rack/1.1
  python -m deploy.lab blind                        # the scheduler hears nobody: galactica storms
  python -m deploy.lab calm
  galactica why rack/0.1                            # its death certificate

Ctrl-C ends it all and removes it."""


def remove(switch: Switch) -> None:
    """The scheduler first, so that it orders no others."""
    scheduler = remembered(switch.directory / "scheduler.pid")
    if scheduler is not None:
        scheduler.kill()
        scheduler.wait()
    switch.down()
    shutil.rmtree(switch.directory, ignore_errors=True)


def galactica(switch: Switch, *words: str) -> str | None:
    """What the command line prints; None where it failed."""
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
            raise LabError(f"waited {PATIENCE_SECONDS:g} s in vain for {what}")
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
