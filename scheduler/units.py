"""Reads and writes durations and amounts of memory in the form that people use. Pure, and quick to import."""

from __future__ import annotations

import re

_DURATION = re.compile(r"(?P<number>\d{1,12}(\.\d{1,6})?)(?P<unit>[A-Za-zµ]*)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_LONG_UNITS = {
    "sec": "s",
    "secs": "s",
    "second": "s",
    "seconds": "s",
    "min": "m",
    "mins": "m",
    "minute": "m",
    "minutes": "m",
    "hr": "h",
    "hour": "h",
    "hours": "h",
    "day": "d",
    "days": "d",
    "msec": "ms",
    "millis": "ms",
}

_MEMORY = re.compile(r"(?P<number>\d{1,12}(\.\d{1,6})?)(?P<unit>[A-Za-z]*)")
_BYTES = {
    "B": 1,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_BINARY = ("TiB", "GiB", "MiB", "KiB")


def parse_duration(text: str) -> float:
    """Seconds: ``500ms``, ``1s``, ``1.5m``, ``2h``, ``30d``; exact to the millisecond.

    Raises ValueError with a message that says what to write instead."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(
            f"invalid duration {text!r}: write a number and ms, s, m, h or d, for example 500ms or 2m"
        )
    number, unit = match["number"], match["unit"]
    if unit not in _SECONDS:
        meant = _LONG_UNITS.get(unit.lower(), unit.lower() if unit.lower() in _SECONDS else "s")
        problem = f"unknown unit {unit!r}" if unit else f"{text!r} has no unit"
        raise ValueError(f"{problem}; write ms, s, m, h or d, for example {number}{meant}")
    milliseconds = float(number) * _SECONDS[unit] * 1_000
    if abs(milliseconds - round(milliseconds)) > 1e-6:
        raise ValueError(f"{text!r} is not a whole number of milliseconds")
    return round(milliseconds) / 1_000


def parse_memory(text: str) -> int:
    """Bytes: ``64MiB``, ``1GiB`` (powers of 1024), ``64M``, ``64MB`` (powers of 1000), ``512B``.

    Raises ValueError with a message that says what to write instead."""
    match = _MEMORY.fullmatch(text)
    if match is None:
        raise ValueError(
            f"invalid amount of memory {text!r}: write a number and a unit, for example 64MiB or 1GiB"
        )
    number, unit = match["number"], match["unit"]
    if unit not in _BYTES:
        problem = f"unknown unit {unit!r}" if unit else f"{text!r} has no unit"
        raise ValueError(f"{problem}; write KiB, MiB or GiB, for example {number}{_meant_unit(unit)}")
    amount = float(number) * _BYTES[unit] if "." in number else int(number) * _BYTES[unit]
    return round(amount)


def _meant_unit(unit: str) -> str:
    first = unit[:1].upper()
    return f"{first}iB" if first in {"K", "M", "G", "T"} else "MiB"


def format_duration(seconds: float) -> str:
    """For people, one or two units: ``500ms``, ``12s``, ``3m 5s``, ``2h 10m``, ``4d 1h``."""
    if seconds < 0:
        return f"-{format_duration(-seconds)}"
    if 0 < seconds < 1:
        return f"{max(1, round(seconds * 1_000))}ms"
    if seconds < 10:
        return f"{seconds:.1f}".rstrip("0").rstrip(".") + "s"
    whole = round(seconds)
    days, rest = divmod(whole, 86_400)
    hours, rest = divmod(rest, 3_600)
    minutes, rest = divmod(rest, 60)
    parts = [(days, "d"), (hours, "h"), (minutes, "m"), (rest, "s")]
    first = next((index for index, (amount, _) in enumerate(parts) if amount), len(parts) - 1)
    return " ".join(f"{amount}{unit}" for amount, unit in parts[first : first + 2] if amount) or "0s"


def format_bytes(amount: float) -> str:
    """For people: ``64 MiB``, ``1.5 GiB``."""
    for unit in _BINARY:
        if amount >= _BYTES[unit]:
            return f"{amount / _BYTES[unit]:.1f}".removesuffix(".0") + f" {unit}"
    return f"{amount:.0f} B"
