"""The table of numbers: rows, the machine that they come from, and the page that shows them."""

from __future__ import annotations

import datetime as dt
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import docker.errors
import psutil
import requests.exceptions
from rich.console import Console
from rich.table import Table

from tests.support.engine import client_of, configured_host

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
_HEADINGS = ("what", "measured", "target", "beside it, in the same run")


class Row(NamedTuple):
    """``reference``: what the figure is to be compared with, measured in the same run."""

    name: str
    figure: str
    target: str = ""
    reference: str = ""


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds >= 0.1 else f"{seconds * 1e3:.2g} ms"


def median_and_worst(seconds: Sequence[float]) -> str:
    return f"median {milliseconds(statistics.median(seconds))}, worst {milliseconds(max(seconds))}"


def machine() -> str:
    """One line: processor, cores, memory, kernel, Python, engine, day."""
    parts = [
        _processor(),
        f"{os.cpu_count()} cores",
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        f"Linux {platform.release()}",
        f"Python {platform.python_version()}",
        _engine(),
        dt.datetime.now(dt.UTC).date().isoformat(),
    ]
    return ", ".join(parts)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _engine() -> str:
    try:
        client = client_of(configured_host(), timeout_seconds=5)
    except (docker.errors.DockerException, requests.exceptions.RequestException):
        return "no Docker Engine"
    version = client.version()["Version"]
    client.close()
    return f"Docker Engine {version}"


def show(rows: Sequence[Row]) -> None:
    table = Table(*_HEADINGS, caption=machine(), caption_justify="left")
    for row in rows:
        table.add_row(*row)
    Console(width=None if os.isatty(1) else 160).print(table)


def markdown(rows: Sequence[Row]) -> str:
    lines = [_line(_HEADINGS), _line(["---"] * len(_HEADINGS)), *(_line(row) for row in rows)]
    return "\n".join([*lines, "", f"Measured by `make bench` on: {machine()}."])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def write_into(page: Path, rows: Sequence[Row]) -> bool:
    """Put the table between the markers. False where there is no such file, or it has no markers."""
    text = page.read_text() if page.exists() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        return False
    page.write_text(f"{before}{BEGIN}\n{markdown(rows)}\n{END}{after}")
    return True
