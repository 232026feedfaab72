"""What tests of the agents' link ask for again and again."""

import grpc
import pytest

from galactica.scheduler.link.session import LinkLimits

Code = grpc.StatusCode


def limited(**limits):
    return pytest.mark.parametrize("world", [LinkLimits(**limits)], indirect=True, ids=["limited"])


def observed(world, kind):
    return [one for one in world.mind.observed if isinstance(one, kind)]
