"""Many quiet agents in one process, each with a certificate and an mTLS stream of its own, as the scheduler sees them.

``python -m tests.bench.crowd SCHEDULER ENROLMENT CA_FILE TOKEN COUNT`` says "attached" when all are, and beats as real
agents do when nothing happens: an empty report each second, with vitals in each tenth, until it is ended.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
from pathlib import Path

import grpc

from galactica.scheduler.security.ca import SCHEDULER_NAME, new_key_and_csr
from galactica.scheduler.wire.versions import OLDEST_WIRE_VERSION, WIRE_VERSION
from galactica.v1 import cell_pb2, link_pb2, link_pb2_grpc

AT_ONCE = 16
VITALS_EVERY = 10
_OPTIONS = [("grpc.ssl_target_name_override", SCHEDULER_NAME), ("grpc.use_local_subchannel_pool", 1)]


async def main(scheduler: str, enrolment: str, ca: bytes, token: str, count: int) -> None:
    door = asyncio.Semaphore(AT_ONCE)
    credentials = grpc.ssl_channel_credentials(ca)
    async with grpc.aio.secure_channel(enrolment, credentials, options=_OPTIONS) as channel:
        enrol = link_pb2_grpc.EnrolmentServiceStub(channel).Enrol
        calls = await asyncio.gather(
            *(_attach(scheduler, ca, enrol, token, f"crowd-{n:04}", door) for n in range(count))
        )
    print("attached", flush=True)
    async with asyncio.TaskGroup() as tasks:
        for channel, call, session, beat_seconds in calls:
            tasks.create_task(_beat(call, session, beat_seconds))
            tasks.create_task(_listen(channel, call))


async def _attach(scheduler, ca, enrol, token, name, door):
    async with door:
        key, csr = new_key_and_csr()
        identity = await enrol(link_pb2.EnrolRequest(token=token, server_id=name, csr_pem=csr))
        credentials = grpc.ssl_channel_credentials(ca, key, identity.certificate_pem)
        channel = grpc.aio.secure_channel(scheduler, credentials, options=_OPTIONS)
        call = link_pb2_grpc.AgentLinkServiceStub(channel).Attach()
        hello = link_pb2.Hello(
            wire_version=OLDEST_WIRE_VERSION,
            newest_wire_version=WIRE_VERSION,
            agent_version="0.1.0",
            runtimes=[cell_pb2.RUNTIME_KIND_PROCESS],
            capacity=cell_pb2.Capacity(cpu_millis=8_000, memory_bytes=2**34, disk_bytes=2**36),
            watch_address=f"127.0.0.1:{random.randrange(20_000, 60_000)}",
        )
        await call.write(link_pb2.AttachRequest(hello=hello))
        welcome = (await call.read()).welcome
        return channel, call, welcome.session, 1.0


async def _beat(call, session: str, beat_seconds: float) -> None:
    loop = asyncio.get_running_loop()
    at = loop.time() + random.uniform(0, beat_seconds)
    vitals = cell_pb2.Vitals(cpu_fraction=0.05, memory_fraction=0.2, disk_fraction=0.3, load_1m=0.4)
    offset = random.randrange(VITALS_EVERY)
    for sequence in itertools.count(1):
        await asyncio.sleep(max(0.0, at - loop.time()))
        at += beat_seconds
        told = {"vitals": vitals} if (sequence + offset) % VITALS_EVERY == 0 else {}
        report = link_pb2.Report(session=session, sequence=sequence, **told)
        await call.write(link_pb2.AttachRequest(report=report))


async def _listen(_channel: grpc.aio.Channel, call) -> None:
    """Also keeps the channel."""
    while await call.read() is not grpc.aio.EOF:
        pass
    raise ConnectionError(f"the scheduler ended a stream: {await call.details()}")


if __name__ == "__main__":
    _, scheduler_address, enrolment_address, ca_file, join_token, number = sys.argv
    asyncio.run(
        main(scheduler_address, enrolment_address, Path(ca_file).read_bytes(), join_token, int(number))
    )
