"""``python -m scheduler.tethered PARENT COMMAND …``: become COMMAND, which is asked to end when PARENT ends.

So no end of ``galactica up``, not even by ``kill -9``, leaves an agent behind that nobody knows of. Linux only
(``PR_SET_PDEATHSIG``, which survives the exec; see prctl(2)).
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
    if os.getppid() != parent:  # it ended before we asked to be told
        sys.exit(1)
    os.execv(command[0], command)  # noqa: S606 - replaces this process; no shell


if __name__ == "__main__":
    main()
