"""What tests of the operators' calls ask for again and again."""

import grpc
import pytest
from msgspec.structs import replace

from galactica.scheduler.wire.operator import group_to_proto
from galactica.v1 import operator_pb2
from tests.support.link_world import LIMIT_SECONDS

Code = grpc.StatusCode


def groups(*wanted):
    return [group_to_proto(group) for group in wanted]


async def apply(operator, *wanted):
    return await operator.ApplyGroups(
        operator_pb2.ApplyGroupsRequest(groups=groups(*wanted)), timeout=LIMIT_SECONDS
    )


def proven_at_once(wanted):
    """The group, whose cells are proven by the first word of their agent after that which made them READY."""
    return replace(wanted, healthy_for_seconds=0.0)


async def wait_ready(operator, name="web"):
    return await operator.WaitReady(operator_pb2.WaitReadyRequest(group=name), timeout=LIMIT_SECONDS)


async def refusal(call):
    """Code, message and rule of a refused call."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    error = refused.value
    return error.code(), error.details(), dict(error.trailing_metadata() or ()).get("galactica-refusal")
