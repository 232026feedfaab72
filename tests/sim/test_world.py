"""What the simulated world itself must be like."""

from __future__ import annotations

import asyncio
from random import Random

from galactica.agent.core import instructions as instructions_core
from galactica.v1 import cell_pb2, link_pb2
from tests.sim import clock
from tests.sim.host import Body, Host
from tests.sim.network import Network


class Nobody:
    """No scheduler: nothing that a host says is heard."""

    def hello(self, host: Host, link: int, hello: instructions_core.SendHello) -> None: ...

    def report(self, host: Host, link: int, report: instructions_core.SendReport) -> None: ...

    def hung_up(self, host: Host, link: int) -> None: ...


def test_the_watchdog_of_a_frozen_host_with_two_exclusive_cells_plans_one_look_and_ends_both() -> None:
    ended: list[str] = []

    async def history() -> int:
        random = Random(1)
        host = Host("a", random, Network(random), Nobody(), lambda *_: None, ended.append, lambda _: None)
        spec = cell_pb2.Spec(exclusive=True, stop=cell_pb2.Stop(signal="SIGTERM", grace_ms=1_000))
        for cell in ("db/0.1", "db/1.1"):
            host.bodies[cell] = Body(link_pb2.Order(cell_id=cell, spec=spec))
        for _ in range(60):  # as long as its scheduler hears it
            host.remember_fence(host.now + 1.5)
            await asyncio.sleep(1.0)
        host.troubles.frozen_until = host.now + 10.0
        await asyncio.sleep(30.0)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, clock.VirtualLoop)
        return loop.work.most_waiting

    most_waiting = clock.run(history())
    assert sorted(ended) == ["db/0.1", "db/1.1"]
    assert most_waiting <= 2  # its look, and the end of this test
