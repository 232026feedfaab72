"""``galactica wait``: it shows how far the group is, and gives up early where the spec is to blame."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Annotated

import typer

from galactica.scheduler.cli import group_texts, people
from galactica.scheduler.cli.arguments import Named, Scheduler, duration, named_group
from galactica.scheduler.cli.client import Client, DeadlinePassed, UnknownCall, connect
from galactica.scheduler.cli.output import Shown, Styled, safe, tell
from galactica.scheduler.settings.errors import CommandFailed
from galactica.scheduler.units import format_duration
from galactica.v1 import operator_pb2

LOOK_EVERY_SECONDS = 1.0
SAY_LIMIT_SECONDS = 30.0
"""Lines of progress that cannot be written over come at growing distances, up to this."""


def wait(
    group: Named,
    ready: Annotated[
        bool,
        typer.Option(
            "--ready", help="Wait until every cell has the newest revision, is ready, and has proven itself."
        ),
    ] = False,
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="DURATION", help="Maximum time to wait.")
    ] = "60s",
    scheduler: Scheduler = None,
) -> None:
    """Wait until a service or a pool is ready, with its progress on standard error. A new cell has to stay well for the
    time that its manifest says (healthy_for) first. Fails on a timeout, and as soon as the spec is to blame, and shows
    what holds the group back or what its cells died of."""
    kind, name = named_group(group)
    seconds = duration("--timeout", timeout)
    if not ready:
        raise typer.BadParameter("add what to wait for: --ready")
    progress = Progress()
    with connect(scheduler) as client:
        started = time.monotonic()
        request = operator_pb2.WaitReadyRequest(group=name, kind=kind)
        try:
            answer = client.ask_while(
                client.stub.WaitReady,
                request,
                seconds,
                lambda: _look(client, group, progress),
                LOOK_EVERY_SECONDS,
            )
        except DeadlinePassed as error:
            progress.end()
            raise _not_ready(client, group, f"after {format_duration(seconds)}") from error
        finally:
            progress.end()
        took = format_duration(time.monotonic() - started)
    noun = "server" if kind == operator_pb2.GROUP_KIND_POOL else "cell"
    found = answer.group
    tell(f"{name}: {people.counted(found.ready, noun)} ready, revision {found.revision} (after {took})")


class Progress:
    """One line on a terminal, written over again and again. Elsewhere a line where something has changed, at growing
    distances."""

    def __init__(self) -> None:
        self._said = ""
        self._pause_seconds = LOOK_EVERY_SECONDS
        self._next_at = 0.0

    def say(self, text: str, now: float) -> None:
        if text == self._said:
            return
        if sys.stderr.isatty():
            self._write(f"\r\033[K{safe(text)}")
        elif now >= self._next_at:
            self._write(f"{safe(text)}\n")
            self._next_at = now + self._pause_seconds
            self._pause_seconds = min(2 * self._pause_seconds, SAY_LIMIT_SECONDS)
        else:
            return
        self._said = text

    def end(self) -> None:
        """Take the line on the terminal away."""
        if self._said and sys.stderr.isatty():
            self._write("\r\033[K")
        self._said = ""

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()


def _look(client: Client, written: str, progress: Progress) -> None:
    """Raises CommandFailed where the spec is to blame."""
    with contextlib.suppress(UnknownCall, DeadlinePassed):
        answer = _ask(client, written)
        progress.say(group_texts.progress(answer), time.monotonic())
        if answer.blamed:
            progress.end()
            raise _failure(f"{written} will not become ready: {answer.blamed}", answer, client.now)


def _ask(client: Client, written: str) -> operator_pb2.GetGroupResponse:
    kind, name = named_group(written)
    return client.ask(client.stub.GetGroup, operator_pb2.GetGroupRequest(group=name, kind=kind))


def _not_ready(client: Client, written: str, waited: str) -> CommandFailed:
    """The error with the group's current status. ``written``: the argument, for example service/web."""
    answer = _ask(client, written)
    message = f"{written} is not ready {waited}: {group_texts.counts(answer)}"
    return _failure(message, answer, client.now)


def _failure(message: str, answer: operator_pb2.GetGroupResponse, now: float) -> CommandFailed:
    """With what is held, and the newest autopsy of the newest revision."""
    lines = [message, *(f"  {people.hold_text(hold, now)}" for hold in answer.held)]
    death = next((one for one in answer.deaths if one.cell.revision == answer.group.revision), None)
    if death is not None:
        lines += ["".join(map(_plain, parts)) for parts in group_texts.death_lines(death)]
    group = answer.group
    return CommandFailed("\n".join(lines), hint=f"More about it: galactica why {group.kind}/{group.name}")


def _plain(shown: Shown) -> str:
    return shown.text if isinstance(shown, Styled) else shown
