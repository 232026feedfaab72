"""A person's shell in a cell, from the command line through scheduler and agent, on a real terminal and on pipes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from datetime import datetime, timedelta

import pytest

from tests.support.fleet import a_fleet
from tests.support.processes import ROOT, cli_command

WAIT_SECONDS = 30.0
ENVIRONMENT = {"COLOUR": "blue", "PS1": "ready> "}


class Terminal:
    """A person at a terminal: ``galactica shell`` in a pseudo-terminal, with what it shows so far."""

    def __init__(self, fleet, *words, rows=24, columns=80):
        self.ours, self._theirs = pty.openpty()
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.before = termios.tcgetattr(self._theirs)
        self.shown = b""
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *cli_command(), "shell", *words],
            cwd=ROOT,
            env=fleet.environment(TERM="xterm"),
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
        )

    def until(self, what: bytes) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while what not in self.shown:
            assert time.monotonic() < deadline, (what, self.shown)
            self._read(0.1)

    def _read(self, seconds: float) -> None:
        if select.select([self.ours], [], [], seconds)[0]:
            self.shown += os.read(self.ours, 4_096)

    def type(self, text: bytes) -> None:
        os.write(self.ours, text)

    def is_raw(self) -> bool:
        return not termios.tcgetattr(self._theirs)[3] & termios.ICANON

    def until_raw(self) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not self.is_raw():
            assert time.monotonic() < deadline, self.shown
            self._read(0.02)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def signal(self, number: int) -> None:
        """To the command itself, which is the leader of the terminal's session."""
        os.kill(os.tcgetpgrp(self.ours), number)

    def end(self) -> int:
        """Its exit code, once it has ended and given the terminal back."""
        deadline = time.monotonic() + WAIT_SECONDS
        while (code := self.process.poll()) is None:
            assert time.monotonic() < deadline, self.shown
            self._read(0.05)
        assert termios.tcgetattr(self._theirs) == self.before
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.ours)
        os.close(self._theirs)


@contextlib.contextmanager
def a_terminal(fleet, *words, **size):
    terminal = Terminal(fleet, *words, **size)
    try:
        yield terminal
    finally:
        terminal.close()


@pytest.fixture(scope="module")
def fleet():
    with a_fleet("earth") as fleet:
        fleet.apply("web", 4, env=ENVIRONMENT)
        yield fleet


def piped(fleet, *words: str, typed: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*cli_command(), "shell", *words],
        cwd=ROOT,
        env=fleet.environment(),
        input=typed,
        capture_output=True,
        timeout=60,
        check=False,
    )


def cell_of(fleet, slot: int) -> str:
    """The slot's newest cell, as soon as it is READY: the one before is being replaced if a shell was opened in it."""

    def look():
        newest = [cell for cell in fleet.cells("web") if cell["slot"] == slot][-1]
        return newest["id"] if newest["phase"] == "READY" else ""

    return fleet.until(look, f"slot {slot} has a READY cell")


def test_a_shell_on_a_terminal_is_in_the_cell_and_passes_its_exit_code_on(fleet):
    cell = cell_of(fleet, 0)
    with a_terminal(fleet, cell, rows=33, columns=111) as terminal:
        terminal.until_raw()
        assert f"A shell in {cell} touches it".encode() in terminal.shown
        assert b"or in 15m" in terminal.shown or b"or in 14m" in terminal.shown
        terminal.type(b"echo $COLOUR-$CELL_ID; stty size; tty\r")
        terminal.until(f"blue-{cell}".encode())
        terminal.until(b"33 111")
        terminal.until(b"/dev/pts/")
        terminal.resize(44, 122)
        terminal.type(
            b"until stty size | grep '44 1''22'; do sleep 0.1; done\r"
        )  # what is typed may overtake it
        terminal.until(b"44 122")
        # Said by the command itself: a shell that has said it may not have handed the terminal on yet.
        terminal.type(b"""sh -c "echo be''gun; exec sleep 100"\r""")
        terminal.until(b"begun\r\n")
        terminal.type(b"\x03")  # Ctrl-C is the shell's, not the command's
        terminal.until(b"^C\r\nready> ")
        terminal.type(b"exit 7\r")
        assert terminal.end() == 7


def test_a_shell_is_on_record_with_who_opened_it_and_when_the_cell_dies(fleet):
    cell = cell_of(fleet, 1)
    position = fleet.position()
    assert piped(fleet, cell, "--", "true").returncode == 0
    (event,) = fleet.events("ShellOpened", after=position)
    assert (event["cell"], event["operator"]) == (cell, "admin")
    dies_at = datetime.fromisoformat(event["dies_at"])
    assert dies_at - datetime.fromisoformat(event["at"]) == timedelta(minutes=15)


def test_a_command_on_pipes_takes_all_input_and_keeps_its_two_outputs_apart(fleet):
    cell = cell_of(fleet, 1)
    typed = os.urandom(1024 * 1024)
    done = piped(fleet, cell, "--", "sh", "-c", "echo aside >&2; cat; exit 3", typed=typed)
    assert (done.returncode, done.stdout == typed) == (3, True)
    assert done.stderr.endswith(b"aside\n")


