"""What every test may ask for: a real Docker Engine and images to make cells from."""

from __future__ import annotations

import fcntl
import gc
from typing import TYPE_CHECKING

import pytest

from tests.support.engine import (
    HELLO_1,
    HOW_TO_GET_AN_ENGINE,
    NoEngine,
    answers,
    configured_host,
    import_hello_images,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    """Tests that use the engine carry the ``docker`` mark, and few of them run beside each other: many would only wait
    for the engine. A test may choose another group by an ``xdist_group`` mark of its own.
    """
    for item in items:
        if "engine" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.docker)
            if item.get_closest_marker("xdist_group") is None:
                item.add_marker(pytest.mark.xdist_group(_group_of(item)))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is loaded stays until the end, so no search for garbage has to look through it, now or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def _group_of(item: pytest.Item) -> str:
    """Whole fleets wait for their cells while the runtime's own tests keep the engine busy."""
    return "engine of fleets" if "e2e" in item.path.parts else "engine"


@pytest.fixture(scope="session")
def engine() -> str:
    """The engine's address, as ``DOCKER_HOST`` has it. Where none answers the test fails; it is not skipped."""
    host = configured_host()
    if not answers(host):
        pytest.fail(f"no Docker Engine answers at {host}: {HOW_TO_GET_AN_ENGINE}", pytrace=False)
    return host


@pytest.fixture(scope="session")
def busybox_image(engine: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """``HELLO_1``, and ``HELLO_2`` beside it: see ``tests.support.engine.import_hello_images``."""
    # Workers share the parent of their directories; the first one makes the images, the others wait for it.
    with (tmp_path_factory.getbasetemp().parent / "hello-images.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            import_hello_images(engine)
        except NoEngine as missing:
            pytest.fail(str(missing), pytrace=False)
    return HELLO_1
