"""The command line as a process, beside a scheduler that a test plays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from galactica.v1 import operator_pb2
from tests.support.forked import run_command_line
from tests.support.operator_service import Scheduler

NOW = 1_800_000_000.25

WEB = operator_pb2.GroupStatus(kind="service", name="web", wanted=3, ready=3, revision=2)


def environment(context: Path, **more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {**kept, "GALACTICA_CONTEXT": str(context), "TZ": "UTC", **more}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "galactica.scheduler.cli", *arguments]


def run(
    scheduler: Scheduler, *arguments: str, context: Path | None = None, stdin: str = "", **more: str
) -> subprocess.CompletedProcess[str]:
    """The program as a process. That it never shows a traceback is checked of every run."""
    done = run_command_line(arguments, environment(context or scheduler.context_file, **more), stdin)
    assert "Traceback" not in done.stderr + done.stdout
    return done


def said(done: subprocess.CompletedProcess[str], code: int = 0) -> list[str]:
    assert (done.returncode, done.stderr) == (code, "")
    return done.stdout.splitlines()


def read_json(done: subprocess.CompletedProcess[str], code: int = 0) -> object:
    assert (done.returncode, done.stderr) == (code, "")
    return json.loads(done.stdout)
