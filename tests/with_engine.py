"""Run a command beside a Docker Engine: ``python -m tests.with_engine pytest tests/integration``.

An engine that runs is used as it is. Else one is started, named to the command by ``DOCKER_HOST``, and stopped when
the command ends, however it ends. What the command leaves on the machine is named and removed. Exits with the command's
code; 1 where no engine can be had, or where a command that ended well has left something. With ``--tell`` as the first
word what is left is only told and removed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.support.engine import NoEngine, an_engine, configured_host
from tests.support.leftovers import Watch, reap_until_end_of

if TYPE_CHECKING:
    from types import FrameType

_GRACE_SECONDS = 30.0


class _Ended(Exception):
    """We were asked to end."""


def main(command: list[str]) -> int:
    is_strict = command[:1] != ["--tell"]
    command = command if is_strict else command[1:]
    if not command:
        print(__doc__, file=sys.stderr)
        return 2
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    watch = Watch()
    watch.begin()
    try:
        with an_engine() as host:
            watch.spare_what_is_there(host if host != configured_host() else "")
            return _run_and_look(command, host, watch, is_strict=is_strict)
    except NoEngine as missing:
        print(f"with_engine: {missing}", file=sys.stderr)
        return 1
    except _Ended as ended:
        return 128 + int(ended.args[0])


def _end(number: int, _frame: FrameType | None) -> None:
    # Once is enough: what follows is the clean-up, which must not be cut short.
    for again in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(again, signal.SIG_IGN)
    raise _Ended(number)


def _run_and_look(command: list[str], host: str, watch: Watch, *, is_strict: bool) -> int:
    try:
        code = _run(command, host)
        left = watch.found()
    finally:
        watch.remove()
    for line in left:
        print(f"with_engine: the command has left {line}", file=sys.stderr)
    return code or (1 if left and is_strict else 0)


def _run(command: list[str], host: str) -> int:
    process = subprocess.Popen(command, env=os.environ | {"DOCKER_HOST": host}, restore_signals=True)
    try:
        return reap_until_end_of(process)
    except _Ended:
        # Like Ctrl-C, so that the tests take down what they have made.
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
