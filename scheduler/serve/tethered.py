"""``python -m galactica.scheduler.serve.tethered PARENT COMMAND …``: become COMMAND, and get SIGTERM when PARENT ends.

So ``galactica up`` never leaves a forgotten agent behind, even after ``kill -9``. Linux only (``PR_SET_PDEATHSIG``,
which survives the exec; see prctl(2)).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # the parent ended before the prctl call
        sys.exit(1)
    os.execv(command[0], command)  # noqa: S606 - replaces this process; no shell


if __name__ == "__main__":
    main()
