"""What several files of this folder share."""

from collections.abc import AsyncIterator

import pytest

from galactica.agent.runtimes.process import limits as process_limits
from galactica.agent.runtimes.process.runtime import ProcessRuntime
from tests.support.process_cells import LIMITERS, agent_on, limiter_or_skip


@pytest.fixture(params=LIMITERS)
def limiter(request) -> process_limits.Limiter:
    return limiter_or_skip(request.param)


@pytest.fixture
async def runtime(tmp_path, limiter) -> AsyncIterator[ProcessRuntime]:
    async with agent_on(tmp_path / "cells", limiter=limiter) as it:
        yield it
