"""Fresh Debian 12 roots, made by debootstrap, and machines that boot them under systemd-nspawn.

Where packages come from and by which proxy is this machine's own configuration of apt, read when a root is made. The
bare root is kept below ``~/.cache``, since debootstrap takes a minute.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

SUITE = "bookworm"
PACKAGES = "debootstrap systemd-container docker.io"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "galactica-tests"
WAIT_SECONDS = 60.0
LOOK_EVERY_SECONDS = 0.1

_ENVIRONMENT = os.environ | {
    "PATH": f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin:/sbin",
    "DEBIAN_FRONTEND": "noninteractive",
    "LC_ALL": "C.UTF-8",
}


@dataclass(frozen=True)
class Root:
    """A directory that holds a whole Debian."""

    directory: Path

    @classmethod
    @contextlib.contextmanager
    def fresh(cls) -> Iterator[Root]:
        """debootstrap's smallest variant, which has neither Python nor systemd. While used it is held in memory."""
        directory = Path(tempfile.mkdtemp(prefix="galactica-debian-"))
        command("mount", "-t", "tmpfs", "-o", "size=3g,mode=0755", "galactica-tests", str(directory))
        try:
            command("tar", "-xf", str(_bare_root()), "-C", str(directory))
            root = cls(directory)
            root._take_over_apt()
            yield root
        finally:
            command("umount", "--lazy", str(directory))
            directory.rmdir()

    def run(self, *words: str, binds: tuple[str, ...] = ()) -> str:
        """In the root, with this machine's network and nothing booted."""
        given = [f"--bind={bind}" for bind in binds]
        return command(*self.nspawn_command(), "--pipe", "--resolv-conf=replace-host", *given, "--", *words)

    def apt_install(self, *packages: str, binds: tuple[str, ...] = ()) -> str:
        """With its dependencies. What was downloaded is kept for the next root."""
        archives = CACHE / "archives"
        archives.mkdir(parents=True, exist_ok=True)
        options = ["-o", "APT::Keep-Downloaded-Packages=true", "-o", "APT::Sandbox::User=root"]
        install = ["apt-get", *options, "install", "--yes", "--quiet", "--no-install-recommends", *packages]
        with _locked("archives"):
            self.run("apt-get", *options, "update", "--quiet")
            return self.run(*install, binds=(f"{archives}:/var/cache/apt/archives", *binds))

    def text(self, path: str) -> str:
        return (self.directory / path.lstrip("/")).read_text()

    def exists(self, path: str) -> bool:
        return os.path.lexists(self.directory / path.lstrip("/"))

    def nspawn_command(self) -> list[str]:
        return ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", f"--directory={self.directory}"]

    def _take_over_apt(self) -> None:
        """The sources, and how they are reached, are those of this machine."""
        apt = self.directory / "etc/apt"
        fetching = [
            line for line in command("apt-config", "dump").splitlines() if line.startswith("Acquire::")
        ]
        (apt / "apt.conf.d" / "90host").write_text("\n".join([*fetching, ""]))
        (apt / "sources.list").write_text(
            "".join(
                f"deb {uri} {release} {component}\n"
                for uri, release, component in _sources()
                if release.startswith(SUITE)
            )
        )
        shutil.copytree("/etc/apt/auth.conf.d", apt / "auth.conf.d", dirs_exist_ok=True)


