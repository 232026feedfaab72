"""How a value is written in a manifest: marks on the fields of the shapes, read by the generated reference.

The reading of manifests itself does not look at them. A test writes the value at each bound and beyond it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Written:
    """The type of a value, in words for people: ``duration``."""

    type: str


@dataclass(frozen=True, slots=True)
class Bounds:
    """The least and the greatest value, both allowed, as a manifest writes them."""

    least: str
    most: str


@dataclass(frozen=True, slots=True)
class Without:
    """What holds where the key is left out, where that is more than a value."""

    meaning: str


NEEDED = Without("required")