def test_a_reader_that_stops_reading_stops_the_command_and_nothing_else(fleet):
    cell = cell_of(fleet, 1)
    process = subprocess.Popen(
        [*cli_command(), "shell", cell, "--", "sh", "-c", "while :; do echo chatter; done"],
        cwd=ROOT,
        env=fleet.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout.read(8) == b"chatter\n"
        done = piped(fleet, cell, "--", "echo", "beside")
        assert done.stdout == b"beside\n"
        assert fleet.status()["healthy"] is not None
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
)
def test_a_signal_ends_the_command_and_gives_the_terminal_back(fleet, number, code):
    with a_terminal(fleet, cell_of(fleet, 2)) as terminal:
        terminal.until_raw()
        terminal.signal(number)
        assert terminal.end() == code


def test_the_leave_key_leaves_a_shell_that_does_not_answer(fleet):
    with a_terminal(fleet, cell_of(fleet, 2)) as terminal:
        terminal.until_raw()
        terminal.type(b"trap '' INT; exec sleep 1000\r")
        terminal.type(b"\x1d")
        assert terminal.end() == 130


def test_a_shell_whose_cell_dies_gives_the_terminal_back(fleet):
    cell = cell_of(fleet, 3)
    with a_terminal(fleet, cell) as terminal:
        terminal.until_raw()
        fleet.done("delete", "service/web")
        assert terminal.end() != 0
    fleet.until(lambda: not fleet.cells("web"), "it is gone")
    fleet.apply("web", 4, env=ENVIRONMENT)


def test_the_person_keeps_the_shell_while_the_successor_serves_already(fleet):
    cell = cell_of(fleet, 0)
    with a_terminal(fleet, cell) as terminal:
        terminal.until_raw()
        fleet.until(lambda: fleet.cell(cell)["phase"] == "DRAINING", "its successor is proven")
        fleet.until(lambda: fleet.status()["healthy"], "the service is whole without it")
        assert fleet.cell(cell)["endpoints"] == {}
        terminal.type(b"echo sti''ll here\r")
        terminal.until(b"still here")
        terminal.type(b"exit\r")
        assert terminal.end() == 0
    fleet.until(lambda: fleet.cell(cell)["phase"] == "DECOMMISSIONED", "it goes when the shell is closed")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("web/9.9",), 1, b"no such cell: web/9.9"),
        (("web",), 2, b"invalid cell id 'web'"),
        (("{cell}", "--", "frobnicate"), 1, b"command 'frobnicate' not found"),
    ],
)
def test_a_shell_that_cannot_be_says_why(fleet, words, code, said):
    cell = cell_of(fleet, 1)
    done = piped(fleet, *(word.format(cell=cell) for word in words))
    assert done.returncode == code
    assert said in done.stderr


def test_a_viewer_opens_no_shell(fleet, tmp_path):
    context = tmp_path / "viewer.json"
    fleet.done("operator", "create", "vera", "--role", "viewer", "--file", str(context))
    done = fleet.run("shell", cell_of(fleet, 1), context=context)
    assert done.code == 4
    assert "operator vera has the role viewer, but OpenShell needs the role deployer" in done.err
    assert [event for event in fleet.events("ShellOpened") if event["operator"] == "vera"] == []


def test_a_shell_in_a_container_is_no_stranger_and_a_command_run_by_hand_is(engine, busybox_image):
    with a_fleet() as fleet:
        fleet.start_agent("earth", runtime="docker", DOCKER_HOST=engine)
        # One cell for each: a shell touches its cell, which is being replaced while the next one is opened.
        fleet.apply("web", 4, image=busybox_image, command=["sleep", "1000"])
        with a_terminal(fleet, "web/0.1", rows=33, columns=111) as terminal:
            terminal.until_raw()
            terminal.type(b"echo $CELL_ID; stty size\r")
            terminal.until(b"33 111")
            terminal.resize(44, 122)
            terminal.type(b"stty size\r")
            terminal.until(b"44 122")
            terminal.type(b"exit 5\r")
            assert terminal.end() == 5
        typed = os.urandom(300_000)
        done = piped(fleet, "web/1.1", "--", "sh", "-c", "echo aside >&2; cat; exit 3", typed=typed)
        assert (done.returncode, done.stdout == typed) == (3, True)
        assert done.stderr.endswith(b"aside\n")
        with a_terminal(fleet, "web/2.1") as terminal:
            terminal.until_raw()
            terminal.type(b"\x1d")
            assert terminal.end() == 130
        fleet.until_ready("web", 4, without=("web/0.1", "web/1.1", "web/2.1"))
        assert "a shell was opened in it" in fleet.done("why", "web/0.1")
        by_hand = fleet.cell("web/3.1")
        touch = ["docker", "exec", by_hand["runtime_id"], "sh", "-c", "true"]
        subprocess.run(touch, env={**os.environ, "DOCKER_HOST": engine}, check=True)
        fleet.until_ready("web", 4, without=(by_hand["id"],))
        assert fleet.why(by_hand["id"])["rule"] == "touched"
        assert "somebody ran sh in it (docker exec)" in fleet.done("why", by_hand["id"])
