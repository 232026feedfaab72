"""What readers of the journal are fed: every record, whenever it becomes durable."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random

from galactica.scheduler.controller import Controller, load
from galactica.scheduler.core.model.commands import Command, ProviderCommand
from galactica.scheduler.core.model.events import Record
from galactica.scheduler.core.model.requests import Asker, CreateToken
from galactica.scheduler.core.turns import Start
from tests.sim import clock
from tests.sim.journal import Disk, SimJournal


class Nobody:
    def send(self, commands: Sequence[Command] | Sequence[ProviderCommand]) -> None:
        """Nobody is there to be told."""


class RacingJournal(SimJournal):
    """While it reads, and finds nothing yet, the very record that is waited for becomes durable."""

    controller: Controller | None = None

    async def read(self, from_position: int, limit: int) -> tuple[Record, ...]:
        found = await super().read(from_position, limit)
        controller, self.controller = self.controller, None
        if controller is not None:
            await controller.ask(CreateToken("t", "0" * 64, 1, 2_000_000_000.0), Asker.operator("ann"))
        return found


async def fed() -> list[int]:
    journal = RacingJournal(Disk(Random(1), lambda _: None))
    controller = Controller(journal, load(journal), clock.VirtualClock(), Start(journal.epoch, "test"))
    running = asyncio.get_running_loop().create_task(controller.run(Nobody(), Nobody()))
    while controller.fleet().position < 1:
        await asyncio.sleep(0.1)
    journal.controller = controller
    positions = []
    async with asyncio.timeout(60):
        async for records in controller.feed(2):
            positions += [record.position for record in records]
            break
    running.cancel()
    await asyncio.wait({running})
    return positions


def test_a_record_that_becomes_durable_while_a_reader_looks_is_not_passed_over() -> None:
    found: list[list[int]] = []

    async def main() -> None:
        found.append(await fed())

    clock.run(main())
    assert found == [[2]]
