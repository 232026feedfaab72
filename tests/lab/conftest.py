"""One lab for all of these tests: four hosts that nothing ever happens to, and for each test a pool of its own.

The four are the witnesses, and whatever a test does must not cost one of them, nor one of their cells.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.lab import Lab, a_lab
from tests.support.processes import pids

BYSTANDERS = 4


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All on one worker, so that there is one lab."""
    for item in items:
        if "lab" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.root)
            item.add_marker(pytest.mark.xdist_group("lab"))


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    with a_lab() as lab:
        lab.pool("bystander", BYSTANDERS)
        lab.service("bystander", BYSTANDERS)
        yield lab


@pytest.fixture(autouse=True)
def bystanders_are_spared(lab: Lab) -> Iterator[None]:
    before, position = pids(lab.fleet.cells("bystander-web")), lab.fleet.position()
    pools = list(lab.pools)
    yield
    lab.switch.drop_nothing()
    assert [one for one in lab.condemned(position) if one.startswith("bystander")] == []
    cells = lab.fleet.cells("bystander-web")
    assert pids(cells) == before
    assert lab.alive(cells) == list(before)
    lab.let_go(*(pool for pool in lab.pools if pool not in pools))
