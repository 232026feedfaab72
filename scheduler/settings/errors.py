"""Exit codes, and the exception that ends a command with one."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    DONE = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    UNAUTHORISED = 4
    INTERRUPTED = 130


EXIT_CODES = (
    "Exit codes: 0 done; 1 refused or failed; 2 wrong usage or invalid manifest; 3 scheduler not reachable; "
    "4 not authorised; 130 interrupted by Ctrl-C."
)


class CommandFailed(Exception):
    """The message says what is wrong and where; ``hint`` says what to do next."""

    def __init__(self, message: str, code: ExitCode = ExitCode.FAILED, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint
