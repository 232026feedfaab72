"""Work that may never end holds up nobody, and is begun once at a time."""

import asyncio

import pytest

from galactica.agent.fencing.patience import Patience


class Work:
    def __init__(self) -> None:
        self.begun = 0
        self.may_end = asyncio.Event()

    async def do(self) -> int:
        self.begun += 1
        number = self.begun
        await self.may_end.wait()
        if number == 2:
            raise OSError("the second fails")
        return number


async def test_who_asks_does_not_wait_for_work_that_hangs() -> None:
    work = Work()
    patience = Patience(work.do)
    assert [await patience.result() for _ in range(5)] == [None] * 5
    assert work.begun == 1


async def test_each_result_is_told_once_and_an_error_too() -> None:
    work = Work()
    patience = Patience(work.do)
    assert await patience.result() is None
    work.may_end.set()
    await asyncio.sleep(0)
    assert await patience.result() == 1
    with pytest.raises(OSError, match="the second fails"):
        await patience.result()
    assert await patience.result() == 3
