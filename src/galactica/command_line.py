"""The ``galactica`` command. It names the missing extra where only the agent's needs are installed.

``pip install galactica`` alone brings what an agent needs. The command line and the scheduler need more, so nothing of
theirs is imported before this module has taken over.
"""

from __future__ import annotations

import sys
from typing import Never

EXIT_FAILED = 1


def main() -> Never:
    """Always ends with SystemExit. A defect inside Galactica itself stays a traceback."""
    try:
        from galactica.scheduler.cli.__main__ import main as galactica  # noqa: PLC0415 - its needs may be missing

        galactica()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in {"", "galactica"}:
            raise
        sys.stderr.write(
            f"Error: the scheduler and the command line need the Python package '{missing}'\n"
            "Install them with their needs: pip install 'galactica[scheduler]'\n"
        )
    sys.exit(EXIT_FAILED)
