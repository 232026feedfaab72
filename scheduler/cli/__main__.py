"""The entry point: runs the app, and turns every error into an exit code and a message, never a traceback."""

from __future__ import annotations

import gc
import os
import sys
import traceback

from galactica.scheduler.cli.app import build
from galactica.scheduler.cli.output import OutputLost, safe
from galactica.scheduler.settings.errors import CommandFailed, ExitCode
from galactica.scheduler.settings.streams import open_standard_streams


def main() -> None:
    """Never returns: raises SystemExit."""
    open_standard_streams()
    try:
        build()(prog_name="galactica")
    except CommandFailed as failed:
        _complain(str(failed), failed.hint)
        sys.exit(failed.code)
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitCode.DONE)
    except OutputLost as lost:
        _complain(str(lost.strerror), "")
        sys.exit(ExitCode.FAILED)
    except ModuleNotFoundError:
        raise  # the caller knows which extra is missing
    except Exception as error:  # noqa: BLE001 - the outermost edge: an unexpected error becomes a message too
        last = traceback.extract_tb(error.__traceback__)[-1]
        _complain(
            f"internal error: {type(error).__name__}: {error} (in {last.name}, {last.filename}:{last.lineno})",
            "This is a bug in galactica. Please report it and include the line above.",
        )
        sys.exit(ExitCode.FAILED)
    finally:
        gc.freeze()  # all ends now: to look for garbage would take a fifth of a short command's time


def _complain(message: str, hint: str) -> None:
    lines = [f"Error: {safe(message)}"] + ([safe(hint)] if hint else [])
    start, end = (
        ("\033[1;31m", "\033[0m") if sys.stderr.isatty() and not os.environ.get("NO_COLOR") else ("", "")
    )
    text = "\n".join(lines).replace("Error:", f"{start}Error:{end}", 1)
    try:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
    except OSError:  # standard error is closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


if __name__ == "__main__":
    main()
