"""Exit codes and errors of the command line, and how it behaves on a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from galactica.scheduler.security.ca import CertificateAuthority
from galactica.scheduler.security.identities import Role
from galactica.scheduler.settings.context import keep_context, read_context
from galactica.v1 import operator_pb2
from tests.support.command_line import NOW, WEB, command, environment, run, said
from tests.support.forked import begin
from tests.support.operator_service import Refusal, Scheduler, a_small_fleet, context_of, operator_service
from tests.support.processes import ROOT


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scheduler]:
    with operator_service(tmp_path_factory.mktemp("scheduler")) as scheduler:
        yield scheduler


@pytest.fixture
def scheduler(running: Scheduler) -> Scheduler:
    """One that has a small fleet and remembers nothing of the tests before."""
    ended = running.answers.ended
    running.answers.__dict__.update(a_small_fleet(NOW).__dict__)
    running.answers.ended = ended
    ended.clear()
    return running


def piped(scheduler: Scheduler, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(*arguments),
        env=environment(scheduler.context_file),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


# --- exit codes and errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "rule", "text", "code", "said_of_it"),
    [
        ("FAILED_PRECONDITION", "condemned", "web/0.1 is condemned", 1, "web/0.1 is condemned"),
        ("NOT_FOUND", "missing", "no such cell: web/9.9", 1, "no such cell: web/9.9"),
        ("RESOURCE_EXHAUSTED", "inbox", "too many at once", 1, "too many at once"),
        ("UNAVAILABLE", "journal", "the disk is full", 1, "the disk is full"),
        ("INVALID_ARGUMENT", "", "'x' is no cell id", 2, "'x' is no cell id"),
        ("PERMISSION_DENIED", "role", "ada may not", 4, "ada may not"),
        ("UNAUTHENTICATED", "", "who are you?", 4, "who are you?"),
        ("INTERNAL", "", "boom", 1, "the call failed in the scheduler: boom"),
        ("UNIMPLEMENTED", "", "no call", 1, "the scheduler does not know this call: no call"),
    ],
)
def test_a_refusal_is_told_in_the_schedulers_words_and_by_exit_code(
    scheduler: Scheduler, status: str, rule: str, text: str, code: int, said_of_it: str
):
    scheduler.answers.refuse["CondemnCell"] = Refusal(grpc.StatusCode[status], text, rule)
    done = run(scheduler, "condemn", "web/0.1")
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.splitlines()[0] == f"Error: {said_of_it}"


def test_a_scheduler_that_is_not_there_is_told_with_its_address(scheduler: Scheduler):
    done = run(scheduler, "status", GALACTICA_SCHEDULER="127.0.0.1:1")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.splitlines() == [
        "Error: the scheduler at 127.0.0.1:1 is not reachable (Connection refused)",
        "Is it running? Start one here: galactica up. Is it on another machine? Use --scheduler HOST:PORT",
    ]


def test_the_option_goes_before_the_environment(scheduler: Scheduler):
    done = run(scheduler, "status", "--scheduler", scheduler.address, GALACTICA_SCHEDULER="127.0.0.1:1")
    assert said(done, 1)[0].startswith("fleet demo: NOT healthy")


def test_without_a_context_file_the_next_step_is_told(scheduler: Scheduler, tmp_path: Path):
    done = run(scheduler, "status", context=tmp_path / "none.json")
    assert (done.returncode, done.stdout) == (3, "")
    assert "galactica up" in done.stderr


def test_an_expired_certificate_is_told_as_such(scheduler: Scheduler, tmp_path: Path):
    file = scheduler.context_for("old", Role.ADMIN, tmp_path / "old.json", ttl_seconds=-1.0)
    done = run(scheduler, "status", context=file)
    assert done.returncode == 4
    assert "does not accept the certificate of old of fleet demo: the certificate expired at" in done.stderr


def test_a_certificate_from_another_ca_opens_nothing(scheduler: Scheduler, tmp_path: Path):
    other = CertificateAuthority.open_or_create(tmp_path / "ca", "other")
    stranger = context_of(other, scheduler.address, "eve", Role.ADMIN, 3_600.0)
    ours = read_context(scheduler.context_file)
    keep_context(tmp_path / "eve.json", replace(stranger, ca_pem=ours.ca_pem))
    done = run(scheduler, "status", context=tmp_path / "eve.json")
    assert (done.returncode, scheduler.answers.asked) == (4, [])
    assert "certificate in the context file is not from the fleet's CA" in done.stderr


def test_a_scheduler_of_another_fleet_is_not_believed(scheduler: Scheduler, tmp_path: Path):
    other = CertificateAuthority.open_or_create(tmp_path / "ca", "other")
    keep_context(tmp_path / "eve.json", context_of(other, scheduler.address, "eve", Role.ADMIN, 3_600.0))
    done = run(scheduler, "status", context=tmp_path / "eve.json")
    assert (done.returncode, scheduler.answers.asked) == (4, [])
    assert "is not the scheduler of fleet demo" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["delete", "web"], "service/web"),
        (["delete", "cronjob/web"], "cronjob/web"),
        (["storms", "release"], "ID"),
        (["wait", "service/web"], "--ready"),
        (["wait", "service/web", "--ready", "--timeout", "30"], "30s"),
        (["events", "--from", "3", "-n", "2"], "use either --from or --number"),
        (["cells", "-o", "yaml"], "yaml"),
        (["status", "--scheduler", "nowhere"], "HOST:PORT"),
        (["operator", "create", "bob"], "--role"),
        (["nonsense"], "nonsense"),
    ],
)
def test_wrong_usage_is_2_and_says_what_to_write(scheduler: Scheduler, arguments: list[str], text: str):
    done = run(scheduler, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert text in done.stderr
    assert scheduler.answers.asked == []


@pytest.mark.parametrize("arguments", [[], ["status"], ["apply"], ["wait"], ["token"], ["token", "create"]])
def test_help_tells_the_exit_codes(scheduler: Scheduler, arguments: list[str]):
    done = run(scheduler, *arguments, "--help")
    assert done.returncode == 0
    text = re.sub(r"\s+", " ", done.stdout)
    for part in (
        "0 done",
        "1 refused or failed",
        "2 wrong usage",
        "3 scheduler not reachable",
        "4 not authorised",
    ):
        assert part in text


def test_a_reader_that_goes_away_ends_the_command_quietly(scheduler: Scheduler):
    first = scheduler.answers.events[0]
    scheduler.answers.events = [
        operator_pb2.Event(position=n, at=NOW, type=first.type) for n in range(1, 20_001)
    ]
    with piped(scheduler, "events", "-n", "20000") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().split()[0] == b"1"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 0


def test_ctrl_c_ends_following_quietly_with_130(scheduler: Scheduler):
    with piped(scheduler, "events", "-f") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr.read() == b""


# --- on a terminal ----------------------------------------------------------------------------------------------------


class Terminal:
    """The program with a terminal of 120 columns and 40 lines around it."""

    def __init__(self, scheduler: Scheduler, *arguments: str, **more: str) -> None:
        self._own, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        terminal = environment(scheduler.context_file, TERM="xterm-256color", **more)
        self.process = begin(command(*arguments), terminal, ROOT, theirs, theirs, theirs)
        os.close(theirs)
        self.shown = ""

    def read_until(self, text: str | None) -> None:
        """Until ``text`` was shown; None: until the program ended."""
        deadline = time.monotonic() + 30
        while text is None or text not in self.shown:
            ready, _, _ = select.select([self._own], [], [], deadline - time.monotonic())
            assert ready, f"{text!r} was not shown, but {self.shown[-2000:]!r}"
            try:
                data = os.read(self._own, 65_536)
            except OSError:  # Linux says EIO where the other end is closed
                data = b""
            if not data:
                assert text is None, f"{text!r} was not shown, but {self.shown[-2000:]!r}"
                return
            self.shown += data.decode()

    def press(self, key: str) -> None:
        os.write(self._own, key.encode())

    def end(self) -> int:
        self.read_until(None)
        return self.process.wait(30)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._own)


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


def test_a_terminal_gets_colours(scheduler: Scheduler, terminals: list[Terminal]):
    terminals.append(Terminal(scheduler, "status"))
    assert terminals[0].end() == 1
    assert "\x1b[1;31mNOT healthy\x1b[0m" in terminals[0].shown


def test_no_color_is_honoured_on_a_terminal(scheduler: Scheduler, terminals: list[Terminal]):
    terminals.append(Terminal(scheduler, "cells", NO_COLOR="1"))
    assert terminals[0].end() == 0
    assert "web/0.1" in terminals[0].shown
    assert re.search(r"\x1b\[[0-9;]*3[0-7]", terminals[0].shown) is None


@pytest.mark.parametrize("ending", ["q", "Ctrl-C"])
def test_top_draws_until_q_or_ctrl_c_and_leaves_the_terminal_as_it_was(
    scheduler: Scheduler, terminals: list[Terminal], ending: str
):
    terminals.append(Terminal(scheduler, "top"))
    top = terminals[0]
    top.read_until("q or Ctrl-C closes this view")
    scheduler.answers.status = operator_pb2.GetStatusResponse(fleet="demo", healthy=True, groups=[WEB])
    top.read_until("3 cells ready")
    if ending == "q":
        top.press("q")
    else:
        top.process.send_signal(signal.SIGINT)
    assert top.end() == 0
    assert top.shown.count("\x1b[?1049h") == top.shown.count("\x1b[?1049l") == 1
    assert "Traceback" not in top.shown


def test_top_goes_on_when_the_scheduler_does_not_answer(scheduler: Scheduler, terminals: list[Terminal]):
    terminals.append(Terminal(scheduler, "top"))
    top = terminals[0]
    top.read_until("NOT healthy")
    scheduler.answers.refuse["GetStatus"] = Refusal(grpc.StatusCode.UNAVAILABLE, "no such luck", "journal")
    top.read_until("no such luck - showing the last answer; trying again")
    scheduler.answers.refuse.clear()
    scheduler.answers.status = operator_pb2.GetStatusResponse(fleet="demo", healthy=True, groups=[WEB])
    top.read_until("3 cells ready")
    top.press("q")
    assert top.end() == 0
