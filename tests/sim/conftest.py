"""How the simulator's tests go with the others: at once, on one worker, and giving way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
GIVES_WAY = 5


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One group, which is among the first that begin: they only compute, while most others mostly wait."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("sim"))


@pytest.fixture(autouse=True)
def gives_way() -> Iterator[None]:
    """What is timed beside it comes first. Only root may take a lower priority back."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    if os.geteuid() != 0:
        yield
        return
    os.setpriority(os.PRIO_PROCESS, 0, max(before, GIVES_WAY))
    yield
    os.setpriority(os.PRIO_PROCESS, 0, before)
