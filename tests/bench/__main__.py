"""``python -m tests.bench [--write] [--seconds N] [--calm N] [--hour] [NAME…]``: measure and print the table."""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import sys
from pathlib import Path

os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from tests.bench.table import BEGIN, END, Row, show, write_into

NAMES = ("core", "journal", "agent", "heal", "death", "calm", "watch")
PAGE = Path(__file__).parents[2] / "docs" / "numbers.md"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to measure: {', '.join(NAMES)} (all)")
    parser.add_argument(
        "--write", action="store_true", help="put the table into docs/numbers.md, between its marks"
    )
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="how long to watch the agent's processor share (60; 3600)"
    )
    parser.add_argument(
        "--calm", type=float, default=180.0, metavar="SECONDS", help="how long loss and stalls last (180)"
    )
    parser.add_argument("--hour", action="store_const", const=3_600.0, dest="calm", help="that, for an hour")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"no such measurement: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    rows = [row for name in arguments.names or NAMES for row in _measure(name, arguments)]
    show(rows)
    if arguments.write and not write_into(PAGE, rows):
        print(f"{PAGE} has no lines {BEGIN} and {END}; the table was not written", file=sys.stderr)
        return 1
    return 0


def _measure(name: str, arguments: argparse.Namespace) -> list[Row]:
    print(f"measuring {name} …", file=sys.stderr, flush=True)
    run = importlib.import_module(f"tests.bench.{name}").run
    times = {"seconds": arguments.seconds, "calm_seconds": arguments.calm}
    taken = {key: value for key, value in times.items() if key in inspect.signature(run).parameters}
    return [Row(*row) for row in run(**taken)]


if __name__ == "__main__":
    sys.exit(main())