@dataclass(frozen=True)
class Machine:
    """A root whose systemd runs, with a network of its own in which it is alone."""

    root: Root
    nspawn: subprocess.Popen[bytes]

    @property
    def leader(self) -> int:
        """Its first process, as this machine counts. Asked anew each time: systemd-nspawn's first child is a helper
        that ends when it has begun the machine's first process beside it."""
        return _newest_child(self.nspawn)

    @classmethod
    @contextlib.contextmanager
    def booted(cls, root: Root, log: Path, *words: str) -> Iterator[Machine]:
        """``words``: more options for systemd-nspawn."""
        with log.open("wb") as output:
            nspawn = subprocess.Popen(
                [*root.nspawn_command(), "--private-network", "--console=pipe", *words, "--boot"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=_ENVIRONMENT,
            )
        try:
            machine = cls(root, nspawn)
            until(lambda: machine.leader, "systemd-nspawn begins")
            until(machine.is_up, "systemd has booted")
            yield machine
        finally:
            # All its processes die with its first one, and systemd-nspawn ends. A kill of that would leave them.
            for child in _children(nspawn):
                os.kill(child, signal.SIGKILL)
            nspawn.kill()
            nspawn.wait()
            _remove_groups()

    def is_up(self) -> bool:
        assert self.nspawn.poll() is None, "systemd-nspawn has ended"
        done = self.ask("systemctl", "is-system-running")
        assert done.stdout.strip() != "degraded", self.ask("systemctl", "list-units", "--failed").stdout
        return done.stdout.strip() == "running"

    def ask(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """However it ends."""
        inside = ["nsenter", "--all", "--target", str(self.leader), "--", "env", "-i"]
        own = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "DEBIAN_FRONTEND": "noninteractive"}
        return subprocess.run(
            [*inside, *(f"{name}={value}" for name, value in (own | environment).items()), *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=WAIT_SECONDS,
        )

    def run(self, *words: str, **environment: str) -> str:
        """What a command prints that has to work."""
        done = self.ask(*words, **environment)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def property(self, unit: str, name: str) -> str:
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).strip()

    def journal(self, unit: str) -> str:
        return self.ask("journalctl", "--no-pager", "--output=cat", f"--unit={unit}").stdout


def until(look: Callable[[], T], what: str, seconds: float = WAIT_SECONDS) -> T:
    """What ``look`` gives as soon as that is true. Fails with what was waited for."""
    deadline = time.monotonic() + seconds
    while not (value := look()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(LOOK_EVERY_SECONDS)
    return value


def command(*words: str) -> str:
    """What it prints. Fails with all that it said."""
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            env=_ENVIRONMENT,
        )
    except FileNotFoundError as missing:
        raise AssertionError(f"{missing.filename} is missing: apt-get install {PACKAGES}") from missing
    assert done.returncode == 0, f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout[-3_000:]}"
    return done.stdout


def _bare_root() -> Path:
    """The archive of one; made where there is none yet."""
    CACHE.mkdir(parents=True, exist_ok=True)
    kept = CACHE / f"{SUITE}-{platform.machine()}.tar"
    with _locked("root"):
        if not kept.exists():
            made = CACHE / "root"
            shutil.rmtree(made, ignore_errors=True)
            mirror = next(uri for uri, release, _ in _sources() if release == SUITE)
            command("debootstrap", "--variant=minbase", SUITE, str(made), mirror)
            (made / "etc/apt/sources.list").unlink()
            command("tar", "--one-file-system", "-cf", f"{kept}.new", "-C", str(made), ".")
            Path(f"{kept}.new").rename(kept)
            shutil.rmtree(made)
    return kept


def _sources() -> list[tuple[str, str, str]]:
    """Address, release and component of each source of packages."""
    found = command(
        "apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Identifier: Packages"
    )
    return [(uri, release, component) for uri, release, component in map(str.split, found.splitlines())]


@contextlib.contextmanager
def _locked(name: str) -> Iterator[None]:
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _newest_child(process: subprocess.Popen[bytes]) -> int:
    assert process.poll() is None, "systemd-nspawn has ended"
    children = _children(process)
    return children[-1] if children else 0


def _children(process: subprocess.Popen[bytes]) -> list[int]:
    if process.poll() is not None:
        return []
    return [
        int(word) for word in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ]


def _remove_groups() -> None:
    """The control groups that systemd-nspawn makes below our own and leaves behind."""
    own = [line.split(":", 2)[2].strip("/") for line in Path("/proc/self/cgroup").read_text().splitlines()]
    for hierarchy in ("/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"):
        for group in {Path(hierarchy, path, name) for path in own for name in ("payload", "supervisor")}:
            for directory, _, _ in os.walk(group, topdown=False):
                # Another machine may be using it.
                with contextlib.suppress(OSError):
                    Path(directory).rmdir()
